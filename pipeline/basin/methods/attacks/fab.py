"""Fast adaptive boundary attack, targeted (Croce & Hein 2020, arXiv 1907.02044). White-box, minimum-norm, targets x steps gradients.

It looks for the nearest point of another class and needs no radius: it does not mind a flat loss far from the boundary, but needs the
gradient of a difference of logits to be right. The authors' code (pyautoattack), with its alpha_max = 0.1, eta = 1.05, beta = 0.9.

    pi_t = {v : f_t(x_i) - f_y(x_i) + <grad (f_t - f_y)(x_i), v - x_i> = 0}, the boundary made linear at x_i
    d_i, d_0 = steps from x_i and from the clean x to pi_t, shortest in the norm inside the pixel range
    x_{i+1} = (1 - alpha) (x_i + eta d_i) + alpha (x + eta d_0),    alpha = min(|d_i| / (|d_i| + |d_0|), alpha_max)
    where x_{i+1} is misclassified:    x_{i+1} <- x + beta (x_{i+1} - x)
"""

import torch
from pydantic import Field

from basin.config.settings import Settings
from basin.threat import foreign
from basin.threat.target import Target
from basin.types import Images, Labels


class Params(Settings):
    steps: int = Field(100, ge=1, description="a positive number of steps of each run (AutoAttack: 100)")
    restarts: int = Field(1, ge=1, description="a positive number of starts for each class, all but the first random")
    targets: int = Field(9, ge=1, description="a positive number of target classes, likeliest first")


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    """The nearest point found where it breaks the image within the radius, else the clean image."""
    from pyautoattack.fab_pt import FABAttack_PT

    threat, network, best = target.threat, foreign.sealed(target.network), target.incumbent(images)
    logits = network(images)
    best.offer(images, logits, labels)
    rows = (~best.broken).nonzero().flatten()
    if len(rows):
        with foreign.seeded(generator) as seed:
            attack = FABAttack_PT(
                network, foreign.NORM[threat.norm], params.restarts, params.steps, threat.eps, seed=seed, targeted=True,
                device=images.device, n_target_classes=min(params.targets, logits.shape[1] - 1),
            )  # fmt: skip
            x = attack.perturb(images[rows], labels[rows])
        x = threat.project(torch.where(x.isfinite(), x, images[rows]), images[rows])
        best.offer(x, network(x), labels[rows], rows)
    return best.points
