"""How a data set is divided, as params.yaml has it."""

import re
from pathlib import Path

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from basin.config.settings import Fractional, Settings

VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2  # of a source that has no such split of its own, where params.yaml gives none
NAME = r"^[A-Za-z0-9_-]{1,64}$"


class SplitSettings(Settings):
    """The keys of `data:` that every kind has."""

    name: str | None = Field(
        None,
        pattern=NAME,
        description="what the data set is called in reports and in the registry: letters (a to z), digits, _ and -, at most 64 of them; "
        "null: the kind, or what the folder or file is called",
    )
    validation: Fractional | None = Field(
        None,
        gt=0,
        lt=1,
        description="the share of the training images held out to choose epochs and knobs on; null: the source's own validation split, "
        f"or {VALIDATION_SHARE} where it has none",
    )
    test: Fractional | None = Field(
        None,
        gt=0,
        lt=1,
        description=f"the share held out for attacks; null: the source's own test split, or {TEST_SHARE} where it has none",
    )
    train_limit: int | None = Field(
        None, ge=2, description="a cap on the number of training images, for trials; validation shrinks in proportion; null: all"
    )
    test_limit: int | None = Field(None, ge=2, description="a cap on the number of test images, for trials; null: all")

    @model_validator(mode="after")
    def _leave_some_to_train_on(self) -> "SplitSettings":
        if (self.validation or VALIDATION_SHARE) + (self.test or TEST_SHARE) >= 1:
            null = f"null counts as {VALIDATION_SHARE} and {TEST_SHARE}"
            message = f"validation and test ({null}) leave nothing to train on. Lower them to add up to less than 1."
            raise PydanticCustomError("shares", message)  # type: ignore[arg-type]
        return self

    @staticmethod
    def named(place: str | Path) -> str:
        """A name for the data that lie there."""
        return re.sub(r"[^A-Za-z0-9_-]+", "_", Path(place).resolve().stem).strip("_")[:64] or "data"
