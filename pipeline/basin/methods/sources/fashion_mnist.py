"""Fashion-MNIST: 60,000 training and 10,000 test images, grey, 28x28, ten kinds of clothing.

The first real run: the size of MNIST and harder. H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms", 2017, arXiv:1708.07747.
"""

from pydantic import Field

from basin.config.place import Place
from basin.data import idx
from basin.data.splits import Source

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PACKAGE = "dataset-fashion-mnist"
ADVICE = f"On Debian or Ubuntu, without root, run `mkdir -p {{root}} && apt-get download {PACKAGE} && dpkg -x {PACKAGE}_*.deb {{root}}`. "
DATA = idx.published("FashionMNIST", "usr/share/datasets/fashion-mnist", ADVICE)
DEBIAN = {  # compressed anew
    "train-images-idx3-ubyte.gz": "cf8536b0aa1a6ac5fa3f23001093305c",
    "train-labels-idx1-ubyte.gz": "10bea18fdb374794d4bb42e356e600c9",
    "t10k-images-idx3-ubyte.gz": "f78720b4224f21cce2f2ccf2d7a94c9a",
    "t10k-labels-idx1-ubyte.gz": "0d30e22e447f3c33dab9ed536400ac01",
}


class Params(Place):
    """Where the four IDX files are: plain, .gz, or as an unpacked Debian package has them."""

    folder: str = Field("data/fashion-mnist", min_length=1, description="the folder with the published files, or torchvision's root")


def read(params: Params) -> Source:
    """Both splits. Raises Mistake when the files are absent (and says how to get them) or damaged (and says which)."""
    return idx.read(params, DATA, CLASSES, DEBIAN)
