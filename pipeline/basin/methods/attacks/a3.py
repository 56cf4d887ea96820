"""Adaptive auto attack, A3 (Liu et al. 2022, arXiv 2203.05154): many short runs from starts that lie apart. White-box.

    start:  x <- P(x + (eps / 2) s(grad w . z(x)))        from a random point, `start` times
    run:    x <- P(x + eta_k s(grad (max_{i != y} z_i - z_y)))        eta_k = eps (1 + cos(pi k / K)) / 2, K = `steps`

w gives the start a direction among the logits: uniform in [-1, 1]^classes in the first and every second round; in the others w_y = -1 and
w_t = 1 too, t going through the likeliest classes, because these are the signs that the paper finds to win. s is the sign in L-infinity,
g / ||g|| in L2. An image that is misread is done. Trying images that are closest to falling first is the suite's (`probe`).
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from basin.config.settings import Settings
from basin.threat.target import Run, Step, Target, cooled, follow, margin
from basin.types import Images, Labels, Logits

SEARCHES = True
TOWARDS = 5  # likeliest other classes


class Params(Settings):
    rounds: int = Field(10, ge=1, description="a positive number of runs, each from a start of its own")
    start: int = Field(7, ge=0, description="steps along the drawn direction, 0 or more (the paper: 7)")
    steps: int = Field(25, ge=1, description="a positive number of steps on the margin")


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    best = target.incumbent(images)
    with torch.no_grad():
        z = target.network(images)
    best.offer(images, z, labels)
    follow(target, (_run(params, target, images, labels, z, k, generator) for k in range(params.rounds)), images, labels, best)
    return best.points


def _run(params: Params, target: Target, images: Images, labels: Labels, z: Logits, k: int, generator: torch.Generator) -> Run:
    w = direction(z, labels, k, generator)
    return target.threat.random_point(images, generator), _schedule(params, w)


def _schedule(params: Params, w: Tensor) -> Iterator[Step]:
    yield from ((lambda rows: lambda z, y: (w[rows] * z).sum(1), 0.5) for _ in range(params.start))
    yield from cooled(lambda z, y: -margin(z, y), params.steps, 1.0)


def direction(z: Logits, y: Labels, k: int, generator: torch.Generator) -> Tensor:
    """w of round k, [n, classes]."""
    w = torch.empty_like(z).uniform_(-1, 1, generator=generator)
    if k % 2:
        likeliest = z.scatter(1, y[:, None], -torch.inf).topk(min(TOWARDS, z.shape[1] - 1), 1).indices
        w.scatter_(1, y[:, None], -1.0).scatter_(1, likeliest[:, [k // 2 % likeliest.shape[1]]], 1.0)
    return w
