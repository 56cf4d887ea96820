"""One call from a model and a suite to a robust accuracy: declare, attack, judge, diagnose."""

import logging
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from basin.config.kinds import choose
from basin.config.suite import IN_FULL, PRECISE, Adaptive, Suite, replaced
from basin.errors import Mistake
from basin.evaluation.adaptive import attempts, naive, without_gradient
from basin.evaluation.cascade import Evaluation
from basin.evaluation.declaration import Declaration, declare, drawn
from basin.evaluation.diagnostics import DOUBT, Diagnosis, diagnosing, unread
from basin.evaluation.outcomes import Outcomes, interval, mean
from basin.evaluation.rounding import differs
from basin.evaluation.search import Search, search
from basin.evaluation.subject import device_of, sha256, subject, weights
from basin.evaluation.ways import Attempt, Way
from basin.processes import ALONE, Group
from basin.threat.ball import HIGH, LOW, ThreatModel
from basin.types import Images, Labels, Logits

log = logging.getLogger(__name__)
BATCH = 256  # images that are attacked at once, where nothing else is said
LOOKED_AT = 16  # images on which a model's declaration is measured
QUICK = "gradients followed in bfloat16; the model itself judges each point, and is attacked last"
_PRECISE = Attempt(choose("attacks", {"kind": "margin"}), probe=0.25, precise=True)


@dataclass
class Result:
    """What was found, and what the model is. Accuracies are fractions in [0, 1]."""

    outcomes: Outcomes  # image by image: the point found, and the attack that broke it
    diagnosis: Diagnosis
    declared: Declaration
    facts: list[str]  # what the model was found to be, in words
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
    batch: int = BATCH,
    checkpoint: Path | None = None,
    classes: int | None = None,
    group: Group = ALONE,
) -> Result:
    """The outcome of every image under a suite. `model` is in evaluation mode and maps images in [0, 1] to logits [n, classes].

    `classes`: how many the data have; None: up to the largest label. `group`: the processes that share the work; each gets the same
    outcomes. The `checkpoint` is the caller's to delete when the result is kept. Raises Mistake where images, labels or model cannot be
    evaluated.
    """
    check(images, labels)
    images, labels = images.detach().cpu(), labels.cpu()
    model = subject(model, images[: min(LOOKED_AT, batch)])
    sample = images[: min(LOOKED_AT, batch)].to(device_of(model))
    first = _logits(model, sample)
    model = drawn(model, sample)
    twin = None if twin is None else subject(twin, sample)
    declared = Declaration.of(group.told(lambda: asdict(declare(model, twin, sample))))
    check_labels(labels, declared.classes)
    if twin is not None and (other := _logits(twin, sample.to(device_of(twin))).shape[1]) != declared.classes:
        raise Mistake(f"twin: should tell the model's {declared.classes} classes (got {other}). Give a twin of the same data.")
    certain = not (suite.thorough or declared.randomised or declared.blind)
    judged = checkpoint and sha256(images, labels, *weights(model), *([] if twin is None else weights(twin)))
    of = f"{judged} {threat.model_dump_json()} {suite.model_dump_json()} {seed}"
    evaluation = Evaluation(model, twin, threat, seed, batch, checkpoint, declared.randomised, group=group, of=of)
    asked = {name: attempt for name, attempt in _asked(suite, declared, model).items() if evaluation.can(attempt)}
    asked = {name: attempt if attempt.earned in asked else replace(attempt, earned="") for name, attempt in asked.items()}
    others = replaced({name: attempt.attack for name, attempt in asked.items()}, declared.classes, declared.randomised)
    if others:
        log.info("suite: %d classes%s: %s", declared.classes, ", random" * declared.randomised, "; ".join(dict.fromkeys(others.values())))
    tried = {name: _fitted(attempt, declared) for name, attempt in asked.items()}
    if certain and any(map(evaluation.may_search, tried.values())):
        quick = search(model, sample, labels[: len(sample)].to(sample.device))
        evaluation.search = (quick or Search(model)) if group.told(lambda: quick is not None) else None
    tried |= {PRECISE: _PRECISE} if evaluation.search is not None else {}
    tried |= {name + IN_FULL: _in_full(name, attempt) for name, attempt in tried.items() if attempt.probe or attempt.earned}
    way = suite.masked and naive(declared, suite.masked.solver)
    masked = _fitted(Attempt(suite.masked.attack, way), declared) if suite.masked and way else None
    curve = (_fitted(Attempt(suite.curve.attack), declared), threat.multiples(suite.curve.times)) if suite.curve else None
    index, before = labels.new_tensor(range(len(labels))), partial(_warn, seed[1], classes)
    diagnose = diagnosing(evaluation, tried, declared, classes)
    evaluation.doubted = lambda o: group.told(lambda: any(flag in DOUBT for flag in diagnose(o).flags))
    outcomes = evaluation.run(index, images, labels, tried, masked, curve, before=before)
    if not declared.randomised and differs(model, first, _logits(model, sample)):
        raise Mistake("model: changes while it is judged (got other logits for the same images after the attacks). Make it one function.")
    facts = [*getattr(model, "facts", ()), *declared.words(), *([QUICK] if evaluation.search is not None else [])]
    return Result(outcomes, diagnose(outcomes), declared, facts, others)


def _warn(name: str, classes: int | None, o: Outcomes) -> None:
    """Say before the hours of a suite what its number will be worth."""
    for flag, (figure, limit) in unread(o, classes).items():
        if figure > limit:
            log.warning("%s: %s, before any attack (docs/flags.md); clean accuracy %.1f%%", name, flag, 100 * mean(o.clean_share))


def _asked(suite: Suite, declared: Declaration, model: nn.Module) -> dict[str, Attempt]:
    """The suite's attacks, with those that it leaves to what the model is, and what a model without a gradient needs."""
    probe, earned = suite.probe, suite.earned
    tried = {name: Attempt(one, probe=probe.get(name, 0.0), earned=earned.get(name, "")) for name, one in suite.attacks.items()}
    if suite.adaptive:
        asked_for = attempts(declared, suite.adaptive, model)
        tried |= {name: attempt for name, attempt in asked_for.items() if name not in tried or attempt.way != Way()}
    elif not declared.differentiable:
        tried |= without_gradient(declared, Adaptive())
    if suite.thorough or declared.blind or declared.randomised or not declared.differentiable:  # a gradient in doubt spares no image
        tried = {name: replace(attempt, probe=0.0, earned="") for name, attempt in tried.items()}
    return tried


def _in_full(name: str, attempt: Attempt) -> Attempt:
    return replace(attempt, probe=0.0, earned="", spared_by=name, precise=True)


def _fitted(attempt: Attempt, declared: Declaration) -> Attempt:
    return replace(attempt, attack=attempt.attack.fitted(declared.classes, declared.randomised))


@torch.no_grad()
def _logits(model: nn.Module, images: Images) -> Logits:
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        return model(images)


def check(images: Tensor, labels: Tensor) -> None:
    """Raise Mistake on images and labels that cannot be evaluated."""
    if images.ndim != 4 or not images.numel() or images.dtype != torch.float32:
        raise Mistake(f"images: should be float32 [n, c, h, w], one or more (got {_what(images)}). Bring them to that form.")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise Mistake(f"labels: should be int64 [{len(images)}], one an image (got {_what(labels)}). Bring them to that form.")
    low, high = images.min().item(), images.max().item()
    if not LOW <= low <= high <= HIGH:
        raise Mistake(f"images: should be in [0, 1] (got {low:.3g} to {high:.3g}). Scale them; normalisation belongs into the model.")


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise Mistake on a label that the model has no output for."""
    first, last = int(labels.min()), int(labels.max())
    if first < 0 or last >= classes:
        raise Mistake(f"labels: should be in 0..{classes - 1} (got {first if first < 0 else last}). Check the data's classes.")


def _what(value: object) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
