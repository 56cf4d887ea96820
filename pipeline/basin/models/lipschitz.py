"""Lipschitz constants in the 2-norm, where the layers give one: upper bounds, never estimates.

A module may have one of its own as a method `lipschitz`. Of a convolution it is the lesser of two bounds of its norm, whatever the image:
the sum of ||K_ij||_2 over the positions of the kernel, and the root of the largest row sum of |K K^T| (Gershgorin).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d

from basin.models.classifier import Normalise

OF_LIPSCHITZ_1 = (nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Flatten, nn.Dropout)  # in evaluation mode


@torch.no_grad()
def constant(module: nn.Module) -> float | None:
    """A Lipschitz constant of a module in evaluation mode; None where its layers do not give one."""
    own: Callable[[], float | None] | None = getattr(module, "lipschitz", None)
    if own:
        return own()
    if isinstance(module, OF_LIPSCHITZ_1):
        return 1.0
    if isinstance(module, Normalise):
        return 1 / module.std.min().item()
    found = next((bound for of, bound in BOUNDS.items() if type(module).forward is of.forward), None)
    return found(module) if found else None


def product(modules: nn.Sequential) -> float | None:
    """Of one module after the other."""
    constants = [constant(module) for module in modules]
    return None if None in constants else math.prod(constants)  # type: ignore[arg-type]


def _linear(layer: nn.Linear) -> float:
    return torch.linalg.matrix_norm(layer.weight.double(), 2).item()


def _convolution(layer: nn.Conv2d) -> float | None:
    if layer.groups > 1 or max(layer.dilation) > 1 or layer.padding_mode not in ("zeros", "circular"):
        return None
    K = layer.weight.double()
    positions = torch.linalg.matrix_norm(K.permute(2, 3, 0, 1), 2).sum()
    rows = conv2d(K, K, padding=(K.shape[2] - 1, K.shape[3] - 1)).abs().sum((1, 2, 3)).max().sqrt()
    return min(positions.item(), rows.item())


def _pooling(layer: nn.MaxPool2d) -> float | None:
    """Where no two windows share a pixel."""
    return 1.0 if layer.stride == layer.kernel_size and layer.dilation == 1 else None


BOUNDS: dict[type[nn.Module], Callable[[Any], float | None]] = {
    nn.Sequential: product,
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _pooling,
}
