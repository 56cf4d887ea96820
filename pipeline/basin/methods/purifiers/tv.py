"""Total-variation minimisation (Rudin, Osher & Fatemi 1992; Guo et al. 2018, arXiv 1711.00117): small oscillations go, edges stay.

Nothing to train. Deterministic, or with `keep` below 1 Guo et al.'s random mask m of pixels. Smooth in the image, with the exact gradient.
As a defence it was broken (Athalye et al. 2018, arXiv 1802.00420).

    E(z) = 1/2 |m (z - x)|^2 + lambda sum_p (sqrt(|Dz|_p^2 + eps^2) - eps)      Dz: forward differences, each channel on its own

    w_p = lambda / sqrt(|Dz|_p^2 + eps^2)
    z_p <- (m_p x_p + sum_q w_pq z_q) / (m_p + sum_q w_pq)                      q: the four neighbours of p

With these w a quadratic touches E at z from above (lagged diffusivity: Vogel & Oman 1996). An iteration minimises it over the red pixels of
a checkerboard, then over the black ones, so E never rises. Each value is a mean of others, so that z stays between the extremes of x.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from basin.config.settings import Settings
from basin.errors import Mistake
from basin.models.substitutes import Substitutable
from basin.randomness import Random
from basin.types import Images, PerImage

SLACK = 0.25  # how far out of [0, 1] finite differences (spsa's queries, for one) may step; a wrong scale goes further
CACHED = 2**16  # pixels that are worked on at once by a CPU: what fits its cache takes a quarter of the time


class Params(Settings):
    weight: float = Field(0.05, gt=0, description="the positive weight lambda of the total variation, for pixels in [0, 1]")
    iterations: int = Field(20, ge=1, description="a positive number of sweeps over the image")
    smoothing: float = Field(0.01, gt=0, description="the positive eps: a difference of pixels well below it is no edge")
    keep: float = Field(1.0, gt=0, le=1, description="the share of pixels that a random mask keeps, above 0 and at most 1 (1: no mask)")
    training_draws: int = Field(1, ge=1, description="a positive number of masks that a pass in training averages over")
    inference_draws: int = Field(1, ge=1, description="a positive number of masks that the reported function averages over")

    @model_validator(mode="after")
    def _draws_need_a_mask(self) -> "Params":
        if self.keep == 1 and max(self.training_draws, self.inference_draws) > 1:
            raise PydanticCustomError("draws", "without a mask every draw is the same. Set keep below 1, or the draws to 1.")
        return self


class StraightThrough(torch.autograd.Function):
    """f(x), whose derivative is taken to be the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return f(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class TotalVariation(Substitutable):
    """Images in [0, 1] -> images in [0, 1]; every pixel counts. Raises Mistake on images outside [0, 1].

    The gradient "identity" is BPDA's (Athalye et al. 2018): backwards as if the purifier were not there.
    """

    gradients = ("exact", "identity")

    def __init__(self, params: Params):
        super().__init__()
        self.params = params

    def mask(self, x: Images) -> Images:
        return torch.ones_like(x)

    def forward(self, x: Images) -> Images:
        m = self.mask(x)
        if self.gradient == "identity":
            return StraightThrough.apply(x, lambda x: minimised(x, m, self.params))
        return minimised(x, m, self.params)


class MaskedTotalVariation(TotalVariation, Random):
    """The same, but each pixel of each channel counts with probability `keep`; the others are filled in from those that do."""

    def __init__(self, params: Params):
        super().__init__(params)
        self.training_draws, self.inference_draws = params.training_draws, params.inference_draws

    def mask(self, x: Images) -> Images:
        return (self.uniform(x.shape, x) < self.params.keep).to(x.dtype)


def Purifier(params: Params) -> TotalVariation:
    """Only the one with a mask counts as random."""
    return TotalVariation(params) if params.keep == 1 else MaskedTotalVariation(params)


def minimised(x: Images, m: Images, params: Params) -> Images:
    """The last z."""
    if not len(x):
        return x
    low, high = extremes(x)
    rows = max(1, CACHED // x[0].numel()) if x.device.type == "cpu" else len(x)
    parts = [last(descent(some, its_m, params)) for some, its_m in zip(x.split(rows), m.split(rows))]
    return StraightThrough.apply(torch.cat(parts), lambda z: z.clamp(min(low, 0), max(high, 1)))  # of rounding alone, which is no kink


def extremes(x: Images) -> tuple[float, float]:
    low, high = torch.stack(x.aminmax()).tolist()
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise Mistake(
            f"purifiers/tv: pixels outside [0, 1] (got {low:.4g} to {high:.4g}). "
            "Give it images scaled to [0, 1]; a classifier normalises after its purifier."
        )
    return low, high


def last(iterates: Iterator[Images]) -> Images:
    *_, z = iterates
    return z


def descent(x: Images, m: Images, params: Params) -> Iterator[Images]:
    """z before the first iteration and after each."""
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape[2:])
    red = (rows[:, None] + columns) % 2 == 0
    z = start(x, m)
    yield z
    for _ in range(params.iterations):
        yield (z := sweep(z, x, m, red, params))


def start(x: Images, m: Images) -> Images:
    """x where m = 1; elsewhere the mean of the kept pixels in the 3x3 around, and a little of the mean of all that are kept."""
    little, everywhere = 1e-3, (m * x).sum((2, 3), keepdim=True) / m.sum((2, 3), keepdim=True).clamp_min(1)
    around = (avg_pool2d(m * x, 3, 1, 1) + little * everywhere) / (avg_pool2d(m, 3, 1, 1) + little)
    return m * x + (1 - m) * around


def sweep(z: Images, x: Images, m: Images, red: Tensor, params: Params) -> Images:
    w = params.weight / magnitude(z, params.smoothing)
    below, right = w[:, :, :-1], w[..., :-1]  # w_pq of p and the pixel below, and of p and the one to the right
    weights = pad(below, (0, 0, 1, 0)), pad(below, (0, 0, 0, 1)), pad(right, (1, 0)), pad(right, (0, 1))
    total = m + sum(weights)
    for colour in (red, ~red):
        mean = m * x
        for w_q, z_q in zip(weights, neighbours(z)):
            mean = torch.addcmul(mean, w_q, z_q)
        z = torch.where(colour, mean / total, z)
    return z


def neighbours(z: Images) -> tuple[Images, ...]:
    """The pixel above each, below it, to its left and to its right; 0 outside the image."""
    z = pad(z, (1, 1, 1, 1))
    return z[:, :, :-2, 1:-1], z[:, :, 2:, 1:-1], z[..., 1:-1, :-2], z[..., 1:-1, 2:]


def magnitude(z: Images, eps: float) -> Images:
    """sqrt(|Dz|_p^2 + eps^2) at each pixel p; over the last row and the last column the difference is 0."""
    dy, dx = pad(z[:, :, 1:] - z[:, :, :-1], (0, 0, 0, 1)), pad(z[..., 1:] - z[..., :-1], (0, 1))
    return (eps**2 + dy * dy + dx * dx).sqrt()


def energy(z: Images, x: Images, m: Images, params: Params) -> PerImage:
    """E(z) of each image."""
    variation = magnitude(z, params.smoothing) - params.smoothing
    return (m * (z - x) ** 2 / 2 + params.weight * variation).flatten(1).sum(1)
