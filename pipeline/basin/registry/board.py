"""Pages for others to read: a run's report with what the registry alone knows of it, and the leaderboard of a data set and threat."""

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from basin import files
from basin.errors import Mistake
from basin.registry import lookup, versions
from basin.registry.candidates import Candidate
from basin.registry.lookup import NOTHING
from basin.registry.opening import opened
from basin.report import figures, tidy, wording
from basin.report import page as pages
from basin.report.table import Share, tabulate
from basin.tracking import journal

LOCAL = "http://127.0.0.1:5000"  # of MLflow's pages, as `basin ui` shows them
PAGE = Path("report/registered.html")
COSTS = {  # of a version's numbers: the column, and what it is
    "parameters": ("parameters", "Numbers that the model has"),
    "latency_ms.1": ("ms, one image", "Median time of a pass of one image, measured at registration"),
    "seconds": ("training, s", "Seconds from the start to the end of the run that trained the model"),
}
NUMBERS = ("worst_case", "interval_low", "interval_high", "clean", "masked", "twin")
KEPT = ("card.html", "outcomes", "exchanged")  # of a version's files; points and weights stay in the registry


def write_page(store: MlflowClient, name: str, run: list[Candidate], current: Mapping[str, int]) -> None:
    """The report's page once more, as report/registered.html, with versions, commit, date and costs."""
    everything = {one.model: one.outcomes for one in run}
    suites = [suite for suite in run[0].protocol["suites"] if suite in run[0].row.suites]
    history = tidy.read_history(run[0].root / "history", list(everything))
    made = _made(store, {model: store.get_model_version(name, str(number)) for model, number in current.items()}, run)
    text = pages.page(tabulate(everything, suites), everything, history, "../", made)
    files.write(run[0].root / PAGE, text)


def _made(store: MlflowClient, found: Mapping[str, ModelVersion], run: list[Candidate]) -> pages.Made:
    costs: dict[str, tuple[str, dict[str, float]]] = {what: (means, {}) for what, means in COSTS.values()}
    for model, version in found.items():
        for key, value in cost(store, version).items():
            costs[COSTS[key][0]][1][model] = value
    tags, newest = next(iter(found.values())).tags, max(found.values(), key=lambda one: one.creation_timestamp)
    libraries = ", ".join(f"{name} {number}" for name, number in run[0].recipe["versions"].items())
    changed = f", with changes: {tags['changed']}" if tags["dirty"] == "true" else ""
    facts = {"commit": tags["commit"] + changed, "by": tags.get("author", "none"), "date": date(newest), "Basin": files.VERSION}
    facts |= {"device": ", ".join(sorted({one.recipe["device"] for one in run})), "with": libraries}
    return pages.Made(facts, costs, {model: (f"{one.name}/{one.version}", address(one, LOCAL)) for model, one in found.items()})


def cost(store: MlflowClient, version: ModelVersion) -> dict[str, float]:
    """What a version cost, as far as is known; keys of COSTS."""
    numbers, run = versions.metrics(store, version), store.get_run(str(version.run_id)).info
    if run.end_time and run.end_time > run.start_time:  # one that was made for a model from DVC's cache trained nothing
        numbers["seconds"] = round((run.end_time - run.start_time) / 1000, 1)
    return {key: numbers[key] for key in COSTS if key in numbers}


def date(version: ModelVersion) -> str:
    return datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).date().isoformat()


def address(version: ModelVersion, local: str = "") -> str:
    """Where MLflow's pages have the version; below `local`, or nowhere, where no server is set, for then they are this machine's alone."""
    where = urlsplit(journal.uri())
    if where.scheme not in ("http", "https"):
        if not local:
            return ""
        where = urlsplit(local)
    host = where.netloc.rpartition("@")[2]  # without a password
    return f"{where.scheme}://{host}{where.path.rstrip('/')}/#/models/{quote(version.name)}/versions/{version.version}"


def leaderboard(folder: Path, data: str, norm: str, eps: float) -> int:
    """Write every version of a data set and threat as a static folder: index.html, table.csv, and a folder each with its own page.

    Returns how many there are. Raises Mistake where there are none, or the folder holds something else.
    """
    if folder.exists() and not (folder / "index.html").exists() and any(folder.iterdir()):
        raise Mistake(f"{folder}: holds something else (got no index.html in it). Give another --to.")
    found = lookup.find(data, norm, eps)
    if not found:
        raise Mistake(f"registry: no version fits (got {data}, {norm}, {wording.radius(eps)}). `basin models` lists what there is.")
    with opened(NOTHING) as store:
        rows = [_row(store, row, folder) for row in sorted(found, key=lambda row: (-row["worst_case"], -row["clean"]))]
    threat = f"{wording.NORMS[norm]} distance at most {wording.radius(eps)} on pixels in [0, 1]"
    drawn = [{"model": f"{row['model']}, {row['name']}/{row['version']}"} | row["numbers"] for row in rows]
    glance = figures.figure("glance", drawn, "Clean accuracy, worst case and what else the table below has, of each version")
    files.write(folder / "index.html", pages.rendered("board.html", data=data, threat=threat, rows=rows, glance=glance, costs=COSTS))
    tidy.write(folder / "table.csv", list(_line(rows[0])), map(_line, rows))
    return len(rows)


def _row(store: MlflowClient, row: dict[str, Any], folder: Path) -> dict[str, Any]:
    version = store.get_model_version(row["name"], str(row["version"]))
    tags, numbers, below = version.tags, versions.metrics(store, version), f"{row['name']}-{row['version']}"
    with versions.files(store, version) as kept:
        _keep(kept, folder / below)
    return row | {
        "numbers": {key: numbers[key] for key in NUMBERS if key in numbers}, "costs": cost(store, version), "date": date(version),
        "worst": Share(round(row["worst_case"] * row["n"]), row["n"]), "made": [tags[key] for key in ("backbone", "head", "training")],
        "author": tags.get("author", "none"), "commit": tags.get("commit", "none"),
        "address": address(version), "page": f"{below}/card.html",
    } | {key: tags[key] for key in ("chain", "flags", "device")}  # fmt: skip


def _keep(version: Path, folder: Path) -> None:
    """The page of a version and its outcomes, image by image."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in (version / name for name in KEPT):
        for file in [part] if part.is_file() else sorted(part.rglob("outcomes.csv")):
            files.write(folder / file.relative_to(version), file.read_bytes())


def _line(row: dict[str, Any]) -> dict[str, Any]:
    shown = {key: row[key] for key in ("name", "version", "model", "chain", "flags", "date", "author", "commit", "device", "n")}
    numbers = {key: row["numbers"].get(key, "") for key in NUMBERS}
    return shown | numbers | {key: row["costs"].get(key, "") for key in COSTS}
