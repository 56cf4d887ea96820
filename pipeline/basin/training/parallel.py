"""A backbone whose batches several processes share, as one process would pass them.

A loss is evaluated by each process on the whole batch, with the same draws, so that it is what its paper says whatever of the batch it
looks at; each passes its own rows through the backbone, and gets the features of all. For a loss L that each of n processes has, the
gradients that meet inside are of n L, and those of the weights are averaged in the end (`Group.average`): what a process computes for
itself alone, a head or a penalty, counts once, and so does what all computed together.

    features = Whole(backbone(Part(images)))        Whole: own rows -> all; backward n times the own rows of the gradient
                                                    Part: all -> own rows; backward the rows of all, over n
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

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
        with Synchronised(group, n):
            return Whole.apply(passed(Part.apply(images, group)), group, n)
    finally:
        for layer in layers:
            layer.part = None


class Synchronised(TorchFunctionMode):
    """Has every batch normalisation of a pass, in whoever's layer, take the statistics of all processes' rows.

    torch.nn.SyncBatchNorm would do, but for torch's own layers, and on a GPU alone.
    """

    def __init__(self, group: Group, images: int):
        super().__init__()
        self.group, self.images = group, images

    def __torch_function__(self, func: Callable[..., Tensor], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is batch_norm:
            return normalised(self.group, self.images, *args, **kwargs or {})
        return func(*args, **kwargs or {})


def normalised(
    group: Group,
    images: int,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` of rows that are a part of a batch of so many `images`."""
    if not training:
        return batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    z = x.float()
    n = x.numel() // x.shape[1] * images // len(range(images)[group.rows(images)])  # of the whole batch, each process alike
    mean = Total.apply(z.sum(axes), group) / n
    centred = z - mean.view(shape)
    variance = Total.apply(centred.square().sum(axes), group) / n
    with torch.no_grad():
        for running, value in ((running_mean, mean), (running_var, variance * (n / (n - 1)))):
            if running is not None:
                running.lerp_(value, momentum)
    z = centred * (variance + eps).rsqrt().view(shape)
    z = z if weight is None else z * weight.view(shape)
    return (z if bias is None else z + bias.view(shape)).to(x.dtype)
