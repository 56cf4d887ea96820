"""How an ODE is solved, as params.yaml has it."""

from typing import Literal

from pydantic import Field

from basin.config.settings import Settings


class Solver(Settings):
    """How dz/dt = f(z) is integrated from 0 to T, and which gradient is taken."""

    method: Literal["euler", "midpoint", "rk4", "dopri5"] = Field(
        "rk4", description="rk4 (fixed steps), midpoint, euler, or dopri5 (adaptive)"
    )
    steps: int = Field(16, ge=1, description="a positive number of equal steps from 0 to T; the fixed-step methods alone use it")
    tolerance: float = Field(1e-3, gt=0, description="a positive relative and absolute tolerance; dopri5 alone uses it")
    gradient: Literal["exact", "adjoint"] = Field("exact", description="exact, or adjoint (wrong on contracting flows)")

    recompute: bool = Field(
        False,
        description="true or false: whether the exact gradient keeps the states between about sqrt(steps) segments alone and takes "
        "the steps of each again, for a third more time; the fixed-step methods alone use it",
    )

    @property
    def fixed_step(self) -> bool:
        return self.method != "dopri5"
