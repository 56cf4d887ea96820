"""A folder of your own images: one sub-folder a class.

Either `<folder>/<class>/*.jpg`, divided by seed into train, validation and test, or `<folder>/train/<class>/*.jpg` with `test/` and `val/`
beside it, or one of them, which keeps the given splits. Classes and files are taken in the order of their names.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from tqdm import tqdm

from basin.config.settings import Settings
from basin.data import image_file
from basin.data.image_file import SUFFIXES
from basin.data.splits import SURROGATE, Source, Split
from basin.errors import Mistake, did_you_mean

log = logging.getLogger(__name__)

Files = dict[str, list[Path]]  # a class -> its images
TEST, VALIDATION = ("test",), ("val", "validation", "valid")  # what a split's folder may be called
Side = Annotated[int, Field(ge=1, le=4096)]
Size = Annotated[tuple[Side, Side], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]  # YAML has lists


class Params(Settings):
    """Where the images are, and what they are brought to."""

    folder: str = Field(min_length=1, description="the folder with one sub-folder a class, or with train/ and test/ or val/ that have them")
    size: Size | None = Field(
        None, description="[height, width] in pixels to resize every image to, bilinear, proportions not kept; null: as they are"
    )
    channels: Literal[1, 3] = Field(3, description="1 (grey) or 3 (red, green, blue); images are converted, transparency is dropped")


def read(params: Params) -> Source:
    """Decode every image. Raises Mistake naming the folder or the file at fault."""
    root = Path(params.folder)
    if not os.path.isdir(root):  # False, where Path's own would raise, on a name that is too long
        raise Mistake(f"data.folder: no such folder (got {root}). Give the path of a folder that holds one sub-folder a class.")
    divided = (root / "train").is_dir() and bool(_folders(root / "train"))
    train = _classes(root / "train" if divided else root)
    own = _own(root, train) if divided else {}
    classes = tuple(train)
    test, validation = (_split(own[name], classes, params) if name in own else None for name in (TEST, VALIDATION))
    return Source(_split(train, classes, params), test, classes, validation)


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if os.path.isdir(path)]


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, in the order of names, hidden entries left out. Raises Mistake on a name that is no text, or a dead link."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise Mistake(f"{folder}: cannot be listed (got {error.strerror}). Mend its permissions.") from error
    for path in entries:
        if SURROGATE.search(path.name):
            raise Mistake(f"{folder}: a name in it is not UTF-8 (got {os.fsencode(path.name)!r}). Rename it.")
        if path.is_symlink() and not os.path.exists(path):
            raise Mistake(f"{path}: a link to nothing (got {os.readlink(path)!r}). Bring back what it names, or remove it.")
    return entries


def _classes(folder: Path) -> Files:
    """Class name -> its image files; every class has some."""
    classes = {path.name: _images(path) for path in _folders(folder)}
    empty = [name for name, files in classes.items() if not files]
    if empty or not classes:
        where = folder / empty[0] if empty else folder
        what = "no image files directly inside" if empty else "no sub-folders"
        raise Mistake(f"{where}: {what}. Lay images out as {folder}/<class>/<image>.png (read: {', '.join(sorted(SUFFIXES))}).")
    return classes


def _images(folder: Path) -> list[Path]:
    """The regular files with an image's suffix, or links to such: opening a pipe would wait for ever."""
    entries = _entries(folder)
    named = [path for path in entries if path.suffix.lower() in SUFFIXES]
    images = [path for path in named if os.path.isfile(path)]
    if len(named) < len(entries):
        log.warning("%s: %d entries that are not image files are left out", folder, len(entries) - len(named))
    if others := sorted({*named} - {*images}):
        log.warning("%s: left out, as they are no files: %s", folder, ", ".join(path.name for path in others))
    return images


def _own(root: Path, train: Files) -> dict[tuple[str, ...], Files]:
    """The classes of each split beside `<root>/train`."""
    others = [path.name for path in _folders(root) if path.name not in ("train", *TEST, *VALIDATION)]
    if others:
        raise Mistake(
            f"{root}: a folder beside train/, test/ and val/ would go unread (got '{others[0]}'). "
            "Merge it into one of them, or move it away."
        )
    own: dict[tuple[str, ...], Files] = {}
    for names in (TEST, VALIDATION):
        there = [root / name for name in names if (root / name).is_dir()]
        if len(there) > 1:
            raise Mistake(f"{root}: two folders for one split (got {there[0].name}/ and {there[1].name}/). Merge them.")
        if there:
            own[names] = _classes(there[0])
            _check_classes(there[0], own[names], train)
    return own


def _check_classes(folder: Path, classes: Files, train: Files) -> None:
    for name in classes:
        if name not in train:
            raise Mistake(f"{folder / name}: a class that train/ does not have (got '{name}'). {did_you_mean(name, train)}")


def _split(files: Files, classes: tuple[str, ...], params: Params) -> Split:
    labelled = [(path, label) for label, name in enumerate(classes) for path in files.get(name, ())]
    images = _decode_all([path for path, _ in labelled], params)
    return Split(torch.from_numpy(images), torch.tensor([label for _, label in labelled]))


def _decode_all(paths: list[Path], params: Params) -> np.ndarray:
    """uint8 [n, c, h, w], in threads: Pillow lets go of the interpreter's lock while it decodes."""
    first = _decode(paths[0], params)
    images = np.empty((len(paths), *first.shape), np.uint8)

    def fill(position: int) -> None:
        image = _decode(paths[position], params)
        if image.shape != first.shape:
            raise Mistake(
                f"{paths[position]}: images differ in height and width (got {list(image.shape[1:])}, "
                f"and {list(first.shape[1:])} for {paths[0]}). Set data.size: [height, width] to resize all of them."
            )
        images[position] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(fill, range(len(paths))), total=len(paths), desc="images", unit="image", delay=2):
            pass
    return images


def _decode(path: Path, params: Params) -> np.ndarray:
    """One image, uint8 [c, h, w]."""
    with image_file.opened(str(path), path) as image:
        return image_file.pixels(image, params.channels, params.size)
