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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d, linear, softplus

from basin.config.posterior import Posterior
from basin.errors import Mistake
from basin.models.ode import flows
from basin.randomness import Random

STRAIGHT = 50.0  # above which softplus is the identity, in float64 too
LEAST_VARIANCE = 1e-16  # of an output that is drawn: the square root has no derivative at 0, where all inputs of a unit are 0


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
        called: set[nn.Module] = set()
        hooks = [layer.register_forward_hook(partial(self._drawn_output, sigma, called)) for layer in local]
        try:
            output = functional_call(self.network, drawn, (x,))
        finally:
            for hook in hooks:
                hook.remove()
        if self.training and (read := {*local} - called):
            name = next(name for name, layer in self.network.named_modules() if layer in read)
            raise Mistake(f"distribution.local: a layer's weights are read without a call of it (got {name}). Set it to false.")
        return output

    def divergence(self) -> Tensor:
        """KL[q || N(0, s^2 I)] in nats, over all parameters."""
        s = self.posterior.prior
        terms = [(s / sigma).log() + (sigma.square() + mu.square()) / (2 * s * s) - 0.5 for mu, sigma in self.scales().items()]
        return torch.stack([term.sum() for term in terms]).sum()

    def penalty(self) -> Tensor | float:
        """beta KL, which training adds to the loss of all training images (basin/training/optimise.py)."""
        return self.posterior.kl * self.divergence() if self.posterior.kl else 0.0

    @staticmethod
    def line(layers: Sequence["Distribution"]) -> dict[str, float]:
        """How random the parameters of all these are: mean sigma, and mean sigma / mean |mu|; for the history of a training."""
        pairs = [pair for layer in layers for pair in layer.scales().items()]
        count = sum(mu.numel() for mu, _ in pairs)
        size, scale = (torch.stack([tensor.abs().sum() for tensor in tensors]).sum().item() / count for tensors in zip(*pairs))
        return {"mean_scale": scale, "mean_relative_scale": scale / size}

    def _local_layers(self) -> list[nn.Module]:
        """The layers whose outputs are drawn."""
        solved = {layer for flow in flows(self.network) for layer in flow.modules()}
        return [layer for layer in self.network.modules() if self.posterior.local and _is_affine(layer) and layer not in solved]

    def _drawn_output(
        self, sigma: dict[nn.Parameter, Tensor], called: set[nn.Module], layer: nn.Module, inputs: tuple[Tensor], mean: Tensor
    ) -> Tensor:
        """A layer's output under its distribution, from the output of its means."""
        called.add(layer)
        variances = [None if mu is None else sigma[mu].square() for mu in (layer.weight, layer.bias)]  # type: ignore[index]
        x2 = inputs[0].square()
        if isinstance(layer, nn.Conv2d):
            variance = conv2d(x2, *variances, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[call-overload]
        else:
            variance = linear(x2, *variances)  # type: ignore[arg-type]
        return mean + variance.clamp_min(LEAST_VARIANCE).sqrt() * self.normal_rows(mean)


def _initial(means: list[nn.Parameter], scale: float) -> Iterator[Tensor]:
    """rho with softplus(rho) = scale rms(mu) for each tensor; one that starts at 0 takes the root mean square of all of them."""
    if means[0].is_meta:  # shapes alone are asked for
        yield from map(torch.empty_like, means)
        return
    overall = torch.cat([mu.detach().flatten() for mu in means]).square().mean().sqrt()
    for mu in means:
        sigma = scale * (mu.detach().square().mean().sqrt() or overall).item()
        yield torch.full_like(mu, math.log(math.expm1(sigma)) if sigma < STRAIGHT else sigma)


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
