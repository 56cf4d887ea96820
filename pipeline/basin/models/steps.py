"""One step of the fixed-step solvers, z(t) -> z(t + h) of dz/dt = f(t, z), with torchdiffeq's coefficients.

    euler       z + h k1
    midpoint    z + h f(t + h/2, z + h/2 k1)
    rk4         z + h/8 (k1 + 3 k2 + 3 k3 + k4), Kutta's 3/8 rule (1901):
                k2 at t + h/3, z + h/3 k1;    k3 at t + 2h/3, z + h (k2 - k1/3);    k4 at t + h, z + h (k1 - k2 + k3)

with k1 = f(t, z). A drift of some thousand operations a second costs no more than the sums around it, forward and backward, so these are
written in as few as there can be: a factor is given to the addition (`alpha`), and what is new and nobody else's is added to in place.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Rate = Callable[[float, Tensor], Tensor]
Step = Callable[[Rate, float, float, Tensor], Tensor]


def euler(f: Rate, t: float, h: float, z: Tensor) -> Tensor:
    return torch.add(z, f(t, z), alpha=h)


def midpoint(f: Rate, t: float, h: float, z: Tensor) -> Tensor:
    halfway = torch.add(z, f(t, z), alpha=h / 2)
    return torch.add(z, f(t + h / 2, halfway), alpha=h)


def rk4(f: Rate, t: float, h: float, z: Tensor) -> Tensor:
    k1 = f(t, z)
    k2 = f(t + h / 3, torch.add(z, k1, alpha=h / 3))
    k3 = f(t + 2 * h / 3, torch.add(z, k2, alpha=h).sub_(k1, alpha=h / 3))
    k4 = f(t + h, torch.add(z, (k1 - k2).add_(k3), alpha=h))
    return torch.add(z, (k1 + k4).add_(k2 + k3, alpha=3), alpha=h / 8)


STEPS: dict[str, Step] = {"euler": euler, "midpoint": midpoint, "rk4": rk4}
EVALUATIONS = {"euler": 1, "midpoint": 2, "rk4": 4}  # of f, a step


def take(step: Step, f: Rate, h: float, steps: range, z: Tensor) -> Tensor:
    """z where the first of these steps begins -> z where the last one ends; step i begins at t = i h."""
    for i in steps:
        z = step(f, i * h, h, z)
    return z
