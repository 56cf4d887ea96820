"""The section on stability, from outcomes/<model>/<suite>/stability.json: for each flow a row of numbers and two charts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from basin.report.figures import Chart, Line, Look, Scale, path
from basin.report.outcomes import opened
from basin.report.summary import Measured, Stability, Trajectories
from basin.report.table import ByModel
from basin.report.wording import percent

FILE = "stability.json"
LEFT, RIGHT, TOP = 44.0, 292.0, 34.0
SMALLEST = 1e-12  # of the ratios that are drawn
ROOM = 2  # decades above the largest ratio in which bounds are drawn; a line ends where it leaves the chart
BOUNDS = {  # of stability.json's exponents, the name in the key and the dashes
    "lipschitz": ("bound exp(L t)", "7 4"),
    "lipschitz_met": ("estimate exp(L t), L the largest ‖J‖ met", "2 3"),
    "log_norm": ("estimate by the logarithmic norm, median", "8 3 2 3"),
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
    spectrum: Chart | None
    growth: Chart | None
    curves: list[tuple[str, list[str]]]  # the growth chart as numbers: what is drawn, its value at each time


def section(everything: ByModel, positions: dict[str, int]) -> list[Flow]:
    """Every flow of every model, from the last suite that has measured it; empty where no model has one.

    Raises: Mistake naming a file that is damaged.
    """
    return [
        _flow(model, suite, measured, Look(positions[model]))
        for model, outcomes in everything.items()
        for suite, flows in _last([(suite, read(one.folder / FILE)) for suite, one in outcomes.items()])
        for measured in flows
    ]


def _last(suites: Sequence[tuple[str, list[Measured]]]) -> Sequence[tuple[str, list[Measured]]]:
    return [found for found in suites if found[1]][-1:]


def read(file: Path) -> list[Measured]:
    """An absent file is that of a model without flows."""
    return opened(file, lambda file: Stability.model_validate_json(file.read_bytes())).flows if file.is_file() else []


def _flow(model: str, suite: str, measured: Measured, look: Look) -> Flow:
    cells = {measure: _cell(measured.numbers, names) for measure, (names, _) in MEASURES.items()}
    spectrum = _spectrum(measured.spectrum, look) if measured.spectrum else None
    ways = measured.trajectories
    if ways is None:
        return Flow(model, suite, measured, cells, spectrum, None, [])
    return Flow(model, suite, measured, cells, spectrum, _growth(ways, look), list(_curves(ways)))


def _cell(numbers: dict[str, float], names: Sequence[str]) -> str:
    found = [percent(numbers[name]) if name in SHARES else f"{numbers[name]:.3g}" for name in names if name in numbers]
    return ", ".join(found) or "–"


def _spectrum(eigenvalues: Sequence[tuple[float, float]], look: Look) -> Chart:
    """Eigenvalues and their conjugates in the complex plane, the imaginary axis as a rule."""
    real, imaginary = zip(*eigenvalues)
    width, height = max(0.0, *real) - min(0.0, *real) or 1.0, max(map(abs, imaginary)) or 1.0
    x = Scale(min(0.0, *real) - 0.05 * width, max(0.0, *real) + 0.05 * width, LEFT, RIGHT)
    y = Scale(-1.1 * height, 1.1 * height, 176.0, TOP)
    dots = "".join(f"M{x(a):g},{y(b):g}h0" for a, b in dict.fromkeys(pair for a, b in eigenvalues for pair in ((a, b), (a, -b))))
    return Chart(
        300, 198, LEFT, RIGHT, TOP, 176.0,
        [(x(value), f"{value:g}") for value in x.ticks(4)], [(y(value), f"{value:g}") for value in y.ticks(4)],
        [Line("eigenvalues", look, dots)], (x(0), "Re λ = 0"), label="Im λ", dots=True,
    )  # fmt: skip


def _growth(ways: Trajectories, look: Look) -> Chart:
    """r(t) on a logarithmic axis, its median in the band of its quartiles, and what it is held to."""
    lower, median, upper = (_decades(curve) for curve in (ways.lower, ways.median, ways.upper))
    bounds = {name: [exponent / math.log(10) for exponent in ways.exponents[name]] for name in _drawn(ways)}
    low, high = math.floor(min(lower)), math.ceil(min(max(upper) + ROOM, max(*upper, *(max(bound) for bound in bounds.values()), 1)))
    x, y = Scale(0, ways.times[-1], LEFT, RIGHT), Scale(low, max(high, low + 1), 142.0, 18.0)
    band = [*((x(t), y(v)) for t, v in zip(ways.times, upper)), *((x(t), y(v)) for t, v in reversed([*zip(ways.times, lower)]))]
    lines = [
        Line(BOUNDS[name][0], look, path((x(t), y(v)) for t, v in _inside([*zip(ways.times, bound)], y.high)), note=BOUNDS[name][1])
        for name, bound in bounds.items()
    ]
    lines.append(Line("measured: median, quartiles", look, path((x(t), y(v)) for t, v in zip(ways.times, median)), path(band) + "Z"))
    return Chart(
        300, 164, LEFT, RIGHT, 18.0, 142.0, [(x(t), f"{t:g}") for t in x.ticks(4)],
        [(y(value), f"{10.0**value:g}") for value in y.ticks(4) if value == int(value)], lines, label="r(t), log",
    )  # fmt: skip


def _decades(ratios: Sequence[float]) -> list[float]:
    return [math.log10(max(ratio, SMALLEST)) for ratio in ratios]


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
            yield BOUNDS[name][0], [power(exponent) for exponent in ways.exponents[name]]


def power(exponent: float) -> str:
    """e^exponent in decimal notation, however large."""
    decade = math.floor(exponent / math.log(10))
    return f"{math.exp(exponent):.3g}" if abs(decade) < 4 else f"{10 ** (exponent / math.log(10) - decade):.2f}e{decade:+03d}"
