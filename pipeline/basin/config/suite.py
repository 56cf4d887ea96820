"""Suites of attacks, as params.yaml has them."""

from collections.abc import Mapping

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from basin.config.kinds import AttackChoice, Choice
from basin.config.settings import Radius, Settings
from basin.config.solver import Solver


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
    radii: list[Radius] = Field(min_length=1, description="a rising list of radii in pixels scaled to [0, 1]")

    @field_validator("radii")
    @classmethod
    def _rise(cls, radii: list[float]) -> list[float]:
        if radii != sorted(set(radii)):
            raise PydanticCustomError("order", "should rise. Order them from small to large, each once.")
        return radii


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
    """

    attacks: dict[str, AttackChoice] = Field({}, description="a table of attacks, each a table with its kind")
    adaptive: Adaptive | None = Field(None, description="a table of how long the attacks that the model asks for last, or null for none")
    curve: Curve | None = Field(None, description="the robust-accuracy curve, or null for none")
    masked: Masked | None = Field(None, description="the naive-gradient column, or null for none")

    @model_validator(mode="after")
    def _not_empty(self) -> "Suite":
        if not self.attacks and not self.adaptive:
            raise PydanticCustomError("empty", "should hold attacks, or an adaptive table. Give one of them.")
        return self
