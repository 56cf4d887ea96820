"""Reading the outcomes of attacks, and refusing those that do not belong together."""

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from basin import files
from basin.errors import Mistake
from basin.report.summary import FORMAT, Summary, Threat, Written

COLUMNS = ("image", "label", "clean", "adversarial", "robust", "attack", "distance", "loss", "masked")
EXCHANGE, EXCHANGED = "exchange", "exchanged"  # the suite of the points of other models, and its folder
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """One model under one suite; every array has n entries, sorted by the image's index in the test split."""

    folder: Path
    summary: Summary
    image: np.ndarray
    label: np.ndarray
    clean: np.ndarray
    adversarial: np.ndarray
    robust: np.ndarray  # share of draws in which the image holds: 0. or 1. where nothing is random
    attack: np.ndarray
    distance: np.ndarray
    masked: np.ndarray  # the same under the naive gradient alone, or nan where not measured
    row: np.ndarray  # position of each image in adversarial.safetensors

    @property
    def under_run(self) -> bool:
        """Whether it is under the run's threat; else under one of the suite's own, and it counts in the union alone."""
        return self.summary.run_threat is None

    @property
    def by(self) -> np.ndarray:
        """The attack that broke each image, in words: of the exchange, on which model the point was found."""
        other = self.summary.suite == EXCHANGE
        return np.array([f"the point of {name}" if other and name not in ("", "clean") else name for name in self.attack.tolist()])

    def points(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """The clean image and the stored adversarial point, float32 [c, h, w] in [0, 1]."""
        row = int(self.row[position])
        with safe_open(self.folder / "adversarial.safetensors", framework="numpy") as file:
            return file.get_slice("clean")[row], file.get_slice("images")[row]

    def stored(self, name: Literal["clean", "images"]) -> np.ndarray:
        """All clean images, or all stored points, float32 [n, c, h, w], in the order of the other arrays."""
        with safe_open(self.folder / "adversarial.safetensors", framework="numpy") as file:
            return file.get_tensor(name)[self.row]


def under_run(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """The suites of a model that are under the run's threat, of which its worst case is."""
    return {suite: one for suite, one in outcomes.items() if one.under_run}


def rerun(folder: Path) -> str:
    """The command that measures this folder, `outcomes/<stage>/<name>/<suite>` or `exchanged/<stage>/<name>`, again."""
    stage, name, suite = folder.parts[-3:]
    if stage == EXCHANGED:
        return "dvc repro exchange"
    return f"dvc repro attack@{stage}/{name}-{suite}"


def read(outcomes: Path, model: str, suite: str) -> Outcome:
    """Read one outcome folder.

    Raises: Mistake naming the file that is missing, damaged, or at odds with its neighbours.
    """
    return _read(outcomes / model / suite, model, suite)


def _read(folder: Path, model: str, suite: str) -> Outcome:
    summary = opened(folder / "summary.json", _summary)
    table = opened(folder / "outcomes.csv", _rows)
    images = opened(folder / "adversarial.safetensors", _images)
    if (summary.model, summary.suite) != (model, suite):
        raise _damaged(folder / "summary.json", "describes another measurement", f"{summary.model}, {summary.suite}")
    order = np.argsort(table["image"], kind="stable")
    outcome = Outcome(folder, summary, row=order, **{name: column[order] for name, column in table.items()})
    _check(outcome, images)
    return outcome


def read_all(outcomes: Path, models: Sequence[str], suites: Sequence[str], exchanged: Path | None = None) -> dict[str, dict[str, Outcome]]:
    """model -> suite -> outcome, all of them comparable; `exchanged`, where it is there, is read as one more suite, the last.

    Raises: Mistake naming what is missing, damaged or not comparable.
    """
    everything = {model: {suite: read(outcomes, model, suite) for suite in suites} for model in models}
    if exchanged and exchanged.is_dir():
        for model in models:
            everything[model][EXCHANGE] = _read(exchanged / model, model, EXCHANGE)
    check_comparable(one for by_suite in everything.values() for one in by_suite.values())
    return everything


def check_comparable(everything: Iterable[Outcome]) -> None:
    """All outcomes of a report have one data digest, one threat model of the run and one set of images; those of a suite one threat model.

    Raises: Mistake naming each folder that differs from what most folders say.
    """
    everything = list(everything)
    for what, value in _COMPARED.items():
        _check_alike(everything, what, value)
    for suite in dict.fromkeys(one.summary.suite for one in everything):
        _check_alike([one for one in everything if one.summary.suite == suite], *_OF_SUITE)


def _check_alike(everything: Sequence[Outcome], what: str, value: Callable[[Outcome], tuple]) -> None:
    usual = Counter(map(value, everything)).most_common(1)[0][0]
    model = next(one for one in everything if value(one) == usual)
    odd = [one for one in everything if value(one) != usual]
    if odd:
        raise Mistake(*(f"{one.folder}: {what} differs from that of {model.folder} (got {_short(value(one), usual)}). "
                        f"Run `{rerun(one.folder)}`." for one in odd))  # fmt: skip


def _pair(threat: Threat) -> tuple[str, float]:
    return threat.norm, threat.eps


_COMPARED: dict[str, Callable[[Outcome], tuple]] = {
    "the data digest": lambda one: (one.summary.data_digest,),
    "the threat model": lambda one: _pair(one.summary.run_threat or one.summary.threat),
    "the set of images": lambda one: tuple(zip(one.image.tolist(), one.label.tolist(), strict=True)),
}
_OF_SUITE: tuple[str, Callable[[Outcome], tuple]] = ("the suite's threat model", lambda one: _pair(one.summary.threat))


def _short(got: tuple, usual: tuple) -> str:
    if got and isinstance(got[0], tuple):
        return f"{len(got)} images, {len(set(got) & set(usual))} of them among the other's {len(usual)}"
    return f"{' '.join(map(str, got))} against {' '.join(map(str, usual))}"


def opened(path: Path, read: Callable[[Path], T]) -> T:
    """A file of an outcome folder. Raises Mistake where it is missing or damaged."""
    if not path.is_file():
        raise Mistake(f"{path}: the file is missing. Run `{rerun(path.parent)}`.")
    try:
        return read(path)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}", str(first["input"])[:60]) from error
    except (ValueError, KeyError, csv.Error, SafetensorError, OSError) as error:
        raise _damaged(path, "the file is damaged", str(error)[:120]) from error


def _damaged(path: Path, wrong: str, got: str) -> Mistake:
    return Mistake(f"{path}: {wrong} (got {got}). Delete {path.name} and run `{rerun(path.parent)}`.")


def _summary(path: Path) -> Summary:
    written = Written.model_validate_json(content := path.read_bytes())
    files.check_format(path, written.format, FORMAT, written.basin)
    return Summary.model_validate_json(content)


def _rows(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        rows = list(reader)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing or not rows:
        raise ValueError(f"no column {', '.join(missing)}" if missing else "no rows")
    if short := next((number for number, row in enumerate(rows, 2) if None in row.values() or None in row), None):
        raise ValueError(f"line {short} has not {len(reader.fieldnames or ())} cells")
    table = {name: np.array([int(row[name]) for row in rows]) for name in ("image", "label", "clean", "adversarial")}
    return table | {
        "robust": np.array([_share(row["robust"]) for row in rows]),
        "attack": np.array([row["attack"] for row in rows]),
        "distance": np.array([float(row["distance"]) for row in rows]),
        "masked": np.array([_share(row["masked"]) if row["masked"] else math.nan for row in rows]),
    }


def _share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise ValueError(f"{text!r} where a share in [0, 1] is expected")
    return float(text)


def _images(path: Path) -> tuple[int, ...]:
    with safe_open(path, framework="numpy") as file:
        shapes = [tuple(file.get_slice(name).get_shape()) for name in ("images", "clean")]
    if shapes[0] != shapes[1] or len(shapes[0]) != 4:
        raise ValueError(f"`images` is {list(shapes[0])}, `clean` is {list(shapes[1])}, both must be [n, c, h, w]")
    return shapes[0]


def _check(outcome: Outcome, images: tuple[int, ...]) -> None:
    """The three files of a folder tell one story."""
    summary, n = outcome.summary, len(outcome.image)
    where = outcome.folder / "outcomes.csv"
    if n != summary.n or n != images[0]:
        raise _damaged(where, "rows, summary.json and adversarial.safetensors disagree", f"{n}, {summary.n} and {images[0]} images")
    if len(np.unique(outcome.image)) != n:
        raise _damaged(where, "an image occurs twice", f"{n - len(np.unique(outcome.image))} repeated")
    certain = not summary.ensemble  # nothing is drawn: one prediction an image
    shares = {"robust": outcome.robust.mean()} | ({"clean": (outcome.clean == outcome.label).mean()} if certain else {})
    for name, rows in shares.items():
        if abs(getattr(summary, name) - rows) > 0.5 / n:
            raise _damaged(where, f"{name} is not what summary.json says", f"{rows:.4f} against {getattr(summary, name):.4f}")
    if certain and ((outcome.robust > 0) & (outcome.clean != outcome.label)).any():
        raise _damaged(where, "an image counts as robust though its clean prediction is wrong", "robust 1, clean != label")
