"""The losses of an epoch, gathered where they are computed, and read without holding the device up."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from basin.errors import Mistake

EVERY = {"cpu": 1, "cuda": 50}  # steps between two readings: on a CPU there is nothing to wait for, and a bad step is not taken


class Losses:
    """Losses and norms of gradients, which are read every so many steps and at the end. `where` names the epoch in an error."""

    def __init__(self, where: str, device: torch.device):
        self.where, self.every = where, EVERY[device.type]
        self.gathered: list[Tensor] = []
        self.steps: list[tuple[int, int, float]] = []  # of what is gathered: which step, of how many images, at which rate
        self.total, self.seen = 0.0, 0

    def add(self, step: int, images: int, rate: float, loss: Tensor, gradients: Iterable[Tensor]) -> None:
        """`step` counts from 1. Raises Mistake, at a reading, where one since the last was not finite."""
        norm = get_total_norm(gradients)  # of squares, which overflow where Adam's do
        self.gathered.append(torch.stack([loss.detach().float(), norm.to(loss.device)]))
        self.steps.append((step, images, rate))
        if len(self.steps) >= self.every:
            self.read()

    def read(self) -> None:
        """Wait for the device, and take what it has gathered into the mean."""
        rows = torch.stack(self.gathered).tolist() if self.gathered else []
        for (step, images, rate), (loss, norm) in zip(self.steps, rows, strict=True):
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise Mistake(
                    f"{self.where}, step {step}: the loss or its gradient is not finite at learning rate {rate:.3g} (got a loss of {loss})."
                    " Lower schedule rate, or shorten T / add steps where an ODE is solved; the last good epoch is kept."
                )
            self.total, self.seen = self.total + loss * images, self.seen + images
        self.gathered, self.steps = [], []

    @contextmanager
    def to_blame(self) -> Iterator[None]:
        """What weights that are no longer finite raise later on is answered with the step that made them so."""
        try:
            yield
            self.read()
        except Mistake:
            raise
        except Exception:
            self.read()
            raise

    def mean(self) -> float:
        """The mean loss of an image, of the steps that were read."""
        return self.total / self.seen
