"""Diverse-inputs I-FGSM (Xie et al. 2019, arXiv 1803.06978). White-box, steps gradients; made for transfer, also to other models.

    x_{k+1} = P(x_k + alpha s(d CE(f(T(x_k; p)), y) / d x_k))        x_0 = x; s(g) = sign g in L-infinity, g / ||g|| in L2

T shrinks an image to a random size and pads it with zeros at a random place, with probability p; otherwise it is the identity. So a step
follows what many views of the image share. `momentum` accumulates the gradient as MI-FGSM does: M-DI2-FGSM. With p = 0 it is I-FGSM,
or MI-FGSM. Of all points visited the best is returned, judged without T.
"""

import torch
from pydantic import Field
from torch import Tensor

from basin.config.settings import Settings
from basin.threat.target import Incumbent, Target, accumulate, gradient
from basin.types import Images, Labels


class Params(Settings):
    steps: int = Field(20, ge=1, description="a positive number of gradient steps")
    step: float = Field(0.1, gt=0, description="positive step length alpha as a share of the radius (0.1: alpha = eps / 10)")
    momentum: float = Field(0.0, ge=0, description="decay mu of the accumulated gradient, 0 or above (0: none; M-DI2-FGSM: 1.0)")
    p: float = Field(0.5, ge=0, le=1, description="probability of a changed view, from 0 to 1 (the authors' code: 0.5)")
    smallest: float = Field(0.9, gt=0, le=1, description="smallest size as a share of the side, above 0 and at most 1 (theirs: 299/330)")


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    threat, best = target.threat, target.incumbent(images)
    x, v = images, torch.zeros_like(images)
    _offer(best, target, x, labels)
    for _ in range(params.steps):
        R, C = views(params, images, generator)
        g, _, _ = gradient(lambda x: target.network(R @ x @ C), x, labels)  # noqa: B023
        v = accumulate(params.momentum, v, g)
        x = threat.project(threat.ascend(x, v, params.step), images)
        _offer(best, target, x, labels)
    return best.points


@torch.no_grad()
def _offer(best: Incumbent, target: Target, x: Images, labels: Labels) -> None:
    best.offer(x, target.network(x), labels)


def views(params: Params, images: Images, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """R [n, 1, h, h] and C [n, 1, w, w] of zeros and ones, with T(x) = R x C for an image of its own size and place in each row.

    The smaller image takes its pixels from the nearest ones of the larger, as in the authors' code.
    """
    apply, size, top, left = torch.rand((4, len(images), 1), generator=generator, device=images.device, dtype=torch.float64)
    size = torch.where(apply < params.p, size, 1)
    R, C = (_placed(side, params.smallest, size, at).to(images) for side, at in zip(images.shape[2:], (top, left)))
    return R, C.transpose(2, 3)


def _placed(side: int, smallest: float, size: Tensor, at: Tensor) -> Tensor:
    """[n, 1, side, side]: a line of `side` pixels -> itself, shrunk and moved. `size`, `at` [n, 1] in [0, 1) choose the whole numbers."""
    low = max(int(smallest * side), 1)
    r = (low + (size * (side - low + 1)).floor()).clamp_max(side)
    j = torch.arange(side, device=size.device) - (at * (side - r + 1)).floor()
    source = (j * side / r).floor().long().clamp(0, side - 1)
    inside = (j >= 0) & (j < r)
    return (torch.nn.functional.one_hot(source, side) * inside[..., None]).unsqueeze(1)
