"""What Prefect's pages show of a run: what became of each stage, how to go on, the results, the report; and the run's tags."""

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.states import State

from basin.config import params
from basin.report.wording import plain
from basin.repro import lock
from basin.repro.graph import Stage
from basin.tracking import journal

REPORT = Path("report/index.html")
TABLE = Path("report/table.csv")
log = logging.getLogger(__name__)


@contextmanager
def optional() -> Iterator[None]:
    """A page that cannot be written because the server is away fails no run."""
    try:
        yield
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        log.warning("Prefect's pages lack a part of this run: %s: %s", type(error).__name__, error)


def key(name: str) -> str:
    """An artifact's key may hold lower-case letters, digits and dashes."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower()).strip("-")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; what stands in a cell is words: a stage's last words may name classes of any spelling."""
    lines = [map(plain, columns), ["---"] * len(columns), *(map(plain, map(str, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tag() -> None:
    """Mark this run with its data set, threat model and commit."""
    asked = params.read(Path("params.yaml"))
    threat = asked["threat"]
    marks = [f"data: {asked['data'].get('name') or asked['data']['kind']}", f"threat: {threat.get('norm', 'linf')} {threat['eps']}"]
    mark([*marks, f"commit: {journal.commit()['commit'][:12]}"])


@optional()
def mark(tags: Sequence[str]) -> None:
    """Add tags to this flow run."""
    if flow_run.id:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, tags=sorted({*(flow_run.tags or []), *tags}))


@optional()
def outputs(stage: Stage) -> None:
    """What a stage wrote, with DVC's digests."""
    rows = [[out, lock.digest(out)] for out in stage.outs]
    create_markdown_artifact(markdown(["output", "DVC's digest"], rows), key=key(stage.name), description=f"What {stage.name} wrote")


@optional()
def publish(stages: Sequence[Stage], states: Mapping[str, State], go_on: str) -> None:
    """What became of each stage, why, and the command to go on; the results and the report if this run covers them."""
    rows = [[stage.name, states[stage.name].name, states[stage.name].message or ""] for stage in stages]
    advice = "" if all(state.is_completed() for state in states.values()) else f"\n\nWhat is done is kept. To go on: `{go_on}`"
    create_markdown_artifact(markdown(["stage", "state", ""], rows) + advice, key="stages", description="What became of each stage")
    outs = [Path(out) for stage in stages if states[stage.name].is_completed() for out in stage.outs]
    covered = [path for path in (TABLE, REPORT) if path.exists() and any(path.is_relative_to(out) for out in outs)]
    if TABLE in covered and (table := list(csv.DictReader(TABLE.read_text(encoding="utf-8").splitlines()))):
        create_table_artifact(table, key="results", description="Clean and robust accuracy")
        text = markdown(list(table[0]), [list(row.values()) for row in table])
        create_markdown_artifact(f"{text}\n\n{_links(REPORT in covered)}", key="summary", description="The results")
    if REPORT in covered:
        create_link_artifact(REPORT.resolve().as_uri(), link_text=str(REPORT), key="report", description="The report of this run")


def _links(report: bool) -> str:
    """Where the runs and the pictures are."""
    where = journal.shown(journal.uri())
    runs = f"[MLflow's runs]({where}/#/experiments)" if where.startswith("http") else f"MLflow's runs: `{where}` (`make ui`)"
    pictures = f"; the adversarial pictures: [{REPORT}]({REPORT.resolve().as_uri()})" if report else ""
    return runs + pictures
