"""What a model answers, and images as requests bring them. Knows nothing of MLflow.

    logits          z(x) [n, classes], the reported function
    probabilities   softmax z(x)
    vote            the share of `draws` passes of a randomised model in which each class comes first

Every draw is from `seed`: the same images in the same order have the same answer.
"""

import base64
import binascii
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import nn

from basin.config.settings import Settings
from basin.data import image_file
from basin.errors import Mistake
from basin.randomness import drawing, generator, random_layers
from basin.types import Images


class Asked(Settings):
    """What a request may ask for."""

    output: Literal["logits", "probabilities", "vote"] = Field("logits", description="logits, probabilities or vote")
    draws: int = Field(100, ge=1, le=1000, description="a number of passes, 1 to 1000, that vote")
    seed: int = Field(0, ge=0, description="the seed, 0 or above, of everything that is drawn")

    @classmethod
    def read(cls, params: dict[str, Any]) -> "Asked":
        """Raises Mistake, one message a param."""
        try:
            return cls.model_validate(params)
        except ValidationError as error:
            raise Mistake(*(_worded(one["loc"][0], one["msg"], one["input"]) for one in error.errors())) from None


def _worded(name: int | str, message: str, value: Any) -> str:
    what, _, advice = message.partition(". ")
    return f"params: {name}: {what[0].lower()}{what[1:]} (got {value!r}). {advice}"


@torch.no_grad()
def answer(model: nn.Module, images: Images, asked: Asked) -> torch.Tensor:
    """[n, classes] as `asked`. Raises Mistake where a vote is asked of a model that draws nothing."""
    if asked.output == "vote" and not random_layers(model):
        raise Mistake("params: output: this model draws nothing, so there is nothing to vote (got 'vote'). Ask for probabilities.")
    with drawing(model, generator(asked.seed, "draws", device=images.device)):
        if asked.output == "vote":
            passes = [model.single(images) for _ in range(asked.draws)]  # type: ignore[operator]
            return torch.stack([nn.functional.one_hot(z.argmax(1), z.shape[1]) for z in passes]).float().mean(0)
        logits = model(images)
    return logits.softmax(1) if asked.output == "probabilities" else logits


def decode(content: bytes | Path, shape: Sequence[int], resize: bool = False) -> np.ndarray:
    """An image file, or its bytes, as float32 [c, h, w] in [0, 1], 255 becoming exactly 1.

    Grey or colour as `shape` has it; transparency is dropped. Raises Mistake on what is no image, more than 8 bits a channel, too
    large to decode, or, without `resize`, of another size.
    """
    channels, height, width = shape
    file, formats = (io.BytesIO(content), ("PNG", "JPEG")) if isinstance(content, bytes) else (content, image_file.FORMATS)
    with image_file.opened("image", file, formats) as image:
        if not resize and (sides := image_file.sides(image)) != (height, width):
            raise Mistake(f"image: wrong height and width (got {[*sides]}). The model reads {[height, width]}.")
        return image_file.pixels(image, channels, (height, width) if resize else None).astype(np.float32) / np.float32(255)


def read(images: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """What a request's list of images became: base64 of PNG or JPEG files, or numbers [n, c, h, w] or [n, c h w]; as float32 [n, c, h, w].

    An array of numbers that is none of Python's objects is given back as it is. Raises Mistake, naming the first image at fault.
    """
    if images.dtype.kind not in "OUS":
        return images
    if images.ndim == 1 and len(images) and all(isinstance(one, str | bytes) for one in images):
        return np.stack([_from_base64(one, at, shape) for at, one in enumerate(images)])
    try:
        numbers = images.astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        raise Mistake(
            f"images: neither an even array of numbers nor a list of base64 (got a list of {list(images.shape)}). "
            f"Give [n, {', '.join(map(str, shape))}] numbers in [0, 1], or the base64 of n PNG or JPEG files."
        ) from None
    return numbers.reshape(len(numbers), *shape) if numbers.ndim == 2 and numbers.shape[1] == math.prod(shape) else numbers


def _from_base64(text: str | bytes, at: int, shape: Sequence[int]) -> np.ndarray:
    try:
        return decode(base64.b64decode(text, validate=True), shape)
    except binascii.Error as error:
        raise Mistake(f"image {at}: not base64 (got {error}). Give the base64 of a PNG or JPEG file.") from None
    except Mistake as mistake:
        raise Mistake(f"image {at}: {str(mistake).removeprefix('image: ')}") from None
