"""Residual nets whose blocks normalise before they convolve (He et al. 2016, arXiv 1603.05027).

a = relu(bn(h));    h' = s(h) + conv3x3(relu(bn(conv3x3(a))))        s(h): h, or a 1x1 convolution of a across a change of size
features = spatial mean of relu(bn(h)) after the last block
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from basin.types import Features, Images


class Block(nn.Module):
    """[n, c_in, h, w] -> [n, c_out, h / stride, w / stride]."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.convolutions = nn.ModuleList([nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)])
        same = stride == 1 and c_in == c_out
        self.shortcut = None if same else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out _ _"]:
        a = relu(self.first(x))
        z = self.convolutions[1](relu(self.second(self.convolutions[0](a))))
        return z + (x if self.shortcut is None else self.shortcut(a))


class Residual(nn.Module):
    """[n, channels, h, w] -> [n, widths[-1]]: a 3x3 stem, and `blocks` blocks of each width, the first of each but the first halving."""

    def __init__(self, channels: int, stem: int, widths: Sequence[int], blocks: int):
        super().__init__()
        outs = [width for width in widths for _ in range(blocks)]
        strides = [2 if stage and not block else 1 for stage in range(len(widths)) for block in range(blocks)]
        self.stem = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(Block(i, o, s) for i, o, s in zip([stem, *outs], outs, strides)))
        self.last = nn.BatchNorm2d(outs[-1])
        self.width = outs[-1]

    def forward(self, x: Images) -> Features:
        return relu(self.last(self.blocks(self.stem(x)))).mean((2, 3))
