"""TRADES (Zhang et al. 2019, arXiv 1901.08573): trade clean accuracy against the stability of the prediction, by one weight.

L = mean [ CE(f(x), y) + beta max_{x' in the ball} KL(p(x) || p(x')) ]   (equation 5; beta is the paper's 1 / lambda)

The inner maximum is sought by projected ascent on the KL divergence from x + 0.001 N(0, 1): at x itself its gradient vanishes.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from basin.config.settings import Settings
from basin.threat.ball import ThreatModel
from basin.threat.target import gradient
from basin.training.awp import found
from basin.types import Images, Labels, Logits, Network, PerImage

START = 1e-3  # standard deviation of the start, as in the authors' code


class Params(Settings):
    beta: float = Field(6.0, ge=0, description="weight of the KL divergence, 0 or above (0: natural training; the paper: 1 and 6)")
    steps: int = Field(10, ge=1, description="a positive number of attack steps for each batch")
    step: float = Field(0.25, gt=0, description="positive step length as a share of the radius")


def divergence(z: Logits, z_adversarial: Logits) -> PerImage:
    """KL(p || p') of each image, p = softmax(z)."""
    return kl_div(log_softmax(z_adversarial, 1), log_softmax(z, 1), reduction="none", log_target=True).sum(1)


def ascend(params: Params, network: Network, images: Images, threat: ThreatModel, generator: torch.Generator) -> Images:
    """x': the last iterate of projected ascent on KL(p(x) || p(x'))."""
    with torch.no_grad():
        z = network(images)
    x = threat.project(images + START * torch.randn(images.shape, generator=generator, device=images.device), images)
    for _ in range(params.steps):
        g, _, _ = gradient(network, x, z.argmax(1), lambda z_x, _: divergence(z, z_x))
        x = threat.project(threat.ascend(x, g, params.step), images)
    return x


def loss(params: Params, network: Network, images: Images, labels: Labels, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    x = found(lambda: ascend(params, network, images, threat, generator), generator)
    z = network(images)
    return cross_entropy(z, labels) + params.beta * divergence(z, network(x)).mean()
