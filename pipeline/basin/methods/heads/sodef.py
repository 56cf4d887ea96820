"""SODEF, the Lyapunov-stable ODE head (Kang et al., NeurIPS 2021, arXiv 2110.12976), in the form of its paper or of its released code.

    z(0) = P x (P with orthonormal rows),    dz/dt = f(z),    logits = V z(T) (paper) or C z(T) + c (released)
    f(z) = sin(-(W z + b)) (sine), or that twice, each with its own W, b (two_layers)

V is the fixed MaxMin matrix (Corollary 1: unit rows, every cosine 1/(1 - k)), J = df/dz at z(0). The backbone stays as it is.

`form: paper`, two phases, a fifth and the rest of the epochs:

1. `features`: P alone, cross-entropy of V z(T).
2. `stability`: f (and P with `release`), equation (7), the mean over images of
       CE(V z(T), y) + a1 ||f(z(0))||_2 + a2 g(sum_i J_ii) + a3 g(sum_i (-|J_ii| + sum_{j != i} |J_ij|)),    g = exp

`form: released`, three phases:

1. `features`: P alone, cross-entropy of V z(0).
2. `stability`: f alone, no cross-entropy and no integration:
       R_diag = mean_i mean_b exp(J_ii + 1)
       R_off  = mean_j mean_b exp(0.1 (sum_i s_ij |J_ij| + 1)),    s = -1 on the diagonal and 1 off it
       R_f    = mean (50 f)^2
   loss = w_diag R_diag + w_off R_off + w_f R_f: Jacobians with a negative, dominant diagonal, at points where f vanishes.
3. `classifier`: C, c alone, cross-entropy at z(T).

What each leaves open is in docs/methods/heads/sodef.md.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from basin.config.schedule import Schedule
from basin.config.settings import Settings
from basin.config.solver import Solver
from basin.data.splits import Split
from basin.errors import Mistake
from basin.models.classifier import Classifier
from basin.models.lyapunov import Bounded, Orthonormal, maxmin
from basin.models.ode import Flow
from basin.training.phase import Phase, each
from basin.types import Features, Images, Labels, Logits, NetworkLoss, PerImage, State

EXPONENTIAL_UP_TO = 5.0  # g is exp up to here


class Params(Settings):
    width: int = Field(64, ge=2, description="the width of the state z, from the number of classes to the backbone's width")
    T: float = Field(5.0, gt=0, description="positive integration time (the paper: 5)")
    solver: Solver = Field(Solver(), description="how the ODE is solved")
    form: Literal["released", "paper"] = Field(
        "released", description="released (three phases, a trained classifier) or paper (equation 7, the fixed MaxMin classifier)"
    )
    drift: Literal["sine", "two_layers"] = Field("sine", description="sine (one layer, as released) or two_layers (as in the paper)")
    bound: float | None = Field(
        None, gt=0, description="a positive bound of the drift's gain, the product of its ||W||_2, or null for none"
    )


class Stability(Schedule):
    """Phase 2: the weights of the regulariser, and on how many rows of each batch it is taken."""

    w_diag: float = Field(10.0, ge=0, description="weight of R_diag, 0 or above")
    w_off: float = Field(10.0, ge=0, description="weight of R_off, 0 or above (released: 10 on MNIST, 0 on CIFAR-10)")
    w_f: float = Field(0.2, ge=0, description="weight of R_f, 0 or above (released: 0.2 on MNIST, 0.1 on CIFAR-10)")
    rows: int = Field(16, ge=1, description="a positive number of images of each batch on which the regulariser is taken (released: 8, 16)")


class Schedules(Settings):
    """Of `form: released`."""

    features: Schedule = Field(description="phase 1: the projection")
    stability: Stability = Field(description="phase 2: the drift")
    classifier: Schedule = Field(description="phase 3: the classifier at z(T)")

    @field_validator("features", "stability")
    @classmethod
    def _knows_no_accuracy(cls, schedule: Schedule) -> Schedule:
        if schedule.stopping:
            raise PydanticCustomError("stopping", "stopping would watch a classifier that phase 3 alone trains. Leave it out here.")
        return schedule


class PaperSchedule(Schedule):
    """Of `form: paper`: one schedule for both phases, and the weights of equation (7)."""

    epochs: int = Field(ge=2, description="a number of epochs, at least 2: a fifth for the projection, the rest for equation (7)")
    a1: float = Field(1.0, ge=0, description="weight of ||f(z(0))||_2, 0 or above (the paper: 1)")
    a2: float = Field(0.05, ge=0, description="weight of the diagonal's term, 0 or above (the paper: 0.05)")
    a3: float = Field(0.05, ge=0, description="weight of the dominance term, 0 or above (the paper: 0.05)")
    release: bool = Field(False, description="whether the projection is trained with equation (7) too")

    @field_validator("warmup")
    @classmethod
    def _leaves_the_first_phase_an_epoch(cls, warmup: float, others: Any) -> float:
        if warmup >= max(1, others.data.get("epochs", math.inf) // 5):
            raise PydanticCustomError("warmup", "takes all epochs of the first phase, a fifth of them. Give it fewer.")
        return warmup


def schedules(params: Params) -> type[Settings]:
    """The table of schedules of a form."""
    return PaperSchedule if params.form == "paper" else Schedules


class SineDrift(nn.Module):
    """f(z) = sin(-(W z + b))."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, z: Features) -> Features:
        return torch.sin(-self.linear(z))

    def lipschitz(self) -> float:
        """A Lipschitz constant of f: ||W||_2, because that of the sine is 1."""
        return torch.linalg.matrix_norm(self.linear.weight, 2).item()


class Head(nn.Module):
    """[n, width] -> [n, classes]. Raises Mistake where the state's width does not fit."""

    V: Tensor

    def __init__(self, params: Params, width: int, classes: int):
        super().__init__()
        d = params.width
        if not classes <= d <= width:
            raise Mistake(
                f"head.width: does not fit (got {d}). The projection has orthonormal rows and the MaxMin matrix a dimension for each "
                f"class: give {classes} (classes) to {width} (the backbone's width)."
            )
        self.projection = Orthonormal(width, d)
        drift = SineDrift(d) if params.drift == "sine" else nn.Sequential(SineDrift(d), SineDrift(d))
        self.flow = Bounded(drift, params.T, params.solver, params.bound)
        self.classifier = nn.Linear(d, classes) if params.form == "released" else None
        self.register_buffer("V", maxmin(classes, d))

    def state(self, z: Features) -> State:
        """z(0), where the flow starts."""
        return self.projection(z)

    def separated(self, z: State) -> Logits:
        """V z."""
        return z @ self.V.T

    def forward(self, z: Features) -> Logits:
        zT = self.flow(self.state(z))
        return self.separated(zT) if self.classifier is None else self.classifier(zT)


def regulariser(weights: Stability, flow: Flow, z: State) -> Tensor:
    """w_diag R_diag + w_off R_off + w_f R_f at the rows of z [b, d]."""
    J = flow.jacobian(z)
    diagonal = J.diagonal(dim1=1, dim2=2)
    signed = J.abs().sum(1) - 2 * diagonal.abs()  # sum over i of s_ij |J_ij|: a column's off-diagonal less its diagonal
    R_diag = (diagonal + 1).exp().mean()
    R_off = (0.1 * (signed + 1)).exp().mean()
    R_f = (50 * flow.drift(z)).square().mean()
    return weights.w_diag * R_diag + weights.w_off * R_off + weights.w_f * R_f


def exponential(x: PerImage) -> PerImage:
    """g: exp, continued by its tangent above 5: rising and convex as the paper's g1, g2, and finite where exp is not."""
    return x.clamp(max=EXPONENTIAL_UP_TO).exp() * (1 + (x - EXPONENTIAL_UP_TO).clamp(min=0))


def lagrangian(weights: PaperSchedule, flow: Flow, z: State) -> Tensor:
    """Equation (7) without its cross-entropy, the mean over the rows of z [b, d]."""
    J = flow.jacobian(z)
    diagonal = J.diagonal(dim1=1, dim2=2)
    excess = J.abs().sum((1, 2)) - 2 * diagonal.abs().sum(1)  # sum over i of (-|J_ii| + sum_{j != i} |J_ij|)
    speed = flow.drift(z).norm(dim=1)
    return (weights.a1 * speed + weights.a2 * exponential(diagonal.sum(1)) + weights.a3 * exponential(excess)).mean()


def phases(schedules: Schedules | PaperSchedule, classifier: Classifier, loss: NetworkLoss, train: Split) -> list[Phase]:
    """The phases of the form that the schedules belong to."""
    head: Head = classifier.head  # type: ignore[assignment]
    if isinstance(schedules, PaperSchedule):
        return _paper(schedules, classifier, head, loss)
    return _released(schedules, classifier, head, loss)


def _paper(schedule: PaperSchedule, classifier: Classifier, head: Head, loss: NetworkLoss) -> list[Phase]:
    first = max(1, schedule.epochs // 5)
    features, stability = (schedule.model_copy(update={"epochs": epochs}) for epochs in (first, schedule.epochs - first))

    def equation_7(x: Images, y: Labels, g: torch.Generator) -> Iterator[Tensor]:
        for cross_entropy in each(loss(classifier, x, y, g)):
            yield cross_entropy + lagrangian(schedule, head.flow, head.state(classifier.features(x)))

    released: list[nn.Module] = [head.projection] if schedule.release else []
    return [
        Phase("features", features, [head.projection], lambda x, y, g: loss(classifier, x, y, g)),
        Phase("stability", stability, [*released, head.flow], equation_7),
    ]


def _released(schedules: Schedules, classifier: Classifier, head: Head, loss: NetworkLoss) -> list[Phase]:
    assert head.classifier is not None, "the released form has one"

    def separated(x: Images) -> Logits:
        return head.separated(head.state(classifier.features(x)))

    def stability(x: Images, y: Labels, g: torch.Generator) -> Tensor:
        rows = torch.randperm(len(x), generator=g, device=g.device)[: schedules.stability.rows]
        with torch.no_grad():
            z0 = head.state(classifier.features(x[rows]))
        return regulariser(schedules.stability, head.flow, z0)

    return [
        Phase("features", schedules.features, [head.projection], lambda x, y, g: loss(separated, x, y, g)),
        Phase("stability", schedules.stability, [head.flow], stability),
        Phase("classifier", schedules.classifier, [head.classifier], lambda x, y, g: loss(classifier, x, y, g)),
    ]
