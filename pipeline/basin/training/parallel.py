"""A backbone whose batches several processes share, as one process would pass them.

A loss is evaluated by each process on the whole batch, with the same draws, so that it is what its paper says whatever of the batch it
looks at; each passes its own rows through the backbone, and gets the features of all. For a loss L that each of n processes has, the
gradients that meet inside are of n L, and those of the weights are averaged in the end (`Group.average`): what a process computes for
itself alone, a head or a penalty, counts once, and so does what all computed together.

    features = Whole(backbone(Part(images)))        Whole: own rows -> all; backward n times the own rows of the gradient
                                                    Part: all -> own rows; backward the rows of all, over n
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from basin.processes import Group
from basin.randomness import random_layers


class Part(torch.autograd.Function):
    """[n, ...] -> a process's own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.n = group, len(x)
        return x[group.rows(len(x))].clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.group.gathered(g, ctx.n) / ctx.group.size, None


class Whole(torch.autograd.Function):
    """A process's own rows -> [n, ...]."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Group, n: int) -> Tensor:
        ctx.group, ctx.n = group, n
        return group.gathered(own, n)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return g[ctx.group.rows(ctx.n)] * ctx.group.size, None, None


class Total(torch.autograd.Function):
    """The sum over the processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.total(own)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.group.total(g), None


def shared(passed: Callable[[Tensor], Tensor], backbone: nn.Module, images: Tensor, group: Group) -> Tensor:
    """`passed(images)`, the backbone's pass; each process passes its rows. All pass all where there are fewer images than processes."""
    if group.size == 1 or (n := len(images)) < group.size:
        return passed(images)
    for layer in (layers := random_layers(backbone)):
        layer.part = group.rows(n), n
    try:
        with synchronised(backbone, group):
            return Whole.apply(passed(Part.apply(images, group)), group, n)
    finally:
        for layer in layers:
            layer.part = None


@contextmanager
def synchronised(backbone: nn.Module, group: Group) -> Iterator[None]:
    """Have every batch normalisation in training mode take the statistics of all processes' rows.

    torch.nn.SyncBatchNorm would do, but on a GPU alone.
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, _BatchNorm) and layer.training]
    for layer in layers:
        layer.forward = partial(normalised, layer, group)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def normalised(layer: _BatchNorm, group: Group, x: Tensor) -> Tensor:
    """Batch normalisation of rows that are a part of a batch."""
    axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    z = x.float()
    n = float(group.total(z.new_tensor([x.numel() / x.shape[1]])))
    mean = Total.apply(z.sum(axes), group) / n
    centred = z - mean.view(shape)
    variance = Total.apply(centred.square().sum(axes), group) / n
    _remember(layer, mean, variance * (n / (n - 1)))
    z = centred * (variance + layer.eps).rsqrt().view(shape)
    return (z * layer.weight.view(shape) + layer.bias.view(shape) if layer.affine else z).to(x.dtype)


@torch.no_grad()
def _remember(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """The running statistics, as torch keeps them."""
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return
    layer.num_batches_tracked += 1
    share = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean, share)
    layer.running_var.lerp_(variance, share)
