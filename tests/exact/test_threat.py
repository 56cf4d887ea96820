"""The ball, in each norm, cut with the pixel range."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from basin.randomness import generator
from basin.threat.ball import TOLERANCE, ThreatModel

BALLS = [
    ThreatModel(norm="linf", eps=0.08),
    ThreatModel(norm="l2", eps=0.5),
    ThreatModel(norm="l2", eps=2.5),
    ThreatModel(norm="l1", eps=1.5),
]
balls = pytest.mark.parametrize("ball", BALLS, ids=str)


def images(seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean images, of which many pixels are 0 or 1, and points around them."""
    draw = torch.Generator().manual_seed(seed)
    clean = (torch.rand(20, 2, 3, 3, generator=draw) * 1.5 - 0.25).clamp(0, 1)
    return clean, clean + spread * torch.randn(clean.shape, generator=draw)


@balls
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**30), spread=st.floats(1e-4, 1e4))
def test_a_projection_is_in_ball_and_pixel_range_and_stays_where_it_is(ball, seed, spread):
    clean, x = images(seed, spread)
    projected = ball.project(x, clean)
    assert projected.min() >= 0 and projected.max() <= 1
    assert ball.distance(projected, clean).max() <= ball.eps + TOLERANCE
    assert torch.equal(ball.project(projected, clean), projected)


@balls
def test_a_point_inside_is_not_moved(ball):
    clean, x = images(0, 0.01)
    x = x.clamp(0, 1)
    inside = ball.distance(x, clean) < ball.eps
    assert inside.sum() > 10 and torch.equal(ball.project(x, clean)[inside], x[inside])


def test_the_linf_projection_is_the_nearest_point_of_ball_and_pixel_range():
    clean, x = images(0, 0.3)
    clean, x, eps = clean.numpy(), x.numpy(), np.float32(BALLS[0].eps)
    nearest = np.clip(x, np.maximum(clean - eps, 0), np.minimum(clean + eps, 1))
    np.testing.assert_allclose(BALLS[0].project(torch.from_numpy(x), torch.from_numpy(clean)).numpy(), nearest, atol=1e-7)


def test_the_l2_projection_scales_the_perturbation_to_the_radius():
    clean = torch.full((1, 1, 2, 2), 0.5)
    x = clean + torch.tensor([[[[0.6, 0.0], [0.8, 0.0]]]])  # of norm 1
    torch.testing.assert_close(BALLS[1].project(x, clean) - clean, (x - clean) / 2)


@balls
@pytest.mark.parametrize("size", [1e-42, 1e-30, 1.0, 1e30])
def test_the_steepest_direction_has_unit_norm_and_the_dual_norm_as_slope(ball, size):
    g = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * size
    direction = ball.steepest(g)
    torch.testing.assert_close(ball.distance(direction, torch.zeros_like(g)), torch.ones(10))
    if 1e-20 < size < 1e20 and ball.norm != "l1":  # there tests/exact/test_l1.py
        slope = (g * direction).flatten(1).sum(1)
        torch.testing.assert_close(slope, g.flatten(1).norm(1 if ball.norm == "linf" else 2, dim=1))


@balls
def test_an_ascent_is_a_share_of_the_radius_along_that_direction(ball):
    x, g = torch.rand(10, 3, 4, 4), torch.randn(10, 3, 4, 4)
    assert torch.equal(ball.ascend(x, g, 0.3), x + 0.3 * ball.eps * ball.steepest(g, x))


@balls
def test_no_gradient_has_no_direction(ball):
    assert torch.equal(ball.steepest(torch.zeros(2, 1, 3, 3)), torch.zeros(2, 1, 3, 3))


@balls
def test_random_points_fill_the_ball(ball):
    """A share t of the radius holds the share t^d of a ball's volume."""
    ball = ball.of_radius(0.3)
    clean = torch.full((4000, 1, 1, 2), 0.5)
    x = ball.random_point(clean, generator(0, "a"))
    share = ball.distance(x, clean) / ball.eps
    assert share.max() <= 1 + TOLERANCE
    for t in (0.25, 0.5, 0.75):
        assert (share < t).float().mean() == pytest.approx(t**2, abs=0.03)
    assert (x - clean).mean((0, 1, 2)).abs().max() < 0.01


@balls
def test_random_points_stay_in_the_pixel_range(ball):
    clean, _ = images(0, 0.0)
    x = ball.random_point(clean, generator(0, "a"))
    assert x.min() >= 0 and x.max() <= 1 and ball.distance(x, clean).max() <= ball.eps + TOLERANCE


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("linf", 1.5, "less than or equal to 1"),
        ("linf", 0, "greater than 0"),
        ("l2", 0, "greater than 0"),
        ("l2", math.inf, "finite number"),
        ("l3", 1, "'linf', 'l2' or 'l1'"),
    ],
)
def test_a_radius_outside_its_norms_range_is_an_error_of_that_key(norm, eps, message):
    with pytest.raises(ValidationError, match=message) as caught:
        ThreatModel(norm=norm, eps=eps)
    assert [error["loc"] for error in caught.value.errors()] == [("norm",) if norm == "l3" else ("eps",)]


def test_names_and_radii():
    assert [str(ball) for ball in BALLS] == ["linf-0.08", "l2-0.5", "l2-2.5", "l1-1.5"]
    assert str(BALLS[2].of_radius(0.25)) == "l2-0.25"
    assert ThreatModel(norm="l2", eps="128/255").eps == 128 / 255
