"""Probability margin attack, PMA (Xie et al. 2024, arXiv 2411.15210). White-box, about 2 x steps gradients.

    x_{k+1} = P(x_k + eta_k s(grad f(x_k)))        eta_k = eps (1 + cos(pi k / K)), k = 0 .. K - 1, K = steps / 2, anew in each half

p = softmax z. Two runs from random points, each in two halves: f is first -p_y in the one run and max_{i != y} p_i in the other, and in
both runs then the margin max_{i != y} p_i - p_y. s is the sign in L-infinity, g / ||g|| in L2. An image that is misread is done.
"""

import math
from collections.abc import Callable, Iterator

import torch
from pydantic import Field
from torch import Tensor

from basin.config.settings import Settings
from basin.threat.target import Incumbent, Target, gradient, margin
from basin.types import Images, Labels, PerImage


class Params(Settings):
    steps: int = Field(100, ge=2, description="steps of each of the two runs, at least 2 (the paper: 100)")


def true_class(z: Tensor, y: Labels) -> PerImage:
    """-p_y."""
    return -z.softmax(1).gather(1, y[:, None])[:, 0]


def other_class(z: Tensor, y: Labels) -> PerImage:
    """max_{i != y} p_i."""
    return z.softmax(1).scatter(1, y[:, None], 0.0).amax(1)


def probability_margin(z: Tensor, y: Labels) -> PerImage:
    """max_{i != y} p_i - p_y."""
    return -margin(z.softmax(1), y)


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    best = Incumbent(images)
    with torch.no_grad():
        best.offer(images, target.network(images), labels)
    for first in (true_class, other_class):
        _run(params.steps, first, target, images, labels, generator, best)
    return best.points


def _run(
    steps: int,
    first: Callable[[Tensor, Labels], PerImage],
    target: Target,
    clean: Images,
    labels: Labels,
    draws: torch.Generator,
    best: Incumbent,
) -> None:
    """One run on the images that hold; every iterate is offered to `best`, and those that are misread leave."""
    threat, rows = target.threat, (~best.broken).nonzero().flatten()
    x = threat.random_point(clean, draws)[rows]
    for loss, eta in _schedule(steps, first):
        if not len(rows):
            return
        g, _, logits = gradient(target.network, x, labels[rows], loss)
        best.offer(x, logits, labels[rows], rows)
        holds = ~best.broken[rows]
        rows, x, g = rows[holds], x[holds], g[holds]
        x = threat.project(x + eta * threat.eps * threat.steepest(g), clean[rows])
    with torch.no_grad():
        if len(rows):
            best.offer(x, target.network(x), labels[rows], rows)


def _schedule(steps: int, first: Callable[[Tensor, Labels], PerImage]) -> Iterator[tuple[Callable[[Tensor, Labels], PerImage], float]]:
    """(loss, step length as a share of the radius) of every step."""
    for loss, K in ((first, steps // 2), (probability_margin, steps - steps // 2)):
        yield from ((loss, 1 + math.cos(math.pi * k / K)) for k in range(K))
