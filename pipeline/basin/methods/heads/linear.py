"""Linear classifier: logits = W z + b."""

from pydantic import Field
from torch import nn

from basin.config.schedule import Schedule
from basin.config.settings import Settings
from basin.data.splits import Split
from basin.models.classifier import Classifier
from basin.training.phase import Phase
from basin.types import Features, Logits, NetworkLoss


class Params(Settings):
    pass


class Schedules(Settings):
    classifier: Schedule = Field(description="the schedule of the one phase")


class Head(nn.Module):
    """[n, width] -> [n, classes]."""

    def __init__(self, params: Params, width: int, classes: int):
        super().__init__()
        self.classifier = nn.Linear(width, classes)

    def before(self) -> float:
        """A Lipschitz constant of what comes before `classifier`: nothing does."""
        return 1.0

    def forward(self, z: Features) -> Logits:
        return self.classifier(z)


def phases(schedules: Schedules, classifier: Classifier, loss: NetworkLoss, train: Split) -> list[Phase]:
    return [Phase("classifier", schedules.classifier, [classifier.head], lambda x, y, g: loss(classifier, x, y, g))]
