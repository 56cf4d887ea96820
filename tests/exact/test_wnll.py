"""WNLL held to its equation: closed forms, a sparse solve, the maximum principle, and every gradient against differences."""

import numpy as np
import pytest
import torch
from conftest import PARAMS
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import spsolve
from scipy.spatial import cKDTree
from small import classifier, few, method
from torch.nn.functional import cross_entropy, one_hot

from basin.config import params
from basin.errors import Mistake
from basin.methods.heads import wnll
from basin.models.interpolation import alone, dense, graph, harmonic, neighbours
from basin.models.substitutes import differentiating
from basin.training import optimise

K, RANK, M, C = 6, 3, 40, 4
WNLL = {"kind": "wnll", "width": 16, "template": 60}
SCHEDULES = {"linear": {"epochs": 2, "rate": 0.01}, "interpolation": {"epochs": 2, "rate": 0.003}}


def cloud(n: int, seed: int = 0, d: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points [n, d], a template [M, d] and its labels [M, C] of four classes that overlap, in double precision."""
    draw = torch.Generator().manual_seed(seed)
    labels, centres = torch.arange(M) % C, torch.randn(C, d, generator=draw, dtype=torch.float64)
    x = torch.randn(n, d, generator=draw, dtype=torch.float64)
    return x, centres[labels] + torch.randn(M, d, generator=draw, dtype=torch.float64), one_hot(labels, C).double()


def apart(x: torch.Tensor, t: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """u of each point of x alone."""
    return alone(x, t, g, RANK, neighbours(t, K))


def solved(x: torch.Tensor, t: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """u of all points of x in one graph."""
    return harmonic(graph(torch.cat([t, x]), K, RANK), g)


def reference(x: np.ndarray, t: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The equation term by term: a k-d tree, a sparse matrix and a sparse solve."""
    points = np.concatenate([t, x])
    N, M = len(points), len(t)
    distances, near = (found[:, 1:] for found in cKDTree(points).query(points, K + 1))  # the first is the point itself
    w = np.exp(-((distances / distances[:, RANK - 1 : RANK]) ** 2))
    W = coo_matrix((w.ravel(), (np.repeat(np.arange(N), K), near.ravel())), shape=(N, N)).tocsr()
    S = (W + W.T).tolil()
    S[M:, :M] += (N / M - 1) * W.T[M:, :M]
    L = (diags(np.asarray(S.sum(1)).ravel()) - S).tocsr()
    return spsolve(L[M:, M:], -L[M:, :M] @ g)


# The equation -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 10, 80])
def test_the_joint_solve_is_that_of_scipy(n):
    x, t, g = cloud(n)
    wanted = reference(x.numpy(), t.numpy(), g.numpy())
    assert np.abs(solved(x, t, g).numpy() - wanted.reshape(n, C)).max() < 1e-5


@pytest.mark.parametrize(("k", "rank", "size"), [(K, RANK, M), (1, 1, M), (K, 1, M), (K, K, M), (M, 5, M), (M, M, M)])
def test_an_image_alone_is_the_one_equation_of_the_system(k, rank, size):
    """Image by image, with neighbours found again in a graph that it is part of; k of all the template included."""
    x, t, g = cloud(50)
    single = torch.cat([harmonic(graph(torch.cat([t, one]), k, rank), g) for one in x.split(1)])
    torch.testing.assert_close(alone(x, t, g, rank, neighbours(t, k)), single, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_a_path_between_two_labels_is_a_chain_of_resistances(n):
    """Conductance 2 between unlabelled neighbours, 1 + gamma at the ends: u is linear in the resistance from one end."""
    w = torch.zeros(n + 2, n + 2, dtype=torch.float64)
    order = torch.tensor([0, *range(2, n + 2), 1])  # the two ends come first
    w[order[1:], order[:-1]] = w[order[:-1], order[1:]] = 1
    end, inner = 1 / (1 + (n + 2) / 2), 1 / 2
    wanted = (end + inner * torch.arange(n, dtype=torch.float64)) / (2 * end + (n - 1) * inner)
    u = harmonic(w, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(u[:, 1], wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(u[:, 0], 1 - wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("u", [apart, solved, dense])
@pytest.mark.parametrize("state", ["in general", "on the template", "on one spot", "far away"])
def test_the_maximum_principle(u, state):
    """Rows sum to one and stay between the labels, where points coincide or no template image is near, too."""
    x, t, g = cloud(30)
    x, t = {"in general": (x, t), "on the template": (t, t), "on one spot": (0 * x, 0 * t), "far away": (x + 1e3, t)}[state]
    found = u(x, t, g)
    assert (found.sum(1) - 1).abs().max() < 1e-9
    assert found.min() >= -1e-12 and found.max() <= 1 + 1e-12


def test_the_logits_are_finite_log_probabilities(digits):
    model, (x, _) = classifier(head=WNLL), few(digits["test"], 50)
    logits = model(x)
    assert logits.isfinite().all() and logits.min() >= np.log(wnll.FLOOR / 10) - 1e-4
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(50))


# Gradients --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("u", [apart, solved, dense], ids=["alone", "joint", "soft"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_is_that_of_differences(u, seed):
    """In the points and in the template, sigma included."""
    x, t, g = cloud(5, seed)
    assert torch.autograd.gradcheck(lambda x, t: wnll.log_probabilities(u(x, t, g)), (x.requires_grad_(), t.requires_grad_()))


@pytest.mark.parametrize("transductive", [False, True])
def test_the_heads_gradient_is_that_of_differences(transductive):
    torch.manual_seed(0)
    head = wnll.Head(wnll.Params(k=K, rank=RANK, template=M, transductive=transductive), 8, C).double()
    z = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head, (z,))


@pytest.mark.parametrize("gradient", ["surrogate", "soft"])
@pytest.mark.parametrize("transductive", [False, True])
def test_a_substitute_changes_the_gradient_and_not_the_value(gradient, transductive, digits):
    model, (x, y) = classifier(head=WNLL | {"transductive": transductive}).eval(), few(digits["test"], 20)
    head, z = model.head, model.features(x).detach().requires_grad_()
    logits = head(z)
    with differentiating(model, gradient):
        torch.testing.assert_close(head(z), logits, rtol=1e-6, atol=1e-6)
        (g,) = torch.autograd.grad(cross_entropy(head(z), y), z)
    if gradient == "surrogate":
        path = head.linearly(z)
    else:
        t, labels = head.buffer(head.features).double(), one_hot(head.labels, 10).double()
        path = wnll.log_probabilities(dense(head.buffer(z).double(), t, labels))
    slope = (logits.softmax(1) - one_hot(y, 10)).detach() / len(y)  # of the cross-entropy, at the reported logits
    (wanted,) = torch.autograd.grad((path * slope).sum(), z)
    torch.testing.assert_close(g, wanted)
    assert (g - torch.autograd.grad(cross_entropy(head(z), y), z)[0]).abs().max() > 1e-4


def test_where_all_neighbours_agree_only_the_substitutes_have_a_gradient():
    draw = torch.Generator().manual_seed(0)
    head = wnll.Head(wnll.Params(k=K, rank=RANK, template=M), 8, 2)
    head.features = torch.randn(M, 8, generator=draw).abs() + 20 * head.labels[:, None]  # two classes, far apart
    z = head.features[:5].clone().requires_grad_()
    size = {}
    for gradient in head.gradients:
        with differentiating(head, gradient):
            size[gradient] = torch.autograd.grad(head(z).diff(dim=1).sum(), z)[0].abs().sum(1).min().item()
    assert size["exact"] == 0 < min(size["surrogate"], size["soft"])


# The batch, the template ------------------------------------------------------------------------------------------------------------------


def test_an_image_depends_on_its_batch_only_where_the_head_says_so(digits):
    x, _ = few(digits["test"], 40)
    for transductive in (False, True):
        model = classifier(head=WNLL | {"transductive": transductive}).eval()
        assert model.head.batch_dependent is transductive
        difference = (model(x)[:1] - model(x[:1])).abs().max()
        assert difference > 1e-3 if transductive else difference < 1e-5


def test_a_batch_of_one_is_the_same_in_both_modes(digits):
    x, _ = few(digits["test"], 1)
    one, other = (classifier(head=WNLL | {"transductive": transductive}).eval() for transductive in (False, True))
    torch.testing.assert_close(one(x), other(x), atol=1e-4, rtol=0)


def test_what_is_kept_of_the_template_follows_it(digits):
    """In inference mode or not, and after the template or the buffer has moved."""
    model, (x, _) = classifier(head=WNLL).eval(), few(digits["test"], 5)
    head = model.head
    with torch.inference_mode():
        model(x)
    for change in (lambda: None, lambda: head.features.neg_(), lambda: head.buffer[0].weight.mul_(2)):
        with torch.no_grad():
            change()
        kept = model(x)
        head.kept = None
        torch.testing.assert_close(model(x), kept, rtol=1e-6, atol=1e-6)
        assert kept.requires_grad
        kept.sum().backward()


def prepared(digits, **settings):
    """A classifier, the phases of its head, and the training images."""
    model = classifier(head=WNLL | settings)
    return model, wnll.phases(wnll.Schedules.model_validate(SCHEDULES), model, method("natural"), digits["train"])


def test_the_template_is_balanced_and_of_the_backbone_as_it_is(digits):
    model, _ = prepared(digits)
    head, train = model.head, digits["train"]
    assert torch.equal(head.labels, train.labels[head.index]) and len(head.index.unique()) == 60
    assert head.labels.bincount().tolist() == [6] * 10
    torch.testing.assert_close(head.features, model.features(train.floats(head.index)))
    with torch.no_grad():
        model.backbone.get_parameter(next(name for name, _ in model.backbone.named_parameters())).mul_(2)
    optimise.refresh(model, train)
    torch.testing.assert_close(head.features, model.features(train.floats(head.index)))


def test_a_class_that_runs_out_leaves_its_place_to_the_others():
    labels = torch.tensor([0] * 20 + [1] * 2 + [2] * 20)
    chosen = labels[wnll.choose(labels, 14, torch.Generator().manual_seed(0))]
    assert chosen.bincount().tolist() == [6, 2, 6]


@pytest.mark.parametrize(
    ("training", "settings"), [("natural", {"gradient": "surrogate"}), ("natural", {"transductive": True}), ("pgd", {})]
)
def test_both_phases_learn(training, settings, digits, trained, tmp_path):
    model = classifier(head=WNLL | settings)
    model.backbone.load_state_dict(trained.backbone.state_dict())
    phases = wnll.phases(wnll.Schedules.model_validate(SCHEDULES), model, method(training), digits["train"])
    history = optimise.run(model, phases, digits["train"], lambda: 0.0, (0, "x"), tmp_path / "c.safetensors")
    losses = [row["loss"] for row in history]
    assert losses[1] < losses[0] and losses[3] < losses[2]
    x, y = few(digits["test"], 200)
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.85


def test_loops_alternate_the_phases(digits):
    plan = SCHEDULES | {"interpolation": SCHEDULES["interpolation"] | {"loops": 2}}
    model = classifier(head=WNLL)
    phases = wnll.phases(wnll.Schedules.model_validate(plan), model, method("natural"), digits["train"])
    assert [phase.name for phase in phases] == ["linear", "interpolation", "linear 2", "interpolation 2"]


# Mistakes ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("template: 14", r"head\.a\.head\.template: a template smaller than k \(got 14\)\. Give 15 or more\."),
        ("k: 4", r"head\.a\.head\.rank: larger than k \(got 8\)\. Give 1 to 4\."),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings, text, tmp_path):
    entry = (
        f"head: {{a: {{from: backbone/natural, head: {{kind: wnll, {settings}}}, training: {{kind: natural}}, schedule: {SCHEDULES}}}}}\n"
    )
    (tmp_path / "params.yaml").write_text(PARAMS + entry)
    with pytest.raises(Mistake, match=text):
        params.load(tmp_path / "params.yaml")


def test_a_template_that_does_not_fit_the_data_is_refused(digits):
    with pytest.raises(Mistake, match=r"head.template: smaller than the number of classes \(got 9\). Give 10 or more."):
        classifier(head=WNLL | {"k": 8, "template": 9})
    with pytest.raises(Mistake, match=r"head.template: larger than the training split \(got 5000\). Give \d+ or less."):
        prepared(digits, template=5000)
    model, _ = prepared(digits)
    with pytest.raises(Mistake, match=r"head.template: holds more images, or others, than .* \(got image \d+ of 100\). Lower template"):
        optimise.refresh(model, digits["train"].take(torch.arange(100)))


def test_a_batch_whose_known_share_is_smaller_than_k_is_refused(digits):
    plan = SCHEDULES | {"interpolation": {"epochs": 1, "batch": 18}}
    with pytest.raises(Mistake, match=r"schedule.interpolation.batch: .* the k = 15 neighbours of a point \(got 18\). Raise it, or lower"):
        wnll.phases(wnll.Schedules.model_validate(plan), classifier(head=WNLL), method("natural"), digits["train"])
