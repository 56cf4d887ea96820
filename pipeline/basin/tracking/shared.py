"""One mirror for all stages of a run: MLflow's client takes four seconds of processor time to load, which each stage's own would spend.

`basin repro` starts it (`one_mirror`) and names its pipe in the environment. A stage hands its journal over by writing the name into the
pipe. A pipe that nobody reads is that of a mirror which has given up or was killed: the stage starts one of its own, as without a run.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from basin.files import checkout

PIPE = "BASIN_MIRROR"  # in the environment of a run's stages


@contextmanager
def one_mirror() -> Iterator[None]:
    """A mirror for the stages that are started meanwhile; it loads MLflow when the first hands its journal over."""
    pipe = checkout() / ".basin" / f"mirror.{os.getpid()}"
    mirror = _of_a_run(pipe) if os.environ.get("BASIN_TRACKING") != "off" else None
    os.environ[PIPE] = str(pipe)
    try:
        yield
    finally:
        del os.environ[PIPE]
        if mirror and mirror.stdin:
            mirror.stdin.close()  # it ends by itself, of a stage that was stopped after it has delivered the rest


def _of_a_run(pipe: Path) -> subprocess.Popen | None:
    try:
        pipe.parent.mkdir(parents=True, exist_ok=True)
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        return start("--run", str(pipe), stdin=subprocess.PIPE)
    except OSError:  # a folder without pipes: each stage starts its own
        return None


def start(*words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen:
    """A mirror; in a session of its own, so that a kill of the stage's group leaves it to finish."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "basin.tracking.mirror", *words]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stdin=stdin, stdout=subprocess.DEVNULL, start_new_session=True)


def hand_over(journal: Path) -> bool:
    """Give the journal to the run's mirror. False where there is none."""
    if not (pipe := _writing()):
        return False
    with open(pipe, "wb", buffering=0) as file:
        file.write(f"{journal.absolute()}\n".encode())
    return True


def is_alive() -> bool:
    """Whether there is a mirror of the run that takes journals."""
    if pipe := _writing():
        os.close(pipe)
    return bool(pipe)


def _writing() -> int | None:
    try:
        return os.open(os.environ[PIPE], os.O_WRONLY | os.O_NONBLOCK)
    except (KeyError, OSError):  # no run; nobody reads
        return None
