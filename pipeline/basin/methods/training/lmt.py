"""Lipschitz-margin training (Tsuzuku, Sato & Sugiyama 2018, arXiv 1802.04034): every wrong logit is raised by what the radius can move it.

L = mean CE(l + m, y),    m_j = r L ||V_y - V_j||_2,    r = eps_ratio times the threat model's radius in L2

l = V h(x) + c, and L is a Lipschitz constant of h that holds whatever its weights (basin/models/lipschitz.py). An image that l + m reads
rightly has a certified radius of at least r.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from basin.config.settings import Settings
from basin.errors import Mistake
from basin.models.classifier import Classifier
from basin.models.lipschitz import between, given, lipschitz
from basin.threat.ball import ThreatModel
from basin.types import Images, Labels, Network


class Params(Settings):
    eps_ratio: float = Field(1.0, ge=0, description="the radius that is asked for as a multiple of the threat model's, 0 or above")


def loss(params: Params, network: Network, images: Images, labels: Labels, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """Raises Mistake where the network has no Lipschitz constant of that kind."""
    if not isinstance(network, Classifier) or (L := lipschitz(network, given)) is None:
        raise Mistake(
            "training.kind: needs layers of a Lipschitz constant that holds whatever their weights (got lmt). "
            "Take `backbone: {kind: sll}` with a head linear or contracting and no purifier, or another kind of training."
        )
    r = params.eps_ratio * threat.within_l2(images[0])
    return cross_entropy(network(images) + r * L * between(network)[labels], labels)
