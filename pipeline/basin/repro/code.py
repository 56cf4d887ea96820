"""`code.yaml` of a project: Basin's code as DVC sees it there, where it is a package whose paths are not stable.

A checkout's graph names code by its paths; in a project each is a key of this one small file, with a digest. `basin` keeps it true, so that
an upgrade makes those stages run again whose code it changes, and no other. It also has the digest of the graph that Basin wrote, so that
an upgrade of the graph is seen, and what a user changed in it. A checkout has no such file.
"""

import hashlib
import io
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from basin import files
from basin.config.document import read
from basin.errors import Mistake
from basin.repro import watched

FILE = Path("code.yaml")
PACKAGE = Path(files.__file__).parent
GRAPH = Path(__file__).parent / "template/graph.yaml"  # dvc.yaml of the checkout
OWN, OFFERED = Path("dvc.yaml"), Path("dvc.yaml.new")  # a project's graph, and the present one where that has edits of the user's
INSIDE = "pipeline/basin"  # where that has the package
HEAD = """\
# Basin's code as DVC sees it: its version, and a digest of each room and kind that a stage of dvc.yaml goes by.
# `basin` keeps this file true. Commit it with dvc.lock.
"""
GRAPH_HEAD = "# The graph of stages, as Basin wrote it. Names and settings come from params.yaml; Basin's code is watched by code.yaml.\n"
log = logging.getLogger(__name__)


def key(path: str) -> str:
    """What stands in code.yaml for a path of the checkout: `basin/methods/heads/${item.head.kind}`."""
    return path.removeprefix("pipeline/").removesuffix(".py")


def is_code(path: str) -> bool:
    """Whether a dependency is a part of the package."""
    return path == INSIDE or path.startswith(f"{INSIDE}/")


def bodies(graph: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The tables with `cmd` and `deps` of a dvc.yaml's stages."""
    yield from (stage.get("do", stage) for stage in graph["stages"].values())


def graph() -> str:
    """The checkout's graph where the code is an installed package: its paths are keys of code.yaml."""
    yaml = YAML()
    yaml.width = 140
    content = yaml.load(GRAPH.read_text(encoding="utf-8"))
    for body in bodies(content):
        body["cmd"] = body["cmd"].removeprefix("PYTHONPATH=pipeline ")
        keys = [f"code.{key(dep)}" for dep in body["deps"] if is_code(dep)]
        body["deps"] = [dep for dep in body["deps"] if not is_code(dep)]
        body["params"] = [*body["params"], {str(FILE): keys}]
    yaml.dump(content, written := io.StringIO())
    return GRAPH_HEAD + written.getvalue()[written.getvalue().index("stages:") :]


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
    about = [f"version: {files.VERSION}\n", f"graph: '{_digest(graph())}'\n"]
    return HEAD + "".join([*about, "code:\n", *(f"  {name}: '{one}'\n" for name, one in digests().items())])


def keep(write: bool = True) -> bool:
    """Bring the project's code.yaml and graph up to date, where there is one; whether it was not.

    Raises Mistake where the graph has changed, and the user has changed it too.
    """
    stale = FILE.exists() and FILE.read_text(encoding="utf-8") != text()
    if stale and write:
        plain = watched.graph(OWN.read_text(encoding="utf-8"), "")  # which images are watched is for params.yaml to say
        _renew(plain, FILE.read_text(encoding="utf-8"))
        files.write(FILE, text())
    if write and OFFERED.exists():
        raise Mistake(
            f"{OWN}: has changes of yours, and Basin's graph has changed (got Basin {files.VERSION}). Bring yours into {OFFERED}, which "
            f"is Basin's, then: mv {OFFERED} {OWN}. To keep yours as it is: rm {OFFERED}."
        )
    return stale


def _renew(own: str, recorded: str) -> None:
    """Write this version's graph: in the place of the one that Basin wrote, beside one that was edited."""
    began = re.search(r"^graph: '(\w+)'$", recorded, re.MULTILINE)
    if own == graph() or (began and began[1] == _digest(graph())):
        return
    if began and began[1] == _digest(own):
        files.write(OWN, graph())
        log.info("%s: now the graph of Basin %s. Commit it with %s.", OWN, files.VERSION, FILE)
    else:
        files.write(OFFERED, graph())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check() -> None:
    """Raise Mistake where a stage is about to run code that code.yaml does not speak of: DVC would record the one for the other."""
    if keep(write=False):
        raise Mistake(
            f"{FILE}: not of the code that runs here (got another than Basin {files.VERSION}). Run `basin repro`, which mends it."
        )
