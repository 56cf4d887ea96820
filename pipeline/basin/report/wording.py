"""Numbers as words: how a figure is written, and the plain reading of the result."""

import re
from collections.abc import Iterator

from basin.config.threat import written as radius
from basin.report.summary import Threat
from basin.report.table import Row, Share, Table, Twin

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1"}


def plain(text: str) -> str:
    """A name of another's as words in Markdown: no HTML, no link, no line of its own."""
    return re.sub(r"([\\`*_\[\]<>|!#&])", r"\\\1", " ".join(text.split()))


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def interval(share: Share) -> str:
    low, high = share.interval
    return f"[{percent(low)}, {percent(high)}]"


def counted(number: float) -> str:
    """A count or a measured time: 12,345 or 0.123."""
    return f"{int(number):,}" if number == int(number) else f"{number:,.3g}"


def threat(table: Table) -> str:
    norm = NORMS.get(table.threat.norm, table.threat.norm)
    return f"{norm} distance at most {radius(table.threat.eps)} on pixels in [0, 1], n = {table.n}"


def short(threat: Threat) -> str:
    return f"{NORMS.get(threat.norm, threat.norm)} {radius(threat.eps)}"


def threats(table: Table) -> list[str]:
    """Every threat of the run, its own first."""
    return [short(threat) for threat in (table.threat, *table.threats.values())]


def listed(names: list[str], most: int = 4) -> str:
    """`a`, `a and b`, `a, b and 3 others`."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def reading(table: Table) -> Iterator[str]:
    """The result in plain sentences: who is best, whether defences beat their twins, how far the wrong gradient misleads."""
    yield from _best(table)
    yield from _twins(table)
    yield from _masked(table)
    yield from _union(table)


def _best(table: Table) -> Iterator[str]:
    ranked = table.ranked
    worst = ranked[0].worst
    if worst.k == 0:
        yield f"No model keeps a single one of {table.n} images against every attack (95% interval {interval(worst)}%)."
        return
    best = [row.model for row in ranked if row.worst == worst]
    keep = "keep" if len(best) > 1 else "keeps"
    yield f"{listed(best)} {keep} {percent(worst.value)}% {interval(worst)} of {table.n} images under the worst case over all attacks."
    if close := [row.model for row in ranked if row.worst != worst and not worst.above(row.worst)]:
        yield f"Within the intervals it cannot be told apart from {listed(close)}."


def _twins(table: Table) -> Iterator[str]:
    pairs = [(row, row.twin) for row in table.rows if row.twin]
    above = [pair for pair in pairs if pair[0].worst.above(pair[1].share)]
    below = [pair for pair in pairs if pair[1].share.above(pair[0].worst)]
    level = [pair for pair in pairs if pair not in above and pair not in below]
    if above:
        yield f"Better than the twin without the defence, beyond both intervals: {_against(above)}."
    if below:
        yield f"Worse than the twin without the defence, beyond both intervals: {_against(below)}."
    if level:
        yield f"No difference from the twin that {table.n} images could show: {_against(level)}."


def _against(pairs: list[tuple[Row, Twin]]) -> str:
    return listed([f"{row.model} ({percent(row.worst.value)}% against {percent(twin.share.value)}%)" for row, twin in pairs])


def _masked(table: Table) -> Iterator[str]:
    gaps = [(row.gap, row.masked.value, row.model) for row in table.rows if row.masked and row.gap is not None]
    if not gaps:
        return
    gap, masked, model = max(gaps)
    if gap > 0:
        yield f"A wrong gradient would have reported {percent(masked)}% for {model}, {100 * gap:.1f} points above its worst case."
    else:
        yield "A wrong gradient would have reported no more than the worst case for any model."


def _union(table: Table) -> Iterator[str]:
    unions = [(row.union, row.model) for row in table.rows if row.union]
    if unions:
        share, model = max(unions, key=lambda pair: pair[0].k)
        yield f"Under {listed(threats(table))} together {model} keeps most, {percent(share.value)}% {interval(share)}."
