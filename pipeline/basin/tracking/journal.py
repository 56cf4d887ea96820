"""What a stage tells MLflow, without ever waiting for it.

A stage appends lines to a journal under `.basin/runs/`; a process beside it, the mirror, reads the journal as it grows and talks
to MLflow. So importing MLflow (1.4 s) delays nobody, an absent server or a damaged database cannot fail or hang a stage, a stage
that is killed outright is still seen to be KILLED, and what could not be delivered stays in its journal until
`python -m basin.tracking.mirror` delivers it. A stage that is tried again after a kill continues the run it began.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from basin.files import checkout
from basin.tracking import shared, system

RUNS = Path(".basin/runs")
PATIENCE = 30  # seconds that a stage waits at its end for the mirror, and that the mirror outlives a stage
SQLITE = "sqlite:///"
PARENT = "BASIN_PARENT"  # in the environment of the stages of a `basin repro`: its journal (parent.py)
log = logging.getLogger(__name__)


class Run:
    """One stage's run. Nothing here raises because of MLflow, or waits for it."""

    def __init__(self, journal: Path, held: TextIO | None = None):
        self.journal, self.held = journal, held

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Numbers at a step (an epoch); they appear in MLflow while the stage goes on."""
        self._write({"metrics": {_named(name): float(value) for name, value in values.items()}, "step": step})

    def artifact(self, path: Path | str) -> None:
        """Attach a file or a folder; it is copied soon after, so leave it in place."""
        self._write({"artifact": str(Path(path).resolve())})

    def tags(self, tags: Mapping[str, Any]) -> None:
        self._write({"tags": dict(tags)})

    def _write(self, line: dict[str, Any]) -> None:
        try:
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time() * 1000), **line}, default=str) + "\n")
        except OSError as error:
            log.warning("%s: the journal of this run cannot be written (got %s). The stage goes on untracked.", self.journal, error)
            self.journal = Path(os.devnull)


@contextmanager
def run(stage: str, params: Mapping[str, Any], tags: Mapping[str, Any], experiment: str) -> Iterator[Run]:
    """Track one stage, e.g. `run("head/sodef_natural", entry, {"seed": 0, "device": "cpu", "data_digest": d}, "digits")`.

    `params` is the stage's own table of params.yaml, the same that a recipe keeps under `trained`: the registry finds a model's run by it.
    `BASIN_TRACKING=off` in the environment tracks nothing.
    """
    key = digest([experiment, stage, params, tags])
    journal = checkout() / RUNS / f"{stage}.{key}.{time.time_ns()}.jsonl"
    tracked, mirror = Run(Path(os.devnull)), None
    if os.environ.get("BASIN_TRACKING") != "off":
        tracked, mirror = _open(journal)
    always = {"stage": stage, "asked": digest(params)}
    if dvc := os.environ.get("DVC_STAGE"):
        always |= {"dvc.stage": dvc, "mlflow.source.name": f"dvc repro {dvc}", "mlflow.source.type": "LOCAL"}
    start = {"experiment": experiment, "run_name": shown_name(stage), "params": flatten(params), "resume": f"{stage}.{key}.json"}
    if parent := os.environ.get(PARENT):
        start["parent"] = parent
        Run(checkout() / RUNS / parent).tags({f"ran.{stage}": "yes"})
    tracked._write({"start": start, "tags": {**always, **commit(), **tags}})
    status = "FAILED"
    try:
        yield tracked
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except Exception as error:
        tracked.tags({"error": f"{type(error).__name__}: {error}"})
        raise
    finally:
        tracked.metrics(system.taken())
        tracked._write({"end": status})
        if tracked.held:
            tracked.held.close()
        if tracked.held and status != "KILLED":  # a stage that is stopped stops; its mirror delivers the rest
            _wait(mirror, journal)


def _open(journal: Path) -> tuple[Run, subprocess.Popen | None]:
    """The journal and the process that mirrors it, None where the run's does (shared.py).

    The stage and its mirror hold a shared lock on the journal, from before it has its name: nobody else takes it for an old one.
    """
    try:
        held = opened(journal)
        return Run(journal, held), None if shared.hand_over(journal) else shared.start(str(journal), str(os.getpid()))
    except OSError as error:
        log.warning("%s: no journal can be kept (got %s). The stage goes on untracked.", journal, error)
        return Run(Path(os.devnull)), None


def opened(journal: Path) -> TextIO:
    """A new journal, locked. Raises OSError."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    held = (unnamed := journal.with_suffix(".new")).open("a", encoding="utf-8")
    fcntl.flock(held, fcntl.LOCK_SH)
    unnamed.rename(journal)
    return held


def deliver(journal: Path) -> None:
    """Hand a journal that has ended to the run's mirror, else to one of its own, and give it its time."""
    _wait(None if shared.hand_over(journal) else shared.start(str(journal), str(os.getpid())), journal)


def _wait(mirror: subprocess.Popen | None, journal: Path) -> None:
    """Give the mirror its time; it says itself what went wrong, unless it was stopped. What the run's mirror was stopped before, one of
    this stage's own delivers."""
    if mirror is None:
        deadline = time.monotonic() + PATIENCE + 5
        while journal.exists() and shared.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not journal.exists() or shared.is_alive():
            return
        mirror = shared.start(str(journal), str(os.getpid()))
    try:
        code = mirror.wait(PATIENCE + 5)
    except subprocess.TimeoutExpired:
        mirror.kill()
        code = mirror.wait()
    if code < 0:
        log.warning(kept(f"no answer in {PATIENCE} s", journal))


def kept(problem: object, journal: Path) -> str:
    """The one warning."""
    return (
        f"tracking: MLflow at {shown(uri())} does not take this run (got {problem}). The stage goes on; {journal} keeps the run. "
        f"Deliver it when MLflow is back: python -m basin.tracking.mirror"
    )


def shown_name(stage: str) -> str:
    """What tells a run apart in a list that shows 17 letters: of `attack/head/sodef/quick` the suite and the model."""
    if stage.count("/") != 3:
        return stage
    _, kind, name, suite = stage.split("/")
    return f"{suite}: {name} ({kind})"


def uri() -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the checkout: what MLflow itself takes there, as an absolute path."""
    where = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{checkout() / 'mlflow.db'}"
    return f"{SQLITE}{Path(where.removeprefix(SQLITE)).absolute()}" if where.startswith(SQLITE) else where


def shown(where: str) -> str:
    """The address without a password, which may hold an @ of its own."""
    return re.sub(r"//[^/\s]*@", "//...@", where)


def cause(error: Exception) -> str:
    """An error in one line, without a password."""
    return shown(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def digest(asked: Any) -> str:
    """12 hexadecimal digits that stand for anything JSON can say."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _named(text: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-./ :]", "_", text)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested tables as dotted keys; values as YAML would show them."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = _named(f"{prefix}{key}")
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def commit() -> dict[str, str]:
    """The commit, and whether tracked files differ from it; what DVC and the report rewrite during a run does not count."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock", ":(exclude)report")
        return {"commit": (sha := git("rev-parse", "HEAD")), "dirty": str(bool(dirty)).lower(), "mlflow.source.git.commit": sha}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "none", "dirty": "true"}
