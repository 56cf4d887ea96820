"""Is this number believable? Each flag is a sign that an attack was blind; docs/flags.md says what to do about it.

Some flags are read off a suite's outcomes. The others come from probes: small experiments on the first images, whose figures are kept.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from basin.config.kinds import choose
from basin.config.solver import Solver
from basin.evaluation import classes
from basin.evaluation.cascade import RISING, Evaluation
from basin.evaluation.declaration import VANISHED, WRONG, Declaration, difference_error, signal_to_noise, vanished
from basin.evaluation.outcomes import Outcomes, mean
from basin.evaluation.ways import Attempt, Way
from basin.models.ode import STABILITY_LIMIT
from basin.models.stability import starts, stiffness
from basin.randomness import generator
from basin.threat.ball import ThreatModel
from basin.threat.target import derivative, gradient, margin
from basin.types import Images, Labels

PROBED = 64  # images
MANY = 500  # images, among which those are looked for whose own gradient is of no use
DEAD = 0.01  # of them, whose gradient of the margin is exactly zero: no honest model had one such image
MISLED = 0.05  # of them, whose gradient is of something else: at most 0.013 of honest models' had one
USELESS = 0.9  # relative error of a gradient that is of something else
TAKEN = 0.01  # of all images, by attacks that follow no gradient, after those that do had failed
MASKED_GAP = 0.05  # robust accuracy under the naive gradient less that under the suite
HOLDS = 0.05  # robust accuracy at a radius that covers the whole pixel range
FEWER_BREAK = 0.05  # robust accuracy under many steps less that under one
NOISE = 0.5  # of what PGD breaks, by as many random points
AGREES = 0.9  # median cosine between adjoint and exact gradient
OVERFLOWS = 0.05  # of the probed images, whose gradient raises or is not finite
SIGNAL = 1.0  # median signal-to-noise ratio of the gradients that the suite averaged
DLR = {"kind": "apgd", "loss": "dlr", "steps": 20}  # so far from the data an honest deep net saturates the cross-entropy
SUM = 1e-3  # by which probabilities, of one image, may miss 1 or fall below 0
ADJOINT = Solver(method="dopri5", gradient="adjoint")
DOUBT = (  # flags of a search that may have been blind, for which what a suite has spared is attacked after all
    "black-box-beats-white-box", "transfer-beats-white-box", "large-radius-holds", "one-step-beats-many", "noise-as-strong",
    "vanishing-gradient", "gradient-overflows", "wrong-gradient", "probabilities",
)  # fmt: skip


@dataclass
class Diagnosis:
    """The flags raised, by name, the figures of the probes, and of each flag what was measured and the limit above which it is raised."""

    flags: list[str]
    probes: dict[str, float] = field(default_factory=dict)
    measured: dict[str, tuple[float, float]] = field(default_factory=dict)


def diagnosing(
    evaluation: Evaluation, attempts: Mapping[str, Attempt], declared: Declaration, known: int | None = None
) -> Callable[[Outcomes], Diagnosis]:
    """What reads outcomes, as often as it is asked; the model is probed on a few images once, when it is asked first.

    `known`: how many classes the data have, if not the largest label and one.
    """
    probes: dict[str, float] = {}

    def diagnose(o: Outcomes) -> Diagnosis:
        probes.update(probes or evaluation.fitting(lambda: probe(evaluation, o, attempts, declared)))
        measured = _measured(probes, o, attempts, declared, known)
        return Diagnosis([name for name, (figure, limit) in measured.items() if figure > limit], probes, measured)

    return diagnose


def _measured(
    probes: Mapping[str, float], o: Outcomes, attempts: Mapping[str, Attempt], declared: Declaration, known: int | None
) -> dict[str, tuple[float, float]]:
    """Of each flag what was measured, and the limit above which it is raised."""
    broken = probes["clean"] - probes["many_steps"]
    return {
        "black-box-beats-white-box": (_taken_late(o, attempts, "BLACK_BOX", but="NEEDS_TWIN"), TAKEN),
        "transfer-beats-white-box": (_taken_late(o, attempts, "NEEDS_TWIN"), TAKEN),
        "more-steps-help": (_last_doubling(o, attempts), RISING),
        "gradient-masked": (0.0 if o.masked is None else mean(o.masked) - o.robust, MASKED_GAP),
        "stiff-solve": (probes["stiffness"], 1.0),
        **unread(o, known),
        "large-radius-holds": (probes["large_radius"], HOLDS),
        "one-step-beats-many": (probes["many_steps"] - probes["one_step"], FEWER_BREAK),
        "noise-as-strong": ((probes["clean"] - probes["noise"]) / max(broken, FEWER_BREAK), NOISE),
        "vanishing-gradient": (max(probes["vanished"] / VANISHED, probes["dead"] / DEAD), 1.0),
        "gradient-overflows": (probes["overflowed"], OVERFLOWS),
        "wrong-gradient": (max(probes.get("gradient_error", 0.0) / WRONG, probes.get("misled", 0.0) / MISLED), 1.0),
        "adjoint-disagrees": (1 - probes.get("adjoint_cosine", 1.0), 1 - AGREES),
        "too-few-draws": (1 / max(probes.get("signal_to_noise", math.inf), 1e-9), 1 / SIGNAL),
        "batch-dependent": (declared.batch_difference, 1.0),
        "probabilities": (probes["probabilities"], 1.0),
    }


def unread(o: Outcomes, known: int | None = None) -> dict[str, tuple[float, float]]:
    """Of the flags that the answers to the clean images raise, before any attack: what was measured, and the limit."""
    labels, answers, clean = (one.cpu().numpy() for one in (o.labels, o.clean, o.clean_share))
    return {
        "at-chance": (classes.guessing(labels, answers), 1.0),
        "class-not-answered": (classes.ignorance(labels, clean), 1.0),
        "more-outputs-than-classes": (classes.elsewhere(answers, known or int(labels.max()) + 1), classes.ELSEWHERE),
    }


def probe(evaluation: Evaluation, o: Outcomes, attempts: Mapping[str, Attempt], declared: Declaration) -> dict[str, float]:
    """The figures, on the first images. Accuracies are of one attack with the gradient that the reported function has."""
    x, y, batch = o.images[:PROBED], o.labels[:PROBED], min(PROBED, evaluation.batch)

    def accuracy(*attacks: dict[str, object], threat: ThreatModel = evaluation.threat) -> float:
        part = Evaluation(evaluation.classifier, None, threat, (evaluation.seed[0], "probe"), batch, randomised=declared.randomised)
        if not attacks:
            with evaluation.seeded("noise", 0):
                points = threat.random_point(x, generator(*evaluation.seed, "noise"))
                return mean(torch.cat([part.judge(*one)[1] for one in zip(points.split(batch), y.split(batch))]))
        tried = {str(i) if i else "probe": Attempt(choose("attacks", attack)) for i, attack in enumerate(attacks)}
        return list(part.run(o.index[:PROBED], x, y, tried).after.values())[-1]

    whole = evaluation.threat.whole_range(x)
    pgd = {"kind": "pgd", "steps": 20, "step": 0.1}
    figures = {
        "clean": mean(o.clean_share[:PROBED]),
        "noise": accuracy(),
        "one_step": accuracy({"kind": "fgsm"}),
        "many_steps": accuracy(pgd | {"random_start": False}),
        "large_radius": accuracy(pgd, DLR, threat=whole),
    }
    x, y = o.images[:MANY].to(evaluation.device), o.labels[:MANY].to(evaluation.device)
    with evaluation.seeded("useless", 0):
        figures |= _useless(evaluation.classifier, x, y, evaluation.batch, declared)
    x, y = x[:PROBED], y[:PROBED]
    with evaluation.seeded("stiffness", 0):
        figures["stiffness"] = _stiffness(evaluation.classifier, x)
    with evaluation.seeded("probe", 0):
        return figures | _gradients(evaluation.classifier, x, y, batch, attempts, declared)


def _useless(model: nn.Module, x: Images, y: Labels, batch: int, declared: Declaration) -> dict[str, float]:
    """Of how many images, be they of one class alone, the gradient at the clean image says nothing: it is zero, or of something else."""
    batches = list(zip(x.split(batch), y.split(batch)))
    zero = torch.cat([gradient(model, *batch, margin)[0].flatten(1).abs().amax(1) == 0 for batch in batches])
    dead = {"dead": zero.double().mean().item()}
    if declared.randomised:
        return dead
    wrong = torch.cat([difference_error(model, *batch) for batch in batches]) > USELESS
    return dead | {"misled": (wrong & ~zero).double().mean().item()}


def _gradients(
    model: nn.Module, x: Images, y: Labels, batch: int, attempts: Mapping[str, Attempt], declared: Declaration
) -> dict[str, float]:
    """What is wrong with the gradient at the clean images."""
    batches = list(zip(x.split(batch), y.split(batch)))

    def each(measure: Callable[[nn.Module, Images, Labels], Tensor]) -> Tensor:
        return torch.cat([measure(model, *batch) for batch in batches])

    g, logits = map(torch.cat, zip(*(derivative(model, *batch)[::2] for batch in batches)))
    figures = {
        "vanished": vanished(g.nan_to_num(0.0, 0.0, 0.0)),
        "overflowed": 1 - g.flatten(1).isfinite().all(1).double().mean().item(),
        "probabilities": SUM / max((logits.sum(1) - 1).abs().max().item(), -logits.min().item(), SUM**2),
    }
    if declared.randomised:
        draws = max((attempt.way.draws or getattr(model, "draws", 1) for attempt in attempts.values()), default=1)
        return figures | {"signal_to_noise": each(signal_to_noise).median().item() * draws**0.5}
    figures["gradient_error"] = each(difference_error).median().item()
    if declared.flows or declared.adjoint:
        theirs = Way(solver=ADJOINT) if declared.flows else Way()
        exact, adjoint = (each(partial(_through, way)) for way in (Way(exact=True), theirs))
        figures["adjoint_cosine"] = cosine_similarity(exact, adjoint).median().item()
    return figures


def _through(way: Way, model: nn.Module, x: Images, y: Labels) -> Tensor:
    """[n, d]: the gradient of the margin, which does not saturate, in this way."""
    with way.through(model):
        return gradient(model, x, y, margin)[0].flatten(1)


def _taken_late(o: Outcomes, attempts: Mapping[str, Attempt], mark: str, but: str | None = None) -> float:
    """The share of all images that attacks with this mark broke after the last attack with the model's own gradient before them."""
    order = list(attempts)

    def marked(name: str) -> bool:
        module = attempts[name].attack.module
        return getattr(module, mark, False) and not (but and getattr(module, but, False))

    def own_gradient(name: str) -> bool:
        return not getattr(attempts[name].attack.module, "BLACK_BOX", False)

    first = next((i for i, name in enumerate(order) if own_gradient(name)), len(order))
    late = {name for i, name in enumerate(order) if marked(name) and i > first}
    return sum(name in late for name in o.attack) / len(o)


def _last_doubling(o: Outcomes, attempts: Mapping[str, Attempt]) -> float:
    """The share of all images that the last doubling of steps and restarts took, of those that it had spared too."""
    ran = {name: attempt.doubling for name, attempt in attempts.items() if name in o.after}
    last = max(ran.values(), default=0)
    return sum(o.taken(name) for name, doubling in ran.items() if doubling == last > 0)


def _stiffness(classifier: nn.Module, images: Tensor) -> float:
    """h |lambda|max over its method's stability limit, of the stiffest of the flows with fixed steps; 0 where there is none."""
    fixed = [(flow, z0) for flow, z0 in starts(classifier, images) if flow.solver.fixed_step]
    return max((stiffness(flow, z0) / STABILITY_LIMIT[flow.solver.method] for flow, z0 in fixed), default=0.0)
