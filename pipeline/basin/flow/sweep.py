"""A table of params as DVC's experiments: each point in a copy of the workspace of its own, as many at once as there are places."""

import hashlib
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed, State
from pydantic import BaseModel, ConfigDict, Field

from basin.errors import Mistake
from basin.flow import children, pages, places
from basin.flow.reproduction import FOR_EVER, StagesFailed, Workers, failures
from basin.repro import graph as dvc
from basin.repro import slots
from basin.repro.graph import Stage
from basin.repro.guard import Guards
from basin.tracking import journal

CHECKPOINTS = Path(".basin/checkpoints")
Value = str | int | float | bool


class Range(BaseModel):
    """Equally spaced values of one entry of params.yaml."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(description="the entry, dotted, e.g. threat.eps", pattern=r"^[^=\s]+$")
    low: float = Field(description="the first value")
    high: float = Field(description="the last value")
    count: int = Field(description="how many values, 2 to 1000", ge=2, le=1000)
    scale: Literal["linear", "log"] = Field("linear", description="equal steps, or equal ratios (both ends above 0)")

    def points(self) -> list[dict[str, Value]]:
        if self.scale == "log" and not (self.low > 0 and self.high > 0):
            raise Mistake(f"range: a log scale needs both ends above 0 (got {self.low:g} to {self.high:g}). Take linear, or other ends.")
        low, high = (math.log(end) if self.scale == "log" else end for end in (self.low, self.high))
        values = [low + (high - low) * i / (self.count - 1) for i in range(self.count)]
        return [{self.key: float(f"{math.exp(value) if self.scale == 'log' else value:.12g}")} for value in values]


Table = Annotated[list[dict[str, Value]], Field(max_length=1000)]


@task(name="point", task_run_name="{point.name}", cache_policy=NO_CACHE, persist_result=False, **children.RETRIES)
def run_point(point: Stage, overrides: Sequence[str], guards: Guards, slot: slots.Taken, keep: Sequence[int]) -> State:
    """One experiment; Skipped where this commit has it already."""
    if dvc.has_experiment(point.name):
        return Completed(name="Skipped", message=" ".join(overrides))
    logger = get_run_logger()
    logger.info("%s: %s", point.name, " ".join(overrides))
    options = [word for override in overrides for word in ("--set-param", override)]
    command = [*dvc.DVC, "--wait-for-lock", "exp", "run", "--temp", "--name", point.name, *options]
    # The copy goes when it ends: what it registers belongs into this workspace's MLflow, its checkpoints here, for another try.
    here = {"MLFLOW_TRACKING_URI": journal.uri(), "BASIN_CHECKPOINTS": str(CHECKPOINTS.resolve())}
    children.run(point.name, command, logger.info, guards, slot, here, keep)
    return Completed(message=" ".join(overrides))


def _name() -> str:
    parameters = flow_run.parameters
    table, range_ = parameters.get("table") or [], parameters.get("range")
    keys = {key for row in table for key in row} | ({range_["key"] if isinstance(range_, dict) else range_.key} if range_ else set())
    return f"sweep of {', '.join(sorted(keys)) or 'nothing'}"


@flow(name="sweep", flow_run_name=_name, persist_result=False)
def sweep(table: Table | None = None, range: Range | None = None, workers: Workers = 2) -> State:
    """Reproduce the graph at many settings of params.yaml, each as a DVC experiment of the current commit. The workspace stays as it is.

    Args:
        table: a row a point, each with the entries of params.yaml that it sets, e.g. {"threat.eps": 0.1, "seed": 1}
        range: or beside it, one entry over a range; with both, every row of the table at every value of the range
        workers: how many points may run at once, at least 1
    """
    try:
        rows: list[dict[str, Value]] = [row | value for row in table or [{}] for value in (range.points() if range else [{}])]
        return _sweep([row for row in rows if row], workers)
    except Mistake as mistake:
        return Failed(message=str(mistake), data=mistake)


def _sweep(rows: Sequence[Mapping[str, Value]], workers: int) -> State:
    if not rows:
        raise Mistake("sweep: no point (got an empty table and no range). Give one of the two.")
    with slots.only_run(patience=FOR_EVER if deployment.id else 0.0) as lock:
        guards, gpus = Guards(), max((stage.gpus for stage in dvc.graph()), default=0.0)
        pages.tag()
        overrides = {_experiment(row): [f"{key}={_written(value)}" for key, value in row.items()] for row in rows}
        points = [Stage(name, meta={"gpu": gpus}) for name in overrides]
        keep = [lock.fileno()]

        def submit(point: Stage, slot: slots.Taken, inputs: list[Any]) -> Any:
            return run_point.submit(point, overrides[point.name], guards, slot, keep)

        states = places.fill(points, (), workers, submit, guards)
    found = [dict(row) | {"experiment": (name := _experiment(row)), "state": states[name].name} | dvc.measured(name) for row in rows]
    columns = list(dict.fromkeys(key for row in found for key in row))
    cells = [{key: row.get(key, "") for key in columns} for row in found]
    create_table_artifact(cells, key="sweep", description="To take one: dvc exp apply")
    if failed := failures(states):
        return Failed(message=str(error := StagesFailed(failed)), data=error)
    return Completed(message=f"{len(states)} points; to take one: dvc exp apply NAME")


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _experiment(row: Mapping[str, Value]) -> str:
    """A name that stands for the point and for what is changed in the workspace, so that asking again does nothing again."""
    changed = subprocess.run(["git", "diff", "HEAD", "--", ".", ":(exclude)dvc.lock", ":(exclude)report"], capture_output=True, check=False)
    text = json.dumps(row, sort_keys=True).encode() + changed.stdout
    return f"sweep-{hashlib.sha256(text).hexdigest()[:10]}"
