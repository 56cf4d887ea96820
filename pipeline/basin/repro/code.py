"""`code.yaml` of a project: Basin's code as DVC sees it there, where it is a package whose paths are not stable.

A checkout's graph names code by its paths; in a project each is a key of this one small file, with a digest. `basin` keeps it true, so that
an upgrade makes those stages run again whose code it changes, and no other. A checkout has no such file.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from basin import files
from basin.config.document import read
from basin.errors import Mistake

FILE = Path("code.yaml")
PACKAGE = Path(files.__file__).parent
GRAPH = Path(__file__).parent / "template/graph.yaml"  # dvc.yaml of the checkout
INSIDE = "pipeline/basin"  # where that has the package
HEAD = """\
# Basin's code as DVC sees it: its version, and a digest of each room and kind that a stage of dvc.yaml goes by.
# `basin` keeps this file true. Commit it with dvc.lock.
"""


def key(path: str) -> str:
    """What stands in code.yaml for a path of the checkout: `basin/methods/heads/${item.head.kind}`."""
    return path.removeprefix("pipeline/").removesuffix(".py")


def is_code(path: str) -> bool:
    """Whether a dependency is a part of the package."""
    return path == INSIDE or path.startswith(f"{INSIDE}/")


def bodies(graph: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The tables with `cmd` and `deps` of a dvc.yaml's stages."""
    yield from (stage.get("do", stage) for stage in graph["stages"].values())


def digests() -> dict[str, str]:
    """Key -> digest, of each part of the package that the graph depends on, whatever a run's params name."""
    asked = {dep for body in bodies(read(GRAPH)) for dep in body["deps"] if is_code(dep)}
    patterns = {re.sub(r"\$\{.*?\}", "[!_]*", path.removeprefix(INSIDE).lstrip("/")) for path in asked}
    paths = {path for pattern in patterns for path in (PACKAGE.glob(pattern) if pattern else [PACKAGE])}
    return {key(str(path.relative_to(PACKAGE.parent))): digest(path) for path in sorted(paths)}


def digest(path: Path) -> str:
    """Of a file, or of all files below a folder, compiled code left out: 16 digits."""
    below = sorted(one for one in path.rglob("*") if one.is_file() and "__pycache__" not in one.parts) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for one in below:
        whole.update(f"{one.relative_to(path)} {hashlib.sha256(one.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def text() -> str:
    """What is true now."""
    return HEAD + "".join([f"version: {files.VERSION}\n", "code:\n", *(f"  {name}: '{one}'\n" for name, one in digests().items())])


def keep(write: bool = True) -> bool:
    """Bring the project's code.yaml up to date, where there is one; whether it was not."""
    stale = FILE.exists() and FILE.read_text(encoding="utf-8") != text()
    if stale and write:
        files.write(FILE, text())
    return stale


def check() -> None:
    """Raise Mistake where a stage is about to run code that code.yaml does not speak of: DVC would record the one for the other."""
    if keep(write=False):
        raise Mistake(
            f"{FILE}: not of the code that runs here (got another than Basin {files.VERSION}). Run `basin repro`, which mends it."
        )
