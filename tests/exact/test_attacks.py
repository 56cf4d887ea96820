"""Attacks on classifiers whose robustness is known, and what their papers say of them."""

import copy

import pytest
import torch
from small import Linear, two_of_five

from basin.config import kinds
from basin.config.kinds import choose
from basin.errors import Mistake
from basin.methods.attacks import apgd, di2fgsm, features, fgsm, pgd, pma, spsa, square
from basin.randomness import generator
from basin.threat import target as searches
from basin.threat.ball import ThreatModel
from basin.threat.target import Incumbent, Target, gradient

BALL, L2 = ThreatModel(norm="linf", eps=0.08), ThreatModel(norm="l2", eps=0.25)
balls = pytest.mark.parametrize("ball", [BALL, L2], ids=str)
LONGER = {"pgd": {"steps": 60}, "apgd": {"steps": 20}}  # from a random start in L2, PGD turns towards the gradient step by step
FORMS = {
    "apgd": [{"loss": "ce"}, {"loss": "dlr"}, {"loss": "dlr_targeted"}],
    "pgd": [{}, {"random_start": False}, {"random_start": False, "momentum": 1.0}],
    "di2fgsm": [{"p": 0.0}, {"p": 0.0, "momentum": 1.0}],
}
ELSEWHERE = ("autoattack", "cw", "fab", "features")  # the first three: tests/exact/test_reference_attacks.py
GRADIENT_ATTACKS = [
    (kind, LONGER.get(kind, {}) | form)
    for kind in kinds.kinds("attacks")
    if not getattr(kinds.find("attacks", kind), "BLACK_BOX", False) and kind not in ELSEWHERE
    for form in FORMS.get(kind, [{}])
]


@pytest.fixture
def linear():
    """Images away from 0 and 1, labelled by the classifier; their margins spread over the radius."""
    model = two_of_five()
    draw = torch.Generator().manual_seed(1)
    along = (torch.rand(400, 1, generator=draw) - 0.5) * 0.4 * (model.W[0] - model.W[1]).sign()
    x = (0.5 + along + 0.1 * (torch.rand(400, 16, generator=draw) - 0.5)).view(400, 1, 4, 4)
    return model, x, model(x).argmax(1)


@pytest.fixture
def few(digits):
    return digits["test"].floats(slice(0, 64)), digits["test"].labels[:64]


@pytest.fixture
def precise(trained, few):
    """Network, images and labels in float64: of two ways to compute a gradient the signs then agree, whatever kernels a machine has."""
    return copy.deepcopy(trained).double(), few[0].double(), few[1]


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def broken(kind: str, settings: dict, model: Linear, ball: ThreatModel, x, y):
    choice = choose("attacks", {"kind": kind, **settings})
    found = choice.module.perturb(choice.params, Target(model, ball), x, y, generator(0, "attack"))
    return model(ball.project(found, x)).argmax(1) != y


@balls
@pytest.mark.parametrize(("kind", "settings"), GRADIENT_ATTACKS, ids=str)
def test_a_gradient_attack_breaks_exactly_the_images_within_their_margin(kind, settings, ball, linear):
    model, x, y = linear
    margin = model.margin(x, y, ball.norm)
    clear = (margin - ball.eps).abs() > 1e-5  # of the rounding of float32
    assert clear.sum() > 390 and 0.2 < (margin < ball.eps).float().mean() < 0.95
    assert torch.equal(broken(kind, settings, model, ball, x, y)[clear], (margin < ball.eps)[clear])


@balls
@pytest.mark.parametrize(("kind", "settings"), [("square", {"queries": 400}), ("spsa", {"steps": 30, "samples": 64})])
def test_a_score_attack_breaks_none_beyond_the_margin_and_most_well_within_it(kind, settings, ball, linear):
    model, x, y = linear
    margin, fell = model.margin(x, y, ball.norm), broken(kind, settings, model, ball, x, y)
    assert not fell[margin > ball.eps + 1e-5].any()
    assert fell[margin < 0.7 * ball.eps].float().mean() > 0.9


@balls
def test_fgsm_is_one_step_of_pgd(ball, precise):
    network, *images = precise
    target = Target(network, ball)
    one_step = pgd.ascend(pgd.Params(steps=1, step=1.0, random_start=False), target, *images, generator(0, "a"))
    close(fgsm.perturb(fgsm.Params(), target, *images, generator(0, "a")), one_step)


def test_the_probability_margin_attack_is_its_published_steps(precise):
    """Written out for images that never fall: two runs, in two halves, each with its own cosine."""
    network, x, y = precise
    ball, hold, seen = ThreatModel(norm="linf", eps=0.01), torch.zeros(len(x), 10, dtype=x.dtype).scatter(1, y[:, None], 9.0), []

    def watched(points):
        seen.append(points.detach())
        return network(points) + hold

    def after(point, rise, eta):
        point = point.clone().requires_grad_()
        p = watched(point).softmax(1)
        true, others = p.gather(1, y[:, None])[:, 0], p.scatter(1, y[:, None], 0.0).amax(1)
        (g,) = torch.autograd.grad(rise(true, others).sum(), point)
        return ball.project(point.detach() + eta * ball.eps * g.sign(), x)

    pma.perturb(pma.Params(steps=6), Target(watched, ball), x, y, generator(0, "a"))
    runs = seen[1:8], seen[8:15]
    for run, first in zip(runs, (lambda true, others: -true, lambda true, others: others)):
        rises = [first] * 3 + [lambda true, others: others - true] * 3
        for k, (point, rise, eta) in enumerate(zip(run, rises, [2.0, 1.5, 0.5] * 2)):
            close(run[k + 1], after(point, rise, eta))


@balls
def test_the_nearest_target_is_first_where_that_is_asked_for(ball):
    """Of a linear network the distance to each class is known; the nearest need not be the likeliest."""
    draw = torch.Generator().manual_seed(2)
    x, W = torch.rand(400, 1, 4, 4, generator=draw), torch.randn(5, 16, generator=draw)
    model = Linear(W * torch.tensor([1.0, 1.0, 4.0, 1.0, 1.0])[:, None], torch.zeros(5))
    y = model(x).argmax(1)
    z, others = model(x), torch.stack([(y + k) % 5 for k in range(1, 5)], 1)
    size = (model.W[y][:, None] - model.W[others]).norm(p=1 if ball.norm == "linf" else 2, dim=2)
    expected = (z.gather(1, y[:, None]) - z.gather(1, others)) / size
    order = searches.others(Target(model, ball), x, y, z, nearest=True)
    far = torch.full((len(x), 5), torch.inf).scatter(1, others, expected).gather(1, order)
    assert (far.diff(dim=1) > -1e-5).all() and torch.equal(order.sort(1).values, others.sort(1).values)
    seen = {}
    for order in ("likeliest", "nearest"):
        params = apgd.Params(loss="margin_targeted", targets=1, order=order)
        (loss,) = apgd._losses(params, Target(model, ball), x, z, y)
        seen[order] = -loss(torch.arange(len(x)))(z, y)
    assert torch.allclose(seen["likeliest"], (z.gather(1, y[:, None]) - z.gather(1, others)).amin(1))
    nearest = others.gather(1, expected.argmin(1, keepdim=True))
    assert torch.allclose(seen["nearest"], (z.gather(1, y[:, None]) - z.gather(1, nearest))[:, 0])
    assert (seen["nearest"] > seen["likeliest"] + 1e-4).any()


def test_momentum_is_the_published_sum(precise):
    """Equations 6 and 7 of Dong et al. written out; with mu = 0 the signs are those of PGD."""
    network, x, y = precise
    for mu in (0.0, 1.0):
        point, v = x, 0
        for _ in range(4):
            g, _, _ = gradient(network, point, y)
            v = mu * v + g / g.abs().sum((1, 2, 3), keepdim=True)
            point = BALL.project(point + 0.1 * BALL.eps * v.sign(), x)
        settings = pgd.Params(steps=4, random_start=False, momentum=mu)
        close(pgd.ascend(settings, Target(network, BALL), x, y, generator(0, "a")), point)


def test_a_gradient_of_zero_or_of_any_size_does_not_spoil_the_momentum():
    from basin.threat.target import accumulate

    g = torch.tensor([0.0, 1e-42, 1e-30, 1.0, 1e30]).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    v = accumulate(0.5, torch.ones_like(g), g)
    assert v.isfinite().all() and v[0].eq(0.5).all() and v[2:].eq(1.5).all()


def test_the_gradient_is_that_of_finite_differences():
    def network(x):
        return torch.tanh(x.flatten(1) @ W)

    W = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.tensor([0, 2])
    g, _, _ = gradient(network, x, y)
    h = 1e-6
    for position in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[position] = h
        up, down = (gradient(network, x + sign * step.view(1, 1, 2, 2), y)[1] for sign in (1, -1))
        torch.testing.assert_close(g.flatten(1)[:, position], (up - down) / (2 * h), rtol=1e-6, atol=1e-9)


def test_a_gradient_that_is_not_finite_counts_as_zero():
    x, y = torch.zeros(2, 1, 1, 2), torch.tensor([0, 1])
    g, _, _ = gradient(lambda x: x.flatten(1).sqrt(), x, y)
    assert torch.equal(g, torch.zeros_like(x))


def test_the_incumbent_takes_a_broken_point_before_a_higher_loss():
    x, y = torch.zeros(1, 1, 1, 1), torch.tensor([0])
    best = Incumbent(x)
    offers = [(1.0, [2.0, 0.0, -9.0]), (2.0, [0.0, 0.1, -9.0]), (3.0, [9.0, 8.9, 9.0]), (4.0, [1.0, 0.0, -9.0]), (5.0, [0.0, 3.0, 0.0])]
    kept = []
    for point, logits in offers:
        best.offer(torch.full_like(x, point), torch.tensor([logits]), y)
        kept.append(best.points.item())
    assert kept == [1.0, 2.0, 2.0, 2.0, 5.0]  # the third is a tie that class 0 wins, of high loss


# Auto-PGD ---------------------------------------------------------------------------------------------------------------------------------


def test_checkpoints_are_the_published_ones():
    assert apgd.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_checkpoints_of_few_steps_are_few_and_rise():
    for steps in (2, 3, 10, 25, 1000):
        marks = apgd.checkpoints(steps)
        assert marks == sorted(set(marks)) and 1 <= marks[0] and marks[-1] <= steps


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("shift", [-5.0, 0.0, 20.0])
def test_dlr_does_not_change_when_logits_are_scaled_or_shifted(scale, shift):
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(50, 6, generator=draw, dtype=torch.float64)
    y = torch.randint(6, (50,), generator=draw)
    t = (y + torch.randint(1, 6, (50,), generator=draw)) % 6
    torch.testing.assert_close(apgd.dlr(scale * z + shift, y), apgd.dlr(z, y))
    torch.testing.assert_close(apgd.dlr_targeted(scale * z + shift, y, t), apgd.dlr_targeted(z, y, t))


def test_dlr_by_hand():
    z, y = torch.tensor([[5.0, 2.0, 4.0, 1.0], [1.0, 3.0, 0.0, 2.0]]), torch.tensor([0, 0])
    assert apgd.dlr(z, y).tolist() == pytest.approx([-(5 - 4) / (5 - 2), -(1 - 3) / (3 - 1)])
    t = torch.tensor([1, 3])
    assert apgd.dlr_targeted(z, y, t).tolist() == pytest.approx([-(5 - 2) / (5 - 1.5), -(1 - 2) / (3 - 0.5)])


def test_more_steps_of_auto_pgd_do_not_lose_what_fewer_found(trained, digits):
    x, y = digits["test"].floats(slice(0, 100)), digits["test"].labels[:100]
    held = []
    for steps in (2, 10, 50):
        found = apgd.perturb(apgd.Params(steps=steps), Target(trained, BALL), x, y, generator(0, "a"))
        held.append((trained(found).argmax(1) == y).float().mean().item())
    assert held[0] >= held[1] >= held[2]


# DI2-FGSM ---------------------------------------------------------------------------------------------------------------------------------


@balls
@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("unchanged", [{"p": 0.0}, {"p": 1.0, "smallest": 1.0}], ids=str)
def test_with_unchanged_views_di2fgsm_is_its_base(ball, momentum, unchanged, precise):
    network, *images = precise
    target = Target(network, ball)
    base = pgd.perturb(pgd.Params(steps=5, random_start=False, momentum=momentum), target, *images, generator(0, "a"))
    close(di2fgsm.perturb(di2fgsm.Params(steps=5, momentum=momentum, **unchanged), target, *images, generator(0, "b")), base)


def test_a_view_is_the_image_shrunk_to_its_nearest_pixels_and_padded():
    """Each is one of all the ways to resize and to pad, and many ways come up."""
    x = torch.rand(1, 2, 6, 5, generator=torch.Generator().manual_seed(0)) + 0.1
    ways = [
        torch.nn.functional.pad(torch.nn.functional.interpolate(x, (h, w)), (left, 5 - w - left, top, 6 - h - top))
        for h in range(3, 7) for w in range(2, 6) for top in range(7 - h) for left in range(6 - w)
    ]  # fmt: skip
    R, C = di2fgsm.views(di2fgsm.Params(p=0.75, smallest=0.5), x.expand(1000, -1, -1, -1), generator(0, "a"))
    found = (R @ x @ C)[:, None].eq(torch.cat(ways)).flatten(2).all(2)
    assert (found.sum(1) == 1).all()
    assert found.any(0).sum() == 16 + 9 + 4 + 1  # places of the four sizes; height and width shrink together
    assert found[:, -1].float().mean() == pytest.approx(0.25 + 0.75 / 4, abs=0.05)  # unchanged, or by chance of full size


# SPSA -------------------------------------------------------------------------------------------------------------------------------------


def test_the_estimate_of_a_linear_functions_gradient_points_along_it(linear):
    model, x, y = linear
    other = 1 - y
    g = spsa.estimate(spsa.Params(samples=4096), Target(model, BALL), x[:8], y[:8], generator(0, "a")).flatten(1)
    true = model.W[y[:8]] - model.W[other[:8]]
    assert torch.nn.functional.cosine_similarity(g, true).min() > 0.99
    torch.testing.assert_close(g.norm(dim=1), true.norm(dim=1), rtol=0.05, atol=0)


def test_spsa_asks_what_it_says_in_large_passes_and_none_of_a_broken_image(linear, monkeypatch):
    model, x, y = linear
    asked = []

    def counted(images):
        asked.append(len(images))
        return model(images)

    spsa.perturb(spsa.Params(steps=3, samples=10), Target(counted, ThreatModel(norm="linf", eps=1e-6)), x[:50], y[:50], generator(0, "a"))
    assert asked == [50, 1000, 50, 1000, 50, 1000, 50]
    asked.clear()
    monkeypatch.setattr(spsa, "PASS", 8 * 50 * 16)
    spsa.perturb(spsa.Params(steps=1, samples=10), Target(counted, ThreatModel(norm="linf", eps=1e-6)), x[:50], y[:50], generator(0, "a"))
    assert asked == [50, 400, 400, 200, 50]
    monkeypatch.undo()
    asked.clear()
    spsa.perturb(spsa.Params(steps=30, samples=10), Target(counted, BALL), x, y, generator(0, "a"))
    assert asked[0] == len(x) and asked[1] == 20 * len(x) and asked[-1] < len(x)


def test_spsa_asks_a_network_that_draws_for_single_draws_and_goes_on_where_an_image_is_broken(linear):
    model, x, y = linear
    asked = {"averaged": [], "single": []}

    def counted(name):
        return lambda images: (asked[name].append(len(images)), model(images))[1]

    target = Target(counted("averaged"), BALL, single=counted("single"))
    spsa.perturb(spsa.Params(steps=30, samples=10), target, x, y, generator(0, "a"))
    assert asked == {"averaged": 31 * [len(x)], "single": 30 * [20 * len(x)]}


# Features ---------------------------------------------------------------------------------------------------------------------------------


@balls
@pytest.mark.parametrize("reach", [True, False])
def test_the_features_of_the_guide_are_reached_where_the_ball_allows_it(ball, reach):
    """h = A x: how far the nearest x' with h(x') = h(x_g) lies is known, and a head without a gradient does not hide it."""
    draw = torch.Generator().manual_seed(0)
    A = torch.linalg.qr(torch.randn(16, 3, generator=draw)).Q
    place = 0.5 * A.sum(0) + torch.tensor([0.2, -0.1, 0.15])

    def h(x):
        return x.flatten(1) @ A

    def network(x):
        """Class 1 at one place of feature space, class 0 elsewhere; no gradient says where."""
        near = (h(x) - place).abs().sum(1) < 0.05
        return torch.stack([~near, near], 1) + 0 * h(x).sum(1, keepdim=True)

    x = 0.5 + 0.05 * torch.randn(12, 16, generator=draw)
    x[0] += A @ (place - h(x[:1])[0])  # the guide
    delta = (place - h(x)) @ A.T  # the shortest way in L2, and a way in L-infinity
    norms = delta.norm(dim=1) if ball.norm == "l2" else delta.abs().amax(1)
    eps = 1.1 * norms.max().item() if reach else 0.3 * norms[1:].min().item()
    x, y = x.view(12, 1, 4, 4), torch.tensor([1] + 11 * [0])
    target = Target(network, ball.of_radius(eps), features=h)
    assert torch.equal(network(x).argmax(1), y)
    fell = network(features.perturb(features.Params(steps=100), target, x, y, generator(0, "a"))).argmax(1) != y
    assert fell[1:].all() if reach else not fell[1:].any()
    assert not (network(pgd.perturb(pgd.Params(), target, x, y, generator(0, "a"))).argmax(1) != y)[1:].any()


def test_guides_by_hand():
    h = torch.tensor([[0.0], [1.0], [5.0], [-2.0], [0.1]])
    prediction = torch.tensor([0, 1, 2, 1, 0])
    z = torch.nn.functional.one_hot(prediction, 3) * 9.0
    z[0, 2], z[1, 0] = 1.0, 1.0  # runners-up: 2 for the first image, 0 for the second
    order, usable = features.guides(h, z, prediction)
    assert order[0, :3].tolist() == [2, 1, 3] and usable[0].tolist() == [True, True, True, False, False]
    assert order[1, :3].tolist() == [4, 0, 2] and usable[1].tolist() == [True, True, True, False, False]


def test_images_without_a_guide_are_left_alone(trained, few):
    x, y = few
    target = Target(trained, BALL, features=trained.features)
    same = trained(x).argmax(1) == 3
    for rows in (same, torch.arange(64) == 0):
        assert torch.equal(features.perturb(features.Params(), target, x[rows], trained(x[rows]).argmax(1), generator(0, "a")), x[rows])


def test_the_feature_attack_says_what_it_needs(trained, few):
    with pytest.raises(Mistake, match=r"attack features: it needs the features of the attacked model \(got none\)\. Attack a classifier"):
        features.perturb(features.Params(), Target(trained, BALL), *few, generator(0, "a"))


def test_a_twin_is_attacked_through_its_own_features(trained, twin, few):
    choice = choose("attacks", {"kind": "transfer", "attacks": [{"kind": "features"}]})
    target = Target(trained, BALL, twin, trained.features)
    found = choice.module.perturb(choice.params, target, *few, generator(0, "a"))
    own = Target(twin, BALL, features=twin.features)
    assert torch.equal(found, features.perturb(features.Params(), own, *few, generator(0, "a"))) and not torch.equal(found, few[0])


# Square -----------------------------------------------------------------------------------------------------------------------------------


def test_the_square_shrinks_at_the_published_queries():
    """AutoAttack: of 10,000 queries p is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000."""
    params = square.Params(queries=10_000, p=0.8)
    for query, halvings in ((10, 0), (11, 1), (50, 1), (51, 2), (201, 3), (501, 4), (1001, 5), (2001, 6), (4001, 7), (6001, 8), (8001, 9)):
        assert square.share(params, query) == pytest.approx(0.8 / 2**halvings)


def test_square_asks_no_more_than_its_queries_and_none_of_a_broken_image(linear):
    model, x, y = linear
    asked = []

    def counted(images):
        asked.append(len(images))
        return model(images)

    square.perturb(square.Params(queries=50), Target(counted, BALL), x, y, generator(0, "a"))
    assert asked[0] == len(x) and len(asked) <= 50
    assert asked == sorted(asked, reverse=True) and asked[-1] < len(x)


def test_bumps_are_those_of_equation_2():
    """eta^(5, 5) is a bump of 2 x 5 above one of 3 x 5; entries by hand, up to the scale that makes each of unit norm."""
    eta, turned = square.bumps(5, torch.zeros(()))
    assert eta.norm().item() == pytest.approx(1) and torch.equal(turned, eta.T)
    far, mid, near = 1 / 9, 1 / 9 + 1 / 4, 1 / 9 + 1 / 4 + 1
    upper = torch.tensor([[far, mid, mid, mid, far], [far, mid, near, mid, far]])
    lower = torch.tensor([[far, mid, mid, mid, far], [far, mid, near, mid, far], [far, mid, mid, mid, far]])
    torch.testing.assert_close(eta[:2], upper / upper.norm() / 2**0.5)
    torch.testing.assert_close(eta[2:], -lower / lower.norm() / 2**0.5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 10), (2, 3, 3), (1, 2, 2)], ids=str)
def test_square_spends_the_whole_l2_radius_and_no_more(shape):
    """Every query of it, away from the pixel range's ends."""
    clean, asked = torch.full((20, *shape), 0.5), []
    y = torch.zeros(20, dtype=torch.int64)
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(clean[0].numel(), 2, generator=draw)

    def network(x):
        asked.append(x)
        return x.flatten(1) @ W + torch.tensor([1e3, 0.0])

    square.perturb(square.Params(queries=60), Target(network, L2), clean, y, generator(0, "a"))
    assert len(asked) == 60
    for x in asked:
        torch.testing.assert_close(L2.distance(x, clean), torch.full((20,), L2.eps), rtol=1e-5, atol=0)
