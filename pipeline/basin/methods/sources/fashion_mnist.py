"""Fashion-MNIST: 60,000 training and 10,000 test images, grey, 28x28, ten kinds of clothing.

The first real run: the size of MNIST and harder. H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms", 2017, arXiv:1708.07747. The files are in the IDX format (a big-endian magic number
0x0000_08_<axes>, the length of each axis, then bytes), plain or gzipped.
"""

import gzip
import logging
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from basin.config.settings import Settings
from basin.data.splits import Source, Split
from basin.errors import Mistake

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
PACKAGE = "dataset-fashion-mnist"
MOST = 1 << 26  # bytes that are unpacked of a file; the largest of Fashion-MNIST's has 47,040,016
PLACES = (".", "usr/share/datasets/fashion-mnist", "FashionMNIST/raw")  # as copied, as `dpkg -x` leaves them, as torchvision does

log = logging.getLogger(__name__)


class Params(Settings):
    """Where the four files are."""

    folder: str = Field(
        "data/fashion-mnist",
        min_length=1,
        description="the folder with the four IDX files (plain or .gz), or with an unpacked Debian package, or torchvision's root",
    )
    download: bool = Field(False, description="whether torchvision may fetch what is absent into `folder`, over the network")


def read(params: Params) -> Source:
    """Both splits. Raises Mistake when the files are absent (and says how to get them) or damaged (and says which)."""
    root = Path(params.folder)
    files = _find(root)
    if files is None and params.download:
        _download(root)
        files = _find(root)
    if files is None:
        raise Mistake(_absent(root))
    train_images, train_labels, test_images, test_labels = files
    return Source(_split(train_images, train_labels), _split(test_images, test_labels), CLASSES)


def _find(root: Path) -> list[Path] | None:
    """The four files, all from one place, or None."""
    for place in PLACES:
        found = [path for name in FILES if (path := _plain_or_gzipped(root / place / name))]
        if len(found) == len(FILES):
            return found
    return None


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((there for there in (path, path.with_name(f"{path.name}.gz")) if there.is_file()), None)


def _absent(root: Path) -> str:
    return (
        f"data.folder: Fashion-MNIST not found (looked for {', '.join(FILES)}, plain or .gz, in "
        f"{', '.join(str(root / place) for place in PLACES)}). On Debian or Ubuntu, without root, run "
        f"`mkdir -p {root} && apt-get download {PACKAGE} && dpkg -x {PACKAGE}_*.deb {root}`; elsewhere set `download: true`, or run "
        f"`python -c \"from torchvision.datasets import FashionMNIST; FashionMNIST('{root}', download=True)\"`."
    )


def _download(root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    log.info("fetching Fashion-MNIST into %s", root)
    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:  # no network, every mirror failed, or a checksum did
        why = " ".join(str(error).split())
        raise Mistake(f"data.download: torchvision could not fetch Fashion-MNIST (got {why}).", _absent(root)) from error


def _split(images: Path, labels: Path) -> Split:
    pixels, targets = _idx(images, axes=3), _idx(labels, axes=1)
    if len(pixels) != len(targets):
        raise Mistake(f"{labels}: one label an image is needed (got {len(targets)} for {len(pixels)}). Fetch the files again.")
    if targets.size and targets.max() >= len(CLASSES):
        raise Mistake(f"{labels}: labels must be in 0..{len(CLASSES) - 1} (got {targets.max()}). Fetch the file again.")
    return Split(torch.from_numpy(pixels[:, None]), torch.from_numpy(targets.astype(np.int64)))


def _idx(path: Path, axes: int) -> np.ndarray:
    """An IDX file of bytes, [n, h, w] or [n]."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MOST)
    except (OSError, EOFError, zlib.error) as error:
        raise Mistake(f"{path}: damaged (got {error}). Fetch the file again.") from error
    header = np.frombuffer(content[: 4 * (axes + 1)], ">u4") if len(content) >= 4 * (axes + 1) else np.zeros(axes + 1, int)
    shape = [int(length) for length in header[1:]]
    if header[0] != 0x0800 + axes or len(content) != header.nbytes + math.prod(shape):
        raise Mistake(
            f"{path}: not a whole IDX file of {axes} axes (got magic {header[0]:#x}, axes {shape}, {len(content)} bytes). Fetch it again."
        )
    return np.frombuffer(bytearray(content), np.uint8, offset=header.nbytes).reshape(shape)
