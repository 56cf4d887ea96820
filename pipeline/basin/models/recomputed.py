"""A part of a computation of which the gradient keeps the input alone: it is computed again when the gradient is taken.

Of a long solve through steps it is the memory that grows, and here it grows with the root of the steps. The gradient is the same: it is
taken of the same operations on the same numbers, and only sums over segments are rounded otherwise. torch.utils.checkpoint does this too,
loads torch's compiler, and knows of no generators but the global ones, from which nothing in Basin draws.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from basin.randomness import copied, given, random_layers


def recomputed(module: nn.Module, function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """function(z), which computes with the module's parameters and buffers, and draws from its layers' generators, as they are now.

    Its gradient cannot be differentiated again: torch says so where that is tried.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return _Recomputed.apply(_Within(module, function), tuple(tensors), z, *tensors.values())


class _Within(nn.Module):
    """The function as a module that holds what it computes with."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.module, self.forward = module, function
        self.draws = [(layer, layer.generator) for layer in random_layers(module)]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, within: _Within, names: tuple[str, ...], *tensors: Tensor) -> Tensor:
        ctx.within, ctx.names, ctx.draws = within, names, copied(within.draws)
        ctx.save_for_backward(*tensors)
        return within(tensors[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[2:]
        tensors = [tensor.detach().requires_grad_(is_wanted) for tensor, is_wanted in zip(ctx.saved_tensors, wanted, strict=True)]
        with torch.enable_grad(), given(copied(ctx.draws)):
            out = functional_call(ctx.within, {f"module.{name}": tensor for name, tensor in zip(ctx.names, tensors[1:])}, tensors[0])
            of = [tensor for tensor in tensors if tensor.requires_grad]
            found = iter(torch.autograd.grad((out * g).sum(), of, allow_unused=True))
        return None, None, *(next(found) if tensor.requires_grad else None for tensor in tensors)
