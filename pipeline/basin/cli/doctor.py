"""`basin doctor`: whether what Basin stands on is as it should be, a line each: what is there, or what is wrong and what to do."""

import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

from basin import files
from basin.errors import Mistake, said
from basin.tracking import journal

PATIENCE = 5.0  # seconds for a server's answer
ROOM = 5 << 30  # bytes: a run of photographs with its cache
PREPARED = Path("data/prepared")
STORES = ("sqlite", "postgresql", "mysql", "mssql", "file")  # in which MLflow keeps runs without a server


def findings() -> Iterator[tuple[bool, str]]:
    """Whether it is well, and the line, of each thing that is looked at."""
    for look in (_installation, _pins, _python, _git, _room, _device, _project, _data, _mlflow, _prefect):
        try:
            yield from ((True, line) for line in look())
        except Mistake as mistake:
            yield from ((False, message) for message in mistake.messages)


def _installation() -> Iterator[str]:
    yield f"basin {files.VERSION} in {Path(files.__file__).parent}, Python {platform.python_version()}, {platform.platform()}"


def _pins() -> Iterator[str]:
    """Each requirement of the package beside what is installed."""
    from packaging.requirements import Requirement

    asked = [Requirement(one) for one in metadata.requires("basin") or ()]
    asked = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    if wrong := [problem for one in asked if (problem := _unmet(one.name, one.specifier.contains, str(one.specifier)))]:
        raise Mistake(*wrong)
    yield f"{len(asked)} libraries, each of a version that Basin asks for"


def _unmet(name: str, fits: Callable[..., bool], asked: str) -> str:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "none"
    if version != "none" and fits(version, prereleases=True):
        return ""
    return f"{name}: not of a version that Basin stands on (got {version}). Run: python -m pip install '{name}{asked}'."


def _python() -> Iterator[str]:
    """Stages say `python`: under plain `dvc repro` that is what PATH has."""
    found = shutil.which("python")
    if not found or Path(found).parent.resolve() != Path(sys.executable).parent.resolve():
        advice = f"`basin repro` puts it right; for plain `dvc repro`: export PATH={Path(sys.executable).parent}:$PATH."
        raise Mistake(f"python: PATH has another Python than Basin's (got {found}). {advice}")
    yield f"python on PATH is {found}"


def _git() -> Iterator[str]:
    if not shutil.which("git"):
        raise Mistake("git: not found (got a PATH without it). Install it; commits stand beside runs, and `dvc exp` needs them.")
    if (commit := journal.commit()["commit"]) == "none":
        yield "git: in no repository: runs stand beside no commit"
        return
    (config := ConfigParser()).read(".dvc/config", encoding="utf-8")
    if config.getboolean("core", "no_scm", fallback=False):
        raise Mistake("git: came after DVC was set up (got no_scm in .dvc/config). For `dvc exp`: dvc config --unset core.no_scm.")
    yield f"git: at commit {commit[:12]}"


def _room() -> Iterator[str]:
    free = shutil.disk_usage(Path.cwd()).free
    if free < ROOM:
        raise Mistake(f"disk: little room is left here (got {free / 2**30:.1f} GiB). Make some: DVC keeps models and outcomes.")
    yield f"disk: {free / 2**30:.0f} GiB free"


def _device() -> Iterator[str]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield f"torch {torch.__version__} computes on {', '.join(names)}"
    elif shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0:
        built = torch.version.cuda or "none"
        raise Mistake(f"device: there is a GPU that torch cannot use (got {torch.__version__}, CUDA {built}). Match the driver.")
    else:
        yield f"torch {torch.__version__} computes on {os.cpu_count()} CPU cores; no GPU"


def _project() -> Iterator[str]:
    """params.yaml, the graph, and code.yaml where the code is a package."""
    from basin.repro import code, graph

    if not Path("params.yaml").exists() and not Path("dvc.yaml").exists():
        yield "project: none in this folder (`basin init FOLDER` makes one)"
        return
    graph.check()
    stages = graph.graph()
    if code.keep(write=False):
        raise Mistake(f"{code.FILE}: of another Basin (got another than {files.VERSION}). Run `basin repro`, which mends it.")
    yield f"project: params.yaml has no mistakes, dvc.yaml has {len(stages)} stages"


def _data() -> Iterator[str]:
    from basin.data.about import load_about

    if (PREPARED / "about.json").exists():
        about = load_about(PREPARED)
        yield f"data: {about.name}, {len(about.classes)} classes of shape {list(about.shape)}, {about.counts['test']} test images"
    else:
        yield "data: not prepared yet (`basin check` reads it)"


def _mlflow() -> Iterator[str]:
    yield _answers("MLflow", journal.uri(), "MLFLOW_TRACKING_URI", STORES)


def _prefect() -> Iterator[str]:
    yield _answers("Prefect", os.environ.get("PREFECT_API_URL", ""), "PREFECT_API_URL")


def _answers(name: str, where: str, variable: str, stores: tuple[str, ...] = ()) -> str:
    """What a server says, or where what it would keep is kept without one: in one of these `stores`, or a folder."""
    scheme = where.partition("://")[0].partition("+")[0] if "://" in where else ""
    if not scheme.startswith("http"):
        if where and (scheme or not stores) and scheme not in stores:
            known = ", ".join(f"{one}://..." for one in ("http", *stores))
            raise Mistake(f"{name}: is no address (got {journal.shown(where)!r}). Set {variable} to {known}, or unset it.")
        return f"{name}: no server is set; {'runs are kept in ' + journal.shown(where) if where else 'one is started where it is needed'}"
    try:
        address = re.sub(r"//[^/\s]*@", "//", where.rstrip("/"))
        with urllib.request.urlopen(f"{address}/health", timeout=PATIENCE):
            return f"{name}: {journal.shown(where)} answers"
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return f"{name}: {journal.shown(where)} answers, and asks who you are"
        raise Mistake(f"{name}: {journal.shown(where)} is no such server (got HTTP {error.code}). Mend {variable}.") from error
    except (OSError, ValueError) as error:
        got = journal.shown(said(error))
        raise Mistake(f"{name}: {journal.shown(where)} does not answer (got {got}). Start it, or mend {variable}.") from error
