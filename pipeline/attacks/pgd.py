"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083). White-box, restarts x (steps + 1) gradients.

x_{k+1} = P(x_k + alpha sign(d CE / d x_k)), x_0 a random point of the ball. Of all points visited the best is returned.
With one step of length 1, no random start, it is FGSM.
"""

import torch
from pydantic import Field

from pipeline.attacks import Incumbent, Target, gradient
from pipeline.types import Images, Labels, Settings


class Params(Settings):
    steps: int = Field(20, ge=1, description="a positive number of gradient steps")
    step: float = Field(0.1, gt=0, description="positive step length alpha as a share of the radius (0.1: alpha = eps / 10)")
    restarts: int = Field(1, ge=1, description="a positive number of starts")
    random_start: bool = Field(True, description="whether to start at a random point of the ball (the clean image otherwise)")


def ascend(
    params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator, best: Incumbent | None = None
) -> Images:
    """One start: the last iterate. Every iterate before it is offered to `best`."""
    threat = target.threat
    x = threat.random_point(images, generator) if params.random_start else images
    for _ in range(params.steps):
        g, _, logits = gradient(target.network, x, labels)
        if best is not None:
            best.offer(x, logits, labels)
        x = threat.project(x + params.step * threat.eps * threat.steepest(g), images)
    return x


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    best = Incumbent(images)
    for _ in range(params.restarts):
        x = ascend(params, target, images, labels, generator, best)
        with torch.no_grad():
            best.offer(x, target.network(x), labels)
    return best.points
