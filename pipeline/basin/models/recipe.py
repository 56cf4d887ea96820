"""The recipe of a model folder: what a model is, read without loading it, or torch."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, PositiveInt, ValidationError

from basin import files
from basin.errors import Mistake, said

FORMAT = 1
WEIGHTS, RECIPE, TWIN = "weights.safetensors", "recipe.json", "twin"

AGAIN = "Delete the folder and run `dvc checkout` or `dvc repro`; a registered version is mended by `basin registry sync`."


class Recipe(BaseModel, strict=True, extra="ignore"):
    """What every recipe has; a stage adds its own."""

    model: str
    shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]  # channels, height, width
    classes: Annotated[list[str], Field(min_length=1)]
    classifier: dict[str, Any]
    sources: dict[str, str]
    versions: dict[str, str]
    weights: str | None = None  # SHA-256 of the weights file; the first recipes had none


def read_recipe(folder: Path) -> dict[str, Any]:
    """The recipe of a model folder. Raises Mistake where it is missing or damaged."""
    path = folder / RECIPE
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
        files.check_format(path, recipe["format"], FORMAT, recipe.get("basin"))
        Recipe.model_validate(recipe)
        return recipe
    except FileNotFoundError:
        raise Mistake(f"{path}: not found. Run the stage that makes it: dvc repro.") from None
    except (ValueError, LookupError, TypeError, OSError, RecursionError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> Mistake:
    got = said(error)
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        got = f"{type(error).__name__}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return Mistake(f"{path}: damaged, or does not fit the file beside it (got {got[:160]}). {AGAIN}")


def weights_digest(folder: Path) -> str:
    """SHA-256 of a model's weights file."""
    return digest((folder / WEIGHTS).read_bytes())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
