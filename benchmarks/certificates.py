"""What no L2 attack can break, by a model's own Lipschitz constant and by randomised smoothing of the same model.

    python -m benchmarks.certificates RUN/models/STAGE/NAME ... [--radii 0.25,0.5,1] [--sigma 0.25] [--draws 1000] [--images 1000]
        [--seed 0] [--folder docs/results]

A radius of smoothing is of the smoothed function, and sure to 99.9% an image; one by the Lipschitz constant is of the model itself, and
certain. Puts the table in the place of the first one of docs/results/certificates.md, and writes certificates.csv, as it goes: of what that
holds already, a model and a seed that are measured again give way, the others stay.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from basin.config import params
from basin.data.splits import load_split
from basin.errors import Mistake
from basin.evaluation import certificate, smoothing
from basin.evaluation.interval import wilson
from basin.models import artifact
from basin.models.lipschitz import lipschitz
from basin.randomness import generator
from benchmarks import as_command, read_csv, write_csv
from benchmarks.methods import put

BATCH = 1024
FIELDS = ("model", "seed", "data", "n", "by", "lipschitz", "clean", "radius", "certified", "low", "high", "seconds")


def rows(place: Path, radii: Sequence[float], sigma: float, draws: int, images: int, seed: int) -> list[dict[str, Any]]:
    """A row a way to certify and a radius; `clean`: the share that the certified function reads rightly with any radius at all."""
    run = place.parents[2]
    test = load_split(run / "data/prepared", "test")
    x, y = test.floats(slice(0, images)), test.labels[:images]
    model, name = artifact.load(place).requires_grad_(False), f"{place.parent.name}/{place.name}"
    asked = params.load(run / "params.yaml")
    about = {"model": name, "seed": asked.seed, "data": asked.source.kind, "n": len(y), "lipschitz": lipschitz(model)}
    found: dict[str, tuple[Tensor | None, float]] = {}
    began = time.process_time()
    found["Lipschitz"] = certificate.radii(model, x, y, BATCH), time.process_time() - began
    began = time.process_time()
    smoothed = smoothing.radii(model, x, y, sigma, draws, generator(seed, "certificates", name), batch=BATCH)
    found[f"smoothing, sigma {sigma:g}, {draws} draws"] = smoothed, time.process_time() - began
    return [about | _row(by, one, radius, seconds) for by, (one, seconds) in found.items() if one is not None for radius in radii]


def _row(by: str, found: Tensor, radius: float, seconds: float) -> dict[str, Any]:
    held, clean = int((found >= radius).sum()), int((found > 0).sum())
    low, high = wilson(held, len(found))
    shares = {"clean": clean / len(found), "radius": radius, "certified": held / len(found), "low": low, "high": high}
    return {"by": by, "seconds": round(seconds, 1)} | shares


def load(place: Path, radii: Sequence[float]) -> list[dict[str, Any]]:
    """The rows of earlier calls. Raises Mistake where they are of other radii."""
    table = read_csv(place)
    if table and (known := list(dict.fromkeys(row["radius"] for row in table))) != list(radii):
        raise Mistake(f"--radii: {place} has others (got {list(radii)}, there are {known}). Give the same, or move that file.")
    return table


def _of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["seed"], row["data"]


def page(table: Sequence[Mapping[str, Any]]) -> str:
    """A line a model and a way to certify, a column a radius; shares in %, with their 95% intervals."""
    radii = list(dict.fromkeys(row["radius"] for row in table))
    heading = ["model", "seed", "L", "by", "read", *(f"certified at {radius:g}" for radius in radii), "n", "seconds"]
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    return "\n".join(lines + [_line(table[i : i + len(radii)]) for i in range(0, len(table), len(radii))]) + "\n"


def _line(of: Sequence[Mapping[str, Any]]) -> str:
    """The rows of one model and one way, a radius each."""
    row = of[0]
    certified = [f"{100 * one['certified']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]" for one in of]
    L = "" if row["lipschitz"] is None else f"{row['lipschitz']:.3g}"
    cells = [row["model"], str(row["seed"]), L, row["by"], f"{100 * row['clean']:.1f}", *certified, str(row["n"]), str(row["seconds"])]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.certificates", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="model folders of runs: RUN/models/STAGE/NAME")
    parser.add_argument("--radii", default="0.25,0.5,1")
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    radii = [*map(float, asked.radii.split(","))]
    table = load(asked.folder / "certificates.csv", radii)
    for place in asked.models:
        found = rows(place.resolve(), radii, asked.sigma, asked.draws, asked.images, asked.seed)
        table = [row for row in table if _of(row) != _of(found[0])] + found
        put(page(table), asked.folder / "certificates.md")
        write_csv(asked.folder / "certificates.csv", FIELDS, table)


if __name__ == "__main__":
    as_command(main)
