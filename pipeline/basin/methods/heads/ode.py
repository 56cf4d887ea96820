"""Neural-ODE head with no stability term (Chen et al. 2018, arXiv 1806.07366): the twin of SODEF that was only trained to classify.

z(0) = P x,    dz/dt = W2 tanh(W1 z + b1) + b2,    logits = V z(T) + c
"""

from pydantic import Field
from torch import nn

from basin.config.schedule import Schedule
from basin.config.settings import Settings
from basin.config.solver import Solver
from basin.data.splits import Split
from basin.models.classifier import Classifier
from basin.models.lyapunov import Bounded
from basin.training.phase import Phase
from basin.types import Features, Logits, NetworkLoss, State


class Params(Settings):
    width: int = Field(64, ge=1, description="the positive width of the state z")
    T: float = Field(1.0, gt=0, description="positive integration time")
    solver: Solver = Field(Solver(), description="how the ODE is solved")
    bound: float | None = Field(None, gt=0, description="a positive bound of ||W2||_2 ||W1||_2, held after each step, or null for none")


class Schedules(Settings):
    classifier: Schedule = Field(description="the schedule of the one phase: projection, drift and classifier together")


class Head(nn.Module):
    """[n, width] -> [n, classes]."""

    def __init__(self, params: Params, width: int, classes: int):
        super().__init__()
        d = params.width
        self.projection = nn.Linear(width, d, bias=False)
        self.flow = Bounded(nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d)), params.T, params.solver, params.bound)
        self.classifier = nn.Linear(d, classes)

    def state(self, z: Features) -> State:
        """z(0), where the flow starts."""
        return self.projection(z)

    def forward(self, z: Features) -> Logits:
        return self.classifier(self.flow(self.state(z)))


def phases(schedules: Schedules, classifier: Classifier, loss: NetworkLoss, train: Split) -> list[Phase]:
    """Cross-entropy through the solve, with the gradient that the solver is set to."""
    head: Head = classifier.head  # type: ignore[assignment]
    return [Phase("classifier", schedules.classifier, [head], lambda x, y, g: loss(classifier, x, y, g))]
