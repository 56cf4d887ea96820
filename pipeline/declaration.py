"""What a model is, as far as an attack must know: declared by its layers, or found out by a few passes.

A model made here says what it is by its layers. One from outside may say nothing, so whether it is random and whether it depends on
its batch is always measured as well.
"""

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.distribution import distributions
from pipeline.ode import flows
from pipeline.randomness import random_layers
from pipeline.substitutes import substitutes
from pipeline.types import Images

SAME = 1e-3  # the largest difference of two passes' logits that rounding explains, as a share of the logits' spread


@dataclass(frozen=True)
class Declaration:
    """A model's properties that decide how it is attacked and judged."""

    classes: int
    randomised: bool  # two passes over an image may differ
    batch_dependent: bool  # an image's logits depend on the images beside it
    gradients: tuple[str, ...]  # besides the one in use (pipeline/substitutes.py)
    flows: bool  # an ODE is solved
    purifier: bool  # something cleans the image first
    distributions: bool  # weights are drawn, and have means
    twin: bool  # there is an undefended model of the same data


@torch.no_grad()
def declare(model: nn.Module, twin: nn.Module | None, images: Images) -> Declaration:
    """The declaration of a model in evaluation mode, measured on a few images in [0, 1]."""
    first = model(images)
    spread = SAME * first.std().clamp_min(torch.finfo(first.dtype).tiny)
    randomised = bool(random_layers(model)) or differs(first, model(images), spread)
    alone = first if randomised else torch.cat([model(image[None]) for image in images])
    return Declaration(
        classes=first.shape[1],
        randomised=randomised,
        batch_dependent=differs(first, alone, spread),
        gradients=substitutes(model),
        flows=bool(flows(model)),
        purifier=not isinstance(getattr(model, "purifier", nn.Identity()), nn.Identity),
        distributions=bool(distributions(model)),
        twin=twin is not None,
    )


def differs(one: torch.Tensor, other: torch.Tensor, spread: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > spread)
