"""index.html: one file that needs no network. What is computed is here; how it looks is in template/."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from basin.report import figures, stability, wording
from basin.report.pictures import gallery
from basin.report.table import ByModel, Table
from basin.report.tidy import History


def page(table: Table, everything: ByModel, epochs: History) -> str:
    """The page as text. Every value is escaped by the template engine; the page forbids itself to load or run anything."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "template"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": wording.percent, "interval": wording.interval, "radius": wording.radius}
    positions = {row.model: row.position for row in table.rows}
    return environment.get_template("page.html").render(
        table=table,
        threat=wording.threat(table),
        reading=list(wording.reading(table)),
        looks={model: figures.Look(position) for model, position in positions.items()},
        curves=figures.curves(table, everything),
        cascades=[(suite, *cascade(suite, table, everything)) for suite in table.suites],
        flows=stability.section(everything, positions),
        measures=stability.MEASURES,
        training=figures.training(epochs, positions),
        untold=[model for model in positions if not epochs.get(model)],
        gallery=gallery(everything),
        flags=flags(everything),
        provenance=[(row.model, chain(row.model, everything), list(everything[row.model].values())) for row in table.rows],
        seeds=sorted({one.summary.seed for outcomes in everything.values() for one in outcomes.values()}),
    )


def cascade(suite: str, table: Table, everything: ByModel) -> tuple[list[str], list[tuple]]:
    """The attacks of a suite in the order run (a model may skip some), and per model its summary, best first."""
    summaries = [(row, everything[row.model][suite].summary) for row in table.ranked]
    longest = max((summary for _, summary in summaries), key=lambda summary: len(summary.attacks))
    names = dict.fromkeys([*longest.attacks, *(name for _, summary in summaries for name in summary.attacks)])
    return list(names), summaries


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
