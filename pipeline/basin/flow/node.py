"""A stage on a node of a cluster: what the flow on another machine (cluster.py) has it do.

It runs in a copy of this node's checkout (BASIN_CHECKOUT), at the commit of the flow's workspace and with its params.yaml and dvc.lock, so
that runs beside each other, or of another commit, do not meet. The cache, checkpoints and secrets are the checkout's.
"""

import contextvars
import logging
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import chdir, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run

from basin.errors import EXIT_CODE, Mistake
from basin.flow import children, gang, pages, progress
from basin.repro import graph as dvc
from basin.repro import slots
from basin.repro.graph import Outcome, Stage, StageFailed
from basin.repro.guard import GRACE, LOOK, Guards
from basin.tracking import journal

T = TypeVar("T")
CHECKOUT = "BASIN_CHECKOUT"
COPIES = ".dvc/tmp/basin"  # in a checkout: where dvc looks for no dvc.yaml, and git for nothing


def git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, encoding="utf-8", errors="replace", check=True).stdout.rstrip()


def _name() -> str:
    return f"{task_run.parameters['stage'].name} on {socket.gethostname()}"


@task(name="stage on a node", task_run_name=_name, cache_policy=NO_CACHE, persist_result=False)
def make(stage: Stage, commit: str, files: Mapping[str, str], group: Any = None) -> Outcome:
    """On a node: pull what the stage needs, bring it up to date, push what it made. `group`: Ray's places of its processes, if several."""
    with gang.called(assist, group, stage, commit, files) as (place, others):
        return _followed(partial(_make, stage, commit, files, place), others)


def assist(stage: Stage, commit: str, files: Mapping[str, str], place: Mapping[str, str]) -> StageFailed | None:
    """On another node: be one more process of a stage, which the first writes down. What it failed of."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # Ray carries it to the flow
    try:
        return _followed(partial(_assist, stage, commit, files, place))
    except StageFailed as failed:
        return failed


def _followed(work: Callable[[Guards], T], others: Callable[[], StageFailed | None] = lambda: None) -> T:
    """What `work` returns; it is ended when Ray cancels this task, and when it does not end by itself where one of the others failed."""
    guards, context = Guards(), contextvars.copy_context()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # how Ray cancels; a node that was started by a script ignores it
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(context.run, work, guards)
        try:
            while not wait([done], LOOK).done:  # Ray's cancel interrupts this thread, but no read of a pipe
                if (failed := others()) and not wait([done], GRACE).done:
                    raise failed
        except BaseException:
            guards.end()
            raise
    return done.result()


def _make(stage: Stage, commit: str, files: Mapping[str, str], place: Mapping[str, str], guards: Guards) -> Outcome:
    on_line = get_run_logger().info
    with _ready(stage, commit, files, guards, on_line) as (env, lock, transfer):
        with progress.shown(stage.name, f"progress-{pages.key(stage.name)}"):
            outcome = dvc.reproduce_one(stage.name, on_line, guards, {**env, **place}, [lock], pull=True)
        transfer("push", "--run-cache", stage.name)
        return outcome


def _assist(stage: Stage, commit: str, files: Mapping[str, str], place: Mapping[str, str], guards: Guards) -> None:
    on_line = logging.getLogger(__name__).info
    with _ready(stage, commit, files, guards, on_line) as (env, lock, _):
        children.run(stage.name, ["sh", "-c", dvc.command(stage.name)], on_line, guards, env={**env, **place}, keep=[lock])


@contextmanager
def _ready(
    stage: Stage, commit: str, files: Mapping[str, str], guards: Guards, on_line: Callable[[str], object]
) -> Iterator[tuple[dict[str, str], int, Callable[..., None]]]:
    """In a copy of the checkout that has what the stage needs: what `_copy` yields, and a call of dvc that moves data.

    Raises StageFailed, with the node's name, where it cannot be had.
    """
    try:
        with _copy(commit, files) as (env, lock):

            def transfer(*words: str) -> None:
                children.run(stage.name, [*dvc.DVC, "--wait-for-lock", *words], on_line, guards, env=env, keep=[lock])

            on_line(f"On {socket.gethostname()}, GPU {os.environ.get('CUDA_VISIBLE_DEVICES') or 'none'}, in {Path.cwd()}")
            if stage.upstream:
                transfer("pull", *stage.upstream)
            yield env, lock, transfer
    except Mistake as mistake:
        raise StageFailed(stage.name, EXIT_CODE, f"{socket.gethostname()}: {mistake}") from mistake
    except (OSError, subprocess.SubprocessError) as error:  # a full disk, say: the next try may be on another node
        raise StageFailed(stage.name, None, f"{socket.gethostname()}: {error}") from error


@contextmanager
def _copy(commit: str, files: Mapping[str, str]) -> Iterator[tuple[dict[str, str], int]]:
    """In a copy of this node's checkout at `commit`, with the checkout's cache, checkpoints and secrets.

    Yields what its children need: variables of the environment, and a lock to hold, for as long as one of them writes here.
    """
    checkout = _checkout(commit)
    with chdir(checkout):
        cache, env = dvc.cache().parents[1], {"MLFLOW_TRACKING_URI": journal.uri()}
    locks = (slots.try_lock(checkout / COPIES / f"{number}.lock") for number in count())
    with next(lock for lock in locks if lock) as lock:
        place = Path(lock.name).with_suffix("")
        shutil.rmtree(place, ignore_errors=True)  # of a stage that was killed
        git("clone", "--quiet", "--shared", "--no-checkout", str(checkout), str(place))
        with chdir(place):
            git("checkout", "--quiet", "--detach", commit)
            for name, text in files.items():
                Path(name).write_text(text, encoding="utf-8")
            if (secrets := checkout / ".dvc/config.local").exists():
                shutil.copy(secrets, ".dvc")
            subprocess.run([*dvc.DVC, "config", "--local", "cache.dir", str(cache)], check=True)
            (checkout / ".basin").mkdir(exist_ok=True)
            Path(".basin").symlink_to(checkout / ".basin")
            yield env, lock.fileno()
        shutil.rmtree(place, ignore_errors=True)


def _checkout(commit: str) -> Path:
    checkout = Path(os.environ.get(CHECKOUT, "")).resolve()
    if CHECKOUT not in os.environ or not (checkout / "dvc.yaml").exists():
        said = os.environ.get(CHECKOUT, "nothing")
        raise Mistake(f"{CHECKOUT}: should name this node's checkout, with its dvc.yaml (got {said}). Set it before: ray start.")
    try:
        git("-C", str(checkout), "cat-file", "-e", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError:
        raise Mistake(f"{checkout}: the run's commit is not here (got {commit[:12]}). Bring it: git -C {checkout} fetch.") from None
    return checkout
