"""A drift that brings any two states closer, whatever its weights: an SDP-based Lipschitz layer (SLL, Araujo et al. 2023, arXiv 2303.03169)
as the gradient flow of a convex potential (Meunier et al. 2022, arXiv 2110.12690).

    f(z) = -2 W T^-1 relu(W^T z + b) - decay z,    T = diag_i(sum_j |W^T W|_ij q_j / q_i),  q > 0

J = -2 W T^-1 D W^T - decay I with D in [0, 1] is symmetric, and W T^-1 W^T <= I by diagonal dominance: every eigenvalue lies in
[-2 - decay, -decay]. So a step of Euler's, z + h f(z), is Lipschitz with max(|1 - h decay|, |1 - h (2 + decay)|).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from basin.config.solver import Solver
from basin.models.ode import Flow
from basin.models.steps import Rate
from basin.types import State

TINY = 1e-6  # of a row of T that would be zero


class Contracting(nn.Module):
    """f, of `width` numbers with `hidden` columns of W."""

    def __init__(self, width: int, hidden: int, decay: float):
        super().__init__()
        self.decay = decay
        self.W = nn.Parameter(nn.init.xavier_normal_(torch.empty(hidden, width)))  # W^T, a row a hidden unit
        self.b, self.q = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(hidden))  # q is its logarithm

    def forward(self, z: State) -> State:
        return linear(relu(linear(z, self.W, self.b)) / self.dominance(), self.W.T, None).mul(-2).sub(z, alpha=self.decay)

    def dominance(self) -> Tensor:
        """The diagonal of T."""
        q = self.q.exp()
        return ((self.W @ self.W.T).abs() @ q) / q + TINY

    def lipschitz(self) -> float:
        """A Lipschitz constant of f."""
        return 2 + self.decay


class ContractingFlow(Flow):
    """z(0) -> z(T) by Euler's steps, one drift after the other, each for its share of them: distances never grow."""

    def __init__(self, drifts: list[Contracting], T: float, steps: int):
        super().__init__(Turns(drifts, T), T, Solver(method="euler", steps=steps), autonomous=False)
        self.decay = drifts[0].decay

    def _rate(self) -> Rate:
        """With t as it is: a tensor would have the host wait, at each step, to know whose turn it is."""
        drift = self.drift
        return lambda t, z: drift(t, z)

    def lipschitz(self) -> float:
        """A Lipschitz constant of z(0) -> z(T): at most 1 where a step is at most 2 / (2 + decay)."""
        h = self.T / self.solver.steps
        return max(abs(1 - h * self.decay), abs(1 - h * (2 + self.decay))) ** self.solver.steps


class Turns(nn.Module):
    """f(t, z): the drift whose turn it is at time t in [0, T)."""

    def __init__(self, drifts: list[Contracting], T: float):
        super().__init__()
        self.drifts, self.T = nn.ModuleList(drifts), T

    def forward(self, t: Tensor | float, z: State) -> State:
        turn = int(float(torch.as_tensor(t).detach()) / self.T * len(self.drifts) + 1e-6)
        return self.drifts[min(turn, len(self.drifts) - 1)](z)
