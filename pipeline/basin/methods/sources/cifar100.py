"""CIFAR-100: 50,000 training and 10,000 test photographs, colour, 32x32, a hundred classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from pydantic import Field

from basin.config.place import Place
from basin.data import cifar
from basin.data.published import Published
from basin.data.splits import Source

FILES = ("train", "test", "meta")
DATA = Published("CIFAR100", FILES, (".", "cifar-100-python"), archive="cifar-100-python.tar.gz")


class Params(Place):
    """Where the files of the version for Python are, unpacked or as the .tar.gz."""

    folder: str = Field("data/cifar100", min_length=1, description="the folder with the published files, or torchvision's root")


def read(params: Params) -> Source:
    """Both splits. Raises Mistake when the files are absent (and says how to get them) or damaged (and says which)."""
    return cifar.read(params, DATA, "fine_labels", "fine_label_names")
