"""Calling attacks that others wrote: of the call nothing remains but its result.

Such code draws from the global generators, back-propagates into parameters, and writes into logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from basin.errors import THEIRS
from basin.randomness import others_seeded
from basin.threat.target import gradient
from basin.types import Images, Logits, Network

NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # a threat model's norm, as pyautoattack spells it


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[int]:
    """Seed the global generators of torch, NumPy and Python by a draw from `generator` (yielded); put them back, whatever happens."""
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    with others_seeded(seed):
        yield seed


class _Pass(torch.autograd.Function):
    """One pass whose gradient reaches the images and nothing else; as in `target.gradient`, what is not finite counts as zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: Network) -> Tensor:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.logits, ctx.network = network(ctx.x), network
        return ctx.logits.detach().clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        try:
            (grad,) = torch.autograd.grad(ctx.logits, ctx.x, g, retain_graph=True)
        except THEIRS:
            grad = gradient(ctx.network, ctx.x, g.argmax(1), lambda logits, _: (logits * g).sum(1))[0]
        return torch.nan_to_num(grad, 0.0, 0.0, 0.0), None


def sealed(network: Network) -> Network:
    """The network as images -> logits alone: no parameter gets a gradient, and logits may be written into."""

    def call(x: Images) -> Logits:
        if torch.is_grad_enabled() and x.requires_grad:
            return _Pass.apply(x, network)
        with torch.no_grad():
            return network(x).clone()

    return call
