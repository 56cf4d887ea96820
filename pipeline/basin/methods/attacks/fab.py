"""Fast adaptive boundary attack, targeted (Croce & Hein 2020, arXiv 1907.02044). White-box, minimum-norm, targets x steps gradients.

It looks for the nearest point of another class and needs no radius: it does not mind a flat loss far from the boundary, but needs the
gradient of a difference of logits to be right. The authors' code (pyautoattack), with its alpha_max = 0.1, eta = 1.05, beta = 0.9.
Targets are tried likeliest first, as there, or nearest first (MALT: `others` in basin/threat/target.py).

    pi_t = {v : f_t(x_i) - f_y(x_i) + <grad (f_t - f_y)(x_i), v - x_i> = 0}, the boundary made linear at x_i
    d_i, d_0 = steps from x_i and from the clean x to pi_t, shortest in the norm inside the pixel range
    x_{i+1} = (1 - alpha) (x_i + eta d_i) + alpha (x + eta d_0),    alpha = min(|d_i| / (|d_i| + |d_0|), alpha_max)
    where x_{i+1} is misclassified:    x_{i+1} <- x + beta (x_{i+1} - x)
"""

from itertools import product
from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import one_hot

from basin.config.settings import Settings
from basin.threat import foreign
from basin.threat.ball import ThreatModel
from basin.threat.target import Target, others
from basin.types import Images, Labels, Network


class Params(Settings):
    steps: int = Field(100, ge=1, description="a positive number of steps of each run (AutoAttack: 100)")
    restarts: int = Field(1, ge=1, description="a positive number of starts for each class, all but the first random")
    targets: int = Field(9, ge=1, description="a positive number of target classes")
    order: Literal["likeliest", "nearest"] = Field(
        "likeliest", description="which targets are first: likeliest, or nearest (MALT, a gradient for each of 100 classes at most)"
    )


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    """The nearest point found where it breaks the image within the radius, else the clean image."""
    threat, network, best = target.threat, foreign.sealed(target.network), target.incumbent(images)
    logits = network(images)
    best.offer(images, logits, labels)
    towards = others(target, images, labels, logits, params.order == "nearest").T[: params.targets]
    with foreign.seeded(generator):
        for t, again in product(towards, range(params.restarts)):
            if not len(rows := (~best.broken).nonzero().flatten()):
                break
            x = _run(params, network, threat, images[rows], labels[rows], t[rows], random_start=again > 0)
            x = threat.project(torch.where(x.isfinite(), x, images[rows]), images[rows])
            best.offer(x, network(x), labels[rows], rows)
    return torch.where(best.broken.view(-1, 1, 1, 1), best.points, images)


def _run(params: Params, network: Network, threat: ThreatModel, x: Images, y: Labels, t: Labels, random_start: bool) -> Images:
    """The authors' search towards class t of each image. They rank the classes by the logits, which are asked for nothing else."""
    from pyautoattack.fab_pt import FABAttack_PT

    attack = FABAttack_PT(network, foreign.NORM[threat.norm], n_iter=params.steps, eps=threat.eps, device=x.device)
    attack.target_class = 1  # of the highest rank
    attack._predict_fn = lambda images: one_hot(t)
    attack._get_predicted_label = lambda images: network(images).argmax(1)
    return attack.attack_single_run(x, y, use_rand_start=random_start, is_targeted=True)  # type: ignore[no-any-return]
