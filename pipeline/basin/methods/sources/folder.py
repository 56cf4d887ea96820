"""A folder of your own images: one sub-folder a class.

Either `<folder>/<class>/*.jpg`, divided by seed into train, validation and test, or `<folder>/train/<class>/*.jpg` with `test/` and `val/`
beside it, or one of them, which keeps the given splits. Classes and files are taken in the order of their names.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field

from basin import progress
from basin.config.settings import Settings
from basin.data import image_file
from basin.data.image_file import SUFFIXES
from basin.data.splits import SURROGATE, Source, Split
from basin.errors import Mistake, did_you_mean

log = logging.getLogger(__name__)

NAMED_BY = "folder"  # the key that a data set without a name is called by
Files = dict[str, list[Path]]  # a class -> its images
TEST, VALIDATION = ("test",), ("val", "validation", "valid")  # what a split's folder may be called
RESIZE = "Set data.size: [height, width] to resize all of them."
ADVICE = "Mend or remove them, or leave them out: `unreadable: leave_out` in the data table of params.yaml."
Side = Annotated[int, Field(ge=1, le=4096)]
Size = Annotated[tuple[Side, Side], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]  # YAML has lists


class Params(Settings):
    """Where the images are, and what they are brought to."""

    folder: str = Field(min_length=1, description="the folder with one sub-folder a class, or with train/ and test/ or val/ that have them")
    size: Size | None = Field(
        None, description="[height, width] in pixels to resize every image to, bilinear, proportions not kept; null: as they are"
    )
    channels: Literal[1, 3] = Field(3, description="1 (grey) or 3 (red, green, blue); images are converted, transparency is dropped")
    unreadable: Literal["refuse", "leave_out"] = Field(
        "refuse", description="what becomes of files that cannot be read as an image: refuse (all are named), or leave_out, with a warning"
    )


def read(params: Params) -> Source:
    """Decode every image. Raises Mistake naming the folder, or every file at fault."""
    train, own = _listed(params)
    decoder = Decoder(params)
    whole = decoder.split(train, tuple(train))
    test, validation = (decoder.split(own[name], tuple(train)) if name in own else None for name in (TEST, VALIDATION))
    decoder.refuse()
    return Source(whole, test, tuple(train), validation)


def sizes(params: Params) -> tuple[set[tuple[int, int]], int]:
    """The heights and widths that files' headers say, and how many files have none that can be read. Decodes nothing."""
    train, own = _listed(params)
    found, bad = set(), 0
    for path in (path for files in (train, *own.values()) for paths in files.values() for path in paths):
        try:
            with image_file.opened(str(path), path) as image:
                found.add(image_file.sides(image))
        except Mistake:
            bad += 1
    return found, bad


def _listed(params: Params) -> tuple[Files, dict[tuple[str, ...], Files]]:
    """The files of the training images, and of each split beside them."""
    root = Path(params.folder)
    if not os.path.isdir(root):  # False, where Path's own would raise, on a name that is too long
        raise Mistake(f"data.folder: no such folder (got {root}). Give the path of a folder that holds one sub-folder a class.")
    divided = (root / "train").is_dir() and bool(_folders(root / "train"))
    train = _classes(root / "train" if divided else root)
    return train, _own(root, train) if divided else {}


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


class Decoder:
    """Files to arrays, in threads: Pillow lets go of the interpreter's lock while it decodes. What cannot be is told at once."""

    def __init__(self, params: Params):
        self.params, self.read = params, 0
        self.unreadable: list[str] = []
        self.wrong: list[str] = []

    def split(self, files: Files, classes: tuple[str, ...]) -> Split:
        """The images that can be read, with their labels."""
        labelled = [(path, label) for label, name in enumerate(classes) for path in files.get(name, ())]
        images, kept = self._all([path for path, _ in labelled])
        return Split(torch.from_numpy(images), torch.tensor([labelled[position][1] for position in kept], dtype=torch.int64))

    def _all(self, paths: list[Path]) -> tuple[np.ndarray, list[int]]:
        """uint8 [n, c, h, w], and which of the paths they are of."""
        images = np.empty((0, self.params.channels, 1, 1), np.uint8)
        kept: list[int] = []
        odd: list[tuple[Path, list[int]]] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(self._decode, paths)
            for position in progress.each(range(len(paths)), self.params.folder, "images"):
                image = next(decoded)
                if image is None:
                    continue
                if not kept:
                    images = np.memmap(TemporaryFile(), np.uint8, shape=(len(paths), *image.shape))  # may be larger than memory
                if image.shape == images.shape[1:]:
                    images[len(kept)] = image
                    kept.append(position)
                else:
                    odd.append((paths[position], list(image.shape[1:])))
        if odd:
            got = f"{odd[0][1]}, and {list(images.shape[2:])} for {paths[kept[0]]}" + f"; {len(odd)} files in all" * (len(odd) > 1)
            self.wrong.append(f"{odd[0][0]}: images differ in height and width (got {got}). {RESIZE}")
        self.read += len(paths)
        return images[: len(kept)], kept

    def _decode(self, path: Path) -> np.ndarray | None:
        """One image, uint8 [c, h, w]; None, and its message kept, where that cannot be."""
        try:
            with image_file.opened(str(path), path) as image:
                return image_file.pixels(image, self.params.channels, self.params.size)
        except Mistake as mistake:
            self.unreadable += mistake.messages
            return None

    def refuse(self) -> None:
        """Raise Mistake with all that is wrong; unreadable files are a warning where params say so."""
        bad, wrong = sorted(self.unreadable), self.wrong
        if bad and self.params.unreadable == "leave_out":
            told = f"{len(bad)} of {self.read} files cannot be read and are left out"
            log.warning("%s: %s:\n%s", self.params.folder, told, "\n".join(bad))
        elif bad:
            wrong = [*wrong, *bad, f"{self.params.folder}: {len(bad)} of {self.read} files cannot be read as images. {ADVICE}"]
        if wrong:
            raise Mistake(*wrong)
