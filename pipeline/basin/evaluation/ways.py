"""From which function of the same weights an attack takes its gradient.

The point found is judged by the reported function whatever the way, so a way can only lower a robust accuracy. The reported function's
own gradient is one way; where it is wrong, masked or of one draw, another is the better one: that is what an adaptive attack tries.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from basin.config.kinds import Choice
from basin.config.solver import Solver
from basin.models.distribution import mean_network
from basin.models.ode import exactly, flows, solving_with
from basin.models.substitutes import differentiating
from basin.randomness import random_layers


@dataclass(frozen=True)
class Way:
    """What is changed in a model while an attack looks at it; nothing by default.

    `solver` solves every flow, `share` of its integration time; `exact` differentiates through the steps of every solve that the model
    gives to the adjoint; `gradient` names that of the layers that have several (basin/models/substitutes.py); `draws` passes are averaged
    where something is random (EOT); `mean` takes the means of all distributions; `bare` leaves the purifier out; `straight` takes the
    derivative of all that rounds or saturates as 1 (BPDA).
    """

    solver: Solver | None = None
    share: float = 1.0
    exact: bool = False
    gradient: str | None = None
    draws: int | None = None
    mean: bool = False
    bare: bool = False
    straight: bool = False

    @contextmanager
    def through(self, model: nn.Module) -> Iterator[None]:
        """Change the model, and put everything back."""
        with ExitStack() as stack:
            if self.solver:
                stack.enter_context(solving_with(model, self.solver))
            if self.share != 1:
                stack.enter_context(_shortened(model, self.share))
            if self.exact:
                stack.enter_context(exactly())
            if self.gradient:
                stack.enter_context(differentiating(model, self.gradient))
            if self.draws:
                stack.enter_context(_averaging(model, self.draws))
            if self.mean:
                stack.enter_context(mean_network(model))
            if self.bare:
                stack.enter_context(_bare(model))
            if self.straight:
                stack.enter_context(_StraightThrough())
            yield

    def __str__(self) -> str:
        words = [
            f"{self.solver.gradient} gradient of {self.solver.method}" if self.solver else "",
            f"{self.share:g} of the integration time" if self.share != 1 else "",
            "through the solve's steps" if self.exact else "",
            f"{self.gradient} gradient" if self.gradient else "",
            f"{self.draws} draws a gradient" if self.draws else "",
            "mean weights" if self.mean else "",
            "without the purifier" if self.bare else "",
            "straight through" if self.straight else "",
        ]
        return ", ".join(filter(None, words))


@dataclass(frozen=True)
class Attempt:
    """An attack and the way in which it sees the model.

    `doubling` counts from 1 in a series of ever longer attempts, which ends with the first that takes next to nothing.
    `probe`: above 0, the attempt has to earn its images. It is given this share of those that hold, closest to falling first, and the next
    share only where the last one lost an image. `earned`: the attempt that has to have taken an image before,
    or this one does not run. `spared_by`: the attempt that has to have spared images, on a model that is in doubt. `precise`: it follows
    the model's own gradient, though there may be a quicker one (basin/evaluation/search.py).
    """

    attack: Choice
    way: Way = Way()
    doubling: int = 0
    probe: float = 0.0
    earned: str = ""
    spared_by: str = ""
    precise: bool = False

    def __str__(self) -> str:
        return ", ".join(filter(None, [str(self.attack), str(self.way)]))


@contextmanager
def _shortened(model: nn.Module, share: float) -> Iterator[None]:
    own = [(flow, flow.T) for flow in flows(model)]
    for flow, T in own:
        flow.T = share * T
    try:
        yield
    finally:
        for flow, T in own:
            flow.T = T


@contextmanager
def _averaging(model: nn.Module, draws: int) -> Iterator[None]:
    own = [(layer, layer.inference_draws) for layer in random_layers(model)]
    for layer, _ in own:
        layer.inference_draws = draws
    try:
        yield
    finally:
        for layer, theirs in own:
            layer.inference_draws = theirs


@contextmanager
def _bare(model: nn.Module) -> Iterator[None]:
    own = model.purifier
    model.purifier = nn.Identity()
    try:
        yield
    finally:
        model.purifier = own


FLAT = ("round", "floor", "ceil", "trunc", "sign", "softmax", "sigmoid", "tanh")  # almost everywhere, or where they saturate
STRAIGHT = {getattr(owner, name) for owner in (torch, Tensor, functional) for name in FLAT if hasattr(owner, name)}


class _StraightThrough(TorchFunctionMode):
    """Functions that are flat, and whose derivative says nothing, pass a gradient on as it comes (Bengio et al. 2013,
    arXiv 1308.3432). Any model's, whether it says that it has them or not; their values stay what they are."""

    def __torch_function__(self, func: Callable[..., Tensor], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in STRAIGHT and args and args[0].requires_grad:
            return _Straight.apply(args[0], lambda x: func(x, *args[1:], **(kwargs or {})))
        return func(*args, **(kwargs or {}))


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return g, None
