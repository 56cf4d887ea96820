"""Attacks on classifiers whose robustness is known, and what their papers say of them."""

import numpy as np
import pytest
import torch
from small import Linear, two_of_five

from pipeline import lookup
from pipeline.attacks import Incumbent, Target, apgd, fgsm, gradient, pgd, square
from pipeline.lookup import choose
from pipeline.randomness import generator
from pipeline.threat import TOLERANCE, ThreatModel

BALL = ThreatModel(norm="linf", eps=0.08)
LONGER = {"pgd": {"steps": 25}, "apgd": {"steps": 20}}
FORMS = {"apgd": [{"loss": "ce"}, {"loss": "dlr"}, {"loss": "dlr_targeted"}], "pgd": [{}, {"random_start": False}]}
REFERENCE = ("autoattack", "cw", "fab")  # tests/exact/test_reference_attacks.py
GRADIENT_ATTACKS = [
    (kind, LONGER.get(kind, {}) | form)
    for kind in lookup.kinds("attacks")
    if not getattr(lookup.find("attacks", kind), "BLACK_BOX", False) and kind not in REFERENCE
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


def broken(kind: str, settings: dict, model: Linear, x, y):
    choice = choose("attacks", {"kind": kind, **settings})
    found = choice.module.perturb(choice.params, Target(model, BALL), x, y, generator(0, "attack"))
    return model(BALL.project(found, x)).argmax(1) != y


@pytest.mark.parametrize(("kind", "settings"), GRADIENT_ATTACKS, ids=str)
def test_a_gradient_attack_breaks_exactly_the_images_within_their_margin(kind, settings, linear):
    model, x, y = linear
    margin = model.margin(x, y)
    clear = (margin - BALL.eps).abs() > 1e-5  # of the rounding of float32
    assert clear.sum() > 390 and 0.2 < (margin < BALL.eps).float().mean() < 0.95
    assert torch.equal(broken(kind, settings, model, x, y)[clear], (margin < BALL.eps)[clear])


def test_square_breaks_none_beyond_the_margin_and_most_well_within_it(linear):
    model, x, y = linear
    margin, fell = model.margin(x, y), broken("square", {"queries": 400}, model, x, y)
    assert not fell[margin > BALL.eps + 1e-5].any()
    assert fell[margin < 0.7 * BALL.eps].float().mean() > 0.9


def test_fgsm_is_one_step_of_pgd(trained, digits):
    x, y = digits["test"].floats(slice(0, 64)), digits["test"].labels[:64]
    target = Target(trained, BALL)
    one_step = pgd.ascend(pgd.Params(steps=1, step=1.0, random_start=False), target, x, y, generator(0, "a"))
    assert torch.equal(fgsm.perturb(fgsm.Params(), target, x, y, generator(0, "a")), one_step)


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


def test_dlr_needs_its_classes(trained):
    from pipeline.errors import Mistake

    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)
    for loss, needed in (("dlr", 3), ("dlr_targeted", 4)):
        with pytest.raises(Mistake, match=rf"attack apgd: the {loss} loss needs {needed} classes \(got 2\)\. Use loss: ce\."):
            apgd.perturb(apgd.Params(loss=loss), Target(lambda x: x.flatten(1)[:, :2], BALL), x, y, generator(0, "a"))


def test_more_steps_of_auto_pgd_do_not_lose_what_fewer_found(trained, digits):
    x, y = digits["test"].floats(slice(0, 100)), digits["test"].labels[:100]
    held = []
    for steps in (2, 10, 50):
        found = apgd.perturb(apgd.Params(steps=steps), Target(trained, BALL), x, y, generator(0, "a"))
        held.append((trained(found).argmax(1) == y).float().mean().item())
    assert held[0] >= held[1] >= held[2]


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


# The ball ---------------------------------------------------------------------------------------------------------------------------------


def test_projection_is_the_nearest_point_of_ball_and_pixel_range():
    draw = np.random.default_rng(0)
    clean = draw.random((50, 1, 2, 2), dtype=np.float32)
    x = (clean + draw.normal(0, 0.3, clean.shape)).astype(np.float32)
    nearest = np.clip(x, np.maximum(clean - np.float32(BALL.eps), 0), np.minimum(clean + np.float32(BALL.eps), 1))
    projected = BALL.project(torch.from_numpy(x), torch.from_numpy(clean))
    np.testing.assert_allclose(projected.numpy(), nearest, atol=1e-7)
    assert torch.equal(BALL.project(projected, torch.from_numpy(clean)), projected)


def test_random_points_fill_the_ball():
    clean = torch.full((4000, 1, 1, 2), 0.5)
    delta = BALL.random_point(clean, generator(0, "a")) - clean
    assert delta.abs().max() <= BALL.eps + TOLERANCE
    quarters = torch.histc(delta, 4, -BALL.eps, BALL.eps) / delta.numel()
    assert (quarters - 0.25).abs().max() < 0.03
