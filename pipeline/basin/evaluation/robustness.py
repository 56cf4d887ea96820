"""One call from a model and a suite to a robust accuracy: declare, attack, judge, diagnose."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from basin.config.suite import Suite, replaced
from basin.errors import Mistake
from basin.evaluation.adaptive import attempts, naive
from basin.evaluation.cascade import Evaluation
from basin.evaluation.declaration import Declaration, declare, drawn
from basin.evaluation.diagnostics import Diagnosis, diagnose
from basin.evaluation.outcomes import Outcomes, interval, mean
from basin.evaluation.ways import Attempt, Way
from basin.threat.ball import HIGH, LOW, ThreatModel
from basin.types import Images, Labels

log = logging.getLogger(__name__)
LOOKED_AT = 16  # images on which a model's declaration is measured


@dataclass
class Result:
    """What was found, and what the model is. Accuracies are fractions in [0, 1]."""

    outcomes: Outcomes  # image by image: the point found, and the attack that broke it
    diagnosis: Diagnosis
    declared: Declaration
    replaced: dict[str, str] = field(default_factory=dict)  # by name, in words, the attacks in whose place others were run

    @property
    def clean(self) -> float:
        return mean(self.outcomes.clean_share)

    @property
    def worst_case(self) -> float:
        """The robust accuracy: of a random model the expectation over its draws."""
        return self.outcomes.robust

    @property
    def interval(self) -> tuple[float, float]:
        """Of the worst case, 95%, for the drawing of the images."""
        return interval(self.outcomes.share)

    @property
    def attacks(self) -> dict[str, float]:
        """The robust accuracy after each attack, in their order."""
        return self.outcomes.after

    @property
    def flags(self) -> list[str]:
        return self.diagnosis.flags


def evaluate(
    model: nn.Module,
    twin: nn.Module | None,
    images: Images,
    labels: Labels,
    threat: ThreatModel,
    suite: Suite,
    seed: tuple[int, str],
    batch: int = 256,
    checkpoint: Path | None = None,
) -> Result:
    """The outcome of every image under a suite. `model` is in evaluation mode and maps images in [0, 1] to logits [n, classes].

    Raises Mistake where images, labels or model cannot be evaluated.
    """
    check(model, images, labels)
    sample = images[:LOOKED_AT].to(device_of(model))
    model = drawn(model, sample)
    declared = declare(model, twin, sample)
    tried = {name: Attempt(attack) for name, attack in suite.attacks.items()}
    if suite.adaptive:
        asked_for = attempts(declared, suite.adaptive, model)
        tried |= {name: attempt for name, attempt in asked_for.items() if name not in tried or attempt.way != Way()}
    others = replaced({name: attempt.attack for name, attempt in tried.items()}, declared.classes, declared.randomised)
    if others:
        log.info("suite: %d classes%s: %s", declared.classes, ", random" * declared.randomised, "; ".join(dict.fromkeys(others.values())))
    tried = {name: _fitted(attempt, declared) for name, attempt in tried.items()}
    way = suite.masked and naive(declared, suite.masked.solver)
    masked = _fitted(Attempt(suite.masked.attack, way), declared) if suite.masked and way else None
    curve = (_fitted(Attempt(suite.curve.attack), declared), list(suite.curve.radii)) if suite.curve else None
    evaluation = Evaluation(model, twin, threat, seed, batch, checkpoint, declared.randomised)
    outcomes = evaluation.run(labels.new_tensor(range(len(labels))), images, labels, tried, masked, curve)
    result = Result(outcomes, diagnose(evaluation, outcomes, tried, declared), declared, others)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return result


def _fitted(attempt: Attempt, declared: Declaration) -> Attempt:
    return replace(attempt, attack=attempt.attack.fitted(declared.classes, declared.randomised))


def device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@torch.no_grad()
def check(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Raise Mistake on what cannot be evaluated."""
    if model.training:
        raise Mistake("model: is in training mode (got model.training = True). Call model.eval() first.")
    if images.ndim != 4 or not images.numel() or images.dtype != torch.float32:
        raise Mistake(f"images: should be float32 [n, c, h, w], one or more (got {_what(images)}). Bring them to that form.")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise Mistake(f"labels: should be int64 [{len(images)}], one an image (got {_what(labels)}). Bring them to that form.")
    low, high = images.min().item(), images.max().item()
    if not LOW <= low <= high <= HIGH:
        raise Mistake(f"images: should be in [0, 1] (got {low:.3g} to {high:.3g}). Scale them; normalisation belongs into the model.")
    few = images[:2].to(device_of(model))
    try:
        logits = model(few)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        got = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise Mistake(f"model: cannot take float32 images {list(few.shape)} (got {got}). Give the images that it is for.") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(few) or logits.shape[1] < 2:
        raise Mistake(f"model: should give logits [n, classes] (got {_what(logits)} for {len(few)} images). Mend its forward pass.")
    if not logits.isfinite().all():
        raise Mistake("model: should give finite logits (got values that are not). Mend its forward pass.")
    first, last = int(labels.min()), int(labels.max())
    if first < 0 or last >= logits.shape[1]:
        raise Mistake(f"labels: should be in 0..{logits.shape[1] - 1} (got {first if first < 0 else last}). Check the data's classes.")


def _what(value: object) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
