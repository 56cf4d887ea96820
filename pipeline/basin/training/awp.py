"""Adversarial weight perturbation (Wu, Xia & Wang 2020, arXiv 2004.05884), beside any training method.

    x' = the method's attack at w                               v = gamma ||w|| g / ||g||  layer by layer,  g = d L(x'; w) / d w
    w <- w - rate d L(x'; w + v) / d v                          both norms are of a whole weight tensor

One step up for the weights, against the loss at the points just found, then the step down from there: the loss is flat around w in the end.
Biases and whatever else is a vector, such as the scales of batch normalisation, are left alone, as in the authors' code.

A loss is evaluated twice, and both have to be at the same x'. What a method finds, it finds through `found`: the first evaluation keeps
it, and the second is given it. The draws are the same as well, of random layers and of rows.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from basin.config.schedule import Perturbation
from basin.processes import ALONE, Group
from basin.training.phase import each
from basin.types import Images, Losses

TINY = 1e-20  # keeps the direction of a vanishing gradient finite
Kept = deque[tuple[Images, Tensor]]  # points, and where the generator stood when they were found
_keeping: ContextVar[tuple[Kept, bool] | None] = ContextVar("keeping", default=None)  # and whether they are there already


def found(find: Callable[[], Images], generator: torch.Generator) -> Images:
    """What `find` finds, drawing from `generator`; in a second evaluation of a loss, what it found in the first."""
    if (keeping := _keeping.get()) is None:
        return find()
    kept, again = keeping
    if not again:
        kept.append((find(), generator.get_state()))
        return kept[-1][0]
    points, state = kept.popleft()
    generator.set_state(state)
    return points


@contextmanager
def keeping(kept: Kept, again: bool) -> Iterator[None]:
    token = _keeping.set((kept, again))
    try:
        yield
    finally:
        _keeping.reset(token)


class Perturbed:
    """The weights of `parameters`, which `losses` moves away and `undo` brings back."""

    def __init__(self, awp: Perturbation | None, parameters: Sequence[nn.Parameter], group: Group = ALONE):
        self.awp, self.group = awp if awp and awp.gamma else None, group
        self.parameters, self.own = parameters, dict[nn.Parameter, Tensor]()

    def losses(self, evaluate: Callable[[], Losses], epoch: int, generator: torch.Generator) -> Iterator[Tensor]:
        """The losses of a batch, each at weights perturbed against it; `epoch` counts from 0. Call `undo` after each `backward`."""
        if self.awp is None or epoch < self.awp.warmup:
            yield from each(evaluate())
            return
        kept: Kept = deque()
        ascents, steps = lazily(evaluate), lazily(evaluate)
        while True:
            state = generator.get_state()
            with keeping(kept, again=False):
                if (ascent := next(ascents, None)) is None:
                    return
            self.ascend(ascent, self.awp.gamma)
            generator.set_state(state)
            with keeping(kept, again=True):
                loss = next(steps)
            yield loss

    def ascend(self, loss: Tensor, gamma: float) -> None:
        """w <- w + gamma ||w|| g / ||g||. Gradients are left behind, those of the images too."""
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        self.group.average(gradients(self.parameters))
        with torch.no_grad():
            for w in self.parameters:
                if w.ndim > 1 and w.grad is not None:
                    self.own[w] = w.detach().clone()
                    w.addcmul_(w.grad, gamma * w.norm() / (w.grad.norm() + TINY))

    @torch.no_grad()
    def undo(self) -> None:
        """Every weight as it was, bit for bit."""
        for w, own in self.own.items():
            w.copy_(own)
        self.own.clear()


def gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def lazily(evaluate: Callable[[], Losses]) -> Iterator[Tensor]:
    """The losses of a batch; nothing is evaluated before the first is asked for."""
    yield from each(evaluate())
