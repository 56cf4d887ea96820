"""What an attack is given, and what attacks share: the gradient at an image, losses by image, the best point so far."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from basin.errors import THEIRS, short_of_memory
from basin.threat.ball import ThreatModel
from basin.types import Images, Labels, Network, PerImage


@dataclass(frozen=True)
class Target:
    """What an attack is given: the network, the ball, and where there are any the undefended twin and the backbone's features.

    `single` is one draw of a network that draws, which is what its robust accuracy is about; the network itself may average several.
    """

    network: Network
    threat: ThreatModel
    twin: Network | None = None
    features: Callable[[Images], Tensor] | None = None  # images -> [n, ...]
    single: Network | None = None


PerImageLoss = Callable[[Tensor, Labels], PerImage]


def cross_entropy_each(logits: Tensor, labels: Labels) -> PerImage:
    """CE(z_i, y_i) of each image."""
    return cross_entropy(logits, labels, reduction="none")


def margin(z: Tensor, y: Labels) -> PerImage:
    """z_y - max_{i != y} z_i of each image, below 0 where it is misclassified."""
    return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -torch.inf).amax(1)


def gradient(network: Network, x: Images, labels: Labels, loss: PerImageLoss = cross_entropy_each) -> tuple[Tensor, PerImage, Tensor]:
    """(d loss_i / d x_i, loss_i, logits) at x. A gradient that is not finite counts as zero: there is no direction in it."""
    g, losses, logits = derivative(network, x, labels, loss)
    return torch.nan_to_num(g, 0.0, 0.0, 0.0), losses, logits


def derivative(network: Network, x: Images, labels: Labels, loss: PerImageLoss = cross_entropy_each) -> tuple[Tensor, PerImage, Tensor]:
    """(d loss_i / d x_i, loss_i, logits) at x, as it comes: not finite where it overflows, and NaN where the backward pass raises.

    The adjoint of an ODE that overflows on its way back in time does, which torchdiffeq ends with an AssertionError: for the image whose
    adjoint it is, so that those beside it keep theirs.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = network(x)
        losses = loss(logits, labels)
        try:
            (g,) = torch.autograd.grad(losses.sum(), x)
        except THEIRS as error:
            if short_of_memory(error):
                raise
            g = torch.cat([_alone(network, x, labels, loss, i) for i in range(len(x))])
    return g, losses.detach(), logits.detach()


def _alone(network: Network, x: Images, labels: Labels, loss: PerImageLoss, i: int) -> Tensor:
    """The derivative at one image that is passed by itself; the loss may know of all, and gets its logits in every row."""
    one = x[i : i + 1].detach().requires_grad_()
    own = loss(network(one).expand(len(x), -1), labels)[i]
    try:
        return torch.autograd.grad(own, one)[0]
    except THEIRS:
        return torch.full_like(one, torch.nan)


def accumulate(mu: float, v: Tensor, g: Tensor) -> Tensor:
    """mu v + g / mean |g|, image by image (Dong et al. 2018, arXiv 1710.06081, equation 6); with mu = 0 the gradient as it is."""
    if mu == 0:
        return g
    size = g.flatten(1).abs().mean(1).clamp_min(torch.finfo(g.dtype).tiny)
    return mu * v + g / size.view(-1, *[1] * (g.ndim - 1))


class Incumbent:
    """The best point so far for each image: one that is misclassified before one that is not, then the higher loss."""

    def __init__(self, clean: Images):
        self.points = clean.clone()
        self.loss = torch.full((len(clean),), -torch.inf, dtype=clean.dtype, device=clean.device)
        self.broken = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)

    def offer(self, x: Images, logits: Tensor, labels: Labels, rows: Tensor | None = None) -> None:
        """Take the points of `x` that are better; `rows` says which images they belong to (all, in order, by default)."""
        rows = torch.arange(len(self.points), device=x.device) if rows is None else rows
        loss = cross_entropy_each(logits, labels).detach()
        broken = logits.argmax(1) != labels
        better = (broken & ~self.broken[rows]) | ((broken == self.broken[rows]) & (loss > self.loss[rows]))
        taken = rows[better]
        self.points[taken], self.loss[taken], self.broken[taken] = x.detach()[better], loss[better], broken[better]
