"""The registry: one registered model a data set and threat, one version a model folder, an alias a model's name, and `champion`.

Versions are known by DVC's digest of their folder, so registering again registers nothing; where outcomes have changed, the version's
numbers are refreshed. An alias moves only to a version that, loaded back, gives the folder's logits bit for bit. Decision 0004 and
docs/registry.md give the reasons.
"""

import importlib.metadata
import json
import logging
import re
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from sqlalchemy.exc import SQLAlchemyError

from pipeline import artifact, mlflow_client, tracking
from pipeline.classifier import Classifier
from pipeline.config import Config
from pipeline.data import load_split
from pipeline.errors import Mistake
from pipeline.report import outcomes as measured
from pipeline.report.table import Row, tabulate

CHAMPION = "champion"
PACKAGE = Path(__file__).parent
LIBRARIES = ("mlflow", "numpy", "torch", "torchdiffeq", "safetensors", "pydantic", "jaxtyping")
IMAGES = 64  # validation images on which a version, loaded back, is compared with its folder
SHOWN = ("clean", "worst_case", "interval_low", "interval_high", "masked", "twin", "n")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A model folder of this run with what was measured on it."""

    model: str
    folder: Path
    md5: str  # DVC's digest of the folder
    recipe: dict[str, Any]
    row: Row
    protocol: str
    data: str
    threat: str

    @property
    def metrics(self) -> dict[str, float]:
        numbers = self.row.metrics()
        return {name: numbers[name] for name in SHOWN if name in numbers} | {f"robust.{name}": share.value for name, share in self.row.suites.items()}

    @property
    def tags(self) -> dict[str, str]:
        """What the version is, to be seen and searched."""
        tree, recipe = self.recipe["classifier"], self.recipe
        what = {
            "dvc.md5": self.md5, "model": self.model, "stage": self.model.split("/")[0], "data": self.data, "data_digest": recipe["data_digest"],
            "threat": self.threat, "protocol": self.protocol, "suites": ", ".join(self.row.suites), "backbone": tree["backbone"]["kind"],
            "head": tree["head"]["kind"], "training": recipe["trained"]["training"]["kind"], "chain": " <- ".join([self.model, *reversed(recipe["chain"])]),
            "seed": recipe["seed"], "device": recipe["device"],
        }  # fmt: skip
        return {name: str(value) for name, value in what.items()} | {name: f"{value:g}" for name, value in self.metrics.items()}

    @property
    def description(self) -> str:
        """Markdown for the version's page."""
        tags, numbers = self.tags, self.metrics
        built = f", built from `{self.recipe['from']}`" if self.recipe["from"] else ""
        lines = [
            f"**{self.model}**: {tags['head']} head on {tags['backbone']}, {tags['training']} training{built}.",
            f"Threat {self.threat}, {numbers['n']:g} test images of {self.data}.", "",
            "| accuracy | |", "|---|---|",
            f"| clean | {numbers['clean']:.1%} |",
            *(f"| robust, suite `{name}` | {share.value:.1%} |" for name, share in self.row.suites.items()),
            f"| **robust, worst case of all** | **{numbers['worst_case']:.1%}** (95%: {numbers['interval_low']:.1%} to {numbers['interval_high']:.1%}) |",
        ]  # fmt: skip
        lines += [f"| what {self.row.masked_attack} alone would report | {numbers['masked']:.1%} |"] if "masked" in numbers else []
        lines += [f"| undefended twin `{self.row.twin.model}` | {numbers['twin']:.1%} |"] if self.row.twin else []
        return "\n".join(lines)


def candidates(config: Config, digests: Mapping[str, str | None], root: Path = Path()) -> list[Candidate]:
    """The attacked models of a finished run. Raises Mistake where a folder or an outcome is missing, or DVC does not know it."""
    suites = config.attack.suites
    everything = {model: {suite: measured.read(root / "outcomes", model, suite) for suite in suites} for model in config.attack.models}
    measured.check_comparable(one for by_suite in everything.values() for one in by_suite.values())
    found = []
    for row in tabulate(everything, suites).rows:
        folder = root / "models" / row.model
        if not (md5 := digests.get(row.model)):
            raise Mistake(f"{folder}: dvc.lock does not know this folder (got no digest of it). Run `dvc repro`, which makes and records it.")
        recipe = artifact.read_recipe(folder)
        found.append(Candidate(row.model, folder, md5, recipe, row, protocol(config), config.source.kind, str(config.threat)))
    return found


def protocol(config: Config) -> str:
    """12 digits for how robustness was measured: threat, suites, number of images. Only versions that share them are compared."""
    suites = {name: config.suites[name].model_dump(mode="json") for name in config.attack.suites}
    return tracking.digest([config.threat.model_dump(mode="json"), suites, config.attack.images])


def register_all(config: Config, digests: Mapping[str, str | None], root: Path = Path()) -> dict[str, Any]:
    """Bring the registry up to this run: versions, numbers, aliases. What is there already is left as it is.

    `digests`: DVC's digest of models/<model>, by model. Returns the receipt, which depends on the run alone and not on what else the
    registry holds. Raises Mistake where MLflow cannot be reached or written, or a version does not give its folder's logits.
    """
    run = candidates(config, digests, root)
    name = config.registered_name
    images = load_split(root / "data/prepared", "validation").floats(slice(0, IMAGES)).numpy()
    with _open() as store:
        _describe(store, name, run[0])
        versions = {one.model: _version(store, name, one) or _register(store, name, one, images) for one in run}
        for one in run:
            _refresh(store, name, versions[one.model], one)
        checks = Checks(store, name, images, {int(versions[one.model].version): one.folder for one in run})
        for one in run:
            checks.point(alias(one.model, config), int(versions[one.model].version))
        if best := _champion(store, name, run[0]):
            checks.point(CHAMPION, int(best.version))
    return receipt(name, run)


def receipt(name: str, run: list[Candidate]) -> dict[str, Any]:
    """What DVC keeps of a registration: no ids, no times."""
    best = min(run, key=lambda one: (-one.metrics["worst_case"], -one.metrics["clean"]))
    models = {one.model: {"dvc.md5": one.md5, "worst_case": one.metrics["worst_case"]} for one in run}
    return {"name": name, "best": best.model, "models": models}


def verify(config: Config, digests: Mapping[str, str | None], root: Path = Path()) -> list[str]:
    """What the registry lacks of this run, in words; empty when it is complete. Changes nothing.

    DVC cannot see the registry: after `mlflow.db` was deleted, `dvc repro` finds everything up to date.
    """
    run, name, problems = candidates(config, digests, root), config.registered_name, []
    with _open() as store:
        for one in run:
            version = _version(store, name, one)
            if version is None:
                problems.append(f"{one.model}: missing from registered model {name}")
            elif one.tags.items() - version.tags.items():
                problems.append(f"{one.model}: version {version.version} of {name} carries older numbers")
        for wanted in (CHAMPION, *(alias(one.model, config) for one in run)):
            if wanted not in _aliases(store, name):
                problems.append(f"{name}@{wanted}: the alias is missing")
    return problems


def load(target: str) -> Classifier:
    """The torch module of e.g. `digits-linf-0.15@champion`, on the CPU."""
    with _open():
        return mlflow.pyfunc.load_model(f"models:/{target}").unwrap_python_model().classifier


@contextmanager
def _open() -> Iterator[MlflowClient]:
    """MLflow's client; whatever is wrong with MLflow ends in words. A registration that failed quietly would count as done."""
    try:
        yield mlflow_client.client()
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, RuntimeError) as error:
        raise Mistake(
            f"registry: MLflow at {tracking.shown(tracking.uri())} cannot be used (got {tracking.cause(error)}). "
            f"Everything is computed and kept; when MLflow is back, run `dvc repro register`."
        ) from error


# Versions ---------------------------------------------------------------------------------------------------------------------------------


def _describe(store: MlflowClient, name: str, one: Candidate) -> None:
    """The registered model, made where it is missing."""
    text = (
        f"Classifiers of **{one.data}** under the threat {one.threat}. A version is one trained model; alias `{CHAMPION}` is the one of highest "
        f"worst-case robust accuracy among those measured alike, the other aliases are the models of the last run.\n\n"
        f"```python\nmodel = mlflow.pyfunc.load_model('models:/{name}@{CHAMPION}')\nlogits = model.predict(images)"
        f"  # float32 [n, {', '.join(map(str, one.recipe['shape']))}] in [0, 1]\n```"
    )
    try:
        store.create_registered_model(name, {"data": one.data, "threat": one.threat}, text)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(store: MlflowClient, name: str, **tags: str) -> list[ModelVersion]:
    """Versions with these tags whose files are there, newest first."""
    asked = " and ".join([f"name = '{name}'", *(f"tags.`{key.replace('_md5', '.md5')}` = '{value}'" for key, value in tags.items())])
    found = list(_pages(store, asked))
    return sorted((version for version in found if _intact(store, version)), key=lambda version: -int(version.version))


def _pages(store: MlflowClient, asked: str) -> Iterator[ModelVersion]:
    token = None
    while True:
        page = store.search_model_versions(asked, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _intact(store: MlflowClient, version: ModelVersion) -> bool:
    """Local files can be deleted under a database that remembers them; a server looks after its own."""
    place = urlparse(store.get_model_version_download_uri(version.name, version.version))
    return place.scheme not in ("", "file") or Path(unquote(place.path), "MLmodel").exists()


def _version(store: MlflowClient, name: str, one: Candidate) -> ModelVersion | None:
    return next(iter(_versions(store, name, dvc_md5=one.md5, model=one.model)), None)


def _register(store: MlflowClient, name: str, one: Candidate, images: np.ndarray) -> ModelVersion:
    """A new version, attached to the run that trained the model."""
    run_id = _run(store, one)
    example, shape, classes = images[:2], one.recipe["shape"], len(one.recipe["classes"])
    inputs, outputs = TensorSpec(images.dtype, (-1, *shape)), TensorSpec(images.dtype, (-1, classes))
    mlflow.set_experiment(experiment_id=store.get_run(run_id).info.experiment_id)
    with _same_path():
        logged = Model.log(
            artifact_path=None,
            name=one.model.replace("/", "-"),
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(PACKAGE / "pyfunc.py"),
            artifacts={"model": str(one.folder)},
            code_paths=[str(PACKAGE)],
            signature=ModelSignature(Schema([inputs]), Schema([outputs])),
            input_example=example,
            pip_requirements=[f"{library}=={importlib.metadata.version(library).partition('+')[0]}" for library in LIBRARIES],
        )
    tags = {"dvc.md5": one.md5, "model": one.model, **{key: value for key, value in tracking.commit().items() if key in ("commit", "dirty")}}
    log.info("registry: %s is a new version of %s", one.model, name)
    return store.create_model_version(name, logged.model_uri, run_id, tags, one.description, await_creation_for=None, model_id=logged.model_id)


def _run(store: MlflowClient, one: Candidate) -> str:
    """The newest finished run that trained this model with these params; a new run where MLflow has none (restored from DVC's cache)."""
    experiment = mlflow_client.experiment_id(store, one.data)
    tags = {"stage": one.model, "asked": tracking.digest(one.recipe["trained"]), "data_digest": one.recipe["data_digest"], "seed": str(one.recipe["seed"])}
    asked = " and ".join([*(f"tags.`{key}` = '{value}'" for key, value in tags.items()), "attributes.status = 'FINISHED'"])
    if found := store.search_runs([experiment], asked, max_results=1, order_by=["attributes.start_time DESC"]):
        return found[0].info.run_id
    made = store.create_run(experiment, run_name=one.model, tags=tags).info.run_id
    for key, value in tracking.flatten(one.recipe["trained"]).items():
        store.log_param(made, key, value)
    store.set_terminated(made)
    return made


def _refresh(store: MlflowClient, name: str, version: ModelVersion, one: Candidate) -> None:
    """Numbers and tags of a version, where they differ; the tags come last, so that a kill in between is mended by the next call."""
    changed = dict(one.tags.items() - version.tags.items())
    if not changed:
        return
    now, run_id, model_id = round(time.time() * 1000), str(version.run_id), version.source.removeprefix("models:/")
    data = {"dataset_name": one.data, "dataset_digest": one.recipe["data_digest"][:36]}
    store.log_batch(run_id, [Metric(key, value, now, 0, model_id=model_id, run_id=run_id, **data) for key, value in one.metrics.items()])
    store.update_model_version(name, version.version, one.description)
    for key, value in changed.items():
        store.set_model_version_tag(name, version.version, key, value)


# Aliases ----------------------------------------------------------------------------------------------------------------------------------


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
    alike = _versions(store, name, data_digest=one.recipe["data_digest"], protocol=one.protocol)
    return min(alike, key=lambda v: (-float(v.tags["worst_case"]), -float(v.tags["clean"]), int(v.version)), default=None)


class Checks:
    """Moves aliases, each to a version that was loaded back and compared on real images; `folders`: version -> its folder, where it is there."""

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
        with _same_path():
            loaded = mlflow.pyfunc.load_model(where)
        logits = loaded.predict(self.images)
        reference = artifact.load(self.folders[version]) if version in self.folders else loaded.unwrap_python_model().classifier
        with torch.no_grad():
            expected = reference(torch.from_numpy(self.images)).numpy()
        if not np.isfinite(logits).all() or logits.tobytes() != expected.tobytes():
            raise Mistake(
                f"{where}: loaded back, it does not give the logits of {self.folders.get(version, 'its own weights')} (got a largest difference of "
                f"{np.abs(logits - expected).max():.3g} on {len(self.images)} images). Alias '{to}' stays; delete version {version} and run `dvc repro register`."
            )


@contextmanager
def _same_path() -> Iterator[None]:
    """MLflow puts a version's own code in front of sys.path and leaves it there."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path


def write(path: Path, registered: dict[str, Any]) -> None:
    """The receipt as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(registered, indent=1, sort_keys=True) + "\n")
