"""Randomised smoothing (Cohen et al. 2019, arXiv 1902.02918, algorithm `Certify`): radii of another function than the model.

    g(x) = the class that the model gives most often at x + noise, noise ~ N(0, sigma^2 I)
    R(x) = sigma Phi^-1(p), p a lower bound of that class's share

p is the lower end of Clopper's and Pearson's interval: each radius holds for g, not for the model, and with the `confidence` alone.
"""

import torch
from torch import Tensor, nn

from basin.types import Images, Labels, PerImage

CHOSEN_BY = 100  # draws that choose the class whose share is then bounded (the paper's n0)


@torch.no_grad()
def radii(
    model: nn.Module,
    images: Images,
    labels: Labels,
    sigma: float,
    draws: int,
    generator: torch.Generator,
    confidence: float = 0.999,
    batch: int = 1024,
) -> PerImage:
    """The L2 radius of each image, in pixels scaled to [0, 1]; 0 where g abstains or misreads it. `draws` noisy copies of each bound p."""
    found = [_counts(model, x, sigma, draws, generator, batch) for x in images]
    chosen, held = (torch.tensor(column) for column in zip(*found))
    p = _lower(held, draws, confidence)
    certain = (p > 0.5) & (chosen == labels.cpu())
    return torch.where(certain, sigma * torch.special.ndtri(p), torch.zeros_like(p)).float()


def _counts(model: nn.Module, x: Tensor, sigma: float, draws: int, generator: torch.Generator, batch: int) -> tuple[int, int]:
    """The class that the first draws choose, and how many of the others give it."""
    read = torch.cat([
        model(x + sigma * torch.randn((size, *x.shape), generator=generator, device=x.device)).argmax(1)
        for size in [CHOSEN_BY, *(min(batch, draws - done) for done in range(0, draws, batch))]
    ])  # fmt: skip
    chosen = read[:CHOSEN_BY].bincount().argmax()
    return int(chosen), int((read[CHOSEN_BY:] == chosen).sum())


def _lower(held: Tensor, draws: int, confidence: float) -> Tensor:
    from scipy.special import betaincinv

    low = betaincinv(held.clamp_min(1).double().numpy(), (draws - held + 1).double().numpy(), 1 - confidence)
    return torch.where(held > 0, torch.as_tensor(low), 0.0)
