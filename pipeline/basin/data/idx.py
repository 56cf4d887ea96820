"""Data sets in the IDX format of MNIST: a big-endian magic number 0x0000_08_<axes>, the length of each axis, then bytes."""

import math

import numpy as np
import torch

from basin.config.place import Place
from basin.data.published import Checksums, Published
from basin.data.splits import Source, Split
from basin.errors import Mistake

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
Found = tuple[str, bytes]  # where, content


def published(name: str, debian: str = "", advice: str = "") -> Published:
    """As copied, as `dpkg -x` leaves them, as torchvision does."""
    return Published(name, FILES, (".", *([debian] if debian else []), f"{name}/raw"), advice=advice)


def checksums(name: str) -> Checksums:
    """Of the compressed files; plain ones have none, and are known by their form alone."""
    from torchvision import datasets

    return dict(getattr(datasets, name).resources)


def read(place: Place, data: Published, classes: tuple[str, ...], others: Checksums | None = None) -> Source:
    """Both splits; `others` are checksums under which the files are published too. Raises Mistake where a file is absent, none of that
    format, or does not fit the others."""
    found = data.read(place, lambda: {name: f"{known} {(others or {}).get(name, '')}" for name, known in checksums(data.name).items()})
    train_images, train_labels, test_images, test_labels = (found[name] for name in FILES)
    return Source(_split(train_images, train_labels, len(classes)), _split(test_images, test_labels, len(classes)), classes)


def _split(images: Found, labels: Found, classes: int) -> Split:
    pixels, targets = _array(*images, axes=3), _array(*labels, axes=1)
    if len(pixels) != len(targets):
        raise Mistake(f"{labels[0]}: one label an image is needed (got {len(targets)} for {len(pixels)}). Fetch the files again.")
    if targets.size and targets.max() >= classes:
        raise Mistake(f"{labels[0]}: labels must be in 0..{classes - 1} (got {targets.max()}). Fetch the file again.")
    return Split(torch.from_numpy(pixels[:, None]), torch.from_numpy(targets.astype(np.int64)))


def _array(where: str, content: bytes, axes: int) -> np.ndarray:
    """[n, h, w] or [n]."""
    header = np.frombuffer(content[: 4 * (axes + 1)], ">u4") if len(content) >= 4 * (axes + 1) else np.zeros(axes + 1, int)
    shape = [int(length) for length in header[1:]]
    if header[0] != 0x0800 + axes or len(content) != header.nbytes + math.prod(shape):
        raise Mistake(
            f"{where}: not a whole IDX file of {axes} axes (got magic {header[0]:#x}, axes {shape}, {len(content)} bytes). Fetch it again."
        )
    return np.frombuffer(bytearray(content), np.uint8, offset=header.nbytes).reshape(shape)
