"""Bringing the registry up to a run: versions, numbers, aliases, and the gate's decisions."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient

from basin import files
from basin.config.params import Config, Gate
from basin.data.splits import load_split
from basin.errors import Mistake
from basin.models import artifact
from basin.registry import board, candidates, contents, making, needs, promotion, runs, serving, snapshot, versions
from basin.registry.candidates import Candidate
from basin.registry.gate import Decision
from basin.registry.opening import aliases, opened
from basin.registry.promotion import CHAMPION
from basin.tracking import client as mlflow_client
from basin.tracking.mirror import deliver_all

IMAGES = 64  # validation images on which a version, loaded back, is compared with its folder
log = logging.getLogger(__name__)


def register_all(
    config: Config, digests: Mapping[str, str | None], root: Path = Path(), at: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Bring the registry up to a run: versions, numbers, aliases. What is there already is left as it is.

    `digests`: DVC's digest of models/<model>, by model; `root`: the run's folder; `at`: tags of the commit it ran at, of the workspace by
    default. Returns the receipt, which depends on the run alone and not on what else the registry holds. Raises Mistake where MLflow
    cannot be reached or written, or a version does not give its folder's logits.
    """
    run, name, at = candidates.read(config, digests, root), config.registered_name, at or snapshot.here()
    images = load_split(root / "data/prepared", "validation").floats(slice(0, IMAGES)).numpy()
    with opened() as store:
        if root == Path():
            deliver_all()  # what stages logged while MLflow was away, so that versions are attached to the runs that trained them
        with mlflow_client.alone():
            versions.create(store, name, {"data": run[0].data, "threat": run[0].threat, "schema": candidates.SCHEMA})
            current = {one.model: _version(store, name, one, images, at) for one in run}
            runs.gather(store, run, candidates.pipeline(run))
            for one in run:
                _link(store, name, one, current[one.model], candidates.pipeline(run))
            checks = Checks(store, name, images, {current[one.model]: one.folder for one in run})
            for one in run if files.checkout() == Path() else ():  # an experiment leaves the names of the checkout's own models
                checks.point(config.alias(one.model), current[one.model])
            decide(store, name, config.registry.gate, checks)
        if root == Path():
            board.write_page(store, name, run, current)
    if root == Path():
        snapshot.keep(snapshot.of(root, at), name, {one.model: one.md5 for one in run})
    return candidates.receipt(name, run)


def _version(store: MlflowClient, name: str, one: Candidate, images: np.ndarray, at: Mapping[str, str]) -> int:
    """The candidate's version, made or refreshed where it has to be."""
    found = versions.find(store, name, one.md5, one.model)
    version = found or making.register(store, name, one, images)
    if not versions.is_current(version, one):
        if promotion.keeps(store, version, one):
            log.info("registry: version %s of %s keeps its numbers: this run attacked %s by less", version.version, name, one.model)
        else:
            if found:  # the manifest is to hold digests of what is there, and nobody else may have written that
                making.log_files(versions.logged(store, found).model_id, None, one, images)
            versions.refresh(store, name, version, one, at)
            runs.inputs(store, str(version.run_id), one)
    return int(version.version)


def _link(store: MlflowClient, name: str, one: Candidate, version: int, pipeline: str) -> None:
    """Tags that say where a version belongs: the pipeline run, the versions that it was built from, the nearest first; who needs them."""
    found = {model: versions.find(store, name, md5, model) for model, md5 in one.parents.items()}
    parents = ", ".join(f"{model}: version {parent.version}" if parent else f"{model}: no version" for model, parent in found.items())
    for key, value in {"pipeline": pipeline, "parents": parents or "none"}.items():
        store.set_model_version_tag(name, str(version), key, value)
    for number in (version, *(int(parent.version) for parent in found.values() if parent)):
        needs.claim(store, name, number)
    linked = store.get_model_version(name, str(version))
    with versions.files(store, linked, contents.MANIFEST) as folder:
        store.update_model_version(name, str(version), versions.card_on_pages(store, linked, contents.card_of(folder)))


def decide(store: MlflowClient, name: str, gate: Gate, checks: "Checks | None") -> dict[str, Decision]:
    """The gate's decision on every version, by its name; written down and acted on with `checks`, only told without."""
    ranked = promotion.contenders(store, name)
    decisions = promotion.judge(ranked, aliases(store, name).get(CHAMPION), gate)
    best = next((one for one in ranked if decisions[one.number].standing == CHAMPION), None)
    if checks:
        if best:
            checks.point(CHAMPION, best.number)
        elif CHAMPION in aliases(store, name):
            store.delete_registered_model_alias(name, CHAMPION)
        promotion.write(store, name, ranked, decisions)
        versions.describe(store, name, best.version if best else None)
    return {one.name: decisions[one.number] for one in ranked}


def promote(config: Config, dry_run: bool) -> dict[str, Decision]:
    """Ask the gate of params.yaml about every version of the run's registered model; act on it unless it is a dry run."""
    name = config.registered_name
    with opened("Nothing was changed.") as store, nullcontext() if dry_run else mlflow_client.alone():
        images = load_split(Path("data/prepared"), "validation").floats(slice(0, IMAGES)).numpy()
        return decide(store, name, config.registry.gate, None if dry_run else Checks(store, name, images, {}))


class Checks:
    """Moves aliases, each to a version that was loaded back and compared on real images; `folders`: those of this run, by version."""

    def __init__(self, store: MlflowClient, name: str, images: np.ndarray, folders: Mapping[int, Path]):
        self.store, self.name, self.images, self.folders = store, name, images, folders
        self.passed: set[int] = set()

    def point(self, to: str, version: int) -> None:
        """Raises Mistake, and leaves the alias where it is, if the version does not do what its folder does."""
        if aliases(self.store, self.name).get(to) == version:
            return
        if version not in self.passed:
            self.check(version, to)
            self.passed.add(version)
        self.store.set_registered_model_alias(self.name, to, str(version))
        log.info("registry: %s@%s is version %s", self.name, to, version)

    def check(self, version: int, to: str) -> None:
        where = f"models:/{self.name}/{version}"
        with versions.same_path():
            loaded = mlflow.pyfunc.load_model(where)
        logits = loaded.predict(self.images)
        reference = artifact.load(self.folders[version]) if version in self.folders else loaded.unwrap_python_model().classifier
        expected = serving.answer(reference, torch.from_numpy(self.images), serving.Asked()).numpy()  # with the same draws
        if not np.isfinite(logits).all() or logits.tobytes() != expected.tobytes():
            folder, most = self.folders.get(version, "its own weights"), np.abs(logits - expected).max()
            raise Mistake(
                f"{where}: loaded back, it does not give the logits of {folder} (got a largest difference of {most:.3g} on "
                f"{len(self.images)} images). Alias '{to}' stays; mend version {version}: basin registry sync."
            )
