"""Versions of a registered model: one a model folder, known by DVC's digest of it."""

import importlib.metadata
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlparse

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

from pipeline import artifact, serving
from pipeline.ode import flows
from pipeline.registry import card, contents, runs
from pipeline.registry.candidates import Candidate

LIBRARIES = ("mlflow", "numpy", "torch", "torchdiffeq", "safetensors", "pydantic", "jaxtyping", "pillow", "tqdm")
BATCH = 64  # images of a pass whose time is taken
log = logging.getLogger(__name__)


def create(store: MlflowClient, name: str, tags: Mapping[str, str]) -> None:
    """The registered model, where it is missing."""
    try:
        store.create_registered_model(name, dict(tags))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def describe(store: MlflowClient, name: str, champion: ModelVersion | None) -> None:
    """The registered model's text: what it holds, where its champion is, how to load it."""
    model = store.get_registered_model(name)
    who = "None has passed the gate yet."
    if champion:
        about = champion.tags
        who = (
            f"Now [version {champion.version}](#/models/{quote(name)}/versions/{champion.version}), `{about['model']}`: "
            f"{float(about['worst_case']):.1%} robust, {float(about['clean']):.1%} clean, n = {about['n']}."
        )
    text = (
        f"Classifiers of **{model.tags['data']}** under the threat {model.tags['threat']}. A version is one trained model; "
        f"`champion` is the one that the promotion gate let through. {who}\n\n"
        f"```python\nmodel = mlflow.pyfunc.load_model('models:/{name}@champion')\nlogits = model.predict(images)"
        f"  # float32 [n, c, h, w] in [0, 1]; a version's card has the shape\n```"
    )
    if model.description != text:
        store.update_registered_model(name, text)


def search(store: MlflowClient, name: str | None, tags: Mapping[str, str]) -> list[ModelVersion]:
    """Versions with these tags whose files are there, newest first; of every registered model without a name."""
    asked = " and ".join([*([f"name = '{name}'"] if name else []), *(f"tags.`{key}` = '{value}'" for key, value in tags.items())])
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


def find(store: MlflowClient, name: str, md5: str | None, model: str) -> ModelVersion | None:
    return next(iter(search(store, name, {"dvc.md5": md5, "model": model})), None) if md5 else None


def logged(store: MlflowClient, version: ModelVersion) -> LoggedModel:
    """The model behind a version: where its metrics and files are."""
    return store.get_logged_model(str(version.source).removeprefix("models:/"))


def metrics(store: MlflowClient, version: ModelVersion) -> dict[str, float]:
    """The numbers on a version's model, the newest of each."""
    return {one.key: one.value for one in sorted(logged(store, version).metrics or [], key=lambda one: one.timestamp)}


@contextmanager
def files(store: MlflowClient, version: ModelVersion, path: str = "") -> Iterator[Path]:
    """A folder with a version's files, or those below `path` of it in their place; where the store is local, the files themselves."""
    where = logged(store, version).artifact_location
    if urlparse(where).scheme in ("", "file"):
        yield Path(unquote(urlparse(where).path))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = mlflow.artifacts.download_artifacts(f"{where}/{path}".rstrip("/"), dst_path=str(Path(folder, path).parent))
        yield Path(folder) if path else Path(found)  # of the whole, MLflow makes a folder in the folder


def register(store: MlflowClient, name: str, one: Candidate, images: np.ndarray) -> ModelVersion:
    """A new version, attached to the run that trained the model; its numbers and files are for `refresh` to write."""
    run_id = runs.training(store, one)
    example, classes = images[:2], len(one.recipe["classes"])
    # Objects: arrays of float32 [n, c, h, w], or base64 of image files; anything narrower refuses one of them (docs/serving.md).
    inputs, outputs = TensorSpec(np.dtype("O"), (-1,)), TensorSpec(images.dtype, (-1, classes))
    params = [ParamSpec(key, "string" if isinstance(value, str) else "long", value) for key, value in serving.Asked()]
    experiment = store.get_run(run_id).info.experiment_id
    used = {version.source for version in _pages(store, f"tags.`dvc.md5` = '{one.md5}'")}
    for left in store.search_logged_models([experiment], f"tags.`dvc.md5` = '{one.md5}'"):
        if f"models:/{left.model_id}" not in used:  # of an attempt that was killed before there was a version
            store.delete_logged_model(left.model_id)
    model = store.create_logged_model(experiment, one.model.replace("/", "-"), run_id, {"dvc.md5": one.md5}, model_type="classifier")
    with same_path():
        made = Model.log(
            artifact_path=None,
            model_id=model.model_id,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(contents.PACKAGE / "registry" / "pyfunc.py"),
            artifacts={"model": str(one.folder)},
            code_paths=[str(contents.PACKAGE)],
            signature=ModelSignature(Schema([inputs]), Schema([outputs]), ParamSchema(params)),
            input_example=example,
            pip_requirements=[f"{library}=={importlib.metadata.version(library).partition('+')[0]}" for library in LIBRARIES],
        )
    tags = {"model": one.model, "dvc.md5": one.md5}
    version = store.create_model_version(name, made.model_uri, run_id, tags, await_creation_for=0, model_id=made.model_id)
    _log(store, version, one, measure(one.folder, images))
    store.set_logged_model_tags(made.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": int(version.version)}])})
    log.info("registry: %s is a new version of %s", one.model, name)
    return version


@torch.no_grad()
def measure(folder: Path, images: np.ndarray) -> dict[str, float]:
    """What a model costs: parameters, evaluations of its drifts in a pass, and the median milliseconds of a pass here and now."""
    classifier = artifact.load(folder)

    def milliseconds(x: torch.Tensor, times: int = 9) -> float:
        taken = []
        for _ in range(times):
            before = time.perf_counter()
            classifier(x)
            taken.append(1000 * (time.perf_counter() - before))
        return round(statistics.median(taken), 3)

    x = torch.from_numpy(np.resize(images, (BATCH, *images.shape[1:])))
    costs = {"latency_ms.1": milliseconds(x[:1]), f"latency_ms.{BATCH}": milliseconds(x)}
    costs["parameters"] = sum(parameter.numel() for parameter in classifier.parameters())
    return costs | ({"nfe": sum(flow.nfe for flow in solves)} if (solves := flows(classifier)) else {})


def card_on_pages(store: MlflowClient, version: ModelVersion, text: str) -> str:
    return card.on_pages(text, version.name, logged(store, version).model_id, version.tags.get("parents", ""))


def is_current(version: ModelVersion, one: Candidate) -> bool:
    """Whether the version carries this run's numbers and tags."""
    return {**one.tags, "measured": one.measured}.items() <= version.tags.items()


def refresh(store: MlflowClient, name: str, version: ModelVersion, one: Candidate, at: Mapping[str, str], whole: bool) -> None:
    """Numbers, files and tags of a version, written anew. Tag `seal` comes last: what a kill leaves undone, `verify` finds.

    `at`: tags of the commit; `whole`: the files of the model and the code as well.
    """
    model_id, tags = logged(store, version).model_id, {**one.tags, **at, "measured": one.measured}
    if "seal" in version.tags:
        store.delete_model_version_tag(name, version.version, "seal")
    _log(store, version, one, one.metrics)
    with tempfile.TemporaryDirectory() as folder:
        seal = contents.write(Path(folder), one, tags)
        store.log_model_artifacts(model_id, folder)
    if whole:
        store.log_model_artifacts(model_id, str(one.folder), f"artifacts/{one.folder.name}")
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(contents.PACKAGE, Path(folder, contents.PACKAGE.name), ignore=shutil.ignore_patterns("__pycache__"))
            store.log_model_artifacts(model_id, folder, "code")
    for key, value in {**tags, "seal": seal}.items():
        if version.tags.get(key) != value or key == "seal":
            store.set_model_version_tag(name, version.version, key, value)


def _log(store: MlflowClient, version: ModelVersion, one: Candidate, values: Mapping[str, float]) -> None:
    """Numbers on the run and on the model, with the data that they were measured on."""
    now, run_id, model_id = round(time.time() * 1000), str(version.run_id), logged(store, version).model_id
    data = {"dataset_name": runs.dataset(one, "test").name, "dataset_digest": runs.dataset(one, "test").digest}
    store.log_batch(run_id, [Metric(key, value, now, 0, model_id=model_id, run_id=run_id, **data) for key, value in values.items()])


@contextmanager
def same_path() -> Iterator[None]:
    """MLflow puts a version's own code in front of sys.path and leaves it there."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
