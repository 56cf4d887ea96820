"""What a solve and its gradient cost over their floor: the drift's own evaluations, forward and back, in a chain and nothing else.

The drift is SODEF's, sin(-(W z)) of 64 numbers, solved by rk4 in 16 steps: 64 evaluations. The regulariser of SODEF's second phase is held
to itself with the Jacobian written down by hand. One core. `python -m benchmarks.ode_pace`; a minute.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from basin.config.solver import Solver
from basin.methods.heads.sodef import SineDrift, Stability, regulariser
from basin.models.ode import Flow
from basin.randomness import construct, generator
from benchmarks import as_command, line, side_by_side

WIDTH, ROWS, ROUNDS, T = 64, 16, 40, 5.0
STEPS = 16
CPU = torch.device("cpu")
EVALUATIONS = 4 * STEPS
Work = Callable[[], object]
log = logging.getLogger(__name__)


def measure(rounds: int = ROUNDS, device: torch.device = CPU) -> list[dict[str, Any]]:
    """A row a comparison: `what`, and what `side_by_side` says."""
    return [row for batch in (256, 16) for row in _solves(batch, rounds, device)] + [_regulariser(rounds, device)]


def growth(rounds: int = ROUNDS, device: torch.device = CPU) -> list[dict[str, Any]]:
    """Exponents, in the steps of a solve at one step length: of the time, and of the bytes kept for the gradient."""
    rows, few, many = [], 4 * STEPS, 16 * STEPS
    drift, z0 = _drift().to(device).requires_grad_(False), _states(16).to(device).requires_grad_()
    for name, recompute in (("Flow", False), ("Flow, recomputed", True)):
        short, long = (Flow(drift, T * steps / STEPS, Solver(steps=steps, recompute=recompute)) for steps in (few, many))
        row = side_by_side(_gradient(long, z0, [z0]), _gradient(short, z0, [z0]), rounds)
        rows.append({"what": f"{name}, time in T"} | row | {key: math.log(row[key], many / few) for key in ("ratio", "low", "high")})
        kept = [_kept(lambda flow=flow: flow(z0)) for flow in (long, short)]  # type: ignore[misc]
        exponent = math.log(kept[0] / kept[1], many / few)
        rows.append({"what": f"{name}, memory in T", "seconds": kept[0], "floor": kept[1], "ratio": exponent, "rounds": 1, "unit": "bytes"})
    return rows


def _kept(call: Work) -> int:
    """Bytes that autograd keeps until the backward pass, each once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _solves(batch: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    rows = []
    for of, trained in (("the images", False), ("the drift", True)):
        drift, z0 = _drift().to(device).requires_grad_(trained), _states(batch).to(device).requires_grad_(not trained)
        inputs = [*drift.parameters()] if trained else [z0]
        ways = {
            "Flow": Flow(drift, T, Solver(steps=STEPS)),
            "Flow, recomputed": Flow(drift, T, Solver(steps=STEPS, recompute=True)),
            "torchdiffeq": _torchdiffeq(drift),
            "classical rule, bare loop": _classical(drift),
        }
        works = [_gradient(way, z0, inputs) for way in (_chain(drift), *ways.values())]
        rows += _rows([f"{name}, batch {batch}, gradient of {of}" for name in ways], works, rounds)
    return rows


def _regulariser(rounds: int, device: torch.device) -> dict[str, Any]:
    flow, weights = Flow(_drift().to(device), T, Solver()), Stability(epochs=1, batch=32, rate=0.01)
    by_hand = Flow(flow.drift, T, Solver())
    by_hand.jacobian = _closed_form(flow.drift)  # type: ignore[method-assign]
    z, inputs = _states(ROWS).to(device), list(flow.parameters())
    ours, floor = (_gradient(lambda z, own=own: regulariser(weights, own, z), z, inputs) for own in (flow, by_hand))  # type: ignore[misc]
    return _rows([f"SODEF's regulariser, {ROWS} rows, over the closed-form Jacobian"], [floor, ours], rounds)[0]


def _drift() -> SineDrift:
    with construct(0, "ode_pace"):
        return SineDrift(WIDTH)


def _states(batch: int) -> Tensor:
    return torch.randn(batch, WIDTH, generator=generator(0, "ode_pace"))


def _chain(drift: nn.Module) -> Callable[[Tensor], Tensor]:
    def chain(z: Tensor) -> Tensor:
        for _ in range(EVALUATIONS):
            z = drift(z)
        return z

    return chain


def _torchdiffeq(drift: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda z: odeint(lambda t, z: drift(z), z, z.new_tensor([0.0, T]), method="rk4", options={"step_size": T / STEPS})[-1]


def _classical(drift: nn.Module) -> Callable[[Tensor], Tensor]:
    """Runge's and Kutta's classical rule, which needs fewer sums than the 3/8 rule (torchdiffeq's and ours): what any loop costs here."""
    h = T / STEPS

    def solve(z: Tensor) -> Tensor:
        for _ in range(STEPS):
            k1 = drift(z)
            k2 = drift(torch.add(z, k1, alpha=h / 2))
            k3 = drift(torch.add(z, k2, alpha=h / 2))
            k4 = drift(torch.add(z, k3, alpha=h))
            z = torch.add(z, (k1 + k4).add_(k2 + k3, alpha=2), alpha=h / 6)
        return z

    return solve


def _closed_form(drift: Any) -> Callable[..., Tensor]:
    """J_ij = -cos(-(W z + b))_i W_ij."""
    return lambda z, t=0.0: -torch.cos(drift.linear(z))[:, :, None] * drift.linear.weight


def _gradient(way: Callable[[Tensor], Tensor], z: Tensor, inputs: list[Any]) -> Work:
    return lambda: torch.autograd.grad(way(z).sum(), inputs)


def _rows(names: list[str], works: list[Work], rounds: int) -> list[dict[str, Any]]:
    """The first of the works is the floor of the others."""
    floor, *ours = works
    return [{"what": name} | side_by_side(own, floor, rounds) for name, own in zip(names, ours, strict=True)]


def main() -> None:
    for row in measure():
        log.info("%s", line(row))


if __name__ == "__main__":
    as_command(main)
