"""Shapes as types, and the base of every settings table.

The shapes are documentation at run time and are checked by the tests (`CONTRIBUTING.md`, "Shapes").
"""

from fractions import Fraction
from typing import Annotated, Any

from jaxtyping import Float, Int64, UInt8
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

Images = Float[Tensor, "n c h w"]  # in [0, 1] wherever an attack sees them
Pixels = UInt8[Tensor, "n c h w"]  # as stored
Labels = Int64[Tensor, " n"]
Features = Float[Tensor, "n width"]
Logits = Float[Tensor, "n classes"]
PerImage = Float[Tensor, " n"]
ImageShape = tuple[int, int, int]  # channels, height, width


class Settings(BaseModel):
    """A frozen table of params.yaml: unknown keys and wrong types are errors, nothing is converted silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _fraction(value: Any) -> Any:
    """`"8/255"` reads as the literature writes it."""
    try:
        return float(Fraction(value)) if isinstance(value, str) else value
    except (ValueError, ZeroDivisionError):
        return value


Fractional = Annotated[float, BeforeValidator(_fraction)]
Radius = Annotated[Fractional, Field(gt=0, le=1)]
