"""Small real models for the tests: classifiers of digits, and ones whose robustness is known in closed form."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basin.config import kinds
from basin.config.schedule import Schedule
from basin.data.splits import Split
from basin.models import artifact
from basin.models.classifier import Classifier
from basin.randomness import construct
from basin.threat.ball import ThreatModel
from basin.training import optimise
from basin.training.phase import Phase

CLASSES = 10
CONVNET = {"kind": "convnet", "channels": [8, 16], "hidden": 32}
SLL = {"kind": "sll", "channels": [4, 16], "blocks": 1, "hidden": 32}  # of a known Lipschitz constant
SODEF = {"kind": "sodef", "width": 16, "T": 2.0, "solver": {"steps": 8}}
TRAINED = {"lmt": SLL}  # the backbone for a training method that does not take every one
BALL = ThreatModel(norm="linf", eps=0.1)


def classifier(
    backbone: dict[str, Any] = CONVNET, head: dict[str, Any] | None = None, seed: int = 0, purifier: dict[str, Any] | None = None
) -> Classifier:
    """Fresh weights; [n, 1, 8, 8] -> [n, 10]."""
    tree = {"normalise": {"mean": [0.3], "std": [0.4]}, "backbone": backbone, "head": head or {"kind": "linear"}, "purifier": purifier}
    recipe = {"model": "backbone/small", "shape": [1, 8, 8], "classes": list(map(str, range(CLASSES))), "classifier": tree}
    with construct(seed, "small"):
        return artifact.build(recipe)


def method(kind: str, **settings: Any) -> Any:
    """A training method's loss as the phases take it."""
    choice = kinds.choose("training", {"kind": kind, **settings})
    return lambda network, x, y, g: choice.module.loss(choice.params, network, x, y, BALL, g)


def fit(model: Classifier, train: Split, epochs: int = 1, kind: str = "natural", **settings: Any) -> Classifier:
    """Train backbone and head together, in a second or two."""
    loss = method(kind, **settings)
    schedule = Schedule(epochs=epochs, batch=64, rate=0.01, policy="one_cycle")
    phase = Phase(kind, schedule, [model.backbone, model.head], lambda x, y, g: loss(model, x, y, g))
    with tempfile.TemporaryDirectory() as folder:
        optimise.run(model, [phase], train, lambda: 0.0, (0, "small"), Path(folder) / "checkpoint.safetensors")
    return model


def few(split: Split, n: int) -> tuple[Tensor, Tensor]:
    """The first n images and labels."""
    return split.floats(slice(0, n)), split.labels[:n]


class Linear(nn.Module):
    """logits = W x + b over the pixels: an image inside the pixel range is robust in a ball iff its margin exceeds the radius."""

    def __init__(self, W: Tensor, b: Tensor):
        super().__init__()
        self.W, self.b = nn.Parameter(W, requires_grad=False), nn.Parameter(b, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.W.T + self.b

    def margin(self, x: Tensor, y: Tensor, norm: str = "linf") -> Tensor:
        """min over j of (z_y - z_j) / ||w_y - w_j||_*, the distance to the nearest other class; * is the dual norm."""
        z = self(x)
        gaps = z.gather(1, y[:, None]) - z
        widths = (self.W[y][:, None] - self.W[None]).norm({"linf": 1, "l2": 2, "l1": torch.inf}[norm], dim=2)
        return (gaps / widths).scatter(1, y[:, None], torch.inf).amin(1)


def two_of_five(d: int = 16, seed: int = 0) -> Linear:
    """Five classes of which two compete; the others are far below, so that every loss follows the same direction."""
    draw = torch.Generator().manual_seed(seed)
    W = torch.zeros(5, d)
    W[:2] = torch.randn(2, d, generator=draw)
    b = torch.tensor([0.0, 0.0, -1e4, -1e4, -1e4])
    b[1] = (W[0] - W[1]).sum() / 2  # an image of 0.5 lies on the boundary
    return Linear(W, b)
