"""`about.json` of a prepared folder: what every stage asks of the data before it loads an image, or torch."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from basin.errors import Mistake

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class About(BaseModel, frozen=True, extra="forbid", strict=True):
    """`about.json`: what was prepared. `mean` and `std` are a channel's, of the training split, on the scale of [0, 1]."""

    name: str
    kind: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # channels, height, width
    counts: dict[SplitName, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str


def load_about(folder: Path) -> About:
    """`about.json` of a prepared folder. Raises Mistake when it is absent or damaged."""
    path = folder / "about.json"
    try:
        return About.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise unusable(path, error) from error


def unusable(path: Path, why: Exception | str) -> Mistake:
    if not path.exists():
        return Mistake(f"{path}: no prepared data here. Run `dvc repro prepare`.")
    return Mistake(f"{path}: damaged, or not written by this version (got {' '.join(str(why).split())}). Run `dvc repro prepare`.")
