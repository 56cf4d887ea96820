"""YOPO-m-n (Zhang et al. 2019, arXiv 1905.00877): m n attack steps for m + 1 passes; the steps between go through the first layer alone.

The network is g after f_0, its first layer. From x^{1,0}, a random point of the ball, for j = 1 .. m:

    p = d CE(g(f_0(x^{j,0})), y) / d f_0                                              the co-state: one pass through the whole network
    x^{j,s+1} = P(x^{j,s} + alpha s(p . d f_0(x^{j,s}) / d x)),    s = 0 .. n - 1     p is held, f_0 alone is run
    x^{j+1,0} = x^{j,n}

    L = mean_j mean CE(f(x^{j,n}), y), one optimiser step

With n = 1, p is never stale, and the points are those of projected gradient descent; with m = n = 1 it is `fast`. The first layer is the
first module with parameters to return. What goes round it, as a shortcut does, has no part in the steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from basin.config.settings import Settings
from basin.errors import Mistake
from basin.threat.ball import ThreatModel
from basin.threat.target import cross_entropy_each
from basin.training.awp import found
from basin.types import Images, Labels, Network, PerImage


class Params(Settings):
    m: int = Field(5, ge=1, description="a positive number of passes through the whole network for each batch (the paper: 5, 3)")
    n: int = Field(3, ge=1, description="a positive number of steps through the first layer after each (the paper: 3, 5)")
    step: float = Field(0.25, gt=0, description="positive step length alpha as a share of the radius (the authors' code: 0.25)")


class Reached(Exception):
    """The first layer has returned, and no more is wanted of the pass."""


@contextmanager
def first_layer(stop: bool) -> Iterator[list[Tensor]]:
    """A list for what the first layer returns in a pass inside the block; with `stop`, the pass ends there. Images must want a gradient."""
    f_0: list[Tensor] = []

    def hook(layer: nn.Module, arguments: Any, output: Any) -> None:
        of_the_images = any(isinstance(one, Tensor) and one.requires_grad for one in arguments)
        if not f_0 and of_the_images and has_parameters(layer):
            if any(map(has_parameters, layer.children())):  # they returned before it, and none was seen to
                raise Mistake("training: yopo: does not see the first layer of a compiled backbone (got compile: true). Set it to false.")
            f_0.append(output)
            if stop:
                raise Reached

    handle = register_module_forward_hook(hook)
    try:
        yield f_0
    except Reached:
        pass
    finally:
        handle.remove()


def has_parameters(layer: nn.Module) -> bool:
    return next(layer.parameters(), None) is not None


def whole(network: Network, x: Images, labels: Labels) -> tuple[Tensor, PerImage]:
    """(f_0(x), CE of each image), with their graph."""
    with first_layer(stop=False) as f_0:
        losses = cross_entropy_each(network(x.detach().requires_grad_()), labels)
    return f_0[0], losses


def slope(network: Network, x: Images, p: Tensor) -> Images:
    """p . d f_0(x) / d x."""
    x = x.detach().requires_grad_()
    with first_layer(stop=True) as f_0:
        network(x)
    return torch.autograd.grad(f_0[0], x, p)[0]


def moved(params: Params, network: Network, x: Images, images: Images, threat: ThreatModel, f_0: Tensor, losses: PerImage) -> Images:
    """n steps through the first layer from x, whose f_0 and losses these are."""
    (p,) = torch.autograd.grad(losses.sum(), f_0, retain_graph=True)
    for _ in range(params.n):
        x = threat.project(threat.ascend(x, slope(network, x, p), params.step), images)
    return x


def loss(params: Params, network: Network, images: Images, labels: Labels, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """L, whose gradient is the mean over j of the weight gradients that the paper adds up."""
    x = threat.random_point(images, generator)
    f_0, losses = whole(network, x, labels)
    means = []
    for _ in range(params.m):
        x = found(partial(moved, params, network, x, images, threat, f_0, losses), generator)
        f_0, losses = whole(network, x, labels)
        means.append(losses.mean())
    return torch.stack(means).mean()
