"""One image file as pixels: people's folders, and what is sent to a served model, are read in this one way.

Pillow decodes, in the formats below alone: its other ones run other programs (EPS) or bring more than 8 bits a channel to 8 without
a word (JPEG 2000, AVIF). What is refused is refused by the file's header, before anything is decoded.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from basin.errors import Mistake

Opened = Any  # a PIL.Image.Image; Pillow is loaded where it is used

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 1 << 26  # 8192 x 8192 of colour: 0.5 GB and 2 s in decoding; a file of 100 bytes can claim more
BITS_PER_SAMPLE = 258  # TIFF's tag
ORIENTATION, ON_ITS_SIDE = 274, (5, 6, 7, 8)  # EXIF's, and those that exchange height and width
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, AttributeError, RuntimeError, MemoryError)


@contextmanager
def opened(where: str, file: Path | BytesIO, formats: tuple[str, ...] = FORMATS) -> Iterator[Opened]:
    """The image, not decoded yet. Raises Mistake, beginning with `where`, on what is no image, too large, deeper than 8 bits a channel,
    or found damaged while it is open.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > MOST_PIXELS:
                raise _too_large(where, f"{image.height} x {image.width} pixels")
            if deep := _deep(image):
                raise Mistake(f"{where}: more than 8 bits a channel (got mode {deep}). Convert it to 8 bits first.")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own, higher limit
        raise _too_large(where, str(error)) from None
    except (*DAMAGED, struct.error) as error:
        got = "other bytes" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise Mistake(f"{where}: cannot be read as an image (got {got}). Give a whole {' or '.join(formats)} file.") from error


def sides(image: Opened) -> tuple[int, int]:
    """Height and width of an opened image as `pixels` gives them. Decodes nothing but a PNG."""
    return image.size if _orientation(image) in ON_ITS_SIDE else image.size[::-1]


def pixels(image: Opened, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Of an opened image, uint8 [c, h, w]: upright as EXIF says, grey or colour, transparency dropped; brought to a height and width,
    bilinear, where given.
    """
    from PIL.Image import Resampling
    from PIL.ImageOps import exif_transpose

    orientation = _orientation(image)
    if size:
        height, width = size[::-1] if orientation in ON_ITS_SIDE else size
        image.draft(None, (2 * width, 2 * height))  # a JPEG is decoded at a half, quarter or eighth that leaves enough to average
    if orientation != 1:
        image = exif_transpose(image)
    image = image.convert("L" if channels == 1 else "RGB")
    if size:
        image = image.resize(size[::-1], Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def _orientation(image: Opened) -> int:
    """1 is upright, and what is not told."""
    if image.format == "PNG":  # may tell it after the pixels, so asking decodes them: what is damaged there is not to pass with the EXIF
        image.load()
    try:
        return image.getexif().get(ORIENTATION, 1)
    except (*DAMAGED, struct.error):  # of the EXIF block alone: pixels that are damaged are found when they are decoded
        return 1


def _too_large(where: str, got: str) -> Mistake:
    return Mistake(f"{where}: too large to decode (got {got}). Scale it down to at most {MOST_PIXELS:,} pixels.")


def _deep(image: Opened) -> str:
    """The mode that has more than 8 bits a channel, else "". Colour of 16 bits has a mode of 8: Pillow drops half of them."""
    if image.mode.startswith(("I", "F")):
        return image.mode
    layout = image.tile[0].args if image.tile else ""
    if image.format == "PNG":
        bits = 16 if ";16" in str(layout) else 8
    elif image.format == "PPM":
        bits = int(layout[1]).bit_length() if isinstance(layout, tuple) else 8
    else:
        bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) if image.format == "TIFF" else 8
    return f"{image.mode};{bits}" if bits > 8 else ""
