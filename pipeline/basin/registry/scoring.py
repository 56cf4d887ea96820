"""`basin score`: the class of every image file under a folder, as CSV. A file that cannot be read is a row with its problem."""

import csv
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from basin import progress
from basin.data.image_file import SUFFIXES
from basin.errors import Mistake
from basin.evaluation import outside
from basin.files import write
from basin.models.classifier import Classifier
from basin.registry.serving import Asked, answer, decode

FIELDS = ("file", "class", "probability", "problem")
BATCH = 256  # images in one pass
log = logging.getLogger(__name__)


def run(target: str, folder: Path, table: Path, resize: bool, registered: Callable[[str], outside.Models]) -> tuple[int, int]:
    """`basin score`: how many files, and how many of them had a problem. TARGET is a version or a model folder."""
    model, _ = outside.models(target, registered)
    if not isinstance(model, Classifier):
        raise Mistake(f"TARGET: does not say what its classes are (got {target!r}). Give models:/NAME@ALIAS or a model folder.")
    return score(model, folder, model.recipe["shape"], model.recipe["classes"], table, resize)


def score(
    model: nn.Module, folder: Path, shape: Sequence[int], classes: Sequence[str], table: Path, resize: bool = False
) -> tuple[int, int]:
    """Write file, class, probability and problem of every image file under a folder, in the order of their names.

    A file that cannot be read is a row with its problem and no class. How many files, and how many had a problem. Raises Mistake where
    there is nothing to read.
    """
    if not folder.is_dir():
        raise Mistake(f"FOLDER: no such folder (got {str(folder)!r}). Give a folder of images.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise Mistake(f"{folder}: no image files (got none of {', '.join(sorted(SUFFIXES))}). Give a folder that has some.")
    problems, written = 0, io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(FIELDS)
    with progress.work("score", len(files), "images") as work:
        for at in range(0, len(files), BATCH):
            batch = files[at : at + BATCH]
            for path, row in zip(batch, _rows(model, batch, shape, classes, resize), strict=True):
                problems += bool(row[-1])
                rows.writerow([path.relative_to(folder), *row])
            work.done += len(batch)
    write(table, written.getvalue().encode(errors="backslashreplace").decode())  # a file name need not be UTF-8
    return len(files), problems


def _rows(model: nn.Module, files: Sequence[Path], shape: Sequence[int], classes: Sequence[str], resize: bool) -> Iterator[tuple]:
    read = [_tried(path, shape, resize) for path in files]
    images = [one for one in read if isinstance(one, np.ndarray)]
    found = iter(answer(model, torch.from_numpy(np.stack(images)), Asked(output="probabilities")).tolist() if images else ())
    for one in read:
        if isinstance(one, np.ndarray):
            share = next(found)
            best = max(range(len(share)), key=share.__getitem__)
            yield classes[best], f"{share[best]:.6f}", ""
        else:
            yield "", "", one


def _tried(path: Path, shape: Sequence[int], resize: bool) -> np.ndarray | str:
    """The image, or what is wrong with it."""
    try:
        return decode(path, shape, resize)
    except Mistake as mistake:
        log.warning("%s: %s", path, mistake)
        return str(mistake)
