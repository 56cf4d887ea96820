"""Neural-ODE solves: the only file that touches torchdiffeq.

The reported function is a fixed-step solve, because an adaptive solver picks one step size for the whole batch and an image's
logits then depend on its neighbours (docs/decisions/0005). Gradients are exact (back-propagation through the solver's steps).
`adjoint` (Chen et al. 2018, arXiv 1806.07366) re-integrates z backwards in time; a contracting flow is explosive in that
direction and the gradient comes out wrong, so it exists only to measure what it would have hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from basin.config.solver import Solver
from basin.types import Features

Start = Float[Tensor, "n *state"]  # z(0), a row an image: a vector or a feature map
Times = Float[Tensor, " times"]
Trajectory = Float[Tensor, "times n *state"]
STABILITY_LIMIT = {"euler": 2.0, "midpoint": 2.0, "rk4": 2.785}  # |h lambda| on the negative real axis


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
        self.nfe = 0
        t = torch.tensor([0.0, self.T], dtype=z0.dtype, device=z0.device)
        return self._odeint(z0, t)[-1]

    def trajectory(self, z0: Start, times: Times) -> Trajectory:
        """z at rising times from 0 to T, one row a time: z(0), ..., z(T). Between two steps of a fixed-step solve on a straight line."""
        return self._odeint(z0, times)

    def rate(self, t: Tensor | float, z: Start) -> Start:
        """dz/dt at time t."""
        return self.drift(z) if self.autonomous else self.drift(t, z)

    def _odeint(self, z0: Tensor, t: Tensor) -> Tensor:
        import torchdiffeq  # with SciPy, half a second: where something is solved

        s = self.solver
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
        """The drift's Jacobian at time t at each row of z: [n, d, d], J[b, i, j] = d f_i / d z_j. For vector states."""
        return torch.func.vmap(torch.func.jacrev(lambda row: self.rate(t, row[None])[0]))(z)


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
