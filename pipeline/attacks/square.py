"""Square attack in L-infinity (Andriushchenko et al. 2020, arXiv 1912.00049, Algorithms 1 and 2). Black-box: scores only, no gradient.

Random search over perturbations at the corners of the ball: start with vertical stripes of +-eps, then repaint one random square in a
random colour of {-eps, eps}^c and keep it where the margin z_y - max_{i != y} z_i falls. The square's share p of the image shrinks
with the queries. A broken image is queried no further.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pipeline.attacks import Incumbent, Target
from pipeline.threat import ThreatModel
from pipeline.types import Images, Labels, PerImage, Settings

BLACK_BOX = True


class Params(Settings):
    queries: int = Field(5000, ge=1, description="a positive number of queries an image (AutoAttack: 5000)")
    p: float = Field(0.8, gt=0, le=1, description="first share of the image that a square covers, above 0 and at most 1")
    HALVINGS: ClassVar = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    threat, best = target.threat, Incumbent(images)
    x = threat.project(images + threat.eps * _signs((*images.shape[:2], 1, images.shape[3]), generator), images)
    margins = _ask(target, x, labels, best, torch.arange(len(images), device=images.device))
    for query in range(1, params.queries):
        rows = (~best.broken).nonzero().flatten()
        if not len(rows):
            break
        candidate = _repaint(x[rows], images[rows], threat, share(params, query), generator)
        asked = _ask(target, candidate, labels[rows], best, rows)
        lower = asked < margins[rows]
        x[rows[lower]], margins[rows[lower]] = candidate[lower], asked[lower]
    return best.points


def share(params: Params, query: int) -> float:
    """p after `query` queries: halved at the paper's marks, which scale with the number of queries."""
    return params.p / 2 ** sum(query * 10_000 / params.queries > mark for mark in params.HALVINGS)


@torch.no_grad()
def _ask(target: Target, x: Images, labels: Labels, best: Incumbent, rows: Tensor) -> PerImage:
    """z_y - max_{i != y} z_i, below 0 where the image is misclassified; each point asked is offered to `best`."""
    z = target.network(x)
    best.offer(x, z, labels, rows)
    return z.gather(1, labels[:, None])[:, 0] - z.scatter(1, labels[:, None], -torch.inf).amax(1)


def _repaint(x: Images, clean: Images, threat: ThreatModel, p: float, generator: torch.Generator) -> Images:
    """Each image with one random square of side sqrt(p h w) set to clean +- eps."""
    n, c, h, w = x.shape
    side = min(max(round((p * h * w) ** 0.5), 1), h, w)
    top = torch.randint(h - side + 1, (n, 1, 1), generator=generator, device=x.device)
    left = torch.randint(w - side + 1, (n, 1, 1), generator=generator, device=x.device)
    i, j = torch.arange(h, device=x.device).view(1, h, 1), torch.arange(w, device=x.device).view(1, 1, w)
    inside = ((i >= top) & (i < top + side) & (j >= left) & (j < left + side)).unsqueeze(1)
    painted = threat.project(clean + threat.eps * _signs((n, c, 1, 1), generator), clean)
    return torch.where(inside, painted, x)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform draws of -1 and 1."""
    return torch.randint(2, shape, generator=generator, device=generator.device) * 2.0 - 1.0
