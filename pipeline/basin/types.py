"""Shapes as types.

They are documentation at run time and are checked by the tests (`CONTRIBUTING.md`, "Shapes").
"""

from collections.abc import Callable, Iterator

from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

Images = Float[Tensor, "n c h w"]  # in [0, 1] wherever an attack sees them
Pixels = UInt8[Tensor, "n c h w"]  # as stored
Labels = Int64[Tensor, " n"]
Features = Float[Tensor, "n width"]
State = Float[Tensor, "n d"]  # of a flow; its width is its own
Logits = Float[Tensor, "n classes"]
PerImage = Float[Tensor, " n"]
ImageShape = tuple[int, int, int]  # channels, height, width
Network = Callable[[Images], Logits]
Losses = Tensor | Iterator[Tensor]  # of a batch: one, or several with an optimiser step after each
NetworkLoss = Callable[[Network, Images, Labels, Generator], Losses]  # a training method's loss
