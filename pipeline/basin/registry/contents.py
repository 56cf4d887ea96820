"""The files of a version beside MLflow's own, and the manifest by which a change made by hand is found.

card.md  card.html  examples.png                     the model card
outcomes/STAGE/NAME/SUITE/  exchanged/STAGE/NAME/    every image's outcome and stored point
run/params.yaml  run/dvc.lock  run/protocol.json     the run that it belongs to; how it was attacked
manifest.json                                        tags, metrics, and the SHA-256 of every file: the model's, the code's and MLflow's too
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basin import files
from basin.registry import card, snapshot
from basin.registry.candidates import Candidate

FORMAT = 1
MANIFEST, PROTOCOL = "manifest.json", "run/protocol.json"
PACKAGE = Path(__file__).parent.parent


def write(folder: Path, one: Candidate, tags: Mapping[str, str], of_mlflow: Mapping[str, str]) -> str:
    """Fill an empty folder with a version's files. `of_mlflow`: digests of those that MLflow wrote: MLmodel, the code that it runs.

    Returns the manifest's digest, the tag `seal`.
    """
    for outcome in one.outcomes.values():
        shutil.copytree(outcome.folder, folder / outcome.folder.relative_to(one.root))
    run = snapshot.of(one.root, {})
    files.write(folder / "run" / snapshot.PARAMS, run.params)
    files.write(folder / "run" / snapshot.LOCK, run.lock)
    files.write(folder / PROTOCOL, json.dumps(one.protocol, indent=1, sort_keys=True) + "\n")
    card.write(folder, one)
    below = hashes(one.folder, f"artifacts/{one.folder.name}/") | hashes(PACKAGE, f"code/{PACKAGE.name}/")
    content = {
        "format": FORMAT,
        "basin": files.VERSION,
        "tags": dict(tags),
        "metrics": one.metrics,
        "description": card.text(one),
        "files": {**of_mlflow, **hashes(folder), **below},
    }
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    files.write(folder / MANIFEST, text)
    return digest(text.encode())


def hashes(folder: Path, prefix: str = "") -> dict[str, str]:
    """Path below `folder` -> SHA-256 of the file, compiled code left out."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {prefix + path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in found}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def changed_files(folder: Path, seal: str, files: bool = True) -> list[str]:
    """The files of a version that are not as Basin wrote them; a manifest of another seal stands for all. Without `files`: only that."""
    path = folder / MANIFEST
    if not path.is_file() or digest(path.read_bytes()) != seal:
        return [MANIFEST]
    said = manifest(folder)["files"] if files else {}
    return [name for name, wanted in said.items() if not (folder / name).is_file() or digest((folder / name).read_bytes()) != wanted]


def manifest(folder: Path) -> dict[str, Any]:
    """Raises Mistake where it is of another format, and names the version that reads it."""
    path = folder / MANIFEST
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    files.check_format(path, said.get("format", FORMAT), FORMAT, said.get("basin"))
    return said


def card_of(folder: Path) -> str:
    """The card's text, as the manifest has it."""
    return manifest(folder)["description"]


def changed(folder: Path, tags: Mapping[str, str], metrics: Mapping[str, float]) -> list[str]:
    """What of a version's tags and metrics is not as its manifest says."""
    said = manifest(folder)
    found = [f"tag {name}" for name, wanted in said["tags"].items() if tags.get(name) != wanted]
    found += [f"metric {name}" for name, wanted in said["metrics"].items() if metrics.get(name) != wanted]
    return found
