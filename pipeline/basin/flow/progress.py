"""How far a stage at work is, read from its checkpoint: epochs of a training, steps of a suite and the images that still hold.

The stage itself knows nothing of this: it writes its checkpoint after every epoch and every attack in any case.
"""

import contextvars
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from safetensors import safe_open

from basin.config import params
from basin.errors import Mistake
from basin.flow import pages

LOOK = 2.0  # seconds between two looks


class Progress(NamedTuple):
    percent: float
    words: str


@contextmanager
def shown(stage: str, key: str) -> Iterator[None]:
    """While the block runs, keep a progress artifact of the stage on Prefect's pages, from its first checkpoint on."""
    ended, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=contextvars.copy_context().run, args=(_follow, stage, key, ended, done), daemon=True)
    thread.start()
    try:
        yield
        done.set()
    finally:
        ended.set()
        thread.join(5.0)  # not as long as a server may be away


def _follow(stage: str, key: str, ended: threading.Event, done: threading.Event) -> None:
    artifact: Any = None
    last: Progress | None = None
    while not ended.wait(LOOK):
        if (now := read(stage)) is None or now == last:
            continue
        last = now
        with pages.optional():
            if artifact is None:
                artifact = create_progress_artifact(now.percent, key, f"{stage}: {now.words}")
            else:
                update_progress_artifact(artifact, now.percent, f"{stage}: {now.words}")
    if artifact is not None and done.is_set():
        with pages.optional():
            update_progress_artifact(artifact, 100.0, f"{stage}: done")


def read(stage: str) -> Progress | None:
    """Where the stage's newest checkpoint stands; None without one. `stage` as DVC names it."""
    from basin import checkpoint  # loads torch, as the run has done by now

    family, _, item = stage.partition("@")
    place = checkpoint.folder() / family / ("/".join(item.rsplit("-", 1)) if family == "attack" else item)
    try:
        newest = max(place.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        with safe_open(newest, "numpy") as file:
            texts = file.metadata()
        if "about" in texts:
            return _of_suite(json.loads(texts["about"]))
        return _of_training(json.loads(texts["progress"]), family, item)
    except (*checkpoint.UNREADABLE, AttributeError, ArithmeticError, RuntimeError, Mistake):
        return None  # none yet, damaged, or gone by now: the stage has ended


def _params() -> dict[str, Any]:
    return params.read(Path("params.yaml"))


def _of_training(progress: Mapping[str, Any], family: str, name: str) -> Progress:
    done, planned = len(progress["history"]), _epochs(_params()[family][name]["schedule"])
    best = f", accuracy {progress['history'][-1]['accuracy']:.1%}" if done else ""
    return Progress(min(100.0, 100 * done / max(planned, 1)), f"{done} of {planned} epochs{best}")


def _epochs(schedule: Mapping[str, Any]) -> int:
    """Of a schedule, or of the schedules of all phases."""
    return int(schedule.get("epochs", 0)) + sum(_epochs(phase) for phase in schedule.values() if isinstance(phase, dict))


def _of_suite(about: Mapping[str, Any]) -> Progress:
    n, finished, planned = len(about["attack"]), about["finished"], about["planned"]
    hold = n - sum(bool(name) for name in about["attack"])
    return Progress(100 * finished / planned, f"{n} images attacked in {finished} of {planned} steps, {hold} hold")
