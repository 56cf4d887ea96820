"""Linear classifier with every parameter a learnable distribution that is drawn anew in every pass: a randomised head.

    logits = W z + b,    each of W, b ~ N(mu, sigma^2),    sigma = floor + softplus(rho)

The classifier on a backbone of distributions, and the smallest randomised defence on one that is not. The equations are in
basin/models/distribution.py. Khan et al. 2019 (arXiv 1905.10906).
"""

from pydantic import Field
from torch import nn

from basin.config.posterior import Posterior
from basin.config.schedule import Schedule
from basin.config.settings import Settings
from basin.data.splits import Split
from basin.models.classifier import Classifier
from basin.models.distribution import Distribution
from basin.training.phase import Phase
from basin.types import Features, Logits, NetworkLoss


class Params(Posterior):
    pass


class Schedules(Settings):
    classifier: Schedule = Field(description="the schedule of the one phase: means and scales together")


class Head(Distribution):
    """[n, width] -> [n, classes]."""

    def __init__(self, params: Params, width: int, classes: int):
        super().__init__(nn.Linear(width, classes), params)

    def forward(self, z: Features) -> Logits:
        return super().forward(z)


def phases(schedules: Schedules, classifier: Classifier, loss: NetworkLoss, train: Split) -> list[Phase]:
    return [Phase("classifier", schedules.classifier, [classifier.head], lambda x, y, g: loss(classifier, x, y, g))]
