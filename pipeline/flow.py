"""The run as a Prefect flow: one task a stage, as many at once as the graph, the workers and the GPUs allow.

The graph is DVC's (`repro.graph`), never a second copy; a task runs `dvc repro --single-item`, so that after a flow `dvc repro` has
nothing to do, and after `dvc repro` every task is skipped. The only file that imports prefect: call `environment.apply()` before
importing it, as `main` and the command line do.
"""

import csv
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import prefect.context
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Completed, Failed, State
from prefect.tasks import exponential_backoff

from pipeline import environment, repro, server, slots
from pipeline.errors import EXIT_CODE, Mistake, exit_on_mistake
from pipeline.guard import Guards, Stopped
from pipeline.repro import Stage, StageFailed

STATE_NAMES = {"ran": "Completed", "unchanged": "Skipped", "restored": "Restored"}
REPORT = Path("report/index.html")
TABLE = Path("report/table.csv")


class StagesFailed(Exception):
    """Every stage that failed, by name, with the reason. The stages that need them were not tried, all others were."""

    def __init__(self, failed: Mapping[str, Any]):
        super().__init__(failed)
        self.failed = failed

    def __str__(self) -> str:
        return "\n".join(f"{error}" for error in self.failed.values())


def _worth_retrying(task: Any, run: Any, state: State) -> bool:
    """A crash, a full GPU or an absent disk may pass; wrong input stays wrong, and a stopped run stays stopped."""
    error = state.data
    return isinstance(error, StageFailed) and not error.bad_input


@task(
    name="stage",
    task_run_name="{stage.name}",
    cache_policy=NO_CACHE,  # DVC's is the only cache
    persist_result=False,
    retries=2,
    retry_delay_seconds=exponential_backoff(2),  # 2 s, 4 s
    retry_jitter_factor=0.5,  # stages that were refused the same file do not come back together
    retry_condition_fn=_worth_retrying,
)
def run_stage(stage: Stage, clean: bool, guards: Guards, devices: slots.Taken) -> State:
    """Bring one stage up to date; the state's name says how: Completed, Skipped, or Restored from DVC's run cache."""
    logger = get_run_logger()
    if devices.ids:
        logger.info("On GPU %s", ", ".join(devices.ids))
    outcome = "unchanged" if clean else repro.reproduce_one(stage.name, logger.info, guards, devices.environment, devices.keep)
    if outcome != "unchanged":
        create_markdown_artifact(_outputs(stage), key=_key(stage.name), description=f"What {stage.name} wrote")
    return Completed(name=STATE_NAMES[outcome], message=outcome, data=outcome)


def _run_name() -> str:
    parameters = flow_run.parameters
    return f"{Path.cwd().name}: {', '.join(parameters.get('targets') or ['everything'])}"


@flow(name="basin", flow_run_name=_run_name, persist_result=False)
def pipeline(targets: list[str] | None = None, workers: int = 2) -> State:
    """Bring the targets and all they need up to date (everything without targets), at most `workers` stages at once.

    Raises Mistake for bad input and StagesFailed at the end if stages failed.
    """
    with slots.only_flow():
        stages = _plan(targets, workers)
        clean, recorded = repro.unchanged(stages), repro.locked()
        guards = Guards()
        try:
            futures = _run(stages, clean, workers, guards)
        except BaseException:  # a cancel or Ctrl-C: Prefect would leave dvc and the stages running
            guards.end()
            raise
        repro.settle(recorded, stages)
    states = {name: future.state for name, future in futures.items()}
    _publish(stages, states)
    if failed := {name: state.result(raise_on_failure=False) for name, state in states.items() if state.is_failed()}:
        error = StagesFailed(failed)
        return Failed(message=str(error), data=error)  # raised to the caller, without a page of Prefect's own frames in the log
    names = [state.name for state in states.values()]
    return Completed(message=", ".join(f"{names.count(name)} {name.lower()}" for name in STATE_NAMES.values() if name in names))


def _plan(targets: Sequence[str] | None, workers: int) -> list[Stage]:
    """The stages to bring up to date, in order; a `Mistake` for whatever is wrong before anything runs."""
    if workers < 1:
        raise Mistake(f"workers: at least one stage must run at a time (got {workers}). Give 1 or more.")
    repro.check()
    return repro.choose(repro.graph(), targets or ())


def _run(stages: Sequence[Stage], clean: set[str], workers: int, guards: Guards) -> dict[str, PrefectFuture]:
    """Submit each stage when all it needs has ended and a worker and its GPUs are free; wait for all of them.

    Prefect's own queue would let a stage that waits for its inputs or for a GPU keep a worker from one that could run. A stage whose
    input failed is submitted too: Prefect marks it NotReady without running it.
    """
    futures: dict[str, PrefectFuture] = {}
    running: dict[str, slots.Taken] = {}
    ended: Queue[str] = Queue()
    waiting, devices = list(stages), slots.devices()
    while waiting or running:
        for stage in [stage for stage in waiting if all(name in futures and name not in running for name in stage.upstream)]:
            taken = slots.take(0 if stage.name in clean else stage.gpus, devices) if len(running) < workers else None
            if taken is None:
                continue
            running[stage.name] = taken
            waiting.remove(stage)
            inputs = [futures[name] for name in stage.upstream]
            future = run_stage.submit(stage, stage.name in clean, guards, taken, wait_for=inputs, return_state=False)
            futures[stage.name] = future
            future.add_done_callback(partial(_tell, ended, stage.name))
        try:
            running.pop(ended.get(timeout=1.0)).release()  # the timeout: another process may have freed a GPU
        except Empty:
            continue
    wait(list(futures.values()))  # a future learns its final state only when asked
    return futures


def _tell(ended: Queue[str], name: str, future: PrefectFuture) -> None:
    ended.put(name)


def _key(name: str) -> str:
    """An artifact's key may hold lower-case letters, digits and dashes."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower()).strip("-")


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _outputs(stage: Stage) -> str:
    return _markdown(["output", "DVC's digest"], [[f"`{out}`", f"`{repro.digest(out)}`"] for out in stage.outs])


def _publish(stages: Sequence[Stage], states: Mapping[str, State]) -> None:
    """The run on Prefect's pages: what became of each stage, and the results and the report if this run covers them."""
    rows = [[stage.name, states[stage.name].name, states[stage.name].message or ""] for stage in stages]
    create_markdown_artifact(_markdown(["stage", "state", ""], rows), key="stages", description="What became of each stage")
    outs = [Path(out) for stage in stages if states[stage.name].is_completed() for out in stage.outs]
    covered = [path for path in (TABLE, REPORT) if path.exists() and any(path.is_relative_to(out) for out in outs)]
    if TABLE in covered and (table := list(csv.DictReader(TABLE.read_text().splitlines()))):
        create_table_artifact(table, key="results", description="Clean and robust accuracy")
        create_markdown_artifact(_markdown(list(table[0]), [list(row.values()) for row in table]), key="summary", description="The results")
    if REPORT in covered:
        create_link_artifact(REPORT.resolve().as_uri(), link_text=str(REPORT), key="report", description="The report of this run")


def _use_server() -> None:
    """The user's own server, or one that is started for this command and ends with it."""
    environment.apply()
    prefect.context.refresh_global_settings_context()  # prefect read its settings when it was imported
    settings = get_current_settings()
    if not settings.api.url:
        os.environ["PREFECT_API_URL"] = server.start(settings.home)
        prefect.context.refresh_global_settings_context()


def main(targets: list[str] | None = None, workers: int = 2) -> int:
    """Run the flow once from the command line. Exit code 0: all up to date; 1: a stage failed; 2: bad input; 130: interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to end like Ctrl-C, stages included
    try:
        with exit_on_mistake():
            with slots.only_flow():
                _plan(targets, workers)  # before a server is started
            _use_server()
            pipeline(targets, workers)
    except StagesFailed as error:
        again = " ".join(["basin flow", *(targets or [])])
        sys.stderr.write("".join(f"failed: {each}\n" for each in error.failed.values()) + f"What is done is kept. To go on: {again}\n")
        return EXIT_CODE if all(isinstance(each, StageFailed) and each.bad_input for each in error.failed.values()) else 1
    except (KeyboardInterrupt, Stopped):
        sys.stderr.write("Stopped; what is done is kept.\n")
        return 130
    return 0


def serve(
    name: str = "basin", interval: float | None = None, cron: str | None = None, targets: list[str] | None = None, workers: int = 2
) -> None:
    """Offer the flow to Prefect's pages and schedules until interrupted; one run at a time. `interval` in seconds."""
    from prefect.flows import EntrypointType

    _use_server()
    pipeline.serve(
        name=name,
        interval=interval,
        cron=cron,
        parameters={"targets": targets, "workers": workers},
        limit=1,
        # By file, Prefect would put our folder first on the import path, and pipeline/types.py before Python's own.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
