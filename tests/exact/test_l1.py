"""L1: projection, step and attacks, against what is known (Croce & Hein 2021, arXiv 2103.01208)."""

import numpy as np
import pytest
import torch
from small import few, two_of_five

import basin
from basin.config.kinds import choose
from basin.randomness import generator
from basin.threat import foreign
from basin.threat.ball import ThreatModel
from basin.threat.target import Target


def points(seed: int, spread: float, n: int = 20, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean images in float64, many of whose pixels are 0 or 1, and points around them."""
    draw = torch.Generator().manual_seed(seed)
    clean = (torch.rand(n, 1, 1, d, generator=draw, dtype=torch.float64) * 1.5 - 0.25).clamp(0, 1)
    return clean, clean + spread * torch.randn(clean.shape, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("eps", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_the_projection_is_a_quadratic_programs(eps, spread):
    """delta = u - v with u, v >= 0 within the room to either side, sum u + v <= eps."""
    from scipy.optimize import LinearConstraint, minimize

    clean, x = points(0, spread, n=5, d=4)
    found = ThreatModel(norm="l1", eps=eps).project(x, clean)
    for c, there, point in zip(*(part.flatten(1).numpy() for part in (clean, x, found))):
        n = len(c)
        A = np.hstack([np.eye(n), -np.eye(n)])
        program = minimize(
            lambda w: ((c + A @ w - there) ** 2).sum() / 2,  # noqa: B023
            np.zeros(2 * n),
            jac=lambda w: A.T @ (c + A @ w - there),  # noqa: B023
            method="SLSQP",
            bounds=[*((0, 1 - p) for p in c), *((0, p) for p in c)],
            constraints=LinearConstraint(np.ones((1, 2 * n)), -np.inf, eps),
            options={"ftol": 1e-15, "maxiter": 500},
        )
        np.testing.assert_allclose(point, c + A @ program.x, atol=1e-6)


@pytest.mark.parametrize("spread", [0.1, 1.0, 1e4])
def test_the_projection_is_a_sorted_references(spread):
    """lambda looked for among the pieces between the sorted breakpoints, one image at a time."""
    clean, x = points(1, spread, d=40)
    found = ThreatModel(norm="l1", eps=1.5).project(x, clean)
    for c, there, point in zip(*(part.flatten(1).numpy() for part in (clean, x, found))):
        a, room = np.abs(there - c), np.where(there > c, 1 - c, c)
        t = np.sort(np.r_[0, a, a - room])
        norms = np.array([np.clip(a - at, 0, room).sum() for at in t])
        lambda_ = np.interp(-1.5, -norms, t) if np.minimum(a, room).sum() > 1.5 else 0.0
        np.testing.assert_allclose(point, c + np.sign(there - c) * np.clip(a - lambda_, 0, room), atol=1e-6)


def test_many_roundings_do_not_leave_the_ball():
    draw = torch.Generator().manual_seed(0)
    clean, ball = torch.rand(4, 3, 64, 64, generator=draw), ThreatModel(norm="l1", eps=500.0)
    x = ball.project(clean + torch.randn(clean.shape, generator=draw), clean)
    norm = (x.double() - clean.double()).abs().sum((1, 2, 3))
    assert norm.max() <= 500.0 and norm.min() > 499.99 and x.min() >= 0 and x.max() <= 1


def test_a_step_goes_to_few_pixels_that_can_move():
    g, ball = torch.randn(10, 1, 5, 5, generator=torch.Generator().manual_seed(0)), ThreatModel(norm="l1", eps=1.0)
    x = (torch.arange(25) % 2).float().view(1, 1, 5, 5).expand(10, 1, 5, 5)
    s = ball.steepest(g, x)
    held = ((x == 1) & (g > 0)) | ((x == 0) & (g < 0))
    assert not s[held].any() and ((s != 0).flatten(1).sum(1) == 5).all() and (s * g >= 0).all()
    free = torch.where(held, 0, g).flatten(1)
    torch.testing.assert_close(ball.distance(s, torch.zeros_like(s)), torch.ones(10))
    rise, top = (s * g).flatten(1).sum(1), free.abs().topk(5, 1).values
    assert (rise <= ball.dual(free.view_as(g)) + 1e-6).all() and (rise >= top.mean(1) - 1e-6).all()


@pytest.fixture
def linear():
    """Images of which many pixels can hardly move, a classifier of two classes, and the most that each margin can fall, over the margin."""
    model, draw, eps = two_of_five(), torch.Generator().manual_seed(1), 0.6
    along = (torch.rand(200, 1, generator=draw) - 0.5) * 0.8 * (model.W[0] - model.W[1]).sign()
    x = (0.5 + along + 0.3 * (torch.rand(200, 16, generator=draw) - 0.5)).clamp(0, 1).view(200, 1, 4, 4)
    z, y = model(x), model(x).argmax(1)
    w = model.W[1 - y] - model.W[y]
    order = w.abs().argsort(1, descending=True)
    room = torch.where(w > 0, 1 - x.flatten(1), x.flatten(1)).gather(1, order)
    spent = room.cumsum(1).clamp_max(eps).diff(dim=1, prepend=torch.zeros(200, 1))
    ratio = (spent * w.abs().gather(1, order)).sum(1) / (z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0])
    return model, x, y, ThreatModel(norm="l1", eps=eps), ratio


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("apgd", {"steps": 60}),
        ("apgd", {"loss": "dlr_targeted"}),
        ("pgd", {"steps": 100}),
        ("margin", {"steps": 50}),
        ("pma", {}),
        ("a3", {}),
    ],
    ids=str,
)
def test_a_gradient_attack_breaks_what_the_largest_weights_with_room_can_break(kind, settings, linear):
    model, x, y, ball, ratio = linear
    choice = choose("attacks", {"kind": kind, **settings})
    found = choice.module.perturb(choice.params, Target(model, ball), x, y, generator(0, "attack"))
    fell = model(ball.project(found, x)).argmax(1) != y
    clear = (ratio - 1).abs() > 0.02
    assert clear.sum() > 180 and 0.2 < (ratio > 1).float().mean() < 0.95
    assert torch.equal(fell[clear], (ratio > 1)[clear])


@pytest.mark.parametrize(
    "suite", ["quick", pytest.param("standard", marks=pytest.mark.slow), pytest.param("adaptive", marks=pytest.mark.slow)]
)
def test_a_ready_suite_ends_at_a_linear_models_robust_accuracy(suite, linear):
    model, x, y, ball, ratio = linear
    result = basin.evaluate(model.eval(), x, y, basin.Threat(norm="l1", eps=ball.eps), suite)
    assert result.outcomes.robust == pytest.approx((ratio < 1).float().mean().item(), abs=0.006)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_is_no_weaker_than_the_authors(loss, trained, digits):
    from pyautoattack.autopgd_base import APGDAttack

    x, y = few(digits["test"], 100)
    ball, held = ThreatModel(norm="l1", eps=1.0), []
    choice = choose("attacks", {"kind": "apgd", "loss": loss})
    for seed in (0, 1):
        ours = choice.module.perturb(choice.params, Target(trained, ball), x, y, generator(seed, "attack"))
        with foreign.seeded(generator(seed, "theirs")) as drawn:
            attack = APGDAttack(foreign.sealed(trained), n_iter=100, norm="L1", eps=ball.eps, loss=loss, seed=drawn, device="cpu")
            attack.use_largereps = True
            theirs = attack.perturb(x, y)
        held.append([int((trained(ball.project(found, x)).argmax(1) == y).sum()) for found in (ours, theirs)])
    ours, theirs = np.mean(held, 0)
    assert 20 < theirs < 80 and ours <= theirs + 1


@pytest.mark.parametrize("kind", ["square", "spsa", "boundary", "fab", "cw"])
def test_every_other_attack_breaks_some_and_none_beyond_its_margin(kind, linear):
    model, x, y, ball, ratio = linear
    settings = {
        "square": {"queries": 300},
        "spsa": {"steps": 30, "samples": 32},
        "boundary": {"queries": 1000},
        "cw": {"steps": 50, "searches": 4},
    }
    choice = choose("attacks", {"kind": kind, **settings.get(kind, {"targets": 1})})
    found = choice.module.perturb(choice.params, Target(model, ball), x, y, generator(0, "attack"))
    fell = model(ball.project(found, x)).argmax(1) != y
    assert not fell[ratio < 0.999].any() and fell[ratio > 2].float().mean() > 0.8
