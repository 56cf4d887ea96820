"""The L1 ball cut with the pixel range (Croce & Hein 2021, arXiv 2103.01208): its nearest point, sparse steps, uniform draws."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from basin.config.threat import HIGH, LOW
from basin.types import Images

SPARSE = 0.2  # the share of the pixels that a step moves at most, APGD's first
INSIDE = 1 - 1e-7  # a projection ends this share of the radius from the centre, so that a sum in float32 is inside too


def project(x: Images, clean: Images, eps: Tensor) -> Images:
    """The nearest point to x of the ball and the pixel range (proposition 2.1); eps [n or 1, 1] in float64.

        delta_i = sign(d_i) min(max(|d_i| - lambda, 0), b_i)        d = x - clean, b_i the room of pixel i towards d_i

    Rounded towards the clean image, so that no norm grows by it; x, brought into the pixel range, where that is inside.
    """
    c = clean.double().flatten(1)
    d = x.double().flatten(1) - c
    room = torch.where(d > 0, HIGH - c, c - LOW)
    inside = torch.minimum(d.abs(), room).sum(1, keepdim=True) <= eps
    size = torch.minimum((d.abs() - threshold(d.abs(), room, eps * INSIDE)).clamp_min(0), room)
    point = (c + d.sign() * size).to(x.dtype).view_as(x)
    beyond = (point.double() - clean.double()).abs() > size.view_as(x)
    point = torch.where(beyond, torch.nextafter(point, clean), point)
    return torch.where(inside.view(-1, 1, 1, 1), x.clamp(LOW, HIGH), point)


def threshold(a: Tensor, b: Tensor, eps: Tensor) -> Tensor:
    """lambda [n, 1] at which sum_i min(max(a_i - lambda, 0), b_i) is eps; of rows whose sum is smaller it is below 0.

    As lambda falls, the i-th term begins to grow at a_i and ends at a_i - b_i: between two of these 2 d breakpoints, sorted, the sum is
    linear, its slope the number of terms that grow.
    """
    t, order = torch.cat([a, a - b], 1).sort(dim=1, descending=True)
    slope = torch.cat([torch.ones_like(a), -torch.ones_like(a)], 1).gather(1, order).cumsum(1)[:, :-1]
    norm = pad((slope * (t[:, :-1] - t[:, 1:])).cumsum(1), (1, 0))
    k = (norm < eps).sum(1, keepdim=True).clamp(1, t.shape[1] - 1)  # the first breakpoint at which the sum is eps
    return t.gather(1, k) + (norm.gather(1, k) - eps) / slope.gather(1, k - 1).clamp_min(1)


def movable(gradient: Tensor, x: Images) -> Tensor:
    """The gradient, zero in pixels that the pixel range lets go no further along it."""
    return torch.where(torch.where(gradient > 0, x < HIGH, x > LOW), gradient, 0)


def largest(gradient: Tensor, share: Tensor) -> Tensor:
    """The gradient, zero but in its largest pixels: a `share` [n, 1] of them, one at least."""
    g = gradient.flatten(1)
    size, order = g.abs().sort(dim=1, descending=True, stable=True)
    kept = torch.arange(g.shape[1], device=g.device) < (share * g.shape[1]).round().clamp_min(1)
    return torch.zeros_like(g).scatter(1, order, kept * g.gather(1, order)).view_as(gradient)


def unit(direction: Tensor) -> Tensor:
    """The direction with an L1 norm of 1; zero where it is."""
    g = direction.flatten(1)
    peak = g.abs().amax(1, keepdim=True)
    g = g / torch.where(peak > 0, peak, 1)  # first, because sums of large gradients are infinite in float32
    return (g / g.abs().sum(1, keepdim=True).clamp_min(1)).view_as(direction)


def draw(like: Images, generator: torch.Generator) -> Tensor:
    """Uniform draws from the ball of radius 1: exponential sizes, each with a sign, over the sum of them and of one more."""
    size = torch.empty_like(like).exponential_(generator=generator)
    more = torch.empty_like(like[:, :1, :1, :1]).exponential_(generator=generator)
    sign = torch.randint(2, like.shape, generator=generator, device=like.device) * 2.0 - 1.0
    return sign * size / (size.sum((1, 2, 3), keepdim=True) + more)
