"""The section on stability, from outcomes/<model>/<suite>/stability.json: for each flow a row of numbers and two charts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basin.report.figures import Figure, figure
from basin.report.outcomes import opened
from basin.report.summary import Measured, Stability, Trajectories
from basin.report.table import ByModel
from basin.report.wording import percent

FILE = "stability.json"
SMALLEST = 1e-12  # of the ratios that are drawn
ROOM = 2  # decades above the largest ratio in which bounds are drawn; a line ends where it leaves the chart
MEASURED = "measured: median, quartiles"
BOUNDS = {  # of stability.json's exponents, the name in the figure `growth`
    "lipschitz": "bound exp(L t)",
    "lipschitz_met": "estimate exp(L t), L the largest ‖J‖ met",
    "log_norm": "estimate by the logarithmic norm",
}
MEASURES = {  # a row of the table: its numbers, and what they are
    "left half-plane": (("left_half_plane",), "Share of images in %, at which all eigenvalues of J have negative real parts"),
    "rightmost": (("rightmost_median", "rightmost_max"), "Largest real part of an eigenvalue of J: median and maximum over the images"),
    "log norm": (("log_norm_median", "log_norm_max"), "Largest eigenvalue of (J + Jᵀ)/2: median and maximum over the images"),
    "dominant": (("row_dominant", "column_dominant"), "Share of images in %, at which J is strictly diagonally dominant: rows, columns"),
    "‖f(z(0))‖": (("speed",), "Mean over the images; 0 where z(0) is an equilibrium"),
    "NFE": (("nfe",), "Evaluations of the drift in one solve"),
    "h|λ|": (("stiffness",), "The solver's step times the largest modulus of an eigenvalue of J"),
    "growth": (("growth_median", "growth_max"), "Distance of adversarial from clean trajectories at T over that at 0: median and maximum"),
    "peak": (("growth_peak",), "The largest such ratio over all images and times"),
    "L": (("lipschitz",), "Lipschitz constant of the drift from its layers: a bound"),
    "‖J‖ met": (("lipschitz_met",), "The largest spectral norm of J on the trajectories: an estimate of L from below"),
    "log norm, path": (("log_norm_path",), "Logarithmic norm between the two trajectories, mean over [0, T], median over the images"),
}  # fmt: skip
SHARES = ("left_half_plane", "row_dominant", "column_dominant")


@dataclass(frozen=True)
class Flow:
    """One flow of a model as the page shows it."""

    model: str
    suite: str
    measured: Measured
    cells: dict[str, str]
    spectrum: Figure | None
    growth: Figure | None
    curves: list[tuple[str, list[str]]]  # the growth chart as numbers: what is drawn, its value at each time


def section(everything: ByModel, models: Sequence[str]) -> list[Flow]:
    """Every flow of every model, from the last suite that has measured it; empty where no model has one.

    Raises: Mistake naming a file that is damaged.
    """
    return [
        _flow(model, suite, measured, models)
        for model, outcomes in everything.items()
        for suite, flows in _last([(suite, read(one.folder / FILE)) for suite, one in outcomes.items()])
        for measured in flows
    ]


def _last(suites: Sequence[tuple[str, list[Measured]]]) -> Sequence[tuple[str, list[Measured]]]:
    return [found for found in suites if found[1]][-1:]


def read(file: Path) -> list[Measured]:
    """An absent file is that of a model without flows."""
    return opened(file, lambda file: Stability.model_validate_json(file.read_bytes())).flows if file.is_file() else []


def _flow(model: str, suite: str, measured: Measured, models: Sequence[str]) -> Flow:
    cells = {measure: _cell(measured.numbers, names) for measure, (names, _) in MEASURES.items()}
    what, ways = f"{model}, {measured.flow}", measured.trajectories
    drawn = spectrum(model, measured.spectrum)
    says = f"Eigenvalues of J of {what}, in the complex plane: left of the imaginary axis at {cells['left half-plane']}% of the images; "
    says += f"the rightmost has the real part {cells['rightmost']} (median, maximum)"
    of_j = figure("spectrum", drawn, says, models) if drawn else None
    if ways is None:
        return Flow(model, suite, measured, cells, of_j, None, [])
    says = f"Distance of adversarial from clean trajectories of {what}, over t, relative to that at 0; the numbers are below"
    return Flow(model, suite, measured, cells, of_j, figure("growth", growth(model, ways), says, models), list(_curves(ways)))


def _cell(numbers: dict[str, float], names: Sequence[str]) -> str:
    found = [percent(numbers[name]) if name in SHARES else f"{numbers[name]:.3g}" for name in names if name in numbers]
    return ", ".join(found) or "–"


def spectrum(model: str, eigenvalues: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    """Eigenvalues and their conjugates, each once."""
    both = dict.fromkeys(pair for a, b in eigenvalues for pair in ((a, b), (a, -b)))
    return [{"model": model, "real": real, "imaginary": imaginary} for real, imaginary in both]


def growth(model: str, ways: Trajectories) -> list[dict[str, Any]]:
    """r(t), its median with its quartiles, and what it is held to, as far as that is within ROOM decades of what was measured."""
    lower, median, upper = ([max(ratio, SMALLEST) for ratio in curve] for curve in (ways.lower, ways.median, ways.upper))
    rows = [
        {"model": model, "what": MEASURED, "t": t, "ratio": ratio, "lower": low, "upper": high}
        for t, low, ratio, high in zip(ways.times, lower, median, upper)
    ]
    highest = math.log10(max(*upper, 1)) + ROOM
    for name in _drawn(ways):
        decades = [(t, exponent / math.log(10)) for t, exponent in zip(ways.times, ways.exponents[name])]
        rows += [{"model": model, "what": BOUNDS[name], "t": t, "ratio": 10.0**decade} for t, decade in _inside(decades, highest)]
    return rows


def _drawn(ways: Trajectories) -> list[str]:
    """What is met is left to the table where there is a bound: the two lie close together."""
    return [name for name in BOUNDS if name in ways.exponents and not (name == "lipschitz_met" and "lipschitz" in ways.exponents)]


def _inside(points: Sequence[tuple[float, float]], high: float) -> Iterator[tuple[float, float]]:
    """The points of a line up to where it first rises above `high`."""
    for i, (t, value) in enumerate(points):
        if i and value > high:
            before, low = points[i - 1]
            yield before + (t - before) * (high - low) / (value - low), high
            return
        yield t, value


def _curves(ways: Trajectories) -> Iterator[tuple[str, list[str]]]:
    yield "t", [f"{t:.3g}" for t in ways.times]
    for name in ("lower", "median", "upper"):
        title = "median" if name == "median" else f"{name} quartile"
        yield title, [f"{ratio:.3g}" for ratio in getattr(ways, name)]
    for name in BOUNDS:
        if name in ways.exponents:
            yield BOUNDS[name], [power(exponent) for exponent in ways.exponents[name]]


def power(exponent: float) -> str:
    """e^exponent in decimal notation, however large."""
    decade = math.floor(exponent / math.log(10))
    return f"{math.exp(exponent):.3g}" if abs(decade) < 4 else f"{10 ** (exponent / math.log(10) - decade):.2f}e{decade:+03d}"
