"""A network every parameter of which is a distribution with a mean and a scale that are learnt, drawn anew in every pass.

    w = mu + sigma eps,    eps ~ N(0, I),    sigma = floor + softplus(rho)                      (one eps a parameter and pass)

Where `local`, linear and convolutional layers draw their outputs in place of their weights (one eps an output unit and image):

    W x + b  ~  N(mu_W x + mu_b, sigma_W^2 x^2 + sigma_b^2)

which is the same for each unit, with less variance in the gradient; the units of a layer are then independent, as a convolution's
positions, which share their weights, otherwise are not. Layers inside a flow always draw weights: a pass draws them once, so that the
drift stays the same function through the solve, and what is solved is an ODE.

The penalty is beta KL[q || N(0, s^2 I)] in nats.

Khan et al. 2019 (arXiv 1905.10906); Blundell et al. 2015 (arXiv 1505.05424); local: Kingma, Salimans & Welling 2015 (arXiv 1506.02557).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d, linear, softplus

from pipeline.ode import flows
from pipeline.randomness import Random
from pipeline.types import Settings

LEAST_VARIANCE = 1e-16  # of an output that is drawn: the square root has no derivative at 0, where all inputs of a unit are 0


class Posterior(Settings):
    """The distribution of every parameter, and how often a pass draws it."""

    scale: float = Field(
        0.1, gt=0, description="the positive scale to start from, as a multiple of the root mean square of the tensor that it belongs to"
    )
    floor: float = Field(0.0, ge=0, description="the least scale that a parameter can have, 0 or above")
    kl: float = Field(0.0, ge=0, description="the weight beta of the divergence from the prior, 0 for none")
    prior: float = Field(1.0, gt=0, description="the positive scale s of the prior N(0, s^2)")
    local: bool = Field(True, description="whether linear and convolutional layers draw their outputs in place of their weights")
    training_draws: int = Field(1, ge=1, description="a positive number of draws that a pass averages in training")
    inference_draws: int = Field(1, ge=1, description="a positive number of draws that the reported function averages")


class Distribution(Random):
    """Wraps a network: its own parameters are the means mu, `rho` holds a tensor of the same shape for each, in their order.

    Read from outside a pass (`network.weight`, a flow's Jacobian) the network is the mean one.
    """

    noisy = True

    def __init__(self, network: nn.Module, posterior: Posterior):
        super().__init__()
        self.network, self.posterior = network, posterior
        self.training_draws, self.inference_draws = posterior.training_draws, posterior.inference_draws
        self.rho = nn.ParameterList(_initial(list(network.parameters()), posterior.scale))

    def scales(self) -> dict[nn.Parameter, Tensor]:
        """mu -> sigma, for every parameter."""
        return {mu: self.posterior.floor + softplus(rho) for mu, rho in zip(self.network.parameters(), self.rho, strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        if not self.noisy:
            return self.network(x)
        sigma, local = self.scales(), self._local_layers()
        elsewhere = {mu for layer in local for mu in layer.parameters()}
        means = {name: mu for name, mu in self.network.named_parameters() if mu not in elsewhere}
        drawn = {name: mu + sigma[mu] * self.normal(mu.shape, mu) for name, mu in means.items()}
        hooks = [layer.register_forward_hook(partial(self._drawn_output, sigma)) for layer in local]
        try:
            return functional_call(self.network, drawn, (x,))
        finally:
            for hook in hooks:
                hook.remove()

    def divergence(self) -> Tensor:
        """KL[q || N(0, s^2 I)] in nats, over all parameters."""
        s = self.posterior.prior
        terms = [(s / sigma).log() + (sigma.square() + mu.square()) / (2 * s * s) - 0.5 for mu, sigma in self.scales().items()]
        return torch.stack([term.sum() for term in terms]).sum()

    def penalty(self) -> Tensor | float:
        """beta KL, which training adds to the loss of all training images (pipeline/optimise.py)."""
        return self.posterior.kl * self.divergence() if self.posterior.kl else 0.0

    def _local_layers(self) -> list[nn.Module]:
        """The layers whose outputs are drawn."""
        solved = {layer for flow in flows(self.network) for layer in flow.modules()}
        return [layer for layer in self.network.modules() if self.posterior.local and _is_affine(layer) and layer not in solved]

    def _drawn_output(self, sigma: dict[nn.Parameter, Tensor], layer: nn.Module, inputs: tuple[Tensor], mean: Tensor) -> Tensor:
        """A layer's output under its distribution, from the output of its means."""
        variances = [None if mu is None else sigma[mu].square() for mu in (layer.weight, layer.bias)]  # type: ignore[index]
        x2 = inputs[0].square()
        if isinstance(layer, nn.Conv2d):
            variance = conv2d(x2, *variances, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[call-overload]
        else:
            variance = linear(x2, *variances)  # type: ignore[arg-type]
        return mean + variance.clamp_min(LEAST_VARIANCE).sqrt() * self.normal(mean.shape, mean)


def _initial(means: list[nn.Parameter], scale: float) -> Iterator[Tensor]:
    """rho with softplus(rho) = scale rms(mu) for each tensor; one that starts at 0 takes the root mean square of all of them."""
    overall = torch.cat([mu.detach().flatten() for mu in means]).square().mean().sqrt()
    for mu in means:
        own = mu.detach().square().mean().sqrt()
        yield torch.full_like(mu, math.log(math.expm1(scale * (own or overall).item())))


def _is_affine(layer: nn.Module) -> bool:
    """Whether a layer is nothing but its weights times its inputs; a class derived from it may be more."""
    return type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.padding_mode == "zeros")


def distributions(module: nn.Module) -> list[Distribution]:
    """Every network of distributions inside a module."""
    return [m for m in module.modules() if isinstance(m, Distribution)]


@contextmanager
def mean_network(module: nn.Module) -> Iterator[None]:
    """Switch the noise of every distribution inside a module off: w = mu, in one draw."""
    own = [(layer, (layer.noisy, layer.training_draws, layer.inference_draws)) for layer in distributions(module)]
    for layer, _ in own:
        layer.noisy, layer.training_draws, layer.inference_draws = False, 1, 1
    try:
        yield
    finally:
        for layer, theirs in own:
            layer.noisy, layer.training_draws, layer.inference_draws = theirs


@torch.no_grad()
def numbers(module: nn.Module) -> dict[str, float]:
    """How random a module's parameters are: mean sigma, and mean sigma / mean |mu|; nothing where none is a distribution."""
    pairs = [pair for layer in distributions(module) for pair in layer.scales().items()]
    if not pairs:
        return {}
    count = sum(mu.numel() for mu, _ in pairs)
    size, scale = (torch.stack([tensor.abs().sum() for tensor in tensors]).sum().item() / count for tensors in zip(*pairs))
    return {"mean_scale": scale, "mean_relative_scale": scale / size}
