"""A model as two files: `weights.safetensors` and `recipe.json`. `load` rebuilds the classifier from them alone.

The recipe carries a digest of every source file that defines the function, so that the artefact, and with it every result that
depends on it, changes when the function does, even where the weights stay the same; and the digest of the weights, so that no others load.
"""

import ast
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as unpacked
from safetensors.torch import save as packed
from torch import nn

from basin import files
from basin.config import kinds
from basin.errors import Mistake
from basin.models.classifier import Classifier, Normalise
from basin.models.recipe import AGAIN, FORMAT, RECIPE, TWIN, WEIGHTS, damaged, digest, read_recipe

# What building from a recipe ends with whose values do not go together.
UNUSABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
LIBRARIES = ("torch", "torchdiffeq", "safetensors")
ROOT = Path(__file__).parents[2]  # the folder that `basin` is in


def build(recipe: dict[str, Any]) -> Classifier:
    """The classifier that a recipe describes, with fresh weights."""
    tree = recipe["classifier"]
    purifier = build_part("purifiers", tree["purifier"]) if tree.get("purifier") else nn.Identity()
    backbone = build_part("backbones", tree["backbone"], shape=tuple(recipe["shape"]))
    head = build_part("heads", tree["head"], width=backbone.width, classes=len(recipe["classes"]))
    return Classifier(purifier, Normalise(**tree["normalise"]), backbone, head, recipe)


def build_part(family: str, choice: dict[str, Any], **size: Any) -> Any:
    """One part of the tree, e.g. `{"kind": "convnet", "channels": [32, 64], ...}`."""
    settings = dict(choice)
    module = kinds.find(family, settings.pop("kind"))
    part = {"purifiers": "Purifier", "backbones": "Backbone", "heads": "Head"}[family]
    return getattr(module, part)(module.Params.model_validate_json(json.dumps(settings)), **size)


def save(folder: Path, classifier: Classifier, twin: Path | None = None) -> None:
    """Write weights, recipe and, for a defence built `from` a model, that model under `twin/` (its own twin left out)."""
    weights = packed({name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()})
    written = {"weights": digest(weights), "basin": files.VERSION, "sources": sources(classifier), "versions": versions()}
    recipe = {"format": FORMAT, **classifier.recipe, **written}
    with files.whole(folder) as new:
        files.write(new / WEIGHTS, weights)
        files.write(new / RECIPE, json.dumps(recipe, indent=1, sort_keys=True) + "\n")
        if twin is not None:
            for name in (WEIGHTS, RECIPE):
                files.write(new / TWIN / name, (twin / name).read_bytes())


def load(folder: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """The classifier of a model folder, in evaluation mode; its logits equal those of the saved one bit for bit.

    Raises Mistake where a file is missing, damaged, or does not fit the other, or a weight is not finite.
    """
    folder = Path(folder)
    recipe = read_recipe(folder)
    weights = _weights(folder / WEIGHTS, recipe.get("weights"))
    with _fitting(folder / RECIPE, UNUSABLE), torch.device("meta"):  # what does not fit is found before anything is allocated
        shapes = build(recipe)
    with _fitting(folder / WEIGHTS, (RuntimeError,)):
        shapes.load_state_dict(weights, assign=True)
    classifier = build(recipe)
    classifier.load_state_dict(weights)
    if broken := [name for name, tensor in classifier.state_dict().items() if not tensor.isfinite().all()]:
        raise Mistake(
            f"{folder / WEIGHTS}: holds weights that are not finite (got some in {broken[0]}). Train the model anew, at a lower rate."
        )
    return classifier.eval().to(device)


@contextmanager
def _fitting(path: Path, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise damaged(path, error) from None


def _weights(path: Path, wanted: str | None) -> dict[str, torch.Tensor]:
    try:
        content = path.read_bytes()
        if wanted not in (None, found := digest(content)):
            raise Mistake(f"{path}: not the weights of the recipe beside it (got SHA-256 {found[:12]} for {wanted[:12]}). {AGAIN}")
        return unpacked(content)
    except FileNotFoundError:
        raise Mistake(f"{path}: not found. Run the stage that makes it: dvc repro.") from None
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from None


def load_twin(folder: Path | str, device: torch.device | str = "cpu") -> Classifier | None:
    """The undefended twin that travels with a model, or None."""
    twin = Path(folder) / TWIN
    return load(twin, device) if twin.exists() else None


def sources(classifier: nn.Module) -> dict[str, str]:
    """Path -> SHA-256 of every file of ours that defines the classifier's function: its parts' files and what they import."""
    names = {type(module).__module__ for module in classifier.modules() if type(module).__module__.startswith("basin.")}
    closure: set[Path] = set()
    for name in names:
        _follow(ROOT / (name.replace(".", "/") + ".py"), closure)
    return {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(closure)}


def _follow(path: Path, seen: set[Path]) -> None:
    """Add a source file and, recursively, the files of `basin` that it imports."""
    if path in seen or not path.exists():
        return
    seen.add(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "basin":
            _follow(ROOT / (str(node.module).replace(".", "/") + ".py"), seen)
            for alias in node.names:
                _follow(ROOT / str(node.module).replace(".", "/") / (alias.name + ".py"), seen)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
