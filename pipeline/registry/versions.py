"""Versions of a registered model: one a model folder, known by DVC's digest of it."""

import importlib.metadata
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

from pipeline import serving, tracking
from pipeline.registry.candidates import Candidate
from pipeline.tracking import client as mlflow_client

PACKAGE = Path(__file__).parent.parent
LIBRARIES = ("mlflow", "numpy", "torch", "torchdiffeq", "safetensors", "pydantic", "jaxtyping", "pillow")
log = logging.getLogger(__name__)


def describe(store: MlflowClient, name: str, one: Candidate) -> None:
    """The registered model, made where it is missing."""
    text = (
        f"Classifiers of **{one.data}** under the threat {one.threat}. A version is one trained model. Alias `champion` is the one of "
        f"highest worst-case robust accuracy among those measured alike; the other aliases are the models of the last run.\n\n"
        f"```python\nmodel = mlflow.pyfunc.load_model('models:/{name}@champion')\nlogits = model.predict(images)"
        f"  # float32 [n, {', '.join(map(str, one.recipe['shape']))}] in [0, 1]\n```"
    )
    try:
        store.create_registered_model(name, {"data": one.data, "threat": one.threat}, text)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def search(store: MlflowClient, name: str, tags: Mapping[str, str]) -> list[ModelVersion]:
    """Versions with these tags whose files are there, newest first."""
    asked = " and ".join([f"name = '{name}'", *(f"tags.`{key}` = '{value}'" for key, value in tags.items())])
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


def find(store: MlflowClient, name: str, one: Candidate) -> ModelVersion | None:
    return next(iter(search(store, name, {"dvc.md5": one.md5, "model": one.model})), None)


def register(store: MlflowClient, name: str, one: Candidate, images: np.ndarray) -> ModelVersion:
    """A new version, attached to the run that trained the model."""
    run_id = _run(store, one)
    example, classes = images[:2], len(one.recipe["classes"])
    # Objects: arrays of float32 [n, c, h, w], or base64 of image files; anything narrower refuses one of them (docs/serving.md).
    inputs, outputs = TensorSpec(np.dtype("O"), (-1,)), TensorSpec(images.dtype, (-1, classes))
    params = [ParamSpec(key, "string" if isinstance(value, str) else "long", value) for key, value in serving.Asked()]
    experiment = store.get_run(run_id).info.experiment_id
    model = store.create_logged_model(experiment, one.model.replace("/", "-"), run_id, {"dvc.md5": one.md5}, model_type="classifier")
    with same_path():
        logged = Model.log(
            artifact_path=None,
            model_id=model.model_id,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(PACKAGE / "registry" / "pyfunc.py"),
            artifacts={"model": str(one.folder)},
            code_paths=[str(PACKAGE)],
            signature=ModelSignature(Schema([inputs]), Schema([outputs]), ParamSchema(params)),
            input_example=example,
            pip_requirements=[f"{library}=={importlib.metadata.version(library).partition('+')[0]}" for library in LIBRARIES],
        )
    at = tracking.commit()
    tags = one.tags | {"commit": at["commit"], "dirty": at["dirty"]}
    made = store.create_model_version(
        name, logged.model_uri, run_id, tags, description=one.description, await_creation_for=0, model_id=logged.model_id
    )
    store.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": int(made.version)}])})
    log.info("registry: %s is a new version of %s", one.model, name)
    return made


def _run(store: MlflowClient, one: Candidate) -> str:
    """The newest finished run that trained this model with these params; a new run where MLflow has none (restored from DVC's cache)."""
    experiment = mlflow_client.experiment_id(store, one.data)
    trained, digest, seed = (one.recipe[key] for key in ("trained", "data_digest", "seed"))
    tags = {"stage": one.model, "asked": tracking.digest(trained), "data_digest": digest, "seed": str(seed)}
    asked = " and ".join([*(f"tags.`{key}` = '{value}'" for key, value in tags.items()), "attributes.status = 'FINISHED'"])
    if found := store.search_runs([experiment], asked, max_results=1, order_by=["attributes.start_time DESC"]):
        return found[0].info.run_id
    made = store.create_run(experiment, run_name=one.model, tags=tags).info.run_id
    for key, value in tracking.flatten(one.recipe["trained"]).items():
        store.log_param(made, key, value)
    store.set_terminated(made)
    return made


def is_current(version: ModelVersion, one: Candidate) -> bool:
    """Whether the version carries this run's numbers and tags."""
    return {**one.tags, "measured": one.measured}.items() <= version.tags.items()


def refresh(store: MlflowClient, name: str, version: ModelVersion, one: Candidate) -> None:
    """Numbers and tags of a version, where they differ. Tag `measured` comes last: what a kill leaves undone is done by the next call."""
    if is_current(version, one):
        return
    now, run_id, model_id = round(time.time() * 1000), str(version.run_id), str(version.source).removeprefix("models:/")
    data = {"dataset_name": one.data, "dataset_digest": one.recipe["data_digest"][:36]}
    store.log_batch(run_id, [Metric(key, value, now, 0, model_id=model_id, run_id=run_id, **data) for key, value in one.metrics.items()])
    store.update_model_version(name, version.version, one.description)
    for key, value in {**one.tags, "measured": one.measured}.items():
        if version.tags.get(key) != value:
            store.set_model_version_tag(name, version.version, key, value)


@contextmanager
def same_path() -> Iterator[None]:
    """MLflow puts a version's own code in front of sys.path and leaves it there."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
