"""Adversarial training (Madry et al. 2018, arXiv 1706.06083): min over weights of the max over the ball.

L = mean CE(network(x'), y), x' = projected gradient descent's point for x. Batch-normalisation statistics are those of x' (the
network is in whatever mode the caller set it), as in the authors' code.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from basin.config.settings import Settings
from basin.methods.attacks import pgd
from basin.threat.ball import ThreatModel
from basin.threat.target import Target
from basin.training.awp import found
from basin.types import Images, Labels, Network


class Params(Settings):
    steps: int = Field(5, ge=1, description="a positive number of attack steps for each batch")
    step: float = Field(0.4, gt=0, description="positive step length as a share of the radius")
    smoothing: float = Field(0.0, ge=0, lt=1, description="the share of a label, below 1, that all classes get; not in the attack")
    eps_ratio: float = Field(1.0, gt=0, description="positive training radius as a multiple of the threat model's")


def loss(params: Params, network: Network, images: Images, labels: Labels, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """L = mean CE(network(x'), y), x' found from a random start."""
    inner = pgd.Params(steps=params.steps, step=params.step, restarts=1)
    target = Target(network, threat.of_radius(params.eps_ratio * threat.eps))
    x = found(lambda: pgd.ascend(inner, target, images, labels, generator), generator)
    return cross_entropy(network(x), labels, label_smoothing=params.smoothing)
