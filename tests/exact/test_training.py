"""Training losses against their equations."""

import pytest
import small
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from basin.config import kinds
from basin.errors import Mistake
from basin.evaluation import certificate
from basin.methods.attacks import pgd
from basin.methods.training import alp, fast, free, lmt, mart, natural, trades, yopo
from basin.models.lipschitz import between
from basin.threat.ball import TOLERANCE, ThreatModel
from basin.threat.target import Target, gradient
from basin.training import phase

L2 = ThreatModel(norm="l2", eps=0.5)
balls = pytest.mark.parametrize("ball", [small.BALL, L2], ids=str)


def drawn(n=12):
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, 1, 8, 8, generator=g), torch.randint(10, (n,), generator=g)
    return small.classifier().eval(), x, y


def precise(n=12):
    """In float64: of two ways to compute a gradient the signs then agree, whatever kernels a machine has."""
    network, x, y = drawn(n)
    return network.double(), x.double(), y


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def seeded():
    return torch.Generator().manual_seed(1)


def test_trades_without_its_second_term_is_natural_training():
    network, x, y = precise()
    close(
        trades.loss(trades.Params(beta=0.0), network, x, y, small.BALL, seeded()),
        natural.loss(natural.Params(), network, x, y, small.BALL, seeded()),
    )


def test_trades_is_its_equation():
    network, x, y = drawn()
    params = trades.Params(beta=3.0, steps=4)
    moved = trades.ascend(params, network, x, small.BALL, seeded())
    p, q = network(x).softmax(1), network(moved).softmax(1)
    by_hand = cross_entropy(network(x), y) + 3.0 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(trades.loss(params, network, x, y, small.BALL, seeded()), by_hand, atol=1e-6)


def test_trades_climbs_the_divergence_inside_the_ball():
    network, x, _ = drawn()
    z = network(x)
    moved = trades.ascend(trades.Params(), network, x, small.BALL, seeded())
    random = small.BALL.random_point(x, seeded())
    assert (small.BALL.distance(moved, x) <= small.BALL.eps + TOLERANCE).all()
    assert (trades.divergence(z, network(moved)) > 2 * trades.divergence(z, network(random))).all()


def test_mart_is_its_equation():
    network, x, y = drawn()
    params = mart.Params.model_validate({"lambda": 5.0, "steps": 3})
    moved = pgd.ascend(pgd.Params(steps=3, step=params.step), Target(network, small.BALL), x, y, seeded())
    p, q = network(x).softmax(1), network(moved).softmax(1)
    rows = torch.arange(len(y))
    others = q.clone()
    others[rows, y] = 0
    by_hand = -q[rows, y].log() - (1 - others.amax(1)).log() + 5.0 * (p * (p / q).log()).sum(1) * (1 - p[rows, y])
    assert torch.allclose(mart.loss(params, network, x, y, small.BALL, seeded()), by_hand.mean(), atol=1e-5)


def test_mart_is_finite_where_the_network_is_sure_of_another_class():
    """By 40 and more, the others' probability is none in float32 beside 1; its logarithm is minus their distance."""
    z = torch.tensor([[0.0, 40.0, -5.0], [3.0, 0.0, 90.0]], requires_grad=True)
    y, network = torch.tensor([0, 1]), lambda x: z + 0 * x.flatten(1).sum(1, keepdim=True)
    loss = mart.loss(mart.Params.model_validate({"lambda": 0.0}), network, torch.full((2, 1, 2, 2), 0.5), y, small.BALL, seeded())
    (g,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(loss.item(), (40 + 40 + 90 + 87) / 2, atol=0.1, rtol=0)
    assert g.isfinite().all() and g[0].argmax() == 1 and g[1].argmax() == 2


def test_alp_is_its_equation():
    network, x, y = drawn()
    params = alp.Params.model_validate({"lambda": 0.7, "steps": 3})
    moved = pgd.ascend(pgd.Params(steps=3, step=params.step), Target(network, small.BALL), x, y, seeded())
    z, z_moved = network(x), network(moved)
    pairing = ((z - z_moved) ** 2).sum(1).mean() / 10
    assert pairing > 0
    by_hand = (cross_entropy(z, y) + cross_entropy(z_moved, y)) / 2 + 0.7 * pairing
    assert torch.allclose(alp.loss(params, network, x, y, small.BALL, seeded()), by_hand, atol=1e-6)


def test_fast_takes_one_step_from_a_random_start():
    network, x, y = precise()
    start = small.BALL.random_point(x, seeded()).requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(network(start), y, reduction="sum"), start)
    moved = small.BALL.project(start.detach() + 1.25 * small.BALL.eps * g.sign(), x)
    close(fast.loss(fast.Params(), network, x, y, small.BALL, seeded()), cross_entropy(network(moved), y))


# Free: the images move with the weights ---------------------------------------------------------------------------------------------------


@balls
def test_free_moves_the_image_by_the_gradient_of_the_step_before(ball):
    """It is what a separate attack step finds before the weights move."""
    network, x, y = precise()
    step = torch.optim.SGD(network.parameters(), lr=0.1).step
    x_k, seen = x, 0
    for one in free.loss(free.Params(replays=4, step=0.5), network, x, y, ball, seeded()):
        close(one, cross_entropy(network(x_k), y))
        assert (ball.distance(x_k, x) <= ball.eps + TOLERANCE).all()
        g, _, _ = gradient(network, x_k, y)
        one.backward()
        step()
        x_k, seen = ball.project(x_k + 0.5 * ball.eps * ball.steepest(g / len(y)), x), seen + 1
    assert seen == 4 and ball.distance(x_k, x).min() > 0.9 * ball.eps


@pytest.mark.parametrize("backbone", [small.CONVNET, {"kind": "resnet", "depth": 8, "width": 4}], ids=["convnet", "resnet"])
def test_free_with_one_replay_is_natural_training(backbone):
    """Shafahi et al., algorithm 1: delta starts at nothing and moves after the step. The weights are the same."""

    def trained(kind, **settings):
        model, (_, x, y) = small.classifier(backbone).double(), precise(60)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for rows in torch.arange(60).split(20):
            for one in phase.each(small.method(kind, **settings)(model, x[rows], y[rows], seeded())):
                optimiser.zero_grad()
                one.backward()
                optimiser.step()
        return model.state_dict()

    naturally, freely = trained("natural"), trained("free", replays=1)
    for name, weights in naturally.items():
        close(freely[name], weights)
    assert not torch.equal(trained("free", replays=2)["head.classifier.bias"], naturally["head.classifier.bias"])


# YOPO: the steps between go through the first layer ---------------------------------------------------------------------------------------


@balls
@pytest.mark.parametrize("kind", ["convnet", "resnet"])
def test_yopo_with_one_inner_step_trains_on_the_points_of_pgd(kind, ball):
    """n = 1: the co-state is never stale. The loss is the mean over PGD's points after 1, ..., m steps."""
    _, x, y = drawn()
    network = small.classifier({"kind": kind, **({} if kind == "convnet" else {"depth": 8, "width": 4})}).eval()
    points = [pgd.ascend(pgd.Params(steps=j, step=0.25), Target(network, ball), x, y, seeded()) for j in (1, 2, 3)]
    by_hand = torch.stack([cross_entropy(network(point), y) for point in points]).mean()
    one = yopo.loss(yopo.Params(m=3, n=1, step=0.25), network, x, y, ball, seeded())
    torch.testing.assert_close(one, by_hand, rtol=1e-6, atol=0)
    parameters = list(network.parameters())
    for mine, theirs in zip(torch.autograd.grad(one, parameters), torch.autograd.grad(by_hand, parameters)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_yopo_with_one_of_each_is_fast_training():
    network, x, y = drawn()
    one = yopo.loss(yopo.Params(m=1, n=1, step=1.25), network, x, y, small.BALL, seeded())
    torch.testing.assert_close(one, fast.loss(fast.Params(step=1.25), network, x, y, small.BALL, seeded()), rtol=1e-6, atol=0)


def test_yopo_holds_the_co_state():
    """f_0 = A x, g = C tanh: p = C^T (softmax - y) tanh' by hand, and every inner step is along A^T p with p of the outer loop's start."""
    draw = seeded()
    A, C = nn.Linear(64, 20, bias=False), nn.Linear(20, 10, bias=False)
    _, x, y = drawn()

    def network(x):
        return C(torch.tanh(A(x.flatten(1))))

    x_j, losses = L2.random_point(x, draw), []
    for _ in range(2):
        h = torch.tanh(A(x_j.flatten(1)))
        p = ((C(h).softmax(1) - nn.functional.one_hot(y, 10)) @ C.weight) * (1 - h**2)
        for _ in range(3):
            x_j = L2.project(x_j + 0.2 * L2.eps * L2.steepest((p @ A.weight).view_as(x)), x)
        losses.append(cross_entropy(network(x_j), y))
    one = yopo.loss(yopo.Params(m=2, n=3, step=0.2), network, x, y, L2, seeded())
    torch.testing.assert_close(one, torch.stack(losses).mean(), rtol=1e-5, atol=0)


def test_yopo_runs_the_whole_network_m_and_one_times(digits):
    network, x, y = drawn()
    calls = {"first": 0, "last": 0}
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for name, layer in (("first", layers[0]), ("last", layers[-1])):
        layer.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    before = {**nn.modules.module._global_forward_hooks}
    yopo.loss(yopo.Params(m=2, n=5), network, x, y, small.BALL, seeded())
    assert calls["last"] == 2 + 1
    assert nn.modules.module._global_forward_hooks == before


# Every method, whatever is trained --------------------------------------------------------------------------------------------------------


every = pytest.mark.parametrize("kind", sorted({*kinds.kinds("training")} - {"lmt"}))  # lmt asks for layers of a known constant


@every
def test_an_ode_head_is_trained_end_to_end(kind):
    """Finite gradients for every part of backbone and head, through the solver."""
    _, x, y = drawn()
    model = small.classifier(head={"kind": "ode", "width": 16})
    for one in phase.each(small.method(kind)(model, x, y, seeded())):
        model.zero_grad()
        one.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters())


@every
def test_a_head_is_trained_alone_and_through_a_plain_function(kind):
    _, x, y = drawn()
    model = small.classifier(head=small.SODEF)
    model.backbone.requires_grad_(False)

    def separated(x):
        return model.head.state(model.features(x)) @ model.head.V.T

    for one in phase.each(small.method(kind)(separated, x, y, seeded())):
        one.backward()
    assert model.head.projection.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in model.backbone.parameters())


@pytest.mark.parametrize("ball, r", [(L2, 0.5), (small.BALL, 0.1 * 8)], ids=str)
def test_lipschitz_margin_training_is_its_equation(ball, r):
    """Wrong logits are raised by r / std times the distance of the last layer's rows; of L-infinity r covers the ball."""
    _, x, y = precise(6)
    network = small.classifier(small.SLL).double()
    V, logits = network.head.classifier.weight, network(x)
    raised = torch.stack([torch.stack([z[j] + 1.5 * r / 0.4 * (V[k] - V[j]).norm() for j in range(10)]) for z, k in zip(logits, y)])
    close(lmt.loss(lmt.Params(eps_ratio=1.5), network, x, y, ball, seeded()), cross_entropy(raised, y))
    close(lmt.loss(lmt.Params(eps_ratio=0), network, x, y, ball, seeded()), natural.loss(natural.Params(), network, x, y, ball, seeded()))


def test_what_is_read_rightly_with_the_margin_is_certified():
    """With r between two of the images' radii."""
    network, (_, x, _) = small.classifier(small.SLL).requires_grad_(False), drawn()
    y = network(x).argmax(1)
    radii = certificate.radii(network, x, y, 12)
    r = radii.sort().values[5:7].mean()
    margin = r / 0.4 * between(network)[y]
    assert torch.equal((network(x) + margin).argmax(1) == y, radii >= r)


@pytest.mark.parametrize("given", [lambda network: network, lambda network: lambda x: network(x)])
def test_lipschitz_margin_training_refuses_what_gives_no_constant(given):
    """A function of a network, as the phases of some heads have it, gives none either."""
    network, x, y = drawn()
    network = given(network)
    with pytest.raises(Mistake, match=r"training.kind: needs layers .*got lmt.* Take `backbone: \{kind: sll\}`"):
        lmt.loss(lmt.Params(), network, x, y, L2, seeded())
