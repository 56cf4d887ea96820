"""SVHN: 73,257 training and 26,032 test photographs of house numbers, colour, 32x32, the digit in the middle is the class.

Y. Netzer, T. Wang, A. Coates, A. Bissacco, B. Wu, A. Ng, "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011. The
cropped digits, in MATLAB's format; the further 531,131 easier training images ("extra") are not read.
"""

import io

import numpy as np
import torch
from pydantic import Field

from basin.config.place import Place
from basin.data.published import DAMAGED, Checksums, Published
from basin.data.splits import Source, Split
from basin.errors import Mistake

DATA = Published("SVHN", ("train_32x32.mat", "test_32x32.mat"), (".",))


class Params(Place):
    """Where the two files are."""

    folder: str = Field("data/svhn", min_length=1, description="the folder with the published files, or torchvision's root")


def read(params: Params) -> Source:
    """Both splits. Raises Mistake when the files are absent (and says how to get them) or damaged (and says which)."""
    train, test = DATA.read(params, checksums).values()
    return Source(_split(*train), _split(*test), tuple("0123456789"))


def checksums() -> Checksums:
    from torchvision.datasets import SVHN

    return {name: md5 for _, name, md5 in SVHN.split_list.values()}


def _split(where: str, content: bytes) -> Split:
    """X is [32, 32, 3, n], y [n, 1] in 1..10, where 10 is the digit 0."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        arrays = loadmat(io.BytesIO(content), variable_names=("X", "y"))
        pixels, labels = np.ascontiguousarray(arrays["X"].transpose(3, 2, 0, 1)), arrays["y"].reshape(-1).astype(np.int64) % 10
    except (*DAMAGED, MatReadError, LookupError, TypeError, NotImplementedError) as error:
        raise Mistake(f"{where}: damaged (got {error}). Fetch it again.") from error
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3, 32, 32):
        raise Mistake(f"{where}: not the published file (got X {pixels.dtype} {list(pixels.shape)}, {len(labels)} labels). Fetch it again.")
    return Split(torch.from_numpy(pixels), torch.from_numpy(labels))
