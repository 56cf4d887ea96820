"""Where a run that can be killed goes on from: tensors in named groups and a JSON text, in one file that is whole or not there."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from basin import files

log = logging.getLogger(__name__)
CODE = (Path(__file__).parent, Path(__file__).parents[2] / "stages")  # the second in a checkout alone
Groups = dict[str, dict[str, Tensor]]


def folder() -> Path:
    """Where states are kept: BASIN_CHECKPOINTS, which outlives a temporary workspace, else the workspace's own place."""
    return Path(os.environ.get("BASIN_CHECKPOINTS", ".basin/checkpoints"))


def place(name: str, *asked: Any) -> Path:
    """Where the computation `name` keeps its state: a file named by everything that its result depends on, all our code included."""
    code = [path.read_text(encoding="utf-8") for folder in CODE for path in sorted(folder.rglob("*.py"))]
    text = json.dumps([*asked, code], sort_keys=True, default=str)
    return folder() / name / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"


def write(path: Path, groups: Groups, progress: dict[str, Any]) -> None:
    """Group names hold no slash."""
    tensors = {f"{group}/{name}": tensor.cpu() for group, named in groups.items() for name, tensor in named.items()}
    files.write(path, save(tensors, {"progress": json.dumps(progress), "groups": json.dumps([*groups])}))


def read(path: Path) -> tuple[Groups, dict[str, Any]]:
    """What was written; nothing where there is no file, and, with a warning, where it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            groups: Groups = {group: {} for group in json.loads(file.metadata()["groups"])}
            for key in file.keys():
                group, _, name = key.partition("/")
                groups[group][name] = file.get_tensor(key)
            return groups, json.loads(file.metadata()["progress"])
    except FileNotFoundError:
        return {}, {}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: unreadable checkpoint (%s); starting from the beginning", path, error)
        return {}, {}
