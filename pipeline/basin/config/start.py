"""Which weights of one's own a backbone starts from, as params.yaml has it."""

from typing import Annotated

from pydantic import Field

from basin.config.settings import Settings


class Weights(Settings):
    """A file, and its digest: DVC goes by the latter, so that another file is another run."""

    file: str = Field(min_length=1, description="a safetensors file of a backbone's tensors, or of a classifier's")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="the file's SHA-256, 64 digits of 0 to 9 and a to f")
    mean: list[float] | None = Field(
        None, description="what was subtracted from pixels in [0, 1], a number a channel; null: what the file says, or the data's"
    )
    std: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="what they were then divided by, a positive number a channel; null: as for mean"
    )
