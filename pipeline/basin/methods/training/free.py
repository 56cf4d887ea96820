"""Free adversarial training (Shafahi et al. 2019, arXiv 1904.12843): m steps on a batch, each of which moves the images as well.

delta_0 = 0;    L_k = mean CE(f(x + delta_k), y), an optimiser step on it;    delta_{k+1} = P(delta_k + alpha s(d L_k / d x))

One backward pass gives both gradients, so m replays cost m steps of natural training; divide the epochs by m and the whole costs the same.
The network sees x + delta_k before and after it changes, and with m = 1 nothing but x: natural training.
"""

from collections.abc import Iterator
from functools import partial

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from basin.config.settings import Settings
from basin.threat.ball import ThreatModel
from basin.training.awp import found
from basin.types import Images, Labels, Network


class Params(Settings):
    replays: int = Field(8, ge=1, description="a positive number m of optimiser steps on each batch (the paper: 8 on CIFAR, 4 on ImageNet)")
    step: float = Field(1.0, gt=0, description="positive step length alpha as a share of the radius (the paper: 1)")
    smoothing: float = Field(0.0, ge=0, lt=1, description="the share of a label, below 1, that all classes get")


def loss(
    params: Params, network: Network, images: Images, labels: Labels, threat: ThreatModel, generator: torch.Generator
) -> Iterator[Tensor]:
    """L_0, ..., L_{m-1}. The caller calls `backward` on each before it asks for the next."""
    x = images
    for _ in range(params.replays):
        x = x.detach().requires_grad_()
        yield cross_entropy(network(x), labels, label_smoothing=params.smoothing)
        x = found(partial(moved, params, x, images, threat), generator)


def moved(params: Params, x: Images, images: Images, threat: ThreatModel) -> Images:
    """A step along the gradient that the images hold."""
    assert x.grad is not None
    return threat.project(threat.ascend(x.detach(), x.grad, params.step), images)
