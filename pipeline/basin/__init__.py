"""Basin: train defences against adversarial examples, attack them, know which number to believe.

This is the door for Python, and importing it loads nothing that computes. What it names is public; `basin.registry.lookup`, whose calls
docs/registry.md lists, is so too. Every other module is internal and may change.
"""

from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

from basin.config.suite import Suite
from basin.config.threat import Threat
from basin.errors import Mistake

if TYPE_CHECKING:
    from torch import Tensor, nn

    from basin.evaluation.robustness import Result
    from basin.models.classifier import Classifier

__all__ = ["Mistake", "Suite", "Threat", "evaluate", "load"]


def evaluate(
    model: "nn.Module",
    images: "Tensor",
    labels: "Tensor",
    threat: Threat,
    suite: Suite | str = "adaptive",
    *,
    twin: "nn.Module | None" = None,
    seed: int = 0,
    batch: int = 256,
    checkpoint: Path | str | None = None,
    thorough: bool = False,
) -> "Result":
    """What is left of a model's accuracy under attack: the worst case, image by image, over a suite.

        result = basin.evaluate(model, images, labels, basin.Threat(norm="linf", eps=8 / 255), "quick")
        result.worst_case, result.interval, result.flags

    Args:
        model: maps images to logits [n, classes], in evaluation mode, on any device.
        images: float32 [n, c, h, w] in [0, 1]. labels: int64 [n], from 0.
        threat: the norm and the radius, in pixels scaled to [0, 1].
        suite: quick | standard | autoattack | adaptive (docs/evaluation.md), or a `Suite` of your own.
        twin: the same model without its defence, where there is one; `standard` and `adaptive` attack through it.
        seed: of everything that is drawn. batch: images attacked at once.
        checkpoint: a file to go on from where an interrupted call with the same arguments stopped.
        thorough: no shortcut: every attack on every image that holds, every gradient in float32.
    Raises: Mistake, which says what to do, where model, images, labels or threat cannot be evaluated.
    """
    import torch

    from basin.evaluation import outside, robustness
    from basin.threat.ball import ThreatModel

    for name, value, kinds, should in (
        ("images", images, torch.Tensor, "a torch.Tensor"),
        ("labels", labels, torch.Tensor, "a torch.Tensor"),
        ("threat", threat, Threat, "a basin.Threat"),
        ("suite", suite, (Suite, str), "a basin.Suite, or the name of one"),
        ("batch", batch, int, "an int"),
        ("checkpoint", checkpoint, (Path, str, NoneType), "a pathlib.Path"),
    ):
        if not isinstance(value, kinds):
            raise Mistake(f"{name}: should be {should} (got {type(value).__name__}). Make one.")
    if batch < 1:
        raise Mistake(f"batch: should be 1 or more (got {batch}). Give 256, or fewer where memory is short.")
    state = None if checkpoint is None else Path(checkpoint)
    chosen = outside.suite(suite)
    chosen = chosen.model_copy(update={"thorough": thorough or chosen.thorough})
    with torch.inference_mode(False):
        x, y = (one.clone() if one.is_inference() else one for one in (images, labels))
        result = robustness.evaluate(model, twin, x, y, ThreatModel.of(threat), chosen, (seed, "evaluate"), batch, state)
    if state:
        state.unlink(missing_ok=True)
    return result


def load(folder: Path | str, device: str = "cpu") -> "Classifier":
    """The classifier of a model folder, e.g. "models/head/sodef_natural": a torch module in evaluation mode, images in [0, 1] -> logits.

    Raises: Mistake where a file is missing, damaged, or does not fit the other.
    """
    from basin.models import artifact

    return artifact.load(folder, device)
