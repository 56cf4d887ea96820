"""Small convolutional net for small images: 3x3 convolutions, each followed by ReLU and 2x2 max-pooling, then one hidden layer.

No normalisation layers, so training and evaluation mode are the same function. The shape of the MNIST nets of Madry et al. 2018
(arXiv 1706.06083), with free widths.
"""

from pydantic import Field
from torch import nn

from basin.config.settings import Settings
from basin.errors import Mistake
from basin.models.lipschitz import constant
from basin.types import Features, Images, ImageShape


class Params(Settings):
    channels: list[int] = Field(
        [32, 64], min_length=1, description="a list of positive output channels, one for each convolution; each halves the image"
    )
    hidden: int = Field(128, ge=1, description="the positive width of the features")


class Backbone(nn.Module):
    """[n, c, h, w] -> [n, hidden]. Raises Mistake where the image is too small for that many halvings."""

    def __init__(self, params: Params, shape: ImageShape):
        super().__init__()
        c, h, w = shape
        layers: list[nn.Module] = []
        for width in params.channels:
            layers += [nn.Conv2d(c, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            c, h, w = width, h // 2, w // 2
        if min(h, w) < 1:
            raise Mistake(
                f"backbone.channels: {len(params.channels)} halvings leave nothing of the image (got shape {shape}). "
                f"Give at most {min(shape[1:]).bit_length() - 1} channels."
            )
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(c * h * w, params.hidden), nn.ReLU())
        self.width = params.hidden

    def forward(self, x: Images) -> Features:
        return self.layers(x)

    def lipschitz(self) -> float | None:
        """A Lipschitz constant of images -> features, in the 2-norm."""
        return constant(self.layers)
