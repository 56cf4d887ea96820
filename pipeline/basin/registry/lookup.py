"""Finding versions, reading what stands in them, and taking a model out."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from basin.errors import Mistake, did_you_mean
from basin.registry import contents, versions
from basin.registry.candidates import SCHEMA
from basin.registry.gate import attacked_by_less
from basin.registry.opening import aliases, opened
from basin.registry.promotion import Registered
from basin.report.pairs import paired
from basin.tracking import journal

if TYPE_CHECKING:
    import basin.models.classifier

ROW = ("name", "version", "aliases", "model", "worst_case", "interval", "n", "clean", "standing", "reasons", "unresolved", "data", "threat")
NOTHING = "Nothing was changed."


def load(target: str) -> "basin.models.classifier.Classifier":
    """The torch module of e.g. `digits-linf-0.15@champion` or `digits-linf-0.15/3`, in evaluation mode on the CPU."""
    return load_with_twin(target)[0]


def load_with_twin(target: str) -> tuple["basin.models.classifier.Classifier", Any]:
    """The same, and its undefended twin where it has one."""
    import mlflow.pyfunc

    with opened(NOTHING) as store, versions.same_path():
        version = find_one(store, target)
        with _unchanged(store, version) if "seal" in version.tags else nullcontext(f"models:/{version.name}/{version.version}") as where:
            model = mlflow.pyfunc.load_model(str(where)).unwrap_python_model()
        return model.classifier, getattr(model, "twin", None)  # of versions that were registered before this was kept


def find(
    data: str | None = None,
    norm: str | None = None,
    eps: float | None = None,
    min_robust: float = 0.0,
    min_clean: float = 0.0,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """The versions of which all that is asked holds, as a table (`pandas.DataFrame(found)`), of each name the most robust first.

    `data`: name of the data set; `norm`, `eps`: of the threat that they were attacked with; `min_robust`: worst-case robust accuracy, and
    `min_clean`: clean accuracy, that they have at least. A row has the keys `ROW`; accuracies are fractions.
    """
    asked = {"data": data, "norm": norm, "eps": None if eps is None else f"{eps:g}", "schema": SCHEMA}
    with opened(NOTHING) as store:
        found = versions.search(store, name, {key: value for key, value in asked.items() if value is not None})
        called = {known: aliases(store, known) for known in {version.name for version in found}}
        rows = [_row(store, version, called[version.name]) for version in found if "seal" in version.tags]
    rows = [row for row in rows if row["worst_case"] >= min_robust and row["clean"] >= min_clean]
    return sorted(rows, key=lambda row: (row["name"], -row["worst_case"], -row["clean"], row["version"]))


def _row(store: MlflowClient, version: ModelVersion, called: dict[str, int]) -> dict[str, Any]:
    tags, number, numbers = version.tags, int(version.version), versions.metrics(store, version)
    return {
        "name": version.name, "version": number, "aliases": sorted(key for key, value in called.items() if value == number),
        "model": tags["model"], "worst_case": numbers["worst_case"], "interval": [numbers["interval_low"], numbers["interval_high"]],
        "n": int(tags["n"]), "clean": numbers["clean"], "standing": tags.get("standing", ""),
        "reasons": tags.get("reasons", ""), "unresolved": tags["unresolved"],
        "data": tags["data"], "threat": tags["threat"],
    }  # fmt: skip


def find_one(store: MlflowClient, target: str) -> ModelVersion:
    """The version of `NAME@ALIAS` or `NAME/VERSION`, with `models:/` before it or not. Raises Mistake where there is none."""
    target = target.removeprefix("models:/")
    name, at, alias = target.partition("@")
    name, number = (name, "") if at else (target.rpartition("/")[0], target.rpartition("/")[2])
    if not name or not (alias or number.isdigit()):
        raise Mistake(f"TARGET: names no version (got {target!r}). Give NAME@ALIAS or NAME/VERSION; `basin models` lists them.")
    try:
        return store.get_model_version_by_alias(name, alias) if at else store.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    known = sorted({version.name for version in versions.search(store, None, {})})
    advice = did_you_mean(alias, aliases(store, name)) if name in known and at else did_you_mean(name, known)
    where = journal.shown(journal.uri())
    raise Mistake(f"TARGET: no such version in {where} (got {target!r}). {advice}")


def show(target: str) -> dict[str, Any]:
    """Everything that stands in a version: its row, tags, metrics, card, files."""
    with opened(NOTHING) as store:
        version = find_one(store, target)
        with versions.files(store, version, contents.MANIFEST) as folder:
            manifest = folder / contents.MANIFEST
            files = sorted(contents.manifest(folder)["files"]) if manifest.exists() else []
            text = contents.card_of(folder) if manifest.exists() else version.description
        row = _row(store, version, aliases(store, version.name)) if "seal" in version.tags else {"name": version.name}
        return row | {
            "tags": dict(version.tags), "metrics": versions.metrics(store, version), "run_id": version.run_id,
            "card": text, "files": [name for name in files if not name.startswith("code/")],
        }  # fmt: skip


def compare(a: str, b: str) -> dict[str, Any]:
    """Two versions side by side: numbers, settings that differ, and the paired difference on the images that both were attacked on."""
    with opened(NOTHING) as store:
        one, other = (_judged(find_one(store, target), store) for target in (a, b))
        numbers = [versions.metrics(store, side.version) for side in (one, other)]
        tags = [side.version.tags for side in (one, other)]
        same = one.measured_on == other.measured_on
        difference = paired(one.held, other.held) if same else None
        return {
            "a": {"name": one.version.name, "version": one.number, "model": one.model},
            "b": {"name": other.version.name, "version": other.number, "model": other.model},
            "metrics": {key: [side.get(key) for side in numbers] for key in sorted(numbers[0].keys() | numbers[1].keys())},
            "tags": {key: [side.get(key) for side in tags] for key in sorted(tags[0].keys() | tags[1].keys()) if _differ(tags, key)},
            "comparable": same,
            "attacked_by_less": {"a": attacked_by_less(one, other), "b": attacked_by_less(other, one)} if same else None,
            "difference": difference and {"value": difference.value, "interval": list(difference.interval), "n": difference.n},
        }


def _differ(tags: list[dict[str, str]], key: str) -> bool:
    return tags[0].get(key) != tags[1].get(key)


def _judged(version: ModelVersion, store: MlflowClient) -> Registered:
    if "seal" not in version.tags:
        raise Mistake(f"{version.name}/{version.version}: carries no outcomes (got no tag 'seal'). Mend it: basin registry sync.")
    return Registered(store, version)


@contextmanager
def _unchanged(store: MlflowClient, version: ModelVersion) -> Iterator[Path]:
    """A folder with a version's files. Raises Mistake where one, the code aside, is not the one that was registered."""
    with versions.files(store, version) as folder:
        if damaged := [name for name in contents.changed_files(folder, version.tags["seal"]) if not name.startswith("code/")]:
            raise Mistake(f"{version.name}/{version.version}: changed since it was registered (got {damaged[0]}). Try basin registry sync.")
        yield folder


def pull(target: str, folder: Path) -> dict[str, str]:
    """Write a version's model folder (weights, recipe, twin) to `folder`; file -> SHA-256.

    Raises Mistake where the folder is there already, or a file is not the one that was registered.
    """
    if folder.exists():
        raise Mistake(f"{folder}: is there already (got a folder that would be overwritten). Give another --to, or move it away.")
    with opened(NOTHING) as store:
        version = _judged(find_one(store, target), store).version
        with _unchanged(store, version) as files:
            shutil.copytree(files / "artifacts" / version.tags["model"].split("/")[1], folder)
    return contents.hashes(folder)
