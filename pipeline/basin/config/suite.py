"""Suites of attacks, as params.yaml has them, and the ready-made ones, which are the same suite wherever their name is said."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from basin.config.kinds import AttackChoice, Choice
from basin.config.settings import Fractional, Radius, Settings
from basin.config.solver import Solver
from basin.config.threat import Threat

IN_FULL = " in full"  # behind the name of an attack that a doubt lets run on what it had spared
PRECISE = "float32"  # the attack on what the quicker function leaves
OWN = {"clean": "images misread without an attack", PRECISE: "the last attack, in float32, on what a quicker search leaves"}
Share = Annotated[Fractional, Field(gt=0, lt=1)]


class Adaptive(Settings):
    """How long the attempts of an adaptive suite last."""

    steps: int = Field(100, ge=2, description="steps of Auto-PGD, at least 2 (AutoAttack: 100)")
    targets: int = Field(9, ge=1, description="a positive number of target classes of the targeted attacks (AutoAttack: 9)")
    queries: int = Field(2000, ge=1, description="a positive number of queries of Square (AutoAttack: 5000)")
    draws: int = Field(20, ge=1, description="a positive number of draws a gradient, for random models (AutoAttack's rand: 20)")
    doublings: int = Field(2, ge=0, description="how often steps and restarts are doubled at most, 0 or more")


class Curve(Settings):
    """Robust accuracy against radius."""

    attack: AttackChoice = Field(description="the attack that is run at each radius")
    times: list[Radius] = Field(min_length=1, description="a rising list of the curve's radii, as multiples of the threat's eps")

    @field_validator("times")
    @classmethod
    def _rise(cls, times: list[float]) -> list[float]:
        if times != sorted(set(times)):
            raise PydanticCustomError("order", "should rise. Order them from small to large, each once.")
        return times


class Masked(Settings):
    """What the naive gradient would have reported: that of another solver, a layer's surrogate, no purifier, or a single draw."""

    attack: AttackChoice = Field(description="the attack that is given the naive gradient")
    solver: Solver = Field(description="the solver whose gradient is taken of models that solve an ODE")


def replaced(attacks: Mapping[str, Choice], classes: int, randomised: bool = False) -> dict[str, str]:
    """By name, in words, the attacks in whose place others are run on so many classes, or on a random model."""
    fitted = {name: attack.fitted(classes, randomised) for name, attack in attacks.items()}
    return {name: f"{attack} is run as {fitted[name]}" for name, attack in attacks.items() if fitted[name] != attack}


class Suite(Settings):
    """Attacks in the order in which they run; an image that one broke is not given to the next.

    With `adaptive`, an attack that has the name of an attempt takes its place, where the attempt is on the model as it is.
    An attack under `probe` has to earn its images: it is given that share of those that hold, closest to falling first, and the next share
    only where the last one lost an image. One under `earned` runs only where the attack that is named there took something. Where a flag
    speaks for a blind search, both run after all, on all that hold, under their name and `IN_FULL`.
    """

    attacks: dict[str, AttackChoice] = Field({}, description="a table of attacks, each a table with its kind")
    probe: dict[str, Share] = Field({}, description="a table of shares of the images that hold, above 0 and below 1, by the attack's name")
    adaptive: Adaptive | None = Field(None, description="a table of how long the attacks that the model asks for last, or null for none")
    earned: dict[str, str] = Field({}, description="a table, attack by attack, of the attack that has to have taken something before")
    thorough: bool = Field(False, description="whether to do without shortcuts: every attack on every image that holds, in float32")
    curve: Curve | None = Field(None, description="the robust-accuracy curve, or null for none")
    masked: Masked | None = Field(None, description="the naive-gradient column, or null for none")
    # These two are recorded where they are set alone: a suite without them is the suite that it was before there were any.
    ready: str | None = Field(
        None, exclude_if=lambda name: name is None, description="the name of a ready-made suite to take, or null for none"
    )
    threat: Threat | None = Field(
        None, exclude_if=lambda threat: threat is None, description="the suite's own threat, norm and eps, or null for the run's"
    )

    @field_validator("attacks")
    @classmethod
    def _names(cls, attacks: dict[str, Any]) -> dict[str, Any]:
        kept = OWN | {name: "an attack that a doubt lets run again" for name in attacks if name.endswith(IN_FULL)}
        if taken := [name for name in attacks if name in kept]:
            raise PydanticCustomError("name", f"the name {taken[0]} is that of {kept[taken[0]]}. Rename it.")
        return attacks

    @field_validator("probe", "earned")
    @classmethod
    def _of_its_attacks(cls, table: dict[str, Any], others: Any) -> dict[str, Any]:
        order = list(others.data.get("attacks", table))
        pairs = [(name, before if isinstance(before, str) else name) for name, before in table.items()]
        if strange := [one for pair in pairs for one in pair if one not in order]:
            raise PydanticCustomError("unknown", f"names no attack of this suite: {strange[0]}. Name its attacks, or leave it out.")
        if late := [name for name, before in pairs if isinstance(table[name], str) and order.index(before) >= order.index(name)]:
            raise PydanticCustomError("order", f"{late[0]} waits for an attack that comes no earlier. Put that one first.")
        return table


_PGD = {"kind": "pgd", "steps": 20, "step": 0.1}
_PMA, _SQUARE = {"kind": "pma"}, {"kind": "square", "queries": 250}
_NEAREST = {"kind": "apgd", "loss": "dlr_targeted", "order": "nearest", "targets": 5, "steps": 20}
_FIRST = {"margin": {"kind": "margin"}, "pma_short": _PMA | {"steps": 20}, "apgd_nearest": _NEAREST}
_QUICK = _FIRST | {"a3": {"kind": "a3"}}
_STANDARD = _FIRST | {
    "a3_short": {"kind": "a3", "rounds": 4},
    "a3": {"kind": "a3", "rounds": 16},
    "apgd_ce": {"kind": "apgd"},
    "pma": _PMA,
    "transfer": {"kind": "transfer", "attacks": [_PMA, _NEAREST]},
    "square_probe": _SQUARE,
}
_PROBE = 0.1  # of the images that hold; all but the first attack have to earn them
_MASKED = {"attack": _PGD, "solver": {"method": "dopri5", "tolerance": 0.001, "gradient": "adjoint"}}  # as the released SODEF code
ADDED = ("curve", "thorough", "threat")  # what a run may add to a ready-made suite
# In the order in which docs/results/choice.md found them to pay, then what finds where a gradient misleads.
READY: dict[str, dict[str, Any]] = {
    "quick": {"attacks": _QUICK, "probe": dict.fromkeys(list(_QUICK)[1:], _PROBE), "masked": _MASKED},
    "standard": {
        "attacks": _STANDARD | {"square": _SQUARE | {"queries": 5000}},
        "probe": dict.fromkeys(list(_STANDARD)[1:], _PROBE) | {"a3_short": 0.34, "square_probe": 0.05},
        "earned": {"square": "square_probe"},
        "masked": _MASKED,
    },
    "adaptive": {"adaptive": {"steps": 100, "targets": 9, "queries": 5000}, "masked": _MASKED},
    "autoattack": {"attacks": {"autoattack": {"kind": "autoattack"}}},
}


def ready(name: str, own: Suite | None = None) -> Suite:
    """The ready-made suite of that name, with what a run's `own` table adds to it (`ADDED`)."""
    suite = Suite.model_validate(READY[name])
    return suite.model_copy(update={key: getattr(own, key) for key in ADDED}) if own else suite
