"""One run of several seeds: every model beside one of them, over images and seeds.

    python -m benchmarks.seeds [RUN ...] --against adversarial/pgd --name PAGE [--folder docs/results]

RUN: folders of finished runs that differ in `seed` alone. PAGE.images.csv, image by image, takes them to what it holds of earlier ones, so
that a seed may be run anywhere, and the table is of all of it. The interval of a difference is that of the pigeonhole bootstrap (Owen 2007,
arXiv 0712.0111): images and seeds are drawn anew, both at once. It is a little too wide, and with three seeds it knows little of seeds.
Puts the table in the place of the first one of docs/results/PAGE.md, and writes PAGE.csv.
"""

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from basin.config import params
from basin.errors import Mistake
from basin.report import outcomes
from basin.report.table import held
from benchmarks import as_command, write_csv
from benchmarks.methods import put

DRAWS = 10_000
FIELDS = ("model", "against", "seeds", "images", "clean", "worst_case", "low", "high", "minus", "minus_low", "minus_high", "clean_minus")
Held = Mapping[int, float]  # image -> the share of draws in which it holds


@dataclass(frozen=True)
class Measured:
    """A model of one seed."""

    clean: Held
    worst: Held


def read(run: Path) -> tuple[int, dict[str, Measured]]:
    """A run's seed, and its attacked models."""
    asked = params.load(run / "params.yaml")
    everything = outcomes.read_all(run / "outcomes", asked.attack.models, asked.attack.suites, run / outcomes.EXCHANGED)
    return asked.seed, {model: _measured(suites) for model, suites in everything.items()}


def _measured(suites: Mapping[str, Any]) -> Measured:
    first = next(iter(suites.values()))
    images = first.image.tolist()
    read_rightly = (first.clean == first.label).astype(float)
    return Measured(dict(zip(images, read_rightly.tolist())), dict(zip(images, held(suites).tolist())))


def load(place: Path) -> dict[int, dict[str, Measured]]:
    """Seed -> model -> what `save` wrote; nothing where there is no file."""
    seeds: dict[int, dict[str, Measured]] = {}
    for row in csv.DictReader(place.read_text(encoding="utf-8").splitlines()) if place.exists() else []:
        seed, image = int(row.pop("seed")), int(row.pop("image"))
        for cell, share in row.items():
            if share:
                model, column = cell.split(" ")
                measured = seeds.setdefault(seed, {}).setdefault(model, Measured({}, {}))
                getattr(measured, column)[image] = float(share)  # type: ignore[index]
    return seeds


def save(seeds: Mapping[int, Mapping[str, Measured]], place: Path) -> None:
    """A row a seed and an image; of each model two columns, of 1 where it reads the image rightly (`clean`), where it holds (`worst`)."""
    models = dict.fromkeys(model for run in seeds.values() for model in run)
    columns, table = [(model, column) for model in models for column in ("clean", "worst")], []
    for seed, run in sorted(seeds.items()):
        for image in sorted({image for one in run.values() for image in one.clean}):
            cells = {f"{m} {column}": getattr(run[m], column)[image] for m, column in columns if m in run and image in run[m].clean}
            table.append({"seed": seed, "image": image} | {name: f"{share:.4g}" for name, share in cells.items()})
    write_csv(place, ["seed", "image", *(f"{model} {column}" for model, column in columns)], table)


def held_by(one: Sequence[Held], other: Sequence[Held] | None = None) -> np.ndarray:
    """[seeds, images]: what is held, less what `other` holds; nan where a seed has not drawn the image."""
    values = np.full((len(one), 1 + max(max(now) for now in one)), np.nan)
    for row, now in enumerate(one):
        theirs = other[row] if other else dict.fromkeys(now, 0.0)
        for image in now.keys() & theirs.keys():
            values[row, image] = now[image] - theirs[image]
    return values[:, ~np.isnan(values).all(0)]


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Of 95%, of the mean over seeds and images."""
    there, filled = (~np.isnan(values)).astype(float), np.nan_to_num(values)
    draw, (seeds, images) = np.random.default_rng(seed), values.shape
    by_seed = draw.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS)
    means = np.empty(DRAWS)
    for i in range(DRAWS):
        weights = np.bincount(draw.integers(0, images, images), minlength=images)
        means[i] = by_seed[i] @ filled @ weights / max(by_seed[i] @ there @ weights, 1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def rows(runs: Sequence[Mapping[str, Measured]], against: str) -> Iterator[dict[str, Any]]:
    """A row a model, of the seeds that have it, highest worst case first."""
    if missing := [run for run in runs if against not in run]:
        raise Mistake(f"--against: not attacked in all runs (got {against!r}). Known: {', '.join(missing[0])}.")
    found = []
    for model in dict.fromkeys(model for run in runs for model in run):
        pairs = [(run[model], run[against]) for run in runs if model in run]
        clean, worst = [one.clean for one, _ in pairs], [one.worst for one, _ in pairs]
        low, high = interval(values := held_by(worst))
        numbers = {"seeds": len(pairs), "images": len(worst[0]), "clean": _mean(held_by(clean)), "worst_case": _mean(values)}
        row = {"model": model, "against": against} | numbers | {"low": low, "high": high}
        if model != against:
            low, high = interval(values := held_by(worst, [other.worst for _, other in pairs]))
            clean_minus = _mean(held_by(clean, [other.clean for _, other in pairs]))
            row |= {"minus": _mean(values), "minus_low": low, "minus_high": high, "clean_minus": clean_minus}
        found.append(row)
    yield from sorted(found, key=lambda row: -row["worst_case"])


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values))


def page(table: Sequence[Mapping[str, Any]]) -> str:
    """Accuracies in %, with 95% intervals."""
    names = f"| model | clean | worst case | minus {table[0]['against']} | and of its clean accuracy | seeds | n a seed |"
    return "\n".join([names, "|---|---|---|---|---|---|---|", *map(_line, table)]) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    def shown(name: str, sign: str = "") -> str:
        return f"{100 * row[name]:{sign}.1f}" if name in row else ""

    minus = f"{shown('minus', '+')} [{shown('minus_low', '+')}, {shown('minus_high', '+')}]" if "minus" in row else ""
    worst = f"{shown('worst_case')} [{shown('low')}, {shown('high')}]"
    cells = (row["model"], shown("clean"), worst, minus, shown("clean_minus", "+"), row["seeds"], row["images"])
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished runs")
    parser.add_argument("--against", required=True, help="the model that the others are compared with")
    parser.add_argument("--name", required=True, help="of the page in the folder")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    place = asked.folder / f"{asked.name}.md"
    seeds = load(images := place.with_suffix(".images.csv"))
    for seed, models in map(read, asked.runs):
        seeds.setdefault(seed, {}).update(models)
    if not seeds:
        raise Mistake(f"RUN: nothing is measured (got none, and there is no {images}). Give folders of finished runs.")
    table = list(rows([*seeds.values()], asked.against))
    put(page(table), place)
    write_csv(place.with_suffix(".csv"), FIELDS, table)
    save(seeds, images)


if __name__ == "__main__":
    as_command(main)
