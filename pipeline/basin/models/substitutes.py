"""Layers whose gradient can be taken in more than one way, and which one is meant.

The reported function is the same whichever is chosen; only what an attack is given changes. A defence that was broken through one of
them was broken: an attacker takes the one that helps (Athalye et al. 2018, arXiv 1802.00420, section 4.1: BPDA).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class Substitutable(nn.Module):
    """`gradient` is the one in use, one of `gradients`; "exact" is the derivative of what `forward` returns, where there is one."""

    gradients: tuple[str, ...] = ("exact",)
    gradient: str = "exact"


def substitutes(module: nn.Module) -> tuple[str, ...]:
    """The names of every gradient that some layer inside a module can be given besides the one in use, each once."""
    layers = [layer for layer in module.modules() if isinstance(layer, Substitutable)]
    return tuple(dict.fromkeys(name for layer in layers for name in layer.gradients if name != layer.gradient))


@contextmanager
def differentiating(module: nn.Module, gradient: str) -> Iterator[None]:
    """Give this gradient to every layer inside a module that has it, and put each one's own back."""
    own = [(layer, layer.gradient) for layer in module.modules() if isinstance(layer, Substitutable) and gradient in layer.gradients]
    for layer, _ in own:
        layer.gradient = gradient
    try:
        yield
    finally:
        for layer, theirs in own:
            layer.gradient = theirs
