"""SODEF, the Lyapunov-stable ODE head (Kang et al., NeurIPS 2021, arXiv 2110.12976), in the form of its released code.

    z(0) = P x (P with orthonormal rows),    dz/dt = f(z) = sin(-(W z + b)),    logits = C z(T) + c

Trained in three phases on a backbone that stays as it is:

1. `features`: P alone, cross-entropy of V z(0), V the fixed MaxMin matrix (Corollary 1: unit rows, every cosine 1/(1 - k)).
2. `stability`: f alone, no cross-entropy and no integration. At z = z(0), J = df/dz:
       R_diag = mean_i mean_b exp(J_ii + 1)
       R_off  = mean_j mean_b exp(0.1 (sum_i s_ij |J_ij| + 1)),    s = -1 on the diagonal and 1 off it
       R_f    = mean (50 f)^2
   loss = w_diag R_diag + w_off R_off + w_f R_f: Jacobians with a negative, dominant diagonal, at points where f vanishes.
3. `classifier`: C, c alone, cross-entropy at z(T).

The paper's equation (7) is one loss and keeps V to the end; the released code does the above (docs/methods/heads/sodef.md).
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.classifier import Classifier
from pipeline.data import Split
from pipeline.errors import Mistake
from pipeline.ode import Flow, Solver
from pipeline.optimise import Phase, Schedule
from pipeline.types import Features, Images, Labels, Logits, NetworkLoss, Settings, State


class Params(Settings):
    width: int = Field(64, ge=2, description="the width of the state z, from the number of classes to the backbone's width")
    T: float = Field(5.0, gt=0, description="positive integration time (the paper: 5)")
    solver: Solver = Field(Solver(), description="how the ODE is solved")


class Stability(Schedule):
    """Phase 2: the weights of the regulariser, and on how many rows of each batch it is taken."""

    w_diag: float = Field(10.0, ge=0, description="weight of R_diag, 0 or above")
    w_off: float = Field(10.0, ge=0, description="weight of R_off, 0 or above (released: 10 on MNIST, 0 on CIFAR-10)")
    w_f: float = Field(0.2, ge=0, description="weight of R_f, 0 or above (released: 0.2 on MNIST, 0.1 on CIFAR-10)")
    rows: int = Field(16, ge=1, description="a positive number of images of each batch on which the regulariser is taken (released: 8, 16)")


class Schedules(Settings):
    features: Schedule = Field(description="phase 1: the projection")
    stability: Stability = Field(description="phase 2: the drift")
    classifier: Schedule = Field(description="phase 3: the classifier at z(T)")


class SineDrift(nn.Module):
    """f(z) = sin(-(W z + b))."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, z: Features) -> Features:
        return torch.sin(-self.linear(z))


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
        self.projection = nn.Linear(width, d, bias=False)
        self.flow = Flow(SineDrift(d), params.T, params.solver)
        self.classifier = nn.Linear(d, classes)
        self.register_buffer("V", maxmin(classes, d))
        orthonormalise(self.projection)

    def state(self, z: Features) -> State:
        """z(0), where the flow starts."""
        return self.projection(z)

    def forward(self, z: Features) -> Logits:
        return self.classifier(self.flow(self.state(z)))


def maxmin(k: int, d: int) -> Tensor:
    """[k, d]: k unit rows whose cosines are all 1 / (1 - k), the least possible maximum (Corollary 1).

    B = I + (1/(1-k)) (11^T - I) = U S U^T; row i is column i of Q S^(1/2) U^T. Q is the first k columns of the identity.
    """
    B = torch.full((k, k), 1 / (1 - k), dtype=torch.float64).fill_diagonal_(1.0)
    S, U = torch.linalg.eigh(B)
    root = S.clamp_min(0).sqrt()[:, None] * U.T
    return torch.cat([root, torch.zeros(d - k, k, dtype=torch.float64)]).T.float().contiguous()


@torch.no_grad()
def orthonormalise(linear: nn.Linear) -> None:
    """Retract the weight onto matrices with orthonormal rows: the Q of a QR decomposition with a positive diagonal of R."""
    Q, R = torch.linalg.qr(linear.weight.T)
    linear.weight.copy_((Q * R.diagonal().sign()).T)


def regulariser(weights: Stability, flow: Flow, z: State) -> Tensor:
    """w_diag R_diag + w_off R_off + w_f R_f at the rows of z [b, d]."""
    J = flow.jacobian(z)
    diagonal = J.diagonal(dim1=1, dim2=2)
    signed = J.abs().sum(1) - 2 * diagonal.abs()  # sum over i of s_ij |J_ij|: a column's off-diagonal less its diagonal
    R_diag = (diagonal + 1).exp().mean()
    R_off = (0.1 * (signed + 1)).exp().mean()
    R_f = (50 * flow.drift(z)).square().mean()
    return weights.w_diag * R_diag + weights.w_off * R_off + weights.w_f * R_f


def phases(schedules: Schedules, classifier: Classifier, loss: NetworkLoss, train: Split) -> list[Phase]:
    """The three phases of the released code."""
    head: Head = classifier.head  # type: ignore[assignment]

    def separated(x: Images) -> Logits:
        return head.state(classifier.features(x)) @ head.V.T

    def stability(x: Images, y: Labels, g: torch.Generator) -> Tensor:
        rows = torch.randperm(len(x), generator=g, device=g.device)[: schedules.stability.rows]
        with torch.no_grad():
            z0 = head.state(classifier.features(x[rows]))
        return regulariser(schedules.stability, head.flow, z0)

    return [
        Phase(
            "features",
            schedules.features,
            [head.projection],
            lambda x, y, g: loss(separated, x, y, g),
            lambda: orthonormalise(head.projection),
        ),
        Phase("stability", schedules.stability, [head.flow], stability),
        Phase("classifier", schedules.classifier, [head.classifier], lambda x, y, g: loss(classifier, x, y, g)),
    ]
