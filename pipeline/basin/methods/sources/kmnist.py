"""Kuzushiji-MNIST: 60,000 training and 10,000 test images of ten cursive Japanese characters, grey, 28x28.

T. Clanuwat, M. Bober-Irizar, A. Kitamoto, A. Lamb, K. Yamamoto, D. Ha, "Deep Learning for Classical Japanese Literature", 2018,
arXiv:1812.01718.
"""

from pydantic import Field

from basin.config.place import Place
from basin.data import idx
from basin.data.splits import Source

CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
DATA = idx.published("KMNIST")


class Params(Place):
    """Where the four IDX files are, plain or .gz."""

    folder: str = Field("data/kmnist", min_length=1, description="the folder with the published files, or torchvision's root")


def read(params: Params) -> Source:
    """Both splits. Raises Mistake when the files are absent (and says how to get them) or damaged (and says which)."""
    return idx.read(params, DATA, CLASSES)
