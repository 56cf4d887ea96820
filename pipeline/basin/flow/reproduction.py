"""The graph as a flow: one task a stage, as many at once as the graph, the workers and the GPUs allow, the longest way first."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed, State
from pydantic import Field

from basin.config import params
from basin.errors import Mistake
from basin.flow import cluster, order, pages, places, progress
from basin.flow.children import RETRIES
from basin.repro import code, lock, slots, watched
from basin.repro import graph as dvc
from basin.repro.graph import Stage, StageFailed
from basin.repro.guard import Guards
from basin.tracking import parent

STATE_NAMES = {"ran": "Completed", "unchanged": "Skipped", "restored": "Restored"}
FOR_EVER = float("inf")

Targets = Annotated[list[Annotated[str, Field(min_length=1)]], Field()]
Changes = Annotated[list[Annotated[str, Field(pattern=r"^[+~]{0,2}[^=\s]+(=.*)?$")]], Field()]
Workers = Annotated[int, Field(ge=1, le=256)]


class StagesFailed(Exception):
    """Every stage that failed, by name, with the reason. The stages that need them were not tried, all others were."""

    def __init__(self, failed: Mapping[str, Any]):
        super().__init__(failed)
        self.failed = failed

    @property
    def bad_input(self) -> bool:
        return all(isinstance(each, StageFailed) and each.bad_input for each in self.failed.values())

    def __str__(self) -> str:
        return "\n".join(f"{error}" for error in self.failed.values())


@task(name="stage", task_run_name="{stage.name}", cache_policy=NO_CACHE, persist_result=False, **RETRIES)  # DVC's is the only cache
def run_stage(
    stage: Stage, clean: bool, guards: Guards, slot: slots.Taken, keep: Sequence[int], nodes: cluster.Nodes | None = None
) -> State:
    """Bring one stage up to date; the state's name says how: Completed, Skipped, or Restored from DVC's run cache."""
    logger = get_run_logger()
    if clean:
        return Completed(name=STATE_NAMES["unchanged"], message="unchanged", data=0.0)
    if slot.ids:
        logger.info("On GPU %s", ", ".join(slot.ids))
    started = time.monotonic()
    locks = [*slot.keep, *keep]
    if nodes and stage.gpus:
        outcome = nodes.reproduce(stage, logger.info, guards, locks)
    else:
        with progress.shown(stage.name, f"progress-{pages.key(stage.name)}"):
            outcome = dvc.reproduce_one(stage.name, logger.info, guards, slot.environment, locks)
    if outcome != "unchanged":
        pages.outputs(stage)
    return Completed(name=STATE_NAMES[outcome], message=outcome, data=time.monotonic() - started)


def failures(states: Mapping[str, State]) -> dict[str, Any]:
    """The reasons, by name, of what failed itself."""
    return {name: state.result(raise_on_failure=False) for name, state in states.items() if state.is_failed() or state.is_crashed()}


def run_name() -> str:
    """A flow run's name: the workspace and what was asked for."""
    parameters = flow_run.parameters
    asked = [", ".join(parameters.get("targets") or ["everything"]), *(parameters.get("changes") or [])]
    return f"{Path.cwd().name}: {' '.join(asked)}"


def go_on(targets: Sequence[str] | None, on: str = cluster.HERE) -> str:
    return " ".join(["basin flow", *(targets or []), *([] if on == cluster.HERE else ["--on", on])])


@flow(name="repro", flow_run_name=run_name, persist_result=False)
def repro(targets: Targets | None = None, changes: Changes | None = None, workers: Workers = 2, on: cluster.Place = cluster.HERE) -> State:
    """Bring stages and all that they need up to date. What is up to date already is skipped, what was interrupted goes on.

    Args:
        targets: stages or families of stages as `dvc stage list` names them, e.g. `backbone` or `head@sodef_natural`; everything if empty
        changes: entries of params.yaml to set first, as KEY=VALUE, e.g. `threat.eps=0.1`; they stay in the file
        workers: how many stages may run at once, at least 1
        on: here, this machine; ray or ray://HOST:PORT, the nodes of that Ray cluster for every stage that wants a GPU (docs/cluster.md)
    """
    try:
        return bring_up_to_date(targets, changes, workers, on)
    except Mistake as mistake:
        return Failed(message=str(mistake), data=mistake)  # raised to the caller, without a page of Prefect's own frames in the log


def bring_up_to_date(targets: Sequence[str] | None, changes: Sequence[str] | None, workers: int, on: str = cluster.HERE) -> State:
    """The body of `repro`, for any flow. Raises Mistake for bad input; the state is Failed, with StagesFailed, if stages failed."""
    # A run that somebody asked for on the pages waits its turn; one at a terminal is told who is at work.
    with slots.only_run(patience=FOR_EVER if deployment.id else 0.0) as held:
        stages = plan(targets, changes)
        pages.tag()
        clean, recorded = dvc.unchanged(stages), lock.recorded()
        guards = Guards()
        keep = [held.fileno()]
        with cluster.connected(on) as nodes, parent.over(params.load(), targets or ()) as ended:

            def submit(stage: Stage, slot: slots.Taken, inputs: list[Any]) -> Any:
                return run_stage.submit(stage, stage.name in clean, guards, slot, keep, nodes, wait_for=inputs, return_state=False)

            jobs = order.by_rank(stages, clean, order.remembered())
            states = places.fill(jobs, clean, workers, submit, guards, () if nodes else None)
            ended(int(bool(failures(states))))
        lock.settle(recorded, stages)
    pages.publish(stages, states, go_on(targets, on))
    return _verdict(states)


def plan(targets: Sequence[str] | None, changes: Sequence[str] | None = None) -> list[Stage]:
    """The stages to bring up to date, in order; a `Mistake` for whatever is wrong before anything runs. With the workspace locked."""
    lock.mend()
    code.keep()
    if changes:
        dvc.change(changes)
    config = dvc.check()
    watched.keep(config)
    watched.tell_of_others(config)
    return dvc.choose(dvc.graph(), targets or ())


def _verdict(states: Mapping[str, State]) -> State:
    order.remember({name: state.result() for name, state in states.items() if state.name == STATE_NAMES["ran"]})
    if failed := failures(states):
        error = StagesFailed(failed)
        return Failed(message=str(error), data=error)
    names = [state.name for state in states.values()]
    return Completed(message=", ".join(f"{names.count(name)} {name.lower()}" for name in STATE_NAMES.values() if name in names))
