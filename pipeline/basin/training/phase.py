"""What a phase of training is: a loss over some modules' parameters. The loop that runs phases is optimise.py."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from basin.config.schedule import Schedule
from basin.types import Images, Labels, Losses

Loss = Callable[[Images, Labels, torch.Generator], Losses]


@dataclass(frozen=True)
class Phase:
    """A loss over some modules' parameters. What is not in `trained` stays as it is, in evaluation mode.

    A loss that is an iterator has one optimiser step after each loss that it yields, and is then asked for the next.
    A trained module that has a method `penalty` adds it to every loss; it is of all training images, as a prior is, and is divided by them.
    One that has a method `retract` is put back onto its constraint by it after every step.
    """

    name: str
    schedule: Schedule
    trained: Sequence[nn.Module]
    loss: Loss

    def parameters(self) -> list[nn.Parameter]:
        return [p for module in self.trained for p in module.parameters()]

    @cached_property
    def penalties(self) -> list[Callable[[], Any]]:
        return self._own("penalty")

    @cached_property
    def constraints(self) -> list[Callable[[], Any]]:
        return self._own("retract")

    def _own(self, method: str) -> list[Callable[[], Any]]:
        """The trained modules' own methods of that name: found once, because each step asks."""
        layers = (layer for module in self.trained for layer in module.modules())
        return [own for layer in layers if callable(own := getattr(layer, method, None))]

    def penalty(self) -> Tensor | float:
        """What the trained modules add to the loss of all training images."""
        return sum((term() for term in self.penalties), 0.0)

    def retract(self) -> None:
        for back in self.constraints:
            back()


def each(losses: Losses) -> Iterator[Tensor]:
    """The losses of a batch, one optimiser step each."""
    yield from [losses] if isinstance(losses, Tensor) else losses
