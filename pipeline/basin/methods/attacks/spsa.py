"""SPSA attack (Uesato et al. 2018, arXiv 1802.05666). Black-box: descent along a gradient estimated from scores.

    g = 1/n sum_i (J(x_t + delta v_i) - J(x_t - delta v_i)) / (2 delta) v_i        v_i ~ {-1, 1}^d
    x_{t+1} = P(x_t - alpha Adam(g))                                               J = z_y - max_{i != y} z_i, x_0 = x

A difference over 2 delta does not see shattered or wrong derivatives, and J does not saturate as cross-entropy does. It costs 2 n + 1
queries a step. A broken image is queried no further, unless the network draws: then a point that more draws misread is looked for, and a
query for g is one draw, because more directions say more than more draws in each. The queries lie around the nearest point to x_t that is
delta inside the pixel range, so that they are images: a model may read pixels as bytes, or take their root.
"""

import torch
from pydantic import Field
from torch import Tensor

from basin.config.settings import Settings
from basin.threat.ball import HIGH, LOW
from basin.threat.target import Target, margin
from basin.types import Images, Labels

BLACK_BOX = True
BETA1, BETA2, TINY = 0.9, 0.999, 1e-8  # Adam's
PASS = 2**20  # pixels drawn at once, if the batch with one direction has not more


class Params(Settings):
    steps: int = Field(100, ge=1, description="a positive number of steps")
    samples: int = Field(128, ge=1, description="a positive number n of directions a step, two queries each")
    delta: float = Field(0.01, gt=0, le=0.5, description="distance of the queries in each pixel, scaled to [0, 1]: above 0, at most 0.5")
    rate: float = Field(
        0.3, gt=0, description="positive rate of Adam, as a share of what each pixel may change where all change alike; in L1 of the radius"
    )


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    threat, best = target.threat, target.incumbent(images)
    alpha = params.rate * (threat.eps / threat.distance(torch.ones_like(images), torch.zeros_like(images))).view(-1, 1, 1, 1)
    x, m, s = images.clone(), torch.zeros_like(images), torch.zeros_like(images)
    with torch.no_grad():
        best.offer(x, target.network(x), labels)
        for t in range(1, params.steps + 1):
            rows = (~best.broken | (target.single is not None)).nonzero().flatten()
            if not len(rows):
                break
            g = estimate(params, target, x[rows], labels[rows], generator)
            m[rows] = BETA1 * m[rows] + (1 - BETA1) * g
            s[rows] = BETA2 * s[rows] + (1 - BETA2) * g**2
            if threat.norm == "l1":  # there it counts which pixels matter most, which Adam evens out
                step = params.rate * threat.eps * threat.steepest(-m[rows], x[rows])
            else:
                step = -alpha[rows] * m[rows] / (1 - BETA1**t) / ((s[rows] / (1 - BETA2**t)).sqrt() + TINY)
            x[rows] = threat.project(x[rows] + step, images[rows])
            best.offer(x[rows], target.network(x[rows]), labels[rows], rows)
    return best.points


def estimate(params: Params, target: Target, x: Images, labels: Labels, generator: torch.Generator) -> Tensor:
    """g, the mean over the directions; several directions go through the network in one pass, of as many as there is room for."""
    total, network, centre = torch.zeros_like(x), target.single or target.network, x.clamp(LOW + params.delta, HIGH - params.delta)
    for k in _shares(params.samples, max(PASS // (2 * x.numel()), 1)):
        v = torch.randint(2, (k, *x.shape), generator=generator, device=x.device) * 2.0 - 1.0
        points = torch.cat([centre + params.delta * v, centre - params.delta * v]).clamp_(LOW, HIGH)  # rounding
        parts = points.flatten(0, 1).split(max(target.room, len(x)) if target.room else len(points) * len(x))
        above, below = margin(torch.cat([network(part) for part in parts]), labels.repeat(2 * k)).view(2, k, len(x), 1, 1, 1)
        total += ((above - below).nan_to_num(0.0, 0.0, 0.0) * v).sum(0)
    return total / (2 * params.delta * params.samples)


def _shares(total: int, most: int) -> list[int]:
    """`total` in parts of at most `most`."""
    return [min(most, total - done) for done in range(0, total, most)]
