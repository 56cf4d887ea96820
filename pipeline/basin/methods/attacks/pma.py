"""Probability margin attack, PMA (Xie et al. 2024, arXiv 2411.15210). White-box, about 2 x steps gradients.

    x_{k+1} = P(x_k + eta_k s(grad f(x_k)))        eta_k = eps (1 + cos(pi k / K)), k = 0 .. K - 1, K = steps / 2, anew in each half

p = softmax z. Two runs from random points, each in two halves: f is first -p_y in the one run and max_{i != y} p_i in the other, and in
both runs then the margin max_{i != y} p_i - p_y. s is the sign in L-infinity, g / ||g|| in L2. An image that is misread is done.
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from basin.config.settings import Settings
from basin.threat.target import PerImageLoss, Step, Target, cooled, follow, probability_margin
from basin.types import Images, Labels, PerImage

SEARCHES = True


class Params(Settings):
    steps: int = Field(100, ge=2, description="steps of each of the two runs, at least 2 (the paper: 100)")


def true_class(z: Tensor, y: Labels) -> PerImage:
    """-p_y."""
    return -z.softmax(1).gather(1, y[:, None])[:, 0]


def other_class(z: Tensor, y: Labels) -> PerImage:
    """max_{i != y} p_i."""
    return z.softmax(1).scatter(1, y[:, None], 0.0).amax(1)


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    best = target.incumbent(images)
    with torch.no_grad():
        best.offer(images, target.network(images), labels)
    runs = ((target.threat.random_point(images, generator), _schedule(params.steps, first)) for first in (true_class, other_class))
    follow(target, runs, images, labels, best)
    return best.points


def _schedule(steps: int, first: PerImageLoss) -> Iterator[Step]:
    yield from cooled(first, steps // 2, 2.0)
    yield from cooled(lambda z, y: -probability_margin(z, y), steps - steps // 2, 2.0)
