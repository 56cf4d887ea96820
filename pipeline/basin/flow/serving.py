"""The deployments of prefect.yaml offered to Prefect's pages and schedules, with a worker in this workspace that is looked after.

    serve --> guard --> worker --> flow run --> guard --> dvc --> stage

A worker that dies takes its flow with it (the guard ends its group), and another is started. A run whose process is gone is marked
Crashed at once by whoever served it, else after 75 s by the server (automations.py). Whoever serves the pool starts it again.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.states import AwaitingRetry, Cancelled, Crashed, Running, State, to_state_create

from basin import files
from basin.config import params
from basin.errors import Mistake
from basin.flow import automations
from basin.flow.commands import use_server
from basin.repro import graph, project, slots
from basin.repro.guard import Guards

POOL = "basin"
BASINS = project.TEMPLATE / "prefect.yaml"
NOTES = Path(".basin/flow_runs")  # a file a run that was started here, named by its id
WORKSPACE = "BASIN_WORKSPACE"
LOOK = 5.0  # seconds between two looks for crashed runs
OBJECTION = 2 * LOOK  # seconds for the machine on which it is alive
ATTEMPTS = 25  # how often a run may crash before it is left so
UNANSWERED = (httpx.TransportError, PrefectHTTPStatusError)
log = logging.getLogger(__name__)


def enter() -> dict[str, str]:
    """The pull step of every deployment: into the workspace in which this worker is served, and a note that the run is here."""
    workspace = os.environ.get(WORKSPACE, ".")  # a worker that `basin serve` did not start has none: the flow will say so
    os.chdir(workspace)
    if run := os.environ.get("PREFECT__FLOW_RUN_ID"):  # not where a worker looks the flow up to call its hooks
        files.write(NOTES / run, str(os.getpid()))
    return {"directory": os.getcwd()}


def serve(pool: str = POOL, port: int = 4200) -> None:
    """Deploy, and work until interrupted. The server is the user's own (PREFECT_API_URL), or one on `port` that ends with this."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    params.load()  # before a server is started
    with slots.only_run(NOTES.parent / "serve.lock", what="basin serve"):
        _serve(pool, port)


def _serve(pool: str, port: int) -> None:
    api, guards = use_server(port), Guards()
    log.info("Prefect's pages: %s   Ctrl-C ends the worker; its run goes on when it is served again.", api.removesuffix("/api"))
    try:
        with get_client(sync_client=True) as client:
            _deploy(client, pool)
            while True:
                try:
                    rescue(client)
                    code = _look_after(_worker(pool, guards), client, pool)
                    log.warning("The worker has ended (exit code %d); another is started.", code)
                except UNANSWERED as error:
                    log.warning("Prefect's server at %s is away (%s); trying again.", api, error)
                time.sleep(2)  # not faster than a server comes back
    except KeyboardInterrupt:
        return
    finally:
        guards.end()


def _worker(pool: str, guards: Guards) -> subprocess.Popen:
    """One run at a time: a workspace has one dvc.lock. More at a time: more workspaces (docs/cluster.md)."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--limit", "1"]
    environment = graph.child_environment({WORKSPACE: str(Path.cwd())})
    return guards.start(command, {"PREFECT_WORKER_QUERY_SECONDS": "2", **environment}, stdin=subprocess.DEVNULL)


def _look_after(worker: subprocess.Popen, client: SyncPrefectClient, pool: str) -> int:
    """Until the worker ends; its exit code."""
    seen: dict[UUID, float] = {}
    while True:
        try:
            revive(client, pool, seen)
        except UNANSWERED as error:
            log.debug("Crashed runs cannot be looked for: %s", error)
        try:
            return worker.wait(LOOK)
        except subprocess.TimeoutExpired:
            continue


def revive(client: SyncPrefectClient, pool: str, seen: dict[UUID, float]) -> None:
    """Start the crashed runs of the pool again, but those that are alive: while the server was away it missed their heartbeats.

    `seen`: when each crash was first seen here, by a clock that nobody sets.

    Not a rule that the server keeps: after a start of its own it holds back, for up to 15 minutes, events of runs whose earlier ones it
    does not remember (prefect 3.8.8, server/events/ordering/memory.py).
    """
    crashed = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.CRASHED]}}, "tags": {"all_": ["basin"]}})
    ours = WorkPoolFilter.model_validate({"name": {"any_": [pool]}})
    for run in client.read_flow_runs(flow_run_filter=crashed, work_pool_filter=ours):
        assert run.state is not None
        if _is_alive(NOTES / str(run.id)):
            client.set_flow_run_state(run.id, Running(message="Its process is alive"), force=True)
        elif time.monotonic() - seen.setdefault(run.state.id, time.monotonic()) < OBJECTION:
            continue
        elif sum(state.is_crashed() for state in client.read_flow_run_states(run.id)) < ATTEMPTS:
            _start_again(client, run)


def _start_again(client: SyncPrefectClient, run: FlowRun) -> None:
    """Once, whoever else looks after the pool: the server refuses a second transition with the id that stands for this crash."""
    assert run.state is not None
    state = to_state_create(AwaitingRetry(message="Crashed; started again"))
    state.state_details.transition_id = uuid5(run.state.id, "started again")  # SyncPrefectClient.set_flow_run_state draws one
    asked = {"state": state.model_dump(mode="json", serialize_as_any=True)}
    client.request("POST", "/flow_runs/{id}/set_state", path_params={"id": run.id}, json=asked)


def _deploy(client: SyncPrefectClient, pool: str) -> None:
    """What prefect.yaml says, Basin's where there is none here, except for schedules that are there: they belong to whoever paused or
    changed them on the pages."""
    try:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=_template()))
    except ObjectAlreadyExists:
        log.debug("%s: the work pool is there", pool)
    automations.install(client)
    before = {one.id: client.read_deployment_schedules(one.id) for one in client.read_deployments()}
    own = Path("prefect.yaml")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(own if own.exists() else BASINS)]
    said = subprocess.run(
        command, env={**os.environ, "BASIN_POOL": pool}, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if said.returncode:
        raise Mistake(f"prefect.yaml: cannot be deployed (got {' '.join((said.stdout + said.stderr).split())[-500:]}). Mend it.")
    for deployment, schedules in before.items():
        if schedules:
            for schedule in client.read_deployment_schedules(deployment):
                client.delete_deployment_schedule(deployment, schedule.id)
            client.create_deployment_schedules(deployment, [(schedule.schedule, schedule.active) for schedule in schedules])


def _template() -> dict[str, Any]:
    from prefect.workers.process import ProcessWorker

    return ProcessWorker.get_default_base_job_template()


def rescue(client: SyncPrefectClient) -> None:
    """Tell the server which runs of this workspace are no more: crashed, or cancelled where they were being cancelled."""
    for note in NOTES.glob("*"):
        run = UUID(note.name)
        if _is_alive(note):
            continue
        try:
            found = client.read_flow_run(run)
        except ObjectNotFound:
            found = None
        if found and found.state and not found.state.is_final() and not found.state.is_scheduled():
            log.warning("%s: its process is gone", found.name)
            state: State = Cancelled() if found.state.is_cancelling() else Crashed(message="Its process is gone")
            client.set_flow_run_state(run, state, force=True)
        note.unlink(missing_ok=True)


def _is_alive(note: Path) -> bool:
    """Whether the process that left the note is still the one that runs it: PIDs are used again."""
    try:
        return psutil.Process(int(note.read_text(encoding="utf-8"))).environ().get("PREFECT__FLOW_RUN_ID") == note.name
    except (psutil.Error, ValueError, OSError):
        return False
