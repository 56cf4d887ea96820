"""Neural-ODE solves: the only file that touches torchdiffeq.

The reported function is a fixed-step solve, because an adaptive solver picks one step size for the whole batch and an image's
logits then depend on its neighbours (docs/decisions/0005). Gradients are exact (back-propagation through the solver's steps).
`adjoint` (Chen et al. 2018, arXiv 1806.07366) re-integrates z backwards in time; a contracting flow is explosive in that
direction and the gradient comes out wrong, so it exists only to measure what it would have hidden.

The steps are taken here, by torchdiffeq's formulas in fewer operations (models/steps.py); torchdiffeq solves what is adaptive or adjoint.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil, sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from basin.config.solver import Solver
from basin.errors import Mistake
from basin.models.recomputed import recomputed
from basin.models.steps import EVALUATIONS, STEPS, Rate, take
from basin.types import Features

Start = Float[Tensor, "n *state"]  # z(0), a row an image: a vector or a feature map
Times = Float[Tensor, " times"]
Trajectory = Float[Tensor, "times n *state"]
STABILITY_LIMIT = {"euler": 2.0, "midpoint": 2.0, "rk4": 2.785}  # |h lambda| on the negative real axis
FINEST = torch.finfo(torch.float32).eps  # of a tolerance, where the state is not float64


class Flow(nn.Module):
    """z(0) -> z(T) of dz/dt = f(t, z).

    Attributes: `drift` is f, of z alone where the flow is `autonomous`, else of (t, z); it keeps the state's shape, a vector [n, d] or
    a feature map [n, c, h, w], and its rows apart. `T` > 0 is the integration time; `solver` may be swapped (`solving_with`); `nfe`
    is the number of drift evaluations of the last forward solve.
    """

    def __init__(self, drift: nn.Module, T: float, solver: Solver, autonomous: bool = True):
        super().__init__()
        self.drift, self.T, self.solver, self.autonomous, self.nfe = drift, T, solver, autonomous, 0

    def forward(self, z0: Start) -> Start:
        if not self._stepwise:
            self.nfe = 0
            return self._odeint(z0, torch.tensor([0.0, self.T], dtype=z0.dtype, device=z0.device))[-1]
        self.nfe = self.solver.steps * EVALUATIONS[self.solver.method]
        *kept, last = segments(self.solver.steps) if self.solver.recompute else [range(self.solver.steps)]
        for steps in kept:
            z0 = recomputed(self.drift, self._solved(steps), z0)
        return self._solved(last)(z0)

    def trajectory(self, z0: Start, times: Times) -> Trajectory:
        """z at rising times from 0 to T, one row a time: z(0), ..., z(T). Between two steps of a fixed-step solve on a straight line."""
        if not self._stepwise:
            return self._odeint(z0, times)
        states = [z0]
        for i in range(self.solver.steps):
            states.append(self._solved(range(i, i + 1))(states[-1]))
        at = [time / self.T * self.solver.steps for time in times.tolist()]
        before = [min(int(place), self.solver.steps - 1) for place in at]
        return torch.stack([torch.lerp(states[i], states[i + 1], place - i) for i, place in zip(before, at, strict=True)])

    @property
    def _stepwise(self) -> bool:
        return self.solver.fixed_step and self.solver.gradient == "exact"

    def _solved(self, steps: range) -> Callable[[Tensor], Tensor]:
        """What takes z over these steps, of the solver that is in place now."""
        return partial(take, STEPS[self.solver.method], self._rate(), self.T / self.solver.steps, steps)

    def _rate(self) -> Rate:
        """f for a solve of many evaluations: the drift is looked up once. It is given t as torchdiffeq would: a tensor like z, which
        rounds no more than z does."""
        drift = self.drift
        return (lambda t, z: drift(z)) if self.autonomous else (lambda t, z: drift(z.new_full((), t), z))

    def rate(self, t: Tensor | float, z: Start) -> Start:
        """dz/dt at time t."""
        return self.drift(z) if self.autonomous else self.drift(t, z)

    def _odeint(self, z0: Tensor, t: Tensor) -> Tensor:
        import torchdiffeq  # with SciPy, a second: where it solves something

        s = self.solver
        if not s.fixed_step and z0.dtype != torch.float64 and s.tolerance < FINEST:
            raise Mistake(f"solver.tolerance: no step keeps it in float32 (got {s.tolerance:g}). Give {FINEST:.2g} or more.")
        options = {"grid_constructor": self._grid} if s.fixed_step else {}
        settings = dict(method=s.method, rtol=s.tolerance, atol=s.tolerance, options=options)
        if s.gradient == "exact":
            return torchdiffeq.odeint(self._counted, z0, t, **settings)
        return torchdiffeq.odeint_adjoint(
            self._counted, z0, t, adjoint_params=tuple(p for p in self.drift.parameters() if p.requires_grad), **settings
        )

    def _counted(self, t: Tensor, z: Tensor) -> Tensor:
        self.nfe += 1
        return self.rate(t, z)

    def _grid(self, rate: object, z0: Tensor, t: Tensor) -> Tensor:
        return torch.linspace(float(t[0]), float(t[-1]), self.solver.steps + 1, dtype=t.dtype, device=t.device)

    def jacobian(self, z: Features, t: float = 0.0) -> Tensor:
        """The drift's Jacobian at time t at each row of z: [n, d, d], J[b, i, j] = d f_i / d z_j. For vector states.

        d copies of the rows, of which copy i gives f_i: one pass forward and back. torch.func loads torch's compiler, two seconds.
        """
        n, d = z.shape
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            rows = z.expand(d, n, d).reshape(d * n, d).requires_grad_()
            f = self.rate(t, rows).view(d, n, d).diagonal(dim1=0, dim2=2)
            (J,) = torch.autograd.grad(f.sum(), rows, create_graph=differentiable)
        return J.view(d, n, d).transpose(0, 1)


def segments(steps: int) -> list[range]:
    """The steps in order, cut after every sqrt(steps) of them, rounded up."""
    length = ceil(sqrt(steps))
    return [range(first, min(first + length, steps)) for first in range(0, steps, length)]


def flows(module: nn.Module) -> list[Flow]:
    """Every ODE solve inside a module."""
    return [m for m in module.modules() if isinstance(m, Flow)]


@contextmanager
def solving_with(module: nn.Module, solver: Solver) -> Iterator[None]:
    """Swap the solver of every flow inside a module, and put each one's own back."""
    own = [(flow, flow.solver) for flow in flows(module)]
    for flow, _ in own:
        flow.solver = solver
    try:
        yield
    finally:
        for flow, theirs in own:
            flow.solver = theirs


@contextmanager
def exactly() -> Iterator[list[str]]:
    """Differentiate every solve through its steps, also where a model, of whoever's making, calls torchdiffeq's adjoint.

    Yields a list that gets the method of each solve of which that was so. The solves themselves do not change.
    """
    import torchdiffeq
    from torchdiffeq._impl import adjoint

    methods: list[str] = []

    class Stepwise:
        @staticmethod
        def apply(
            shapes: Any, func: Any, y0: Tensor, t: Tensor, rtol: Any, atol: Any, method: str, options: Any, event_fn: Any, *_: Any
        ) -> Any:
            methods.append(method)
            return torchdiffeq.odeint(func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event_fn)

    own, adjoint.OdeintAdjointMethod = adjoint.OdeintAdjointMethod, Stepwise
    try:
        yield methods
    finally:
        adjoint.OdeintAdjointMethod = own
