"""Taking versions out of the registry that nobody needs."""

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from basin import files
from basin.config.params import Config
from basin.errors import Mistake
from basin.registry import snapshot, versions
from basin.registry.opening import aliases, opened
from basin.tracking import client as mlflow_client

REMOVED = snapshot.KEPT / "removed.json"  # DVC's digests of versions that were taken out: `sync` does not bring them back


def removed() -> set[str]:
    return set(json.loads(REMOVED.read_text(encoding="utf-8"))) if REMOVED.exists() else set()


def gc(config: Config) -> list[dict[str, Any]]:
    """The versions of the run's registered model that no alias, no dvc.lock of a commit or of the workspace, and no report needs.

    Where others write too, of those that were registered from this checkout alone: what another one needs is not known here.
    """
    name, needed = config.registered_name, _needed()
    ours = {md5 for _, _, md5 in snapshot.promised()}
    with opened("Nothing was changed.") as store:
        aliased = set(aliases(store, name).values())
        versions_ = [version for version in versions.search(store, name, {}) if "dvc.md5" in version.tags]
        kept = [version for version in versions_ if int(version.version) in aliased or version.tags["dvc.md5"] in needed]
        parents = {part for version in kept for part in version.tags.get("parents", "").split(", ")}
        return [
            {"name": name, "version": int(version.version), "model": version.tags["model"], "dvc.md5": version.tags["dvc.md5"]}
            for version in versions_
            if version not in kept
            and (mlflow_client.local_database() or version.tags["dvc.md5"] in ours)
            and f"{version.tags['model']}: version {version.version}" not in parents
        ]


def _needed() -> set[str]:
    """DVC's digests that a kept dvc.lock or the receipt names."""
    locks = [run.lock for run in snapshot.committed()] + [snapshot.of(Path(), {}).lock]
    receipt = Path("report/registered.json")
    told = json.loads(receipt.read_text(encoding="utf-8"))["models"].values() if receipt.exists() else ()
    return {md5 for lock in locks for md5 in snapshot.outputs(lock).values()} | {one["dvc.md5"] for one in told}


def remove(unneeded: list[dict[str, Any]]) -> None:
    """Take out versions with their files; they stay out when the registry is mended. Refuses a version that has an alias by now."""
    with opened("What was removed is removed.") as store, mlflow_client.alone():
        for one in unneeded:
            if not any(str(version.version) == str(one["version"]) for version in versions.search(store, one["name"], {})):
                continue  # another `basin gc` was first
            if one["version"] in aliases(store, one["name"]).values():
                raise Mistake(f"{one['name']}/{one['version']}: has an alias (got a version in use). Run `basin gc` again.")
            model = versions.logged(store, store.get_model_version(one["name"], str(one["version"])))
            files.write(REMOVED, json.dumps(sorted(removed() | {one["dvc.md5"]}), indent=1) + "\n")
            store.delete_model_version(one["name"], str(one["version"]))
            store.delete_logged_model(model.model_id)
            place = urlparse(model.artifact_location)
            folder = Path(unquote(place.path))
            if place.scheme in ("", "file") and mlflow_client.is_own(folder) and (folder / "MLmodel").exists():
                shutil.rmtree(folder, ignore_errors=True)
