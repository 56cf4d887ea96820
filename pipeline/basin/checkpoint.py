"""Where a run that can be killed goes on from: tensors in named groups and a JSON text, in one file that is whole or not there."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from basin import files

log = logging.getLogger(__name__)
CODE = Path(__file__).parent
UNREADABLE = (SafetensorError, OSError, LookupError, TypeError, ValueError)
Groups = dict[str, dict[str, Tensor]]


def folder() -> Path:
    """Where states are kept: BASIN_CHECKPOINTS, else the checkout's own place, which outlives the workspace of an experiment."""
    return Path(os.environ.get("BASIN_CHECKPOINTS") or files.checkout() / ".basin/checkpoints")


def place(name: str, *asked: Any) -> Path:
    """Where the computation `name` keeps its state: a file named by everything that its result depends on, all our code and the
    version of torch included."""
    code = [path.read_text(encoding="utf-8") for path in sorted(CODE.rglob("*.py"))]
    text = json.dumps([*asked, code, torch.__version__], sort_keys=True, default=str)
    return folder() / name / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"


def write(path: Path, groups: Groups, progress: dict[str, Any]) -> None:
    """Group names hold no slash. Experiments that are at the same computation at once write one after the other."""
    tensors = {f"{group}/{name}": tensor.cpu().contiguous() for group, named in groups.items() for name, tensor in named.items()}
    content = sealed(tensors, {"progress": json.dumps(progress), "groups": json.dumps([*groups])})
    with files.alone(path.parent):
        files.write(path, content)


def read(path: Path) -> tuple[Groups, dict[str, Any]]:
    """What was written; nothing where there is no file, and, with a warning, where it cannot be read."""
    try:
        tensors, texts = opened(path)
        groups: Groups = {group: {} for group in json.loads(texts["groups"])}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        return groups, json.loads(texts["progress"])
    except FileNotFoundError:
        return {}, {}
    except UNREADABLE as error:
        log.warning("%s: unreadable checkpoint (%s); starting from the beginning", path, error)
        return {}, {}


def sealed(tensors: dict[str, Tensor], texts: dict[str, str]) -> bytes:
    """Tensors and texts as one file that knows its digest: `opened` finds every byte that was changed."""
    return save(tensors, texts | {"digest": _digest(tensors, texts)})


def opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What was `sealed`. Raises one of `UNREADABLE` where it is not that to the byte."""
    with safe_open(path, "pt") as file:
        texts = dict(file.metadata())
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    if texts.pop("digest") != _digest(tensors, texts):
        raise ValueError("not as it was written")
    return tensors, texts


def _digest(tensors: dict[str, Tensor], texts: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
