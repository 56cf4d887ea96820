"""Fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572): one step of the whole radius. White-box, one gradient.

x' = P(x + eps s(d CE / d x)), s the direction of unit norm in which a linear function rises fastest: the sign in L-infinity, the
gradient by its norm in L2 (there also called the fast gradient method).
"""

import torch

from basin.config.settings import Settings
from basin.threat.target import Target, gradient
from basin.types import Images, Labels


class Params(Settings):
    pass


def perturb(params: Params, target: Target, images: Images, labels: Labels, generator: torch.Generator) -> Images:
    g, _, _ = gradient(target.network, images, labels)
    return target.threat.project(target.threat.ascend(images, g, 1.0), images)
