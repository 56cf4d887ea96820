"""Carlini & Wagner's L2 attack (2017, arXiv 1608.04644, section VI.A). White-box, minimum-norm, searches x steps gradients: slow.

It weighs distance against the difference of logits instead of raising a loss inside a ball, so neither large logits nor a badly chosen
step blind it. Deterministic: it starts at the clean image.

    x(w) = (tanh(w) + 1) / 2,    minimise over w  |x(w) - x|_2^2 + c f(x(w)),    f(x) = max(z_y - max_{i != y} z_i, -kappa)

by Adam, for each image with a c of its own: raised tenfold until the image falls, then bisected. Of all points on the way that are
misclassified the nearest is kept; where that lies outside the ball, the best projection into it.
"""

import torch
from pydantic import Field
from torch import Tensor

from basin.config.settings import Settings
from basin.threat.ball import HIGH, LOW
from basin.threat.target import Target, gradient, margin, misread
from basin.training.optimisers import Adam
from basin.types import Images, Labels, PerImage


class Params(Settings):
    steps: int = Field(200, ge=1, description="a positive number of gradient steps for each c")
    searches: int = Field(9, ge=1, description="a positive number of values of c tried for each image")
    rate: float = Field(0.05, gt=0, description="Adam's positive learning rate, in w")
    c: float = Field(1e-3, gt=0, description="the first value of c, positive")
    kappa: float = Field(0.0, ge=0, description="by how much the other logit should win, 0 for the least distance")


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    best, nearest = target.incumbent(images), images.clone()
    distance = torch.full((len(images),), torch.inf, device=images.device)
    c, low, high = distance.new_full(distance.shape, params.c), torch.zeros_like(distance), distance.clone()
    for _ in range(params.searches):
        x, found = _minimise(params, target, images, labels, c, nearest, distance)
        with torch.no_grad():
            x = target.threat.project(x, images)
            best.offer(x, target.network(x), labels)
        low, high = torch.where(found, low, c), torch.where(found, c, high)
        c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
    inside = (distance <= target.threat.eps).view(-1, 1, 1, 1)
    return torch.where(inside, nearest, best.points)


def _minimise(
    params: Params, target: Target, clean: Images, labels: Labels, c: PerImage, nearest: Images, distance: PerImage
) -> tuple[Images, Tensor]:
    """(the last point, which images fell on the way) for one c each; `nearest` and `distance` are brought up to date."""

    def f(z: Tensor, y: Labels) -> PerImage:
        return margin(z, y).clamp(min=-params.kappa)

    x, found = clean, torch.zeros_like(labels, dtype=torch.bool)
    w = torch.atanh((2 * (clean - LOW) / (HIGH - LOW) - 1) * (1 - 1e-6))
    adam = Adam([w], params.rate)
    for _ in range(params.steps):
        t = torch.tanh(w)
        x = LOW + (HIGH - LOW) * (t + 1) / 2
        g, _, logits = gradient(target.network, x, labels, f)
        broken, far = misread(logits, labels), target.threat.distance(x, clean)
        closer = broken & (far < distance)
        found, nearest[closer], distance[closer] = found | broken, x[closer], far[closer]
        w.grad = (2 * (x - clean) + c.view(-1, 1, 1, 1) * g) * (1 - t**2) / 2
        adam.step()
    return x, found
