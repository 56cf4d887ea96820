"""Stages on other machines: Ray says where, through prefect-ray, and DVC's remote carries what they need and what they make.

    this machine: push what the stage needs --> a node: pull, run, push --> this machine: restored from the run cache

A node has a checkout of its own, with its own DVC cache (node.py). No node's word is taken for a result: DVC restores what was made from
the code, the params and the inputs that are here, and nothing else.

A node that dies takes its stages with it, and Ray gives them to another; all other failures are tried again by the stage's own task.
"""

import contextvars
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from basin.errors import Mistake
from basin.flow import children
from basin.flow.node import git, make
from basin.repro import graph as dvc
from basin.repro.graph import Outcome, Stage, StageFailed
from basin.repro.guard import GRACE, Guards, Stopped

HERE = "here"
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
        with _places(stage) as (options, group):
            future = self._context.copy().run(self._submit, stage, options, group)
            self._live.add(future)
            outcome = _outcome(stage, future, guards)
            self._live.discard(future)
        dvc.reproduce_one(stage.name, on_line, guards, keep=keep, pull=True, run=False)
        return outcome

    def _submit(self, stage: Stage, options: dict[str, Any], group: Any) -> Any:
        from prefect_ray.context import remote_options

        files = {name: Path(name).read_text(encoding="utf-8") for name in TRAVEL if Path(name).exists()}
        with remote_options(**options):
            return self._runner.submit(make, {"stage": stage, "commit": self._commit, "files": files, "group": group})

    def cancel(self) -> None:
        """End what is under way on the nodes; a stage has its grace for a last checkpoint."""
        import ray

        live = [future.wrapped_future for future in self._live]
        for reference in live:
            ray.cancel(reference)
        if live:
            ray.wait(live, num_returns=len(live), timeout=GRACE + 5)


@contextmanager
def _places(stage: Stage) -> Iterator[tuple[dict[str, Any], Any]]:
    """Ray's options for a stage's task; and where it wants more GPUs than any node has, the places of its processes, held for all at once.

    One that asks for more than there is would wait for ever: it gets what there is.
    """
    import ray
    from ray.util import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in ("CPU", "GPU"))
    processes, cpus = min(int(stage.gpus), int(sum(node.get("GPU", 0.0) for node in nodes))), min(stage.cpus, cpus)
    if processes <= max(gpus, 1):
        gpus = min(stage.gpus if stage.gpus <= 1 else round(stage.gpus), gpus)
        yield {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}, None
        return
    group = placement_group([{"CPU": cpus, "GPU": 1}] * processes)
    try:
        yield {"num_cpus": cpus, "num_gpus": 1, "scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0)}, group
    finally:
        remove_placement_group(group)


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
        raise Mistake(f"on: Ray is not installed here (got '{on}'; {error}). Install it: uv pip install -e '.[ray]'.") from error
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
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":(exclude){path}" for path in (*TRAVEL, *outs)))
        commit = git("rev-parse", "HEAD")
    except subprocess.CalledProcessError as error:
        raise Mistake(f"on: other machines need the commit of this workspace (got none: {error.stderr.strip()}). Commit it.") from error
    if changed:
        files = ", ".join(line[3:] for line in changed.splitlines())
        raise Mistake(f"on: other machines have what is committed (got changes in {files}). Commit them, or run on here.")
    return commit
