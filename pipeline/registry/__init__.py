"""The registry: one registered model a data set and threat, one version a model folder, an alias a model's name, and `champion`.

Versions are known by DVC's digest of their folder, so registering again registers nothing; where outcomes have changed, the version's
numbers are refreshed. An alias moves only to a version that, loaded back, gives the folder's logits bit for bit. Decision 0004 and
docs/registry.md give the reasons.
"""

import logging
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline import artifact, tracking
from pipeline.classifier import Classifier
from pipeline.config import Config
from pipeline.data import load_split
from pipeline.errors import Mistake
from pipeline.registry import candidates, versions
from pipeline.registry.candidates import Candidate
from pipeline.tracking import client as mlflow_client

CHAMPION = "champion"
IMAGES = 64  # validation images on which a version, loaded back, is compared with its folder
log = logging.getLogger(__name__)


def register_all(config: Config, digests: Mapping[str, str | None], root: Path = Path()) -> dict[str, Any]:
    """Bring the registry up to this run: versions, numbers, aliases. What is there already is left as it is.

    `digests`: DVC's digest of models/<model>, by model. Returns the receipt, which depends on the run alone and not on what else the
    registry holds. Raises Mistake where MLflow cannot be reached or written, or a version does not give its folder's logits.
    """
    run = candidates.read(config, digests, root)
    name = config.registered_name
    images = load_split(root / "data/prepared", "validation").floats(slice(0, IMAGES)).numpy()
    with _open() as store:
        versions.describe(store, name, run[0])
        current = {one.model: versions.find(store, name, one) or versions.register(store, name, one, images) for one in run}
        for one in run:
            versions.refresh(store, name, current[one.model], one)
        checks = Checks(store, name, images, {int(current[one.model].version): one.folder for one in run})
        for one in run:
            checks.point(alias(one.model, config), int(current[one.model].version))
        if best := _champion(store, name, run[0]):
            checks.point(CHAMPION, int(best.version))
    return candidates.receipt(name, run)


def verify(config: Config, digests: Mapping[str, str | None], root: Path = Path()) -> list[str]:
    """What the registry lacks of this run, in words; empty when it is complete. Changes nothing.

    DVC cannot see the registry: after `mlflow.db` was deleted, `dvc repro` finds everything up to date.
    """
    run, name, problems = candidates.read(config, digests, root), config.registered_name, []
    with _open() as store:
        for one in run:
            version = versions.find(store, name, one)
            if version is None:
                problems.append(f"{one.model}: missing from registered model {name}")
            elif not versions.is_current(version, one):
                problems.append(f"{one.model}: version {version.version} of {name} carries older numbers")
        for wanted in (CHAMPION, *(alias(one.model, config) for one in run)):
            if wanted not in _aliases(store, name):
                problems.append(f"{name}@{wanted}: the alias is missing")
    return problems


def load(target: str) -> tuple[Classifier, Classifier | None]:
    """The torch module of e.g. `digits-linf-0.15@champion` and its undefended twin where it has one, on the CPU."""
    with _open():
        where = f"models:/{target}"
        twins = Path(mlflow.artifacts.download_artifacts(where)).rglob(artifact.TWIN)
        classifier = mlflow.pyfunc.load_model(where).unwrap_python_model().classifier
        return classifier, next((artifact.load(twin) for twin in twins), None)


@contextmanager
def _open() -> Iterator[MlflowClient]:
    """MLflow's client; whatever is wrong with MLflow ends in words. A registration that failed quietly would count as done."""
    try:
        with mlflow_client.current() as store:
            yield store
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, RuntimeError) as error:
        raise Mistake(
            f"registry: MLflow at {tracking.shown(tracking.uri())} cannot be used (got {tracking.cause(error)}). "
            f"Everything is computed and kept; when MLflow is back, run `dvc repro register`."
        ) from error


def alias(model: str, config: Config) -> str:
    """A model's alias: its name; with its stage in front where two stages have the name or MLflow keeps the word for itself."""
    stage, name = model.split("/")
    twice = sum(name in table for table in (config.backbone, config.head, config.adversarial)) > 1
    kept = name.lower() in (CHAMPION, "latest") or re.fullmatch(r"[vV]\d+", name)
    return f"{stage}_{name}" if twice or kept else name


def _aliases(store: MlflowClient, name: str) -> dict[str, int]:
    try:
        return {key: int(version) for key, version in store.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def _champion(store: MlflowClient, name: str, one: Candidate) -> ModelVersion | None:
    """Highest worst case among versions measured alike; then highest clean accuracy, then the older version."""
    alike = versions.search(store, name, {"data_digest": one.recipe["data_digest"], "protocol": one.protocol})
    return min(alike, key=lambda v: (-float(v.tags["worst_case"]), -float(v.tags["clean"]), int(v.version)), default=None)


class Checks:
    """Moves aliases, each to a version that was loaded back and compared on real images; `folders`: those of this run, by version."""

    def __init__(self, store: MlflowClient, name: str, images: np.ndarray, folders: Mapping[int, Path]):
        self.store, self.name, self.images, self.folders = store, name, images, folders
        self.passed: set[int] = set()

    def point(self, to: str, version: int) -> None:
        """Raises Mistake, and leaves the alias where it is, if the version does not do what its folder does."""
        if _aliases(self.store, self.name).get(to) == version:
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
        with torch.no_grad():
            expected = reference(torch.from_numpy(self.images)).numpy()
        if not np.isfinite(logits).all() or logits.tobytes() != expected.tobytes():
            folder, most = self.folders.get(version, "its own weights"), np.abs(logits - expected).max()
            raise Mistake(
                f"{where}: loaded back, it does not give the logits of {folder} (got a largest difference of {most:.3g} on "
                f"{len(self.images)} images). Alias '{to}' stays; delete version {version} and register again: dvc repro --force register."
            )
