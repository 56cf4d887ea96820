"""What the zoo's models stand on: images, a linear model whose worst case is known exactly, and what is known of each model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor, nn

N, CLASSES, PIXELS, EPS = 40, 5, 16, 0.012


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(n: int = N, seed: int = 0) -> Tensor:
    """[n, 1, 4, 4], far enough from 0 and 1 for a ball of EPS to lie inside."""
    return 0.3 + 0.4 * torch.rand((n, 1, 4, 4), generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """z = W x + b over the pixels."""

    def __init__(self, classes: int = CLASSES, seed: int = 1, scale: float = 1.0):
        super().__init__()
        W = scale * drawn(classes, PIXELS, seed=seed)
        self.W, self.b = nn.Parameter(W), nn.Parameter(-0.5 * W.sum(1))  # the classes meet where all pixels are 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.W.to(x.dtype).T + self.b.to(x.dtype)

    def distances(self, x: Tensor, y: Tensor) -> Tensor:
        """[n]: min over j of (z_y - z_j) / ||w_y - w_j||_1, the distance in L-infinity to where another class is as high."""
        z = self(x).detach()
        gaps, widths = z.gather(1, y[:, None]) - z, (self.W[y][:, None] - self.W[None]).detach().norm(1, dim=2)
        return (gaps / widths.clamp_min(1e-12)).scatter(1, y[:, None], torch.inf).amin(1)


INSIDE = Linear()
INSIDE.requires_grad_(False)
X = images()
Y = INSIDE(X).argmax(1)
Y[:4] = (Y[:4] + 1) % CLASSES  # four are misread


def linear_truth(scale: float = 1.0) -> tuple[float, float]:
    """Clean accuracy and robust accuracy of what computes INSIDE."""
    d = INSIDE.distances(X, Y)
    return (d > 0).double().mean().item(), (d > EPS).double().mean().item()


@dataclass(frozen=True)
class Animal:
    """A model, and what is known of it: clean and worst accuracy, or how to find them, or the beginning of the sentence that refuses it."""

    name: str
    make: Callable[[], nn.Module]
    truth: tuple[float, float] | str | Callable[[], tuple[float, float]]
    flags: frozenset[str] = frozenset()  # at least these
    facts: str = ""  # a part of what is said of it
    data: Callable[[], tuple[Tensor, Tensor]] = field(default=lambda: (X, Y))
    slack: float = 1.0 / N  # what may lie between truth and a search that ends
    normalise: str | None = None
    as_it_is: bool = False  # else it is put into evaluation mode, as a user does

    def known(self) -> tuple[float, float] | str:
        """The truth, searched for where it has to be."""
        return self.truth() if callable(self.truth) else self.truth


class Made(nn.Module):
    """INSIDE, and what is made of it."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], object], **parts: nn.Module):
        super().__init__()
        self.z, self.made, self.parts = INSIDE, forward, nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> object:
        return self.made(self.z, x, **self.parts)


def phi(t: Tensor) -> Tensor:
    """The normal distribution's function."""
    return 0.5 * (1 + torch.erf(t / sqrt(2)))
