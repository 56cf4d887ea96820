"""index.html: one file that needs no network. What is computed is here; how it looks, and what its script does, is in template/."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from basin.config.flags import MEANINGS
from basin.config.suite import IN_FULL
from basin.report import figures, pairs, stability, tidy, wording
from basin.report.album import album
from basin.report.by_class import by_class
from basin.report.outcomes import EXCHANGE, under_run
from basin.report.pictures import gallery
from basin.report.table import ByModel, Table
from basin.report.tidy import History


@dataclass(frozen=True)
class Made:
    """What no outcome says: where and when a run was made, and what it cost. Empty in the page that DVC keeps, whose bytes hang on none."""

    facts: Mapping[str, str] = field(default_factory=dict)  # commit, date, device and their like
    costs: Mapping[str, tuple[str, Mapping[str, float]]] = field(default_factory=dict)  # column -> what it is, its value by model
    versions: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # model -> its version in the registry, and the address


def page(table: Table, everything: ByModel, epochs: History, root: str = "", made: Made = Made()) -> str:
    """The page as text. Every value is escaped by the template engine; the page forbids itself to load, or to run another script.

    `root`: the way from the page's folder to the run's, for links to its outcomes: "../", or nothing.
    """
    positions = {row.model: row.position for row in table.rows}
    ours = {model: under_run(outcomes) for model, outcomes in everything.items()}
    models, curve = list(positions), tidy.points(ours)
    classes = by_class(ours)
    ranked = [row.model for row in table.ranked]
    found = pairs.differences({model: ours[model] for model in ranked})
    return rendered(
        "page.html",
        table=table,
        threat=wording.threat(table),
        reading=list(wording.reading(table)),
        glance=figures.figure("glance", tidy.results(table), "Clean accuracy, worst case and what else the table below has, of each model"),
        radius=curve and figures.figure("radius", curve, "Robust accuracy against the radius ε; the numbers are below", models),
        curve=curve,
        extra=[(title, what, values) for title, (what, values) in made.costs.items()],
        cascades=[(suite, *cascade(suite, table, everything)) for suite in table.suites],
        beside=beside(everything),
        threats=wording.threats(table),
        pairs=[(one, other, difference) for (one, other), difference in found.items()],
        differences=_differences(found, models, table),
        classes=classes,
        confusions=[
            (model, figures.figure("confusion", rows, f"What the classes are read as by {model} under attack"), moves)
            for (model, rows), (_, moves) in zip(classes.becomes, classes.moves)
        ],
        flows=stability.section(ours, models),
        measures=stability.MEASURES,
        training=[(model, *_training(model, rows, models)) for model, rows in epochs.items() if rows],
        untold=[model for model in models if not epochs.get(model)],
        gallery=gallery(ours),
        album=album(ours),
        flags=flags(everything),
        meanings=MEANINGS,
        provenance=[
            (row.model, chain(row.model, everything), _places(row.model, everything, root)) for row in table.rows
        ],
        seeds=sorted({one.summary.seed for outcomes in everything.values() for one in outcomes.values()}),
        facts=made.facts,
        versions=made.versions,
    )  # fmt: skip


def rendered(template: str, **values: Any) -> str:
    """A page of our design: its style and its script in it, and no other."""
    environment = Environment(
        loader=FileSystemLoader(figures.TEMPLATE),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": wording.percent, "interval": wording.interval, "radius": wording.radius, "counted": wording.counted}
    style, script = ((figures.TEMPLATE / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(
        policy=Markup(policy), style=Markup(style), script=Markup(script), palette=figures.palette(), **values
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _training(model: str, rows: list[dict[str, str]], models: list[str]) -> tuple[list[figures.Figure], int]:
    """The loss, below it the accuracies that the history has, and how many epochs have no finite loss."""
    found = [{"model": model, **row} for row in rows]
    panels = ["loss"] + ["accuracy"] * bool({"accuracy", "robust"} & rows[0].keys())
    lost = sum(not tidy.is_finite(row["loss"]) for row in rows)
    return [figures.figure(name, found, f"{name.capitalize()} of {model} over epochs", models) for name in panels], lost


def _differences(found: Mapping[tuple[str, str], pairs.Difference], models: list[str], table: Table) -> dict[str, Any]:
    """What the script needs to compare any two models, by their positions; at first the best and its twin, or the runner-up."""
    numbers = {}
    for (one, other), difference in found.items():
        a, b = models.index(one), models.index(other)
        low, high = difference.interval
        value = (difference.value, low, high) if a < b else (-difference.value, -high, -low)
        numbers[f"{min(a, b)} {max(a, b)}"] = [*(round(share, 6) for share in value), int(difference.beyond_chance)]
    best, *others = table.ranked
    beside = best.twin.model if best.twin and best.twin.model in models else others[0].model if others else best.model
    return {"start": [models.index(best.model), models.index(beside)], "found": numbers}


def _places(model: str, everything: ByModel, root: str) -> list[tuple[str, str]]:
    """Suite -> where the outcomes of every image are, from the page's folder."""
    found = {suite: one.folder.parts[-3 if suite == EXCHANGE else -4 :] for suite, one in everything[model].items()}
    return [(suite, f"{root}{'/'.join(parts)}/outcomes.csv") for suite, parts in found.items()]


def cascade(suite: str, table: Table, everything: ByModel) -> tuple[list[str], list[tuple]]:
    """The attacks of a suite in the order run (a model may skip some), and per model its summary, best first."""
    summaries = [(row, everything[row.model][suite].summary) for row in table.ranked]
    longest = max((summary for _, summary in summaries), key=lambda summary: len(summary.attacks))
    names = dict.fromkeys([*longest.attacks, *(name for _, summary in summaries for name in summary.attacks)])
    return sorted(names, key=lambda name: name.endswith(IN_FULL)), summaries


def beside(everything: ByModel) -> dict[str, str]:
    """Suite -> its threat in words, of the suites that are not under the run's."""
    first = next(iter(everything.values()))
    return {suite: wording.short(one.summary.threat) for suite, one in first.items() if not one.under_run}


def flags(everything: ByModel) -> list[tuple[str, dict[str, list[str]]]]:
    """Per model that has any: each flag, and the suites that raised it."""
    raised: list[tuple[str, dict[str, list[str]]]] = []
    for model, outcomes in everything.items():
        by_flag: dict[str, list[str]] = {}
        for suite, one in outcomes.items():
            for flag in one.summary.flags:
                by_flag.setdefault(flag, []).append(suite)
        if by_flag:
            raised.append((model, by_flag))
    return raised


def chain(model: str, everything: ByModel) -> list[str]:
    """What the model was built from, oldest first, as far as the run's outcomes tell; a circle ends it."""
    found = [model]
    while found[0] in everything:
        source = next(iter(everything[found[0]].values())).summary.from_
        if source is None or source in found:
            break
        found.insert(0, source)
    return found
