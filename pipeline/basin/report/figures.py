"""The geometry of the charts, in user units of an SVG; the template draws it, so that every text is escaped in one place."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from basin.report.summary import Curve
from basin.report.table import ByModel, Share, Table
from basin.report.tidy import History, last_curve, number
from basin.report.wording import interval, percent, radius

Point = tuple[float, float]
TOP, BOTTOM = 30.0, 112.0  # of the panels of a training history
COLOURS, DASHES, MARKERS = 10, ("", "7 4", "2 3"), ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Scale:
    """A linear map of [low, high] onto [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values inside the range: steps of 1, 2 or 5 times a power of ten."""
        rough = ((self.high - self.low) or 1) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * one for one in (1, 2, 5, 10) if power * one >= 0.999 * rough)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Look:
    """Colour, dashes and marker of a model, from its position in the run; thirty models differ."""

    position: int

    @property
    def colour(self) -> str:
        return f"var(--s{self.position % COLOURS})"

    @property
    def dash(self) -> str:
        return DASHES[self.position // COLOURS % len(DASHES)]

    @property
    def marker(self) -> str:
        return MARKERS[self.position % len(MARKERS)]


@dataclass(frozen=True)
class Line:
    name: str
    look: Look
    path: str
    band: str = ""
    marks: list[tuple[float, float, str]] = field(default_factory=list)  # x, y, what it says when pointed at
    note: str = ""


@dataclass(frozen=True)
class Chart:
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    rule: tuple[float, str] | None = None
    spans: list[tuple[float, str]] = field(default_factory=list)  # where a phase begins, and its name
    label: str = ""  # of the vertical axis
    note: str = ""
    dots: bool = False  # a path is of points, not a line


def path(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def curves(table: Table, everything: ByModel) -> Chart | None:
    """Robust accuracy against the radius: a line with its 95% band for each model that has a curve."""
    measured = [(row, curve) for row in table.ranked if (curve := last_curve(everything[row.model]))]
    if not measured:
        return None
    left, right, top, bottom = 58.0, 624.0, 22.0, 334.0
    x = Scale(0, max(table.threat.eps, *(eps for _, curve in measured for eps, _ in curve.points)), left, right)
    y = Scale(0, 1, bottom, top)
    return Chart(
        640, 372, left, right, top, bottom,
        [(x(eps), f"{eps:g}") for eps in x.ticks()], [(y(share), percent(share)[:-2]) for share in y.ticks()],
        [_curve(row.model, Look(row.position), curve, table.n, x, y) for row, curve in measured],
        (x(table.threat.eps), f"ε = {radius(table.threat.eps)}"),
    )  # fmt: skip


def _curve(model: str, look: Look, curve: Curve, n: int, x: Scale, y: Scale) -> Line:
    points = [(eps, Share(round(robust * n), n)) for eps, robust in sorted(curve.points)]
    low = [(x(eps), y(share.interval[0])) for eps, share in points]
    high = [(x(eps), y(share.interval[1])) for eps, share in points]
    marks = [(x(eps), y(share.value), f"{model}, ε {eps:g}: {percent(share.value)}% {interval(share)}") for eps, share in points]
    return Line(model, look, path((a, b) for a, b, _ in marks), path([*high, *reversed(low)]) + "Z", marks, curve.attack)


def training(epochs: History, positions: dict[str, int]) -> list[tuple[str, list[Chart]]]:
    """Per model: the loss, and below it whatever columns of its history are accuracies."""
    return [(model, _panels(rows, Look(positions[model]))) for model, rows in epochs.items() if rows]


def _panels(rows: Sequence[dict[str, str]], look: Look) -> list[Chart]:
    columns = {name: [number(row[name]) for row in rows] for name in rows[0] if name not in ("step", "phase", "epoch")}
    accuracies = {name: values for name, values in columns.items() if "accuracy" in name or "robust" in name}
    phases = [row["phase"] for row in rows]
    panels = [_panel("loss", {"loss": columns["loss"]}, phases, look, loss_scale(columns["loss"]))]
    return panels + ([_panel("accuracy", accuracies, phases, look, (Scale(0, 1, BOTTOM, TOP), False))] if accuracies else [])


def loss_scale(loss: Sequence[float]) -> tuple[Scale, bool]:
    """From zero, or logarithmic where the losses of different phases lie a hundredfold apart."""
    finite = [value for value in loss if math.isfinite(value)] or [0.0]
    if min(finite) > 0 and max(finite) > 100 * min(finite):
        return Scale(math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite))), BOTTOM, TOP), True
    return Scale(min(0.0, *finite), max(0.0, *finite) or 1.0, BOTTOM, TOP), False


def _panel(label: str, columns: dict[str, list[float]], phases: list[str], look: Look, scale: tuple[Scale, bool]) -> Chart:
    y, logarithmic = scale
    x = Scale(1, max(2, len(phases)), 44.0, 292.0)
    lines, left_out = [], 0
    for i, (name, values) in enumerate(columns.items()):
        points = [(x(step), y(math.log10(value) if logarithmic else value)) for step, value in enumerate(values, 1) if math.isfinite(value)]
        left_out += len(values) - len(points)
        if points:
            marks = [(*point, "") for point in points] if len(points) < 3 else []
            lines.append(Line(name, look, path(points), marks=marks, note=("", "5 3", "1 3")[i % 3]))
    starts = [i for i, phase in enumerate(phases) if i == 0 or phase != phases[i - 1]]
    lost = f"{left_out} epochs without a finite loss are left out." if left_out and label == "loss" else ""
    return Chart(
        300, 132, 44.0, 292.0, TOP, BOTTOM,
        [(x(step), f"{step:g}") for step in x.ticks(4) if step == int(step)],
        [(y(value), f"{10.0**value if logarithmic else value:g}") for value in y.ticks(3) if not logarithmic or value == int(value)],
        lines, spans=[(x(i + 1), phases[i] if label == "loss" else "") for i in starts],
        label=label + (", log" if logarithmic else ""), note=lost,
    )  # fmt: skip
