"""Stages on other machines: Ray says where, through prefect-ray, and DVC's remote carries what they need and what they make.

    this machine: push what the stage needs --> a node: pull, run, push --> this machine: restored from the run cache

A node has a checkout of its own (BASIN_CHECKOUT), with its own DVC cache. A stage runs there in a copy of this workspace's commit, with its
params.yaml and dvc.lock, so that runs beside each other, or of another commit, do not meet. No node's word is taken for a result: DVC
restores what was made from the code, the params and the inputs that are here, and nothing else.

A node that dies takes its stages with it, and Ray gives them to another; all other failures are tried again by the stage's own task.
"""

import contextvars
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, chdir, contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from pydantic import Field

from pipeline import repro as dvc
from pipeline import slots, tracking
from pipeline.errors import EXIT_CODE, Mistake
from pipeline.flow import children, pages, progress
from pipeline.guard import GRACE, LOOK, Guards, Stopped
from pipeline.repro import Outcome, Stage, StageFailed

HERE = "here"
CHECKOUT = "BASIN_CHECKOUT"
COPIES = ".dvc/tmp/basin"  # in a checkout: where dvc looks for no dvc.yaml, and git for nothing
TRAVEL = ("params.yaml", "dvc.lock")  # the state of a run, beside its commit
PATTERN = r"^(here|ray|ray://[^\s:/]+:\d+)$"
Place = Annotated[str, Field(pattern=PATTERN)]


class Nodes:
    """The nodes of a Ray cluster, for the stages of one flow run."""

    def __init__(self, runner: Any, commit: str):
        self._runner, self._commit = runner, commit
        self._context = contextvars.copy_context()  # the flow's: a task's own holds locks and processes, which cannot travel
        self._live: set[Any] = set()

    def reproduce(self, stage: Stage, on_line: Callable[[str], object], guards: Guards, keep: Sequence[int]) -> Outcome:
        """Bring one stage up to date on some node, then here.

        Raises StageFailed as the node did, or where DVC does not find that what came back was made from what is here.
        """
        if stage.upstream:
            children.run(stage.name, [*dvc.DVC, "--wait-for-lock", "push", *stage.upstream], on_line, guards, keep=keep)
        future = self._context.copy().run(self._submit, stage)
        self._live.add(future)
        outcome = _outcome(stage, future, guards)
        self._live.discard(future)
        dvc.reproduce_one(stage.name, on_line, guards, keep=keep, pull=True, run=False)
        return outcome

    def _submit(self, stage: Stage) -> Any:
        import ray
        from prefect_ray.context import remote_options

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        # One that asks for more than any node has would wait for ever.
        cpus, gpus = (max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in ("CPU", "GPU"))
        wanted = {"num_cpus": min(stage.cpus, cpus), "num_gpus": min(stage.gpus if stage.gpus <= 1 else round(stage.gpus), gpus)}
        files = {name: Path(name).read_text() for name in TRAVEL if Path(name).exists()}
        with remote_options(**wanted, scheduling_strategy="SPREAD"):
            return self._runner.submit(make, {"stage": stage, "commit": self._commit, "files": files})

    def cancel(self) -> None:
        """End what is under way on the nodes; a stage has its grace for a last checkpoint."""
        import ray

        live = [future.wrapped_future for future in self._live]
        for reference in live:
            ray.cancel(reference)
        if live:
            ray.wait(live, num_returns=len(live), timeout=GRACE + 5)


def _outcome(stage: Stage, future: Any, guards: Guards) -> Outcome:
    """What the node's task returned or raised. Stopped as soon as the guards are told to end: Ray may never answer then."""
    from ray.exceptions import RayError

    while not guards.ended:
        try:
            return future.result(timeout=1.0)
        except TimeoutError:
            continue
        except RayError as error:
            raise StageFailed(stage.name, None, f"lost with its node: {' '.join(str(error).split())[:300]}") from error
    raise Stopped(f"{stage.name}: stopped")


def check(on: str) -> None:
    """What the form refuses, for those that come without one."""
    if not re.match(PATTERN, on):
        raise Mistake(f"on: no such place (got '{on}'). Give here, ray, or ray://HOST:PORT.")


@contextmanager
def connected(on: str) -> Iterator[Nodes | None]:
    """The nodes of the cluster that `on` names, until the block ends; None for this machine. Raises Mistake if there is no such cluster."""
    if on == HERE:
        yield None
        return
    if not dvc.has_remote():
        raise Mistake(f"on: other machines need a DVC remote that all of them reach (got '{on}', and none). See docs/cluster.md.")
    commit = _commit()
    with _runner(on) as runner:
        nodes = Nodes(runner, commit)
        try:
            yield nodes
        except BaseException:
            nodes.cancel()
            raise


@contextmanager
def _runner(on: str) -> Iterator[Any]:
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise Mistake(f"on: Ray is not installed here (got '{on}'; {error}). Install it: uv pip install 'basin[ray]'.") from error
    # A worker of Ray's that ends would kill the guard of its stage, and leave the stage.
    spare = {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "false"}}
    # The address as an option: given "auto" itself, prefect-ray may start a cluster of its own.
    runner = RayTaskRunner(init_kwargs={"address": "auto" if on == "ray" else on, "runtime_env": spare})
    with ExitStack() as stack:
        told = signal.getsignal(signal.SIGTERM)
        try:
            stack.enter_context(runner)
            signal.signal(signal.SIGTERM, told)  # Ray puts its own in place, which ends this process before it could clean up
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            said = " ".join(str(error).split())[:300]
            raise Mistake(f"on: no Ray cluster answers (got '{on}'; {said}). Start it (docs/cluster.md), or run on here.") from error
        yield runner


def _commit() -> str:
    """The commit of this workspace. Raises Mistake where anything differs from it that a node would not get."""
    outs = [out for stage in dvc.graph() for out in stage.outs]
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":(exclude){path}" for path in (*TRAVEL, *outs)))
        commit = _git("rev-parse", "HEAD")
    except subprocess.CalledProcessError as error:
        raise Mistake(f"on: other machines need the commit of this workspace (got none: {error.stderr.strip()}). Commit it.") from error
    if changed:
        files = ", ".join(line[3:] for line in changed.splitlines())
        raise Mistake(f"on: other machines have what is committed (got changes in {files}). Commit them, or run on here.")
    return commit


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.rstrip()


def _name() -> str:
    return f"{task_run.parameters['stage'].name} on {socket.gethostname()}"


@task(name="stage on a node", task_run_name=_name, cache_policy=NO_CACHE, persist_result=False)
def make(stage: Stage, commit: str, files: Mapping[str, str]) -> Outcome:
    """On a node: pull what the stage needs, bring it up to date, push what it made."""
    guards, context = Guards(), contextvars.copy_context()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # how Ray cancels; a node that was started by a script ignores it
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(context.run, _make, stage, commit, files, guards)
        try:
            while not wait([work], LOOK).done:  # Ray's cancel interrupts this thread, but no read of a pipe
                continue
        except BaseException:
            guards.end()
            raise
    return work.result()


def _make(stage: Stage, commit: str, files: Mapping[str, str], guards: Guards) -> Outcome:
    on_line = get_run_logger().info
    try:
        with _copy(commit, files) as (env, lock):

            def transfer(*words: str) -> None:
                children.run(stage.name, [*dvc.DVC, "--wait-for-lock", *words], on_line, guards, env=env, keep=[lock])

            on_line(f"On {socket.gethostname()}, GPU {os.environ.get('CUDA_VISIBLE_DEVICES') or 'none'}, in {Path.cwd()}")
            if stage.upstream:
                transfer("pull", *stage.upstream)
            with progress.shown(stage.name, f"progress-{pages.key(stage.name)}"):
                outcome = dvc.reproduce_one(stage.name, on_line, guards, env, [lock], pull=True)
            transfer("push", "--run-cache", stage.name)
            return outcome
    except Mistake as mistake:
        raise StageFailed(stage.name, EXIT_CODE, f"{socket.gethostname()}: {mistake}") from mistake


@contextmanager
def _copy(commit: str, files: Mapping[str, str]) -> Iterator[tuple[dict[str, str], int]]:
    """In a copy of this node's checkout at `commit`, with the checkout's cache, checkpoints and secrets.

    Yields what its children need: variables of the environment, and a lock to hold, for as long as one of them writes here.
    """
    checkout = _checkout(commit)
    with chdir(checkout):
        cache, env = dvc.cache().parents[1], {"MLFLOW_TRACKING_URI": tracking.uri()}
    locks = (slots.try_lock(checkout / COPIES / f"{number}.lock") for number in count())
    with next(lock for lock in locks if lock) as lock:
        place = Path(lock.name).with_suffix("")
        shutil.rmtree(place, ignore_errors=True)  # of a stage that was killed
        _git("clone", "--quiet", "--shared", "--no-checkout", str(checkout), str(place))
        with chdir(place):
            _git("checkout", "--quiet", "--detach", commit)
            for name, text in files.items():
                Path(name).write_text(text)
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
        _git("-C", str(checkout), "cat-file", "-e", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError:
        raise Mistake(f"{checkout}: the run's commit is not here (got {commit[:12]}). Bring it: git -C {checkout} fetch.") from None
    return checkout
