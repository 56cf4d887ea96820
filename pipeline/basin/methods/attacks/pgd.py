"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083). White-box, restarts x (steps + 1) gradients.

    g_{k+1} = mu g_k + grad_k / mean |grad_k|        grad_k = d CE / d x_k; with mu = 0, PGD, g_{k+1} = grad_k
    x_{k+1} = P(x_k + alpha s(g_{k+1}))              s(g) = sign g in L-infinity, g / ||g|| in L2, sparse in L1

x_0 is a random point of the ball, or the image. Of all points visited the best is returned. From the image: one step of length 1 is FGSM;
more are I-FGSM or BIM (Kurakin et al. 2017, arXiv 1607.02533); with mu = 1, MI-FGSM (Dong et al. 2018, arXiv 1710.06081).
"""

import torch
from pydantic import Field

from basin.config.settings import Settings
from basin.threat.target import Incumbent, Target, accumulate, gradient
from basin.types import Images, Labels


class Params(Settings):
    steps: int = Field(20, ge=1, description="a positive number of gradient steps")
    step: float = Field(0.1, gt=0, description="positive step length alpha as a share of the radius (0.1: alpha = eps / 10)")
    restarts: int = Field(1, ge=1, description="a positive number of starts")
    random_start: bool = Field(True, description="whether to start at a random point of the ball (the clean image otherwise)")
    momentum: float = Field(0.0, ge=0, description="decay mu of the accumulated gradient, 0 or above (0: none; MI-FGSM: 1.0)")


def ascend(
    params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator, best: Incumbent | None = None
) -> Images:
    """One start: the last iterate. Every iterate before it is offered to `best`."""
    threat, onto = target.threat, target.threat.onto(images)
    x = threat.random_point(images, generator) if params.random_start else images
    v = torch.zeros_like(images)
    for _ in range(params.steps):
        g, _, logits = gradient(target.network, x, labels)
        if best is not None:
            best.offer(x, logits, labels)
        v = accumulate(params.momentum, v, g)
        x = onto(threat.ascend(x, v, params.step))
    return x


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    best = target.incumbent(images)
    for _ in range(params.restarts):
        x = ascend(params, target, images, labels, generator, best)
        with torch.no_grad():
            best.offer(x, target.network(x), labels)
    return best.points
