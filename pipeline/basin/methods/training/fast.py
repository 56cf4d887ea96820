"""Fast adversarial training, FGSM-RS (Wong et al. 2020, arXiv 2001.03994): one step from a random start, at twice natural cost.

delta ~ U(-eps, eps);    x' = P(x + delta + alpha sign(d CE / d x));    L = mean CE(f(x'), y)

With alpha much above 1.25 eps it overfits all at once ("catastrophic overfitting"): robust to this step, not to PGD. A validation accuracy
that rises while the loss collapses is the sign; the suites show the rest.
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
    step: float = Field(1.25, gt=0, description="positive step length alpha as a share of the radius (the paper: 1.25)")
    smoothing: float = Field(0.0, ge=0, lt=1, description="the share of a label, below 1, that all classes get; not in the attack")


def loss(params: Params, network: Network, images: Images, labels: Labels, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """L = mean CE(network(x'), y), x' one step from a random point of the ball."""
    inner = pgd.Params(steps=1, step=params.step)
    x = found(lambda: pgd.ascend(inner, Target(network, threat), images, labels, generator), generator)
    return cross_entropy(network(x), labels, label_smoothing=params.smoothing)
