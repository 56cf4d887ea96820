"""Who may be champion: worst-case robust accuracy, on equal terms, beyond chance. Knows neither models nor MLflow.

A version is *unreliable* where a flag on its number is not resolved: the number may be too high, and counts for nothing. Else it is a
*challenger*, and *champion* if it reads enough clean images rightly, was attacked by no less than the champion, and holds more of the same
images, by a paired difference (report/pairs.py) that is above zero with confidence.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from basin.config.params import Gate
from basin.report.pairs import paired

Standing = Literal["champion", "challenger", "unreliable"]
MORE = ("rounds", "restarts", "targets", "queries")  # settings of an attack that with more of them is no weaker
BLIND = ("more-steps-help", "large-radius-holds", "too-few-draws", "probabilities")  # what no attempt of an adaptive suite answers
UNREAD = {  # said of the answers to clean images, which no attack changes
    "class-not-answered": "it hardly ever answers some of the classes",
    "at-chance": "it reads no more of the images than a constant answer does",
    "more-outputs-than-classes": "it answers classes that the data do not have",
}
BLACK_BOX = "black-box-beats-white-box"


class Contender(ABC):
    """What the gate asks of a version. The last two are asked for only where they matter."""

    name: str
    clean: float
    worst: float
    masked: float | None  # robust accuracy under the naive gradient
    unresolved: Sequence[str]
    measured_on: tuple[str, str]  # threat, digest of the data

    @property
    @abstractmethod
    def suites(self) -> Mapping[str, Any]:
        """name -> settings of each suite, as JSON has them."""

    @property
    @abstractmethod
    def held(self) -> Mapping[int, float]:
        """Image of the test split -> the share of draws in which it holds against everything."""


@dataclass(frozen=True)
class Decision:
    """What a version is, and why."""

    standing: Standing
    reasons: tuple[str, ...]


def unresolved(flags: Mapping[str, Sequence[str]], adaptive: Sequence[str], black_box_last: bool) -> list[str]:
    """The flags that nothing answers (docs/flags.md), of those raised by each suite; `adaptive`: the suites that are.

    A suite `adaptive` answers every flag but `large-radius-holds`, those of `UNREAD`, and those that it raises itself and that say that
    its own attempts were blind: `BLIND`, and `black-box-beats-white-box` where a black-box attack was the last to take an image
    (`black_box_last`).
    """

    def stands(flag: str, suite: str) -> bool:
        if not adaptive or flag == "large-radius-holds" or flag in UNREAD:
            return True
        return suite in adaptive and (flag in BLIND or (flag == BLACK_BOX and black_box_last))

    return list(dict.fromkeys(flag for suite, names in flags.items() for flag in names if stands(flag, suite)))


def attacked_by_less(one: Contender, other: Contender) -> list[str]:
    """In which ways `one` was attacked by less than `other`; empty: in none.

    Less is: not on an image of the other; without one of its attacks, whatever name and suite it has, with the same settings; without an
    adaptive suite whose every number is at least as high; without its naive gradient, or the points of other models.
    """
    mine, theirs = [settings for _, settings in _attacks(one.suites)], _attacks(other.suites)
    missing = [f"without {name}" for name, settings in theirs if not any(_at_least(own, settings) for own in mine)]
    if images := len(other.held.keys() - one.held.keys()):
        missing.append(f"without {images} of its {len(other.held)} images")
    return missing


def _attacks(suites: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every attack under the run's threat, in words and as settings. An adaptive suite is one: what it tries is for the model to say."""
    for name, suite in suites.items():
        if suite.get("threat"):
            continue
        for key, attack in suite.get("attacks", {}).items():
            yield f"attack {key} of suite {name}", attack
        for part in ("adaptive", "masked", "exchange"):
            if settings := suite.get(part):
                yield f"{part} of suite {name}", {part: settings}


def _at_least(own: dict[str, Any], settings: dict[str, Any]) -> bool:
    if "adaptive" in own and "adaptive" in settings:
        return all(own["adaptive"].get(key, 0) >= value for key, value in settings["adaptive"].items())
    return own.keys() == settings.keys() and all(own[key] >= value if key in MORE else own[key] == value for key, value in settings.items())


def disqualified(one: Contender, gate: Gate) -> Decision | None:
    """Why a version cannot be champion whatever the others are; None where it can."""
    if left := [flag for flag in one.unresolved if flag not in gate.accepted_flags]:
        named = ", ".join(f"{flag} ({UNREAD[flag]})" if flag in UNREAD else flag for flag in left)
        return Decision("unreliable", (f"not resolved: {named}{_naive(one, one.worst)}",))
    if one.clean < gate.clean_floor:
        return Decision("challenger", (f"clean accuracy {one.clean:.1%} is below the floor of {gate.clean_floor:.1%}",))
    return None


def decide(one: Contender, champion: Contender | None, gate: Gate) -> Decision:
    """What `one` is beside a champion (None: the title is vacant)."""
    if refused := disqualified(one, gate):
        return refused
    if champion is None:
        return Decision("champion", (f"the title was vacant: {one.worst:.1%} in the worst case",))
    if one.measured_on != champion.measured_on:
        return Decision("challenger", (f"measured on another threat or data than {champion.name}; registry.name gives it a place",))
    if one.worst <= champion.worst:
        naive = _naive(one, champion.worst)
        return Decision("challenger", (f"worst case {one.worst:.1%}, {champion.name} has {champion.worst:.1%}{naive}",))
    if less := attacked_by_less(one, champion):
        return Decision("challenger", tuple(f"attacked by less than {champion.name}: {way}" for way in less))
    difference = paired(one.held, champion.held, gate.confidence)
    assert difference is not None  # it was attacked on all images of the champion
    beyond = difference.value > 0 and difference.beyond_chance
    against = f"{difference} against {champion.name}" + ("" if beyond else f": not beyond chance with {gate.confidence:.0%} confidence")
    return Decision("champion" if beyond else "challenger", (against,))


def _naive(one: Contender, worst: float) -> str:
    above = one.masked is not None and one.masked > worst
    return f"; the {one.masked:.1%} under its naive gradient count for nothing" if above else ""
