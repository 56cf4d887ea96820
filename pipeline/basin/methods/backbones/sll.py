"""A convolutional net of Lipschitz constant one: SDP-based Lipschitz layers (SLL, Araujo et al. 2023, arXiv 2303.03169).

    x <- x - 2 K^T (T^-1 relu(K x + b)),    T = diag_i(sum_j |K K^T|_ij q_j / q_i),  summed over the positions too

K is a 3x3 convolution padded with zeros. The image is halved by moving each 2x2 square into the channels, which keeps all distances;
channels of zeros are added to it. Features are rows of a matrix over all that is left, scaled by what bounds its norm (AOL, Prach & Lampert
2022, arXiv 2208.03160).
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, linear, pad, pixel_unshuffle, relu

from basin.config.settings import Settings
from basin.errors import Mistake
from basin.types import Features, Images, ImageShape

Maps = Float[Tensor, "n c h w"]
TINY = 1e-6  # of a row of T that would be zero


class Params(Settings):
    channels: list[int] = Field(
        [32, 128], min_length=1, description="a list of positive channels, one for each halving, each at least four times the one before"
    )
    blocks: int = Field(3, ge=1, description="a positive number of layers after each halving")
    hidden: int = Field(128, ge=1, description="the positive width of the features")


class Layer(nn.Module):
    """Of Lipschitz constant one, whatever its weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.K = nn.Parameter(nn.init.xavier_normal_(torch.empty(channels, channels, 3, 3)))
        self.b, self.q = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))  # q is its logarithm

    def forward(self, x: Maps) -> Maps:
        active = relu(conv2d(x, self.K, self.b, padding=1)) / self.dominance()[:, None, None]
        return x - 2 * conv_transpose2d(active, self.K, padding=1)

    def dominance(self) -> Tensor:
        """The diagonal of T."""
        q = self.q.exp()
        return (conv2d(self.K, self.K, padding=2).abs().sum((2, 3)) @ q) / q + TINY


class Last(nn.Module):
    """x -> T^(-1/2) W x, T_i = sum_j |W W^T|_ij, and so of Lipschitz constant one."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.W = nn.Parameter(nn.init.orthogonal_(torch.empty(hidden, width)))

    def forward(self, x: Float[Tensor, "n all"]) -> Features:
        return linear(x, self.W / (self.W @ self.W.T).abs().sum(1, keepdim=True).sqrt())


class Backbone(nn.Module):
    """[n, c, h, w] -> [n, hidden]. Raises Mistake where the image cannot be halved so often, or channels would be lost."""

    def __init__(self, params: Params, shape: ImageShape):
        super().__init__()
        self.lipschitz = 1.0  # of images -> features, in the 2-norm
        c, h, w = shape
        self.channels, self.width = params.channels, params.hidden
        for channels in params.channels:
            if h % 2 or w % 2 or 4 * c > channels:
                raise Mistake(
                    f"backbone.channels: do not fit (got {params.channels}, images of {shape}). Each needs four times the one before."
                )
            c, h, w = channels, h // 2, w // 2
        self.stages = nn.ModuleList(nn.Sequential(*(Layer(n) for _ in range(params.blocks))) for n in params.channels)
        self.last = Last(c * h * w, params.hidden)

    def forward(self, x: Images) -> Features:
        for channels, layers in zip(self.channels, self.stages, strict=True):
            x = pixel_unshuffle(x, 2)
            x = layers(pad(x, (0, 0, 0, 0, 0, channels - x.shape[1])))
        return self.last(x.flatten(1))
