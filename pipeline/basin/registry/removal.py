"""Taking versions out of the registry that nobody needs."""

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from basin import files
from basin.config.params import Config
from basin.errors import Mistake
from basin.registry import needs, snapshot, versions
from basin.registry.opening import aliases, opened
from basin.tracking import client as mlflow_client


def _removed() -> Path:
    return snapshot.memory() / "removed.json"


def removed() -> set[str]:
    """DVC's digests of versions that were taken out or given up: `sync` does not bring them back."""
    return set(json.loads(_removed().read_text(encoding="utf-8"))) if _removed().exists() else set()


def gc(config: Config) -> list[dict[str, Any]]:
    """The versions of the run's registered model that no alias, no dvc.lock of a commit or of the workspace, and no report needs.

    Where others write too, of those that were registered from this checkout alone. `needed_by`: the other checkouts that need it, for
    which it stays.
    """
    name, needed = config.registered_name, _needed()
    with opened("Nothing was changed.") as store:
        aliased = set(aliases(store, name).values())
        found = [version for version in versions.search(store, name, {}) if "dvc.md5" in version.tags]
        ours = [version for version in found if needs.is_ours(version)]
        unneeded = [version for version in ours if int(version.version) not in aliased and version.tags["dvc.md5"] not in needed]
    parents = {part for version in found if version not in unneeded for part in version.tags.get("parents", "").split(", ")}
    return [_row(version) for version in unneeded if f"{version.tags['model']}: version {version.version}" not in parents]


def _row(version: ModelVersion) -> dict[str, Any]:
    tags = {key: version.tags[key] for key in ("model", "dvc.md5")}
    return {"name": version.name, "version": int(version.version), **tags, "needed_by": needs.others(version)}


def _needed() -> set[str]:
    """DVC's digests that a kept dvc.lock, the receipt, or an experiment that is running names."""
    running = [folder.parent for depth in ("*", "*/*") for folder in files.EXPERIMENTS.glob(f"{depth}/{snapshot.LOCK}")]
    locks = [run.lock for run in snapshot.committed()] + [snapshot.of(folder, {}).lock for folder in (Path(), *running)]
    receipt = Path("report/registered.json")
    told = json.loads(receipt.read_text(encoding="utf-8"))["models"].values() if receipt.exists() else ()
    return {md5 for lock in locks for md5 in snapshot.outputs(lock).values()} | {one["dvc.md5"] for one in told}


def remove(unneeded: list[dict[str, Any]]) -> None:
    """Take out versions with their files; they stay out when the registry is mended. One that another checkout needs is only given up.

    Refuses a version that has an alias by now.
    """
    with opened("What was removed is removed.") as store, mlflow_client.alone():
        for one in unneeded:
            known = {int(version.version): version for version in versions.search(store, one["name"], {})}
            if not (version := known.get(one["version"])):
                continue  # another `basin gc` was first
            if one["version"] in aliases(store, one["name"]).values():
                raise Mistake(f"{one['name']}/{one['version']}: has an alias (got a version in use). Run `basin gc` again.")
            files.write(_removed(), json.dumps(sorted(removed() | {one["dvc.md5"]}), indent=1) + "\n")
            if needs.others(version):
                for tag in needs.own().keys() & version.tags.keys():
                    store.delete_model_version_tag(one["name"], version.version, tag)
            else:
                _delete(store, version)


def _delete(store: MlflowClient, version: ModelVersion) -> None:
    model = versions.logged(store, version)
    store.delete_model_version(version.name, version.version)
    store.delete_logged_model(model.model_id)
    place = urlparse(model.artifact_location)
    folder = Path(unquote(place.path))
    if place.scheme in ("", "file") and mlflow_client.is_own(folder) and (folder / "MLmodel").exists():
        shutil.rmtree(folder, ignore_errors=True)
