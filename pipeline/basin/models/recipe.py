"""The recipe of a model folder: what a model is, read without loading it, or torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

from basin.errors import Mistake

FORMAT = 1
WEIGHTS, RECIPE, TWIN = "weights.safetensors", "recipe.json", "twin"


def read_recipe(folder: Path) -> dict[str, Any]:
    """The recipe of a model folder. Raises Mistake where it is missing or damaged."""
    path = folder / RECIPE
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
        if recipe["format"] != FORMAT:
            raise Mistake(f"{path}: format {recipe['format']} is not known here (got a file of another version; this one reads {FORMAT}).")
        return recipe
    except FileNotFoundError:
        raise Mistake(f"{path}: not found. Run the stage that makes it: dvc repro.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> Mistake:
    got = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
    return Mistake(
        f"{path}: damaged, or does not fit the file beside it (got {got}). Delete the folder and run `dvc checkout` or `dvc repro`."
    )


def weights_digest(folder: Path) -> str:
    """SHA-256 of a model's weights file."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
