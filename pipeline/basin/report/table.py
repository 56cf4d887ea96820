"""The table: per model, what is left of its accuracy when every suite has had its turn."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from basin.errors import Mistake
from basin.evaluation import classes
from basin.evaluation.interval import wilson
from basin.report.outcomes import Outcome, under_run
from basin.report.summary import Threat

ByModel = Mapping[str, Mapping[str, Outcome]]  # model -> suite -> outcome
MADE = ("model", "backbone", "head", "training", "clean")
TWIN = ("twin", "twin_model", "twin_source")
MEASURED = ("worst_case", "interval_low", "interval_high", "masked", "certified", *TWIN, "n", *classes.BALANCE)
UNION = ("union", "union_low", "union_high")  # of a run with suites under threats of their own


@dataclass(frozen=True)
class Share:
    """k of n images, with the Wilson 95% interval of the fraction. Of a random model k is a sum of shares of draws."""

    k: float
    n: int

    @property
    def value(self) -> float:
        return round(self.k / self.n, 6)

    @property
    def interval(self) -> tuple[float, float]:
        low, high = wilson(self.k, self.n)
        return round(low, 6), round(high, 6)

    def above(self, other: "Share") -> bool:
        """Higher beyond both 95% intervals."""
        return self.interval[0] > other.interval[1]


@dataclass(frozen=True)
class Twin:
    """The undefended model that a model was built from, on the same images."""

    model: str
    share: Share
    source: str  # "run": its own outcomes under the same suites; "transfer": the figure that the model's own summary carries


@dataclass(frozen=True)
class Row:
    """One model. `worst` counts an image only if it is robust in every suite, and under the masked attack where measured.

    That is of the suites under the run's threat. `threats`: the same of the suites under each other threat, by its name; `union`: an image
    counts only if it is robust under all threats; None where there is but one.
    """

    model: str
    backbone: str
    head: str
    training: str
    clean: Share
    suites: Mapping[str, Share]
    worst: Share
    threats: Mapping[str, Share]
    union: Share | None
    masked: Share | None
    masked_attack: str
    certified: float | None  # share of the images within whose ball no attack can succeed
    twin: Twin | None
    balance: dict[str, float]  # share of the largest class, means over the classes
    passes: int  # images sent through the model while attacking it, over all suites
    uneven: bool  # whether the classes differ in size, so that these say something
    position: int  # in the run's order; gives the model its colour on the page

    @property
    def gap(self) -> float | None:
        """How far the masked figure lies above the worst case: robustness that is not there."""
        return self.masked.value - self.worst.value if self.masked else None

    def metrics(self) -> dict[str, float]:
        """The numbers of the row; keys are absent where nothing was measured."""
        low, high = self.worst.interval
        numbers: dict[str, float] = {"clean": self.clean.value, "n": self.clean.n}
        numbers |= {suite: share.value for suite, share in self.suites.items()}
        numbers |= {"worst_case": self.worst.value, "interval_low": low, "interval_high": high}
        if self.masked:
            numbers["masked"] = self.masked.value
        if self.certified is not None:
            numbers["certified"] = self.certified
        if self.twin:
            numbers["twin"] = self.twin.share.value
        numbers |= {column(name): share.value for name, share in self.threats.items()}
        if self.union:
            numbers |= dict(zip(UNION, (self.union.value, *self.union.interval), strict=True))
        return numbers | self.balance


@dataclass(frozen=True)
class Table:
    """The rows in the run's order, and what they have in common."""

    rows: tuple[Row, ...]
    suites: tuple[str, ...]
    data: str
    digest: str
    threat: Threat
    threats: Mapping[str, Threat]  # the others, of suites with a threat of their own, by their names
    n: int

    @property
    def ranked(self) -> list[Row]:
        """Highest worst case first, ties in the run's order."""
        return sorted(self.rows, key=lambda row: -row.worst.k)

    @property
    def best(self) -> float:
        return self.ranked[0].worst.value

    @property
    def uneven(self) -> bool:
        return self.rows[0].uneven

    @property
    def certified(self) -> bool:
        """Whether anything is certified: usual nets have bounds that certify nothing, which needs no column."""
        return any(row.certified for row in self.rows)

    def metrics(self) -> dict[str, dict[str, float]]:
        return {row.model: row.metrics() for row in self.rows}


def worst_case(suites: Mapping[str, Outcome]) -> Share:
    """The per-image worst case over suites whose outcomes are on the same images: of those under the run's threat."""
    return _share(held(suites))


def held(suites: Mapping[str, Outcome]) -> np.ndarray:
    """The share of draws in which each image holds against everything under the run's threat."""
    return _lowest(under_run(suites).values())


def _lowest(outcomes: Iterable[Outcome]) -> np.ndarray:
    return np.minimum.reduce([np.fmin(one.robust, one.masked) for one in outcomes])  # of a number and nan the number


def _share(robust: np.ndarray) -> Share:
    return Share(float(robust.sum()), robust.size)


def column(threat: str) -> str:
    """Of the worst case under a threat that is not the run's, in table.csv and among the registry's metrics."""
    return f"worst_case.{threat}"


def tabulate(everything: ByModel, suites: Sequence[str]) -> Table:
    """Comparable outcomes (see `outcomes.check_comparable`) as a table with a column for each of the suites.

    Raises: Mistake if a suite has the name of a column.
    """
    if clash := [suite for suite in suites if suite in MADE + MEASURED + UNION]:
        raise Mistake(f"params.yaml: suites: the name is that of a column of the report (got {clash[0]}). Rename the suite.")
    rows = tuple(_row(model, position, everything, suites) for position, model in enumerate(everything))
    outcomes = everything[rows[0].model].values()
    summary, others = next(one.summary for one in outcomes if one.under_run), [one.summary.threat for one in outcomes if not one.under_run]
    return Table(rows, tuple(suites), summary.data, summary.data_digest, summary.threat, {str(one): one for one in others}, summary.n)


def _row(model: str, position: int, everything: ByModel, suites: Sequence[str]) -> Row:
    all_threats = everything[model]
    outcomes = under_run(all_threats)
    first = next(iter(outcomes.values()))
    others = dict.fromkeys(str(one.summary.threat) for one in all_threats.values() if not one.under_run)
    masked = [one for one in outcomes.values() if not np.isnan(one.masked).all()]
    return Row(
        model=model,
        backbone=first.summary.backbone or "",
        head=first.summary.head or "",
        training=first.summary.training or "",
        clean=Share(first.summary.clean * first.summary.n, first.summary.n),
        suites={suite: _share(all_threats[suite].robust) for suite in suites},
        worst=worst_case(outcomes),
        threats={
            name: _share(_lowest(one for one in all_threats.values() if not one.under_run and str(one.summary.threat) == name))
            for name in others
        },
        union=_share(_lowest(all_threats.values())) if others else None,
        masked=_masked(masked[-1]) if masked else None,
        masked_attack=masked[-1].summary.masked.attack if masked and masked[-1].summary.masked else "",
        certified=first.summary.certified.robust if first.summary.certified else None,
        twin=_twin(outcomes, everything),
        balance=_balance(first, held(outcomes)),
        passes=sum(one.summary.passes for one in all_threats.values()),
        uneven=classes.is_uneven(first.label),
        position=position,
    )


def _balance(one: Outcome, robust: np.ndarray) -> dict[str, float]:
    """Of clean images as the summary says, which knows the shares of draws; an old one does not, and the predictions have to do."""
    found = classes.balance(one.label, one.clean == one.label, robust)
    said = {} if one.summary.balanced_clean is None else {"balanced_clean": one.summary.balanced_clean}
    return {name: round(value, 6) for name, value in (found | said).items()}


def _masked(outcome: Outcome) -> Share:
    return Share(float(np.nansum(outcome.masked)), int((~np.isnan(outcome.masked)).sum()))


def _twin(outcomes: Mapping[str, Outcome], everything: ByModel) -> Twin | None:
    """The twin's own worst case when it is in the run, else the lowest figure that the summaries carry."""
    summaries = [one.summary for one in outcomes.values()]
    if (name := summaries[0].from_) and name in everything:
        return Twin(name, worst_case(everything[name]), "run")
    carried = min((one.twin for one in summaries if one.twin), key=lambda twin: twin.robust, default=None)
    n = summaries[0].n
    return Twin(carried.model, Share(round(carried.robust * n), n), "transfer") if carried else None
