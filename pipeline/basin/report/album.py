"""Every attacked image: what each model reads in it, by which attack it fell, and its pictures; for the page's script to leaf through.

Pictures travel as sheets, one of the clean images and one a model, so that thousands of them are a handful of PNGs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from basin.report.outcomes import Outcome
from basin.report.pictures import LARGEST, averaged, of_strongest, png, strongest
from basin.report.table import ByModel, held

MOST = 16_000_000  # channel values in all sheets; beyond it images are averaged down


@dataclass(frozen=True)
class Album:
    sheets: list[str]  # PNGs as data URIs: the clean images, then the stored points of each model
    about: dict[str, Any]  # what the script reads


def album(everything: ByModel) -> Album:
    """Of a run whose models were attacked on the same images."""
    first = next(iter(next(iter(everything.values())).values()))
    clean, attacked = first.stored("clean"), [points(outcomes) for outcomes in everything.values()]
    block = _block(clean.shape, 1 + len(attacked))
    sheets = [averaged(images, block) for images in (clean, *attacked)]
    columns = int(np.ceil(np.sqrt(len(clean))))
    about = {
        "side": list(sheets[0].shape[:1:-1]), "columns": columns, "classes": first.summary.classes or [],
        "image": first.image.tolist(), "label": first.label.tolist(),
        "models": [{"name": model} | _fates(outcomes) for model, outcomes in everything.items()],
    }  # fmt: skip
    return Album([png(_sheet(images, columns)) for images in sheets], about)


def points(outcomes: Mapping[str, Outcome]) -> np.ndarray:
    """float32 [n, c, h, w]: the stored point of each image's strongest suite."""
    chosen = strongest(outcomes)
    found = np.empty_like(next(iter(outcomes.values())).stored("images"))
    for which, one in enumerate(outcomes.values()):
        if (here := chosen == which).any():
            found[here] = one.stored("images")[here]
    return found


def _fates(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    names, attack = np.unique(of_strongest(outcomes, "by"), return_inverse=True)
    return {
        "clean": next(iter(outcomes.values())).clean.tolist(),
        "read": of_strongest(outcomes, "adversarial").tolist(),
        "held": [int(share) if share in (0, 1) else round(share, 3) for share in held(outcomes).tolist()],
        "attacks": names.tolist(), "attack": attack.tolist(),
        "distance": [float(f"{distance:.3g}") for distance in of_strongest(outcomes, "distance").tolist()],
    }  # fmt: skip


def _block(shape: tuple[int, ...], sheets: int) -> int:
    """Pixels a side that are averaged into one, so that no image is above LARGEST and all sheets below MOST."""
    block = -(-max(shape[2:]) // LARGEST)
    while np.prod(shape[:2]) * (shape[2] // block) * (shape[3] // block) * sheets > MOST and block < min(shape[2:]):
        block += 1
    return block


def _sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """float [n, c, h, w] as one image [c, rows h, columns w]."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    tiles = np.zeros((rows * columns, c, h, w), images.dtype)
    tiles[:n] = images
    return tiles.reshape(rows, columns, c, h, w).transpose(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
