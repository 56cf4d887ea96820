"""One .npz file of arrays, written by `numpy.savez` or `numpy.savez_compressed`.

    images       uint8, or float in [0, 1] (rounded to 1/255); [n, c, h, w] or [n, h, w]
    labels       integers [n] in 0..classes-1
    test_images, test_labels    the same, optional: a test split of its own
    classes      strings [classes], optional: names; else "0", "1", ...

Nothing is unpickled.
"""

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

KEYS = ("images", "labels", "test_images", "test_labels", "classes")
UNREADABLE = (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # what damaged archives raise
MOST_CLASSES = 1 << 20  # a larger label is a mistake, and would be counted to
CHUNK = 4096  # images converted at a time: floats of a whole data set do not fit twice


class Params(Settings):
    """Which file."""

    file: str = Field(min_length=1, description="the path of the .npz file")


def read(params: Params) -> Source:
    """Read and check the file. Raises Mistake naming the file, the key and the value at fault."""
    path = Path(params.file)
    arrays = _load(path)
    train = _split(path, arrays, "images", "labels")
    test = _split(path, arrays, "test_images", "test_labels") if {"test_images", "test_labels"} & set(arrays) else None
    classes = _classes(path, arrays, int(train.labels.max()))
    for key, split in (("labels", train), ("test_labels", test)):
        if split and split.labels.max() >= len(classes):
            raise Mistake(
                f"{path}: {key}: labels must be in 0..{len(classes) - 1} (got {split.labels.max()}). Renumber or name the classes."
            )
    if test and test.shape != train.shape:
        shapes = f"{list(test.shape)} and {list(train.shape)}"
        raise Mistake(f"{path}: test_images: another shape than images (got {shapes}). Bring them to one shape.")
    return Source(train, test, classes)


def exact(params: Params) -> tuple[Images, Labels]:
    """The images of the test split, or of the file where it has none, as float32 in [0, 1] with no float rounded; and their labels."""
    path = Path(params.file)
    arrays = _load(path)
    prefix = "test_" if "test_images" in arrays else ""
    images, labels = _pair(path, arrays, f"{prefix}images", f"{prefix}labels")
    floats = torch.from_numpy(images).float()
    return floats.div_(255) if images.dtype == np.uint8 else floats, torch.from_numpy(labels)


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise Mistake(f"data.file: no such file (got {path}). Give the path of an .npz file with {', '.join(KEYS[:2])}.")
    arrays, key = {}, ""
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                if key not in KEYS:
                    raise Mistake(f"{path}: unknown key (got '{key}'). {did_you_mean(key, KEYS)}")
                arrays[key] = file[key]
    except UNREADABLE as error:
        where = f"{path}: {key}" if key else str(path)
        raise Mistake(f"{where}: not a readable array (got {error}). Write plain arrays with numpy.savez; nothing is unpickled.") from error
    return arrays


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
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        raise Mistake(f"{where}: channels come last (got {list(images.shape)}). Store images.transpose(0, 3, 1, 2).")
    if images.dtype == np.uint8:
        if images.max() <= 1:
            raise Mistake(f"{where}: uint8 means 0..255 (got a maximum of {images.max()}). Multiply by 255, or store floats in [0, 1].")
        return np.ascontiguousarray(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise Mistake(f"{where}: needs uint8, or float in [0, 1] (got {images.dtype}). Store images.astype('uint8') if they are 0..255.")
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
    if not np.issubdtype(labels.dtype, np.integer):
        raise Mistake(f"{where}: needs an integer dtype (got {labels.dtype}). Store labels.astype('int64').")
    if labels.size and (labels.min() < 0 or labels.max() >= MOST_CLASSES):
        value = labels.min() if labels.min() < 0 else labels.max()
        raise Mistake(f"{where}: labels count from 0 to the number of classes (got {value}). Number the classes 0, 1, 2, ...")
    return labels.astype(np.int64)


def _classes(path: Path, arrays: dict[str, np.ndarray], highest: int) -> tuple[str, ...]:
    if "classes" not in arrays:
        return tuple(map(str, range(highest + 1)))
    names = arrays["classes"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise Mistake(
            f"{path}: classes: needs strings [classes] (got {names.dtype} {list(names.shape)}). Store numpy.array(names, dtype=str)."
        )
    return tuple(map(str, names))
