"""Lipschitz constants in the 2-norm, where the layers give one: upper bounds, never estimates.

A module may have one of its own, `lipschitz`: a number where it holds whatever the weights, else a method. Of a convolution it is the
lesser of two bounds of its norm, whatever the image: the sum of ||K_ij||_2 over the positions of the kernel, and the root of the largest
row sum of |K K^T| (Gershgorin).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from basin.models.classifier import Classifier

OF_LIPSCHITZ_1 = (nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Flatten, nn.Dropout)  # in evaluation mode


def given(module: nn.Module) -> float | None:
    """A Lipschitz constant of a module in evaluation mode that holds whatever its weights; None where there is none."""
    own = getattr(module, "lipschitz", None)
    return own if isinstance(own, float) else 1.0 if isinstance(module, OF_LIPSCHITZ_1) else None


@torch.no_grad()
def constant(module: nn.Module) -> float | None:
    """A Lipschitz constant of a module in evaluation mode, of its weights as they are; None where its layers do not give one."""
    if (known := given(module)) is not None:
        return known
    if own := getattr(module, "lipschitz", None):
        return own()
    found = next((bound for of, bound in BOUNDS.items() if type(module).forward is of.forward), None)
    return found(module) if found else None


def lipschitz(model: Classifier, of: Callable[[nn.Module], float | None] = constant) -> float | None:
    """L, of image -> what the last layer reads; None where the layers do not give it, and where something is random.

    `of`: how a part's is found, `constant` or `given`.
    """
    before = getattr(model.head, "before", None)
    if before is None or model.randomised:
        return None
    constants = [before(), *map(of, (model.purifier, model.normalise, model.backbone))]
    return None if None in constants else math.prod(constants)


def between(model: Classifier) -> Tensor:
    """[classes, classes]: ||V_i - V_j||_2 of the last layer's rows: how far a step of one moves two logits apart."""
    V = model.head.get_parameter("classifier.weight")
    return torch.cdist(V, V, compute_mode="donot_use_mm_for_euclid_dist")


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
