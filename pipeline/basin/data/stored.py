"""A split as a safetensors file, piece by piece: of images that are mapped from the disk no more than a piece is held.

The bytes are those of `safetensors.torch.save`, which wants all tensors in memory and makes another copy of each: 8 bytes with the header's
length, the header as JSON, filled with spaces to a multiple of 8, and the tensors, the wider types first.
"""

import json
from collections.abc import Iterator
from itertools import chain

from jaxtyping import Int64
from torch import Tensor

from basin.types import Pixels

Rows = Int64[Tensor, " rows"]
PIECE = 2**22  # bytes of images
TYPES = {"index": "I64", "labels": "I64", "images": "U8"}


def pieces(images: Pixels, rows: Rows) -> Iterator[Tensor]:
    """The images at `rows`, some at once, in their order."""
    return (images[piece] for piece in rows.split(max(PIECE // images[0].nbytes, 1)))


def content(images: Pixels, rows: Rows, labels: Rows, index: Rows) -> Iterator[bytes]:
    """The file of the images at `rows`, whose labels and index these are."""
    shapes = {"index": [len(rows)], "labels": [len(rows)], "images": [len(rows), *images.shape[1:]]}
    sizes = {"index": index.nbytes, "labels": labels.nbytes, "images": len(rows) * images[0].nbytes}
    header, end = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": TYPES[name], "shape": shapes[name], "data_offsets": [end, end := end + size]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in chain((index, labels), pieces(images, rows)):
        yield tensor.contiguous().numpy().tobytes()
