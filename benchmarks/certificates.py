"""What no L2 attack can break, by a model's own Lipschitz constant and by randomised smoothing of the same model.

    python -m benchmarks.certificates RUN/models/STAGE/NAME ... [--radii 0.25,0.5,1] [--sigma 0.25] [--draws 1000] [--images 1000]
        [--seed 0] [--folder docs/results]

A radius of smoothing is of the smoothed function, and sure to 99.9% an image; one by the Lipschitz constant is of the model itself, and
certain. Writes docs/results/certificates.md and .csv as it goes.
"""

import argparse
import logging
import platform
import textwrap
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from basin.config import params
from basin.data.splits import load_split
from basin.evaluation import certificate, smoothing
from basin.evaluation.interval import wilson
from basin.models import artifact
from basin.models.lipschitz import lipschitz
from basin.randomness import generator
from benchmarks import as_command, write_csv

log = logging.getLogger(__name__)
BATCH = 1024
FIELDS = ("model", "data", "n", "by", "lipschitz", "clean", "radius", "certified", "low", "high", "seconds")


def rows(place: Path, radii: Sequence[float], sigma: float, draws: int, images: int, seed: int) -> list[dict[str, Any]]:
    """A row a way to certify and a radius; `clean`: the share that the certified function reads rightly with any radius at all."""
    run = place.parents[2]
    test = load_split(run / "data/prepared", "test")
    x, y = test.floats(slice(0, images)), test.labels[:images]
    model, name = artifact.load(place).requires_grad_(False), f"{place.parent.name}/{place.name}"
    about = {"model": name, "data": params.load(run / "params.yaml").source.kind, "n": len(y), "lipschitz": lipschitz(model)}
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


def page(table: list[dict[str, Any]], command: str) -> str:
    about = (
        f"Made by `{command}`, torch {version('torch')}, Python {platform.python_version()}, {platform.machine()}, one thread. Shares in % "
        "of the images, with their 95% Wilson interval; radii in L2, on pixels in [0, 1]. *L*: the bound of the model's Lipschitz constant "
        "before its last layer. *read*: what the certified function reads rightly with a radius above 0. Smoothing certifies another "
        "function than the model, with 99.9% confidence an image (Cohen et al. 2019, arXiv 1902.02918); the Lipschitz constant the model "
        "itself, with certainty ([evaluation](../evaluation.md#certificates))."
    )
    head = "| model | L | by | read | radius | certified | seconds |"
    return (
        "\n".join(["# Certified radii", "", textwrap.fill(about, 140), "", head, "|---|---|---|---|---|---|---|", *map(_line, table)])
        + "\n"
    )


def _line(row: dict[str, Any]) -> str:
    certified = f"{100 * row['certified']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    L = "" if row["lipschitz"] is None else f"{row['lipschitz']:.3g}"
    model = f"{row['model']}, {row['data']}, n = {row['n']}"
    return f"| {model} | {L} | {row['by']} | {100 * row['clean']:.1f} | {row['radius']:g} | {certified} | {row['seconds']} |"


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
    words = f"--radii {asked.radii} --sigma {asked.sigma:g} --draws {asked.draws} --images {asked.images} --seed {asked.seed}"
    command = f"python -m benchmarks.certificates MODEL ... {words}"
    table: list[dict[str, Any]] = []
    for place in asked.models:
        new = rows(place.resolve(), [*map(float, asked.radii.split(","))], asked.sigma, asked.draws, asked.images, asked.seed)
        log.info("%s", "\n".join(map(_line, new)))
        table += new
        write_csv(asked.folder / "certificates.csv", FIELDS, table)
        (asked.folder / "certificates.md").write_text(page(table, command), encoding="utf-8")


if __name__ == "__main__":
    as_command(main)
