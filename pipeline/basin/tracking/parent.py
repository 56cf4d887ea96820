"""One run of MLflow's over all stages of a `basin repro` or a flow: the headline figures, the report and the table, and below it what the
stages did.

Its journal is open as long as the stages run, and each says in it that it ran: where none did, there is no run. It is delivered at the
end, because a mirror takes one journal at a time; the first stage to be delivered makes the run (delivery.py).
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from basin.config.params import Config
from basin.files import checkout
from basin.tracking import journal

REPORT = Path("report")
FILES = {"index.html": "report", "registered.html": "register", "table.csv": "report", "metrics.json": "report"}  # -> which stage makes it
STATUS = {0: "FINISHED", 130: "KILLED"}  # of exit codes; FAILED of all others
HEADLINE = ("worst_case", "interval_low", "interval_high", "clean")  # of the best model; of the others the worst case


def over(config: Config, targets: Sequence[str]) -> AbstractContextManager[Callable[[int], None]]:
    """The run over these stages, all where none is named, named by the registered model."""
    about = {
        "data": config.data_name,
        "threat": config.threat.model_dump(mode="json"),
        "seed": config.seed,
        "stages": list(targets) or "all",
    }
    return parent(" ".join([config.registered_name, *targets]), config.data_name, about, whole=not targets)


@contextmanager
def parent(name: str, experiment: str, params: Mapping[str, Any], whole: bool = True) -> Iterator[Callable[[int], None]]:
    """The run `name`, with the minute before it, over the stages that are started meanwhile; to be told the exit code that they ended with.

    Figures and pages are its own where it made them, or is `whole` and ended well. Nothing here raises because of MLflow.
    """
    codes: list[int] = []
    if os.environ.get("BASIN_TRACKING") == "off":
        yield codes.append
        return
    run = _begun(f"{time.strftime('%m-%d %H:%M')} {name}", experiment, params)
    os.environ[journal.PARENT] = run.journal.name
    try:
        yield codes.append
    finally:
        del os.environ[journal.PARENT]
        _ended(run, STATUS.get(codes[-1], "FAILED") if codes else "KILLED", whole)


def _begun(name: str, experiment: str, params: Mapping[str, Any]) -> journal.Run:
    place = checkout() / journal.RUNS / f"repro.{time.time_ns()}.jsonl"
    try:
        run = journal.Run(place, journal.opened(place))
    except OSError:  # the stages say so
        run = journal.Run(Path(os.devnull))
    start = {"experiment": experiment, "run_name": name, "params": journal.flatten(params), "resume": f"{place.stem}.json"}
    run._write({"start": start, "tags": {"stage": "repro", **journal.commit()}})
    return run


def _ended(run: journal.Run, status: str, whole: bool) -> None:
    if not run.held:
        return
    told, well = run.journal.read_text(encoding="utf-8"), status == "FINISHED"
    if told.count("\n") > 1:
        made = {stage: f'"ran.{stage}"' in told or (whole and well) for stage in ("report", "register")}
        run.metrics(_figures() if made["report"] else {})
        for name, stage in FILES.items() if well else ():
            if made[stage]:
                run.artifact(REPORT / name)
        run._write({"end": status})
        run.held.close()
        if status != "KILLED":
            journal.deliver(run.journal)
    else:  # nothing was to be done
        run.journal.unlink()
        run.held.close()


def _figures() -> dict[str, float]:
    """The worst case of every model, and the headline of the best."""
    try:
        rows: dict[str, dict[str, float]] = json.loads((REPORT / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    best = max(rows.values(), key=lambda row: row["worst_case"])
    return {f"worst_case/{model}": row["worst_case"] for model, row in rows.items()} | {name: best[name] for name in HEADLINE}
