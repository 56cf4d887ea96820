"""MNIST: 60,000 training and 10,000 test images of handwritten digits, grey, 28x28.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE, 1998.
"""

from pydantic import Field

from basin.config.place import Place
from basin.data import idx
from basin.data.splits import Source

CLASSES = tuple("0123456789")
DATA = idx.published("MNIST")


class Params(Place):
    """Where the four IDX files are, plain or .gz."""

    folder: str = Field("data/mnist", min_length=1, description="the folder with the published files, or torchvision's root")


def read(params: Params) -> Source:
    """Both splits. Raises Mistake when the files are absent (and says how to get them) or damaged (and says which)."""
    return idx.read(params, DATA, CLASSES)
