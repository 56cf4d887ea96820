"""CIFAR-10: 50,000 training and 10,000 test photographs, colour, 32x32, ten classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from pydantic import Field

from basin.config.place import Place
from basin.data import cifar
from basin.data.published import Published
from basin.data.splits import Source

FILES = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta")
DATA = Published("CIFAR10", FILES, (".", "cifar-10-batches-py"), archive="cifar-10-python.tar.gz")


class Params(Place):
    """Where the files of the version for Python are, unpacked or as the .tar.gz."""

    folder: str = Field("data/cifar10", min_length=1, description="the folder with the published files, or torchvision's root")


def read(params: Params) -> Source:
    """Both splits. Raises Mistake when the files are absent (and says how to get them) or damaged (and says which)."""
    return cifar.read(params, DATA, "labels", "label_names")
