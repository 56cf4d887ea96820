"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049). Black-box: scores only, no gradient.

Random search that changes one or two random squares of the perturbation and keeps what lowers the margin z_y - max_{i != y} z_i.

L-infinity (Algorithms 1 and 2): start with vertical stripes of +-eps; repaint a square in a random colour of {-eps, eps}^c.
L2 (Algorithms 1 and 3): start with a tiling of bumps eta; take the norm of a second square, and whatever of eps is unused, and spend
it in the first:

    nu' = rho eta + nu_{W1,i} / ||nu_{W1,i}||        rho in {-1, 1}, for each channel i
    nu_{W1,i} <- nu' / ||nu'|| sqrt(||nu_{W1 u W2,i}||^2 + (eps^2 - ||nu||^2) / c),    nu_{W2 - W1} <- 0

L1 (Croce & Hein 2021, arXiv 2103.01208): the same with L1 norms and no squares in the sum, then the nearest point of the ball.

The squares' share p of the image shrinks with the queries. A broken image is queried no further.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from basin.config.settings import Settings
from basin.threat.ball import ThreatModel
from basin.threat.target import Incumbent, Target, asks, margin
from basin.types import Images, Labels, PerImage

BLACK_BOX = True
ORDER = {"l2": 2, "l1": 1}


class Params(Settings):
    queries: int = Field(5000, ge=1, description="a positive number of queries an image (AutoAttack: 5000)")
    p: float = Field(0.8, gt=0, le=1, description="first share of the image that a square covers, above 0 and at most 1")
    HALVINGS: ClassVar = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    threat, best = target.threat, target.incumbent(images)
    start, propose = {"linf": (_stripes, _repaint), "l2": (_tiles, _gather), "l1": (_tiles, _gather)}[threat.norm]
    x = start(images, threat, generator)
    margins = _ask(target, x, labels, best, torch.arange(len(images), device=images.device))
    for query in range(1, params.queries):
        if asks(query - 1, x.device):
            rows = (~best.broken).nonzero().flatten()
        if not len(rows):
            break
        candidate = propose(x[rows], images[rows], threat, share(params, query), generator)
        asked = _ask(target, candidate, labels[rows], best, rows)
        lower = asked < margins[rows]
        x[rows] = torch.where(lower.view(-1, 1, 1, 1), candidate, x[rows])
        margins[rows] = torch.where(lower, asked, margins[rows])
    return best.points


def share(params: Params, query: int) -> float:
    """p after `query` queries: halved at the paper's marks, which scale with the number of queries."""
    return params.p / 2 ** sum(query * 10_000 / params.queries > mark for mark in params.HALVINGS)


@torch.no_grad()
def _ask(target: Target, x: Images, labels: Labels, best: Incumbent, rows: Tensor) -> PerImage:
    """The margin; each point asked is offered to `best`."""
    z = target.network(x)
    best.offer(x, z, labels, rows)
    return margin(z, labels)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform draws of -1 and 1."""
    return torch.randint(2, shape, generator=generator, device=generator.device) * 2.0 - 1.0


def _window(x: Images, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A random square of each image: (inside [n, 1, h, w], row [n, h, 1] and column [n, 1, w] counted from its corner)."""
    n, _, h, w = x.shape
    top = torch.randint(h - side + 1, (n, 1, 1), generator=generator, device=x.device)
    left = torch.randint(w - side + 1, (n, 1, 1), generator=generator, device=x.device)
    i, j = torch.arange(h, device=x.device).view(1, h, 1) - top, torch.arange(w, device=x.device).view(1, 1, w) - left
    return ((i >= 0) & (i < side) & (j >= 0) & (j < side)).unsqueeze(1), i, j


# L-infinity -------------------------------------------------------------------------------------------------------------------------------


def _stripes(images: Images, threat: ThreatModel, generator: torch.Generator) -> Images:
    return threat.project(images + threat.eps * _signs((*images.shape[:2], 1, images.shape[3]), generator), images)


def _repaint(x: Images, clean: Images, threat: ThreatModel, p: float, generator: torch.Generator) -> Images:
    """Each image with one random square of side sqrt(p h w) set to clean +- eps."""
    n, c, h, w = x.shape
    inside, _, _ = _window(x, min(max(round((p * h * w) ** 0.5), 1), h, w), generator)
    painted = threat.project(clean + threat.eps * _signs((n, c, 1, 1), generator), clean)
    return torch.where(inside, painted, x)


# L2 and L1 --------------------------------------------------------------------------------------------------------------------------------


def _tiles(images: Images, threat: ThreatModel, generator: torch.Generator) -> Images:
    """A grid of 5 x 5 bumps, each with a sign of its own; of norm eps."""
    n, c, h, w = images.shape
    side = max(min(h, w) // 5, 1)
    rows, columns = h // side, w // side
    eta = bumps(side, images)[torch.randint(2, (n, 1, rows, columns), generator=generator, device=images.device)]
    tiles = _signs((n, c, rows, columns, 1, 1), generator) * eta
    tiles = tiles.transpose(3, 4).reshape(n, c, rows * side, columns * side)
    top, left = (h - rows * side) // 2, (w - columns * side) // 2
    start = torch.zeros_like(images)
    start[:, :, top : top + rows * side, left : left + columns * side] = tiles
    return threat.project(images + threat.eps * start / _norm(start, (1, 2, 3), ORDER[threat.norm]), images)


def _gather(x: Images, clean: Images, threat: ThreatModel, p: float, generator: torch.Generator) -> Images:
    """Algorithm 3: the norm of two squares and the unused one, gathered in the first of them. Each channel has a sign of its own."""
    n, c, h, w = x.shape
    q = ORDER[threat.norm]
    side = min(max(round((p * h * w) ** 0.5), 3) | 1, h, w)  # odd, at least 3
    nu = x - clean
    W1, i, j = _window(x, side, generator)
    W2, _, _ = _window(x, side, generator)
    turn = torch.randint(2, (n, 1, 1), generator=generator, device=x.device)
    eta = bumps(side, x)[turn, i.clamp(0, side - 1), j.clamp(0, side - 1)].unsqueeze(1) * W1
    own = nu * W1
    new = _signs((n, c, 1, 1), generator) * eta + own / _norm(own, (2, 3), q)
    unused = (threat.eps**q - threat.distance(x, clean).view(n, 1, 1, 1) ** q).clamp_min(0)
    available = ((nu * (W1 | W2)).abs().pow(q).sum((2, 3), keepdim=True) + unused / c) ** (1 / q)
    nu = torch.where(W1, new / _norm(new, (2, 3), q) * available, nu * ~W2)
    return threat.project(clean + threat.eps * nu / _norm(nu, (1, 2, 3), q), clean)


def bumps(side: int, like: Tensor) -> Tensor:
    """[2, side, side]: eta of equation 2, of unit norm, and its transpose: a positive bump above a negative one."""
    k = side // 2
    eta = torch.cat([_bump(k, side, like), -_bump(side - k, side, like)])
    eta = eta / eta.norm()
    return torch.stack([eta, eta.T])


def _bump(h: int, w: int, like: Tensor) -> Tensor:
    """[h, w], of unit norm: sum_{k=d+1}^{n+1} 1 / k^2 at Chebyshev distance d from the centre, n = floor(max(h, w) / 2)."""
    i, j = torch.arange(h, device=like.device), torch.arange(w, device=like.device)
    d = torch.maximum((i[:, None] - h // 2).abs(), (j - w // 2).abs())
    k = torch.arange(1, max(h, w) // 2 + 2, device=like.device, dtype=like.dtype)
    bump = ((k > d[..., None]) / k**2).sum(2)
    return bump / bump.norm().clamp_min(1e-12)


def _norm(x: Tensor, axes: tuple[int, ...], order: int) -> Tensor:
    return torch.linalg.vector_norm(x, order, dim=axes, keepdim=True).clamp_min(1e-12)
