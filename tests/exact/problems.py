"""Flows with exact solutions, in float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Drift(nn.Module):
    """dz/dt = f(z) from a function of rows."""

    def __init__(self, f: Callable[[Tensor], Tensor]):
        super().__init__()
        self.f = f

    def forward(self, z: Tensor) -> Tensor:
        return self.f(z)


@dataclass(frozen=True)
class Problem:
    name: str
    f: Callable[[Tensor], Tensor]
    z0: Tensor
    solution: Callable[[float], Tensor]


def _spiral() -> Problem:
    """z' = A z, a decaying rotation: z(T) = exp(A T) z(0)."""
    A = torch.tensor([[-0.3, 2.0], [-2.0, -0.3]], dtype=torch.float64)
    z0 = torch.tensor([[1.0, 0.0], [0.5, -2.0]], dtype=torch.float64)
    return Problem("spiral", lambda z: z @ A.T, z0, lambda T: z0 @ torch.linalg.matrix_exp(A * T).T)


def _logistic() -> Problem:
    """z' = z (1 - z): z(T) = 1 / (1 + (1/z0 - 1) e^-T)."""
    z0 = torch.tensor([[0.1, 0.5, 0.9]], dtype=torch.float64)
    return Problem("logistic", lambda z: z * (1 - z), z0, lambda T: 1 / (1 + (1 / z0 - 1) * math.exp(-T)))


def _pendulum_well() -> Problem:
    """z' = -sin z, the drift of SODEF in one dimension: tan(z(T)/2) = tan(z0/2) e^-T."""
    z0 = torch.tensor([[0.3, 1.5, -2.8]], dtype=torch.float64)
    return Problem("well", lambda z: -torch.sin(z), z0, lambda T: 2 * torch.atan(torch.tan(z0 / 2) * math.exp(-T)))


PROBLEMS = [_spiral(), _logistic(), _pendulum_well()]
