"""One .npz file of arrays, written by `numpy.savez` or `numpy.savez_compressed`.

    images       uint8, or float in [0, 1] (rounded to 1/255); [n, c, h, w] or [n, h, w]
    labels       integers [n] in 0..classes-1, each of them used unless `classes` names them
    test_images, test_labels, validation_images, validation_labels    the same, optional: splits of its own
    classes      strings [classes], optional: names; else "0", "1", ...

Nothing is unpickled.
"""

import logging
import lzma
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from basin.config.settings import Settings
from basin.data.splits import Source, Split
from basin.errors import Mistake, did_you_mean
from basin.types import Images, Labels

NAMED_BY = "file"  # the key that a data set without a name is called by
OWN = ("test", "validation")
KEYS = ("images", "labels", *(f"{split}_{key}" for split in OWN for key in ("images", "labels")), "classes")
# What damaged archives raise, and ones that claim more than there is memory for.
UNREADABLE: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, RuntimeError)
UNREADABLE += (SyntaxError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
MOST_CLASSES = 1 << 20  # a larger label is a mistake, and would be counted to
CHUNK = 4096  # images converted at a time: floats of a whole data set do not fit twice
log = logging.getLogger(__name__)


class Params(Settings):
    """Which file."""

    file: str = Field(min_length=1, description="the path of the .npz file")


def read(params: Params) -> Source:
    """Read and check the file. Raises Mistake naming the file, the key and the value at fault."""
    path = Path(params.file)
    arrays = _load(path)
    train = _split(path, arrays, "images", "labels")
    own = {
        split: _split(path, arrays, f"{split}_images", f"{split}_labels") for split in OWN if any(key.startswith(split) for key in arrays)
    }
    classes, gap = _classes(path, arrays)
    if gap:
        raise Mistake(gap)
    for split, part in own.items():
        if part.shape != train.shape:
            shapes = f"{list(part.shape)} and {list(train.shape)}"
            raise Mistake(f"{path}: {split}_images: another shape than images (got {shapes}). Bring them to one shape.")
    return Source(train, own.get("test"), classes, own.get("validation"))


def exact(params: Params) -> tuple[Images, Labels]:
    """The images of the test split, or of the file where it has none, as float32 in [0, 1] with no float rounded to 1/255; their labels.

    All labels of the file are checked. A class between others that no image has is a warning: these may be some of a model's classes.
    """
    path = Path(params.file)
    arrays = _load(path)
    prefix = "test_" if "test_images" in arrays else ""
    images, labels = _pair(path, arrays, f"{prefix}images", f"{prefix}labels")
    _, gap = _classes(path, arrays)
    if gap:
        log.warning(gap)
    floats = torch.from_numpy(images.astype(np.float32, copy=False))  # whatever byte order and width it had
    return floats.div_(255) if images.dtype == np.uint8 else floats, torch.from_numpy(labels)


def _load(path: Path) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):  # False, where Path's own would raise, on a name that is too long
        raise Mistake(f"data.file: no such file (got {path}). Give the path of an .npz file with {', '.join(KEYS[:2])}.")
    arrays, key = {}, ""
    try:
        with np.load(path, allow_pickle=False) as file:
            _check_size(path, sum(one.file_size for one in file.zip.infolist()))
            for key in file.files:
                if key not in KEYS:
                    raise Mistake(f"{path}: unknown key (got '{key}'). {did_you_mean(key, KEYS)}")
                if not isinstance(array := file[key], np.ndarray):
                    raise ValueError("other bytes than numpy writes")
                arrays[key] = array
    except UNREADABLE as error:
        where = f"{path}: {key}" if key else str(path)
        raise Mistake(f"{where}: not a readable array (got {error}). Write plain arrays with numpy.savez; nothing is unpickled.") from error
    return arrays


def _check_size(path: Path, unpacked: int) -> None:
    """A few megabytes of zeros, packed, are all the memory that there is."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if unpacked > most:
        raise Mistake(
            f"{path}: unpacks to more than this machine's memory (got {unpacked:,} of {most:,} bytes). Write fewer images into it."
        )


def _split(path: Path, arrays: dict[str, np.ndarray], images_key: str, labels_key: str) -> Split:
    images, labels = _pair(path, arrays, images_key, labels_key)
    return Split(torch.from_numpy(images if images.dtype == np.uint8 else _quantised(images)), torch.from_numpy(labels))


def _pair(path: Path, arrays: dict[str, np.ndarray], images_key: str, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 or floating, [n, c, h, w], and labels, int64 [n]."""
    for key in (images_key, labels_key):
        if key not in arrays:
            raise Mistake(f"{path}: {key}: absent (got keys {', '.join(arrays) or 'none'}). Add it with numpy.savez.")
    images, labels = _images(f"{path}: {images_key}", arrays.pop(images_key)), _labels(f"{path}: {labels_key}", arrays[labels_key])
    if len(images) != len(labels):
        raise Mistake(f"{path}: {labels_key}: one label an image is needed (got {len(labels)} for {len(images)}). Mend {labels_key}.")
    return images, labels


def _images(where: str, images: np.ndarray) -> np.ndarray:
    """uint8, or floating in [0, 1]; [n, c, h, w]."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise Mistake(f"{where}: needs shape [n, c, h, w] or [n, h, w], none of them 0 (got {list(images.shape)}). Reshape the array.")
    if images.ndim == 3:
        images = images[:, None]
    if images.shape[1] not in (1, 3) and (images.shape[3] in (1, 3) or images.shape[3] in (2, 4) and images.shape[1] > 4):
        opaque = "" if images.shape[3] in (1, 3) else "[..., :-1]"  # without the transparency
        raise Mistake(f"{where}: channels come last (got {list(images.shape)}). Store images{opaque}.transpose(0, 3, 1, 2).")
    if images.dtype == np.uint8:
        if images.max() <= 1:
            raise Mistake(f"{where}: uint8 means 0..255 (got a maximum of {images.max()}). Multiply by 255, or store floats in [0, 1].")
        return np.ascontiguousarray(images)
    if images.dtype.kind != "f":
        advice = "images.astype('float32')" if images.dtype.kind == "b" else "images.astype('uint8') if they are 0..255"
        raise Mistake(f"{where}: needs uint8, or float in [0, 1] (got {images.dtype}). Store {advice}.")
    low, high = images.min(), images.max()  # NaN wins in both
    if not (low >= 0 and high <= 1):
        value = low if not low >= 0 else high
        advice = "Remove the images that hold NaN" if np.isnan(value) else "Scale them to [0, 1], or store uint8 in 0..255"
        raise Mistake(f"{where}: float images must be in [0, 1] (got {value}). {advice}.")
    return np.ascontiguousarray(images)


def _quantised(images: np.ndarray) -> np.ndarray:
    pixels = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), CHUNK):
        pixels[start : start + CHUNK] = np.rint(images[start : start + CHUNK].astype(np.float32) * 255)
    return pixels


def _labels(where: str, labels: np.ndarray) -> np.ndarray:
    """int64 [n]."""
    if labels.ndim != 1:
        advice = "labels.argmax(1) if they are one-hot" if labels.ndim == 2 and labels.shape[1] > 1 else "labels.ravel()"
        raise Mistake(f"{where}: needs shape [n] (got {list(labels.shape)}). Store {advice}.")
    if labels.dtype.kind not in "iu":
        advice = (
            "np.unique(labels, return_inverse=True)[1], and the names in `classes`"
            if labels.dtype.kind in "US"
            else "labels.astype('int64')"
        )
        raise Mistake(f"{where}: needs an integer dtype (got {labels.dtype}). Store {advice}.")
    if labels.size and (labels.min() < 0 or labels.max() >= MOST_CLASSES):
        value = labels.min() if labels.min() < 0 else labels.max()
        raise Mistake(f"{where}: labels count from 0 to the number of classes (got {value}). Number the classes 0, 1, 2, ...")
    return labels.astype(np.int64)


def _classes(path: Path, arrays: dict[str, np.ndarray]) -> tuple[tuple[str, ...], str]:
    """The names of the classes; and, where they are but numbers, a sentence on those that no label of the file has, else ""."""
    labels = {key: _labels(f"{path}: {key}", arrays[key]) for key in KEYS if key.endswith("labels") and key in arrays}
    used, known = np.unique(np.concatenate([*labels.values()])), _names(path, arrays)
    classes = known or tuple(map(str, range(next(iter(labels.values())).max(initial=-1) + 1)))
    if used[0] == 1 and (not known or used[-1] >= len(known)):
        raise Mistake(
            f"{path}: labels: count from 1 (got {used[0]}..{used[-1]}, none is 0). Store labels - 1, or, "
            f"if class 0 has no image here, the names of all {used[-1] + 1} classes in `classes`."
        )
    for key, values in labels.items():
        if values.size and values.max() >= len(classes):
            raise Mistake(f"{path}: {key}: labels must be in 0..{len(classes) - 1} (got {values.max()}). Renumber or name the classes.")
    return classes, "" if known else _gap(path, len(classes), used)


def _gap(path: Path, classes: int, used: np.ndarray) -> str:
    absent = np.setdiff1d(np.arange(classes), used)
    if not absent.size:
        return ""
    few = ", ".join(map(str, absent[:3])) + (", ..." if absent.size > 3 else "")
    return (
        f"{path}: labels: {absent.size} of the classes 0..{classes - 1} have no image (got none of {few}). "
        "Number the classes without gaps, or name all of them in `classes`."
    )


def _names(path: Path, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    """Those of `classes`, none where it is absent."""
    names = arrays.get("classes", np.array([], str))
    if names.ndim != 1 or names.dtype.kind != "U":
        raise Mistake(
            f"{path}: classes: needs strings [classes] (got {names.dtype} {list(names.shape)}). Store numpy.array(names, dtype=str)."
        )
    try:
        return tuple(map(str, names))
    except (SystemError, ValueError) as error:  # a number that is no character's
        raise Mistake(f"{path}: classes: not text (got {error}). Store numpy.array(names, dtype=str).") from error
