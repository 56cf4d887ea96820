"""The suite that a model's declaration asks for: each property through which a published defence was overestimated has its attempts.

| the model | attempts |
|---|---|
| any | steps on the margin, PMA, Auto-PGD with two losses, A3, FAB, Square; more steps and restarts until they take nothing more |
| has a twin | Auto-PGD on the twin, transferred |
| solves an ODE | gradients of finer, coarser and adaptive solves of the same flow, and of a shortened one |
| has layers with several gradients | each of them (BPDA and its like) |
| has a purifier | gradients of the model without it |
| is random | gradients averaged over draws (EOT), and those of the mean weights |
| takes its solves' gradient by the adjoint | every gradient through the steps of the solve instead |
| has a gradient that is zero, wrong or buried | straight through what is flat, and four times the search that needs none |
| has features | towards the features of an image of another class |
| has no gradient | these alone: the twin, a surrogate that is taught its answers, and queries |

Weak and cheap attempts go first: what they break costs the others nothing. What costs much has to earn its images (`Attempt.probe`), but
where the gradient is in doubt.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from basin.config.kinds import Choice, choose
from basin.config.solver import Solver
from basin.config.suite import Adaptive
from basin.evaluation.declaration import Declaration
from basin.evaluation.ways import Attempt, Way
from basin.models.ode import flows

FEW = 3  # target classes, with a gradient that is not the model's own, or is averaged
LONGER = 4  # times as many queries, where no gradient can be followed
SHARES = (0.2, 0.5)  # of a flow's integration time
SPSA_DELTA = 0.05  # wider than a quantiser's steps
PROBES = 0.25, 0.1  # the shares of the images that hold on which what costs much, and what costs most, is tried first
TOLERANCES = (1e-1, 1e-3, 1e-5)  # of an adaptive solve


def attempts(declared: Declaration, settings: Adaptive, model: nn.Module) -> dict[str, Attempt]:
    """The suite, in the order in which it runs."""
    return dict(_attempts(declared, settings, model))


def _attempts(declared: Declaration, s: Adaptive, model: nn.Module) -> Iterator[tuple[str, Attempt]]:
    some, few = PROBES
    own = Way(draws=s.draws if declared.randomised else None, exact=declared.adjoint)
    if not declared.differentiable:
        yield from without_gradient(declared, s)
        return
    yield "margin", Attempt(_attack("margin"), own)
    yield "pma", Attempt(_attack("pma", steps=s.steps), own)
    if declared.twin:
        both = [_attack("pma", steps=s.steps).tree(), _apgd("dlr_targeted", s.steps, s.targets).tree()]
        yield "transfer", Attempt(_attack("transfer", attacks=both), probe=some)
    for name, way in _ways(declared, own, model):
        yield f"apgd_ce: {name}", Attempt(_apgd("ce", s.steps), way, probe=some)
        yield f"apgd_targeted: {name}", Attempt(_apgd("dlr_targeted", s.steps, FEW), way, probe=some)
    yield "features", Attempt(_attack("features"), own, probe=some)
    yield "apgd_nearest", Attempt(_attack("apgd", loss="dlr_targeted", steps=20, targets=5, order="nearest"), own, probe=some)
    yield "a3", Attempt(_attack("a3"), own)
    yield "apgd_ce", Attempt(_apgd("ce", s.steps), own, probe=some)
    yield "apgd_targeted", Attempt(_apgd("dlr_targeted", s.steps, FEW if declared.randomised else s.targets), own, probe=some)
    if declared.randomised:
        yield "pgd_eot", Attempt(_attack("pgd", steps=s.steps, step=0.1), own)
    else:
        yield "fab", Attempt(_attack("fab", targets=s.targets, order="nearest"), own, probe=few)
    if declared.blind:
        yield from _blindly(declared, s, own)
    else:
        yield "square", Attempt(_attack("square", queries=max(s.queries // _draws(declared, s), 1)), own, probe=few)
    for k in range(1, s.doublings + 1):
        longer = _attack("apgd", loss="ce", steps=s.steps * 2**k, restarts=2**k)
        yield f"apgd_ce x{2**k}", Attempt(longer, own, doubling=k, probe=some)


def without_gradient(declared: Declaration, s: Adaptive) -> Iterator[tuple[str, Attempt]]:
    """What is left against a model whose logits have no gradient: its twin, a surrogate taught its answers, queries."""
    own = Way(draws=s.draws if declared.randomised else None)
    if declared.twin:
        yield "transfer", Attempt(_attack("transfer", attacks=[_apgd("ce", s.steps).tree()]))
    yield "surrogate", Attempt(_attack("surrogate"), own)
    yield from _blindly(declared, s, own)


def _blindly(declared: Declaration, s: Adaptive, own: Way) -> Iterator[tuple[str, Attempt]]:
    """Where no gradient can be followed: four times the queries of Square, and as many of two others."""
    queries = LONGER * s.queries
    yield "spsa", Attempt(_attack("spsa", steps=s.steps, samples=max(queries // (2 * s.steps), 1), delta=SPSA_DELTA), own)
    queries = max(queries // _draws(declared, s), 1)
    yield "square", Attempt(_attack("square", queries=queries), own)
    yield "boundary", Attempt(_attack("boundary", queries=queries), own)


def _draws(declared: Declaration, s: Adaptive) -> int:
    return s.draws if declared.randomised else 1


def _ways(declared: Declaration, own: Way, model: nn.Module) -> Iterator[tuple[str, Way]]:
    """The gradients besides the reported function's own that the declaration asks for."""
    if declared.flows:
        steps = max(flow.solver.steps for flow in flows(model))
        fine = Solver(method="rk4", steps=4 * steps)
        yield "finer steps", replace(own, solver=fine)
        yield "euler", replace(own, solver=Solver(method="euler", steps=2 * steps))
        for tolerance in TOLERANCES:
            yield f"dopri5 {tolerance:g}", replace(own, solver=Solver(method="dopri5", tolerance=tolerance))
        for share in SHARES:
            yield f"{share:g} T", replace(own, solver=fine, share=share)
    for gradient in declared.gradients:
        yield f"{gradient} gradient", replace(own, gradient=gradient)
    if declared.purifier:
        yield "no purifier", replace(own, bare=True)
    if declared.blind:
        yield "straight through", replace(own, straight=True)
    if declared.distributions:
        yield "mean weights", replace(own, mean=True, draws=None)


def naive(declared: Declaration, solver: Solver | None) -> Way | None:
    """The way in which the defence's own paper was, or invites to be, evaluated; None where it invites to none but its own gradient."""
    if declared.flows and solver:
        return Way(solver=solver)
    if "surrogate" in declared.gradients:
        return Way(gradient="surrogate")
    if declared.purifier:
        return Way(bare=True)
    return Way(draws=1) if declared.randomised else None


def _attack(kind: str, **settings: object) -> Choice:
    return choose("attacks", {"kind": kind, **settings})


def _apgd(loss: str, steps: int, targets: int = 1) -> Choice:
    return _attack("apgd", loss=loss, steps=steps, targets=targets)
