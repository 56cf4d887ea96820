"""What a model is, as far as an attack must know: declared by its layers, or found out by a few passes.

A model made here says what it is by its layers. One from outside may say nothing, so whether it is random, whether it depends on its
batch and whether its gradient is that of the function that it computes are always measured as well.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import log_softmax

from basin.evaluation.rounding import difference, differs
from basin.evaluation.subject import Subject
from basin.evaluation.ways import Way
from basin.models.classifier import Classifier
from basin.models.distribution import distributions
from basin.models.ode import exactly, flows
from basin.models.substitutes import substitutes
from basin.randomness import Random, drawing, generator, others_seeded, random_layers
from basin.threat.ball import HIGH, LOW
from basin.threat.target import gradient, margin
from basin.types import Images, Labels, Logits, PerImage

VANISHED = 0.1  # of the images, whose gradient is exactly zero
WRONG = 0.5  # median relative error of the gradient against finite differences
BURIED = 0.1  # median signal-to-noise ratio of one draw's gradient, below which 20 draws find no direction either
NOISY = 20  # draws from which it is estimated
STEPS = (1e-3, 1e-2)  # of the finite differences, in L2: rounding spoils the shorter, curvature the longer


@dataclass(frozen=True)
class Declaration:
    """A model's properties that decide how it is attacked and judged."""

    classes: int
    randomised: bool  # two passes over an image may differ
    batch_difference: float  # between an image's logits in a batch and alone, over what rounding explains
    differentiable: bool  # the logits have a gradient at all
    blind: bool  # the gradient, by no adjoint, is zero, not the derivative of what is computed, or buried in noise
    gradients: tuple[str, ...]  # besides the one in use (basin/models/substitutes.py)
    flows: bool  # an ODE is solved
    adjoint: bool  # and its gradient taken by the adjoint, by a model of whoever's making
    purifier: bool  # something cleans the image first
    distributions: bool  # weights are drawn, and have means
    twin: bool  # there is an undefended model of the same data

    @classmethod
    def of(cls, said: dict[str, Any]) -> "Declaration":
        """From what `asdict` or JSON made of one."""
        return cls(**said | {"gradients": tuple(said["gradients"])})

    @property
    def batch_dependent(self) -> bool:
        """Whether an image's logits depend on the images beside it."""
        return self.batch_difference > 1

    def words(self) -> list[str]:
        """What a person should know of it."""
        said = {
            "random: two passes over an image differ": self.randomised,
            "an image's logits depend on its batch": self.batch_dependent,
            "solves an ODE": self.flows or self.adjoint,
            "its gradient is blind": self.blind,
        }
        return [words for words, holds in said.items() if holds]


@torch.no_grad()
def declare(model: nn.Module, twin: nn.Module | None, images: Images) -> Declaration:
    """The declaration of a model in evaluation mode, measured on a few images in [0, 1]; the same at every call."""
    with _seeded(model, images):
        first = model(images)
        randomised = bool(random_layers(model)) or differs(model, first, model(images))
        alone = first if randomised else torch.cat([model(image[None]) for image in images])
        with _exactly(model) as by_adjoint:
            blind = _is_blind(model, images, first.argmax(1), randomised)
        return Declaration(
            classes=first.shape[1],
            randomised=randomised,
            batch_difference=difference(model, first, alone),
            differentiable=getattr(model, "differentiable", True),
            blind=blind,
            gradients=substitutes(model),
            flows=bool(flows(model)),
            adjoint=bool(by_adjoint),
            purifier=isinstance(model, Classifier) and not isinstance(model.purifier, nn.Identity),
            distributions=bool(distributions(model)),
            twin=twin is not None,
        )


def _exactly(model: nn.Module) -> AbstractContextManager[list[str]]:
    """`exactly`, which loads torchdiffeq and SciPy, but for a model made here whose first pass has not: it does not solve by it."""
    return exactly() if isinstance(model, Subject) or "torchdiffeq" in sys.modules else nullcontext([])


@contextmanager
def _seeded(model: nn.Module, images: Images) -> Iterator[None]:
    """Draws from a fixed seed, those of the global generators too, which are put back."""
    with drawing(model, generator(0, "declaration", device=images.device)), others_seeded(0):
        yield


def _is_blind(model: nn.Module, x: Images, y: Labels, randomised: bool) -> bool:
    if vanished(gradient(model, x, y, margin)[0]) > VANISHED:
        return True
    return bool(signal_to_noise(model, x, y).median() < BURIED if randomised else difference_error(model, x, y).median() > WRONG)


def vanished(g: torch.Tensor) -> float:
    """The share of images whose gradient is exactly zero."""
    return (g.flatten(1).abs().amax(1) == 0).double().mean().item()


def difference_error(model: nn.Module, x: Images, y: Labels) -> PerImage:
    """|d - D| / max(|d|, |D|): d what the gradient of the margin says of the way between two images, one along itself and one against,
    D what their margins say; the smaller error of two lengths. Along a random direction where the gradient is zero."""
    g, _, _ = gradient(model, x, y, margin)
    flat = g.flatten(1)
    fallback = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0)).to(flat)
    direction = torch.where(flat.abs().amax(1, keepdim=True) > 0, flat, fallback)
    direction = direction / direction.abs().amax(1, keepdim=True)  # first, because squares of large gradients are infinite in float32
    direction = direction / direction.norm(dim=1, keepdim=True)
    errors = []
    for length in STEPS:
        step = length * direction.view_as(x)
        along, against = (x + step).clamp(LOW, HIGH), (x - step).clamp(LOW, HIGH)
        claimed = (g * (along - against)).flatten(1).sum(1)
        with torch.no_grad():
            found = margin(model(along), y) - margin(model(against), y)
        size = torch.maximum(claimed.abs(), found.abs())
        errors.append(torch.where(size == 0, 0.0, (claimed - found).abs() / size).nan_to_num(1.0))
    return torch.stack(errors).amin(0)


def signal_to_noise(model: nn.Module, x: Images, y: Labels) -> PerImage:
    """||E g|| / (E ||g - E g||^2)^(1/2) for the gradient g of one draw, both estimated without bias."""
    with Way(draws=1).through(model):
        g = torch.stack([gradient(model, x, y)[0].flatten(1) for _ in range(NOISY)])
    noise = g.var(0).sum(1)
    signal = (g.mean(0).square().sum(1) - noise / NOISY).clamp_min(0)
    return (signal / noise.clamp_min(torch.finfo(g.dtype).tiny)).sqrt()


class Drawn(Random):
    """A model from outside that draws what it draws by itself: as many of its passes as are asked for make one of this."""

    def __init__(self, model: Subject):
        super().__init__()
        self.single, self.training = model, False  # this layer alone: `eval()` would reach into a model that keeps parts in training mode
        self.differentiable, self.facts = model.differentiable, model.facts
        if hasattr(model, "features"):
            self.features = model.features

    @property
    def draws(self) -> int:
        return self.inference_draws

    def forward(self, images: Images) -> Logits:
        """One pass, or the logarithm of the mean probabilities of several."""
        if self.draws == 1:
            return self.single(images)
        return torch.stack([log_softmax(self.single(images), 1) for _ in range(self.draws)]).logsumexp(0) - math.log(self.draws)


@torch.no_grad()
def drawn(model: nn.Module, images: Images) -> nn.Module:
    """The model itself, or a `Drawn` one where it comes from outside and two passes over the images differ."""
    with _seeded(model, images):
        return Drawn(model) if isinstance(model, Subject) and differs(model, model(images), model(images)) else model
