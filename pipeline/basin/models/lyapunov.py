"""What holds a flow and its classifier to a constraint: separated class vectors, orthonormal rows, a drift of bounded norm.

On the device `meta`, where a model has shapes and no values (artifact.load), there is nothing to compute: to tell the shape of what a
decomposition returns, torch would load its compiler.
"""

import torch
from torch import Tensor, nn

from basin.config.solver import Solver
from basin.models.ode import Flow


def maxmin(k: int, d: int) -> Tensor:
    """[k, d]: k unit rows whose cosines are all 1 / (1 - k), the least possible maximum (Kang et al. 2021, arXiv 2110.12976, Corollary 1).

    B = I + (1/(1-k)) (11^T - I) = U S U^T; row i is column i of Q S^(1/2) U^T. Q is the first k columns of the identity.
    """
    B = torch.full((k, k), 1 / (1 - k), dtype=torch.float64).fill_diagonal_(1.0)
    if B.is_meta:
        return torch.empty(k, d)
    S, U = torch.linalg.eigh(B)
    root = S.clamp_min(0).sqrt()[:, None] * U.T
    return torch.cat([root, torch.zeros(d - k, k, dtype=torch.float64)]).T.float().contiguous()


class Orthonormal(nn.Linear):
    """x -> P x, P with orthonormal rows [rows, columns], rows <= columns: after every step P is put back onto them."""

    def __init__(self, columns: int, rows: int):
        super().__init__(columns, rows, bias=False)
        self.retract()

    def retract(self) -> None:
        orthonormalise(self)


class Bounded(Flow):
    """A flow whose drift's gain (`gain`) stays at or below `bound`: after every step it is put back below. None bounds nothing."""

    def __init__(self, drift: nn.Module, T: float, solver: Solver, bound: float | None):
        super().__init__(drift, T, solver)
        self.bound = bound
        self.retract()

    def retract(self) -> None:
        contain(self.drift, self.bound)


@torch.no_grad()
def orthonormalise(linear: nn.Linear) -> None:
    """Retract the weight onto matrices with orthonormal rows: the Q of a QR decomposition with a positive diagonal of R."""
    if linear.weight.is_meta:
        return
    Q, R = torch.linalg.qr(linear.weight.T)
    linear.weight.copy_((Q * R.diagonal().sign()).T)


def gain(drift: nn.Module) -> Tensor:
    """prod_l ||W_l||_2 over the linear layers: bounds ||J||_2, and so every |lambda|, where the activations' slopes are in [-1, 1]."""
    weights = torch.stack([layer.weight for layer in drift.modules() if isinstance(layer, nn.Linear)])
    return torch.linalg.matrix_norm(weights, ord=2).prod()


@torch.no_grad()
def contain(drift: nn.Module, bound: float | None) -> None:
    """Retract the drift onto gain <= bound: all its weights are scaled alike where it is above. None bounds nothing."""
    layers = [layer for layer in drift.modules() if isinstance(layer, nn.Linear)]
    if bound is None or layers[0].weight.is_meta:
        return
    share = (bound / gain(drift)).clamp(max=1) ** (1 / len(layers))  # 1 where it is below, without asking the device
    for layer in layers:
        layer.weight.mul_(share)
