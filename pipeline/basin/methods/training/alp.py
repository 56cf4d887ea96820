"""Adversarial logit pairing (Kannan, Kurakin & Goodfellow 2018, arXiv 1803.06373): an image and its adversarial copy give the same logits.

L = mean [ (CE(f(x), y) + CE(f(x'), y)) / 2 + lambda |f(x) - f(x')|_2^2 / classes ]

x' is projected gradient descent's point on the cross-entropy. Its published figures did not hold (Engstrom et al. 2018, arXiv 1807.10272):
pairing bends the loss where an attack starts, so judge it by long attacks.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from basin.config.settings import Settings
from basin.methods.attacks import pgd
from basin.threat.ball import ThreatModel
from basin.threat.target import Target
from basin.training.awp import found
from basin.types import Images, Labels, Network


class Params(Settings):
    lambda_: float = Field(0.5, ge=0, alias="lambda", description="weight of the pairing, 0 or above (the paper on ImageNet: 0.5)")
    steps: int = Field(10, ge=1, description="a positive number of attack steps for each batch")
    step: float = Field(0.25, gt=0, description="positive step length as a share of the radius")


def loss(params: Params, network: Network, images: Images, labels: Labels, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    inner = pgd.Params(steps=params.steps, step=params.step)
    x = found(lambda: pgd.ascend(inner, Target(network, threat), images, labels, generator), generator)
    z, z_x = network(images), network(x)
    return (cross_entropy(z, labels) + cross_entropy(z_x, labels)) / 2 + params.lambda_ * mse_loss(z, z_x)
