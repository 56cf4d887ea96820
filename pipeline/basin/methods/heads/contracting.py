"""A flow that contracts by construction: no perturbation of its features can grow on the way (models/contraction.py).

z(0) = P x,    dz/dt = -2 W T^-1 relu(W^T z + b) - decay z,    logits = V z(T) + c

P has orthonormal rows. Euler's steps are the reported function, and ||z~(T) - z(T)|| <= ||x~ - x|| holds for them, not for the exact flow
alone.
"""

from pydantic import Field
from torch import nn

from basin.config.schedule import Schedule
from basin.config.settings import Settings
from basin.data.splits import Split
from basin.errors import Mistake
from basin.models.classifier import Classifier
from basin.models.contraction import Contracting, ContractingFlow
from basin.models.lyapunov import Orthonormal
from basin.training.phase import Phase
from basin.types import Features, Logits, NetworkLoss, State


class Params(Settings):
    width: int = Field(64, ge=1, description="the width of the state z, up to the backbone's width")
    hidden: int = Field(256, ge=1, description="a positive number of columns of W")
    layers: int = Field(1, ge=1, description="a positive number of drifts, which take turns on the way")
    T: float = Field(5.0, gt=0, description="positive integration time")
    steps: int = Field(10, ge=1, description="a positive number of Euler's steps from 0 to T, at least T (1 + decay)")
    decay: float = Field(0.0, ge=0, description="the least rate at which two trajectories approach each other, 0 or above")


class Schedules(Settings):
    classifier: Schedule = Field(description="the schedule of the one phase: projection, drift and classifier together")


class Head(nn.Module):
    """[n, width] -> [n, classes]. Raises Mistake where the state is wider than the features, or a step too long to contract."""

    def __init__(self, params: Params, width: int, classes: int):
        super().__init__()
        if params.width > width:
            raise Mistake(f"head.width: is above the backbone's (got {params.width}). Give at most {width}.")
        if params.steps < params.T * (1 + params.decay):
            raise Mistake(f"head.steps: are too few to contract (got {params.steps}). Give at least T (1 + decay).")
        self.projection = Orthonormal(width, params.width)
        drifts = [Contracting(params.width, params.hidden, params.decay) for _ in range(params.layers)]
        self.flow = ContractingFlow(drifts, params.T, params.steps)
        self.classifier = nn.Linear(params.width, classes)

    def state(self, z: Features) -> State:
        """z(0), where the flow starts."""
        return self.projection(z)

    def before(self) -> float:
        """A Lipschitz constant of what comes before `classifier`; the projection's is 1."""
        return self.flow.lipschitz()

    def forward(self, z: Features) -> Logits:
        return self.classifier(self.flow(self.state(z)))


def phases(schedules: Schedules, classifier: Classifier, loss: NetworkLoss, train: Split) -> list[Phase]:
    """Cross-entropy through the solve, as the training method takes it."""
    head: Head = classifier.head  # type: ignore[assignment]
    return [Phase("classifier", schedules.classifier, [head], lambda x, y, g: loss(classifier, x, y, g))]
