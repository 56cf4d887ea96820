"""Versions of a registered model: one a model folder, known by DVC's digest of it."""

import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlparse

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME

from basin.registry import card, contents, runs
from basin.registry.candidates import Candidate

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
    found = list(pages(store, asked))
    return sorted((version for version in found if _intact(store, version)), key=lambda version: -int(version.version))


def pages(store: MlflowClient, asked: str) -> Iterator[ModelVersion]:
    token = None
    while True:
        page = store.search_model_versions(asked, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _intact(store: MlflowClient, version: ModelVersion) -> bool:
    """Local files can be deleted under a database that remembers them; a server looks after its own."""
    try:
        place = urlparse(store.get_model_version_download_uri(version.name, version.version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False  # `basin gc` of another took it since it was found
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


def card_on_pages(store: MlflowClient, version: ModelVersion, text: str) -> str:
    return card.on_pages(text, version.name, logged(store, version).model_id, version.tags.get("parents", ""))


def is_current(version: ModelVersion, one: Candidate) -> bool:
    """Whether the version carries this run's numbers and tags."""
    return {**one.tags, "measured": one.measured}.items() <= version.tags.items()


def refresh(store: MlflowClient, name: str, version: ModelVersion, one: Candidate, at: Mapping[str, str]) -> None:
    """Numbers, files and tags of a version, written anew. Tag `seal` comes last: what a kill leaves undone, `verify` finds.

    `at`: tags of the commit.
    """
    model_id, tags = logged(store, version).model_id, {**one.tags, **at, "measured": one.measured}
    if "seal" in version.tags:
        store.delete_model_version_tag(name, version.version, "seal")
    record(store, version, one, one.metrics)
    with tempfile.TemporaryDirectory() as folder:
        seal = contents.write(Path(folder), one, tags, _of_mlflow(store, version))
        store.log_model_artifacts(model_id, folder)
    for key, value in {**tags, "seal": seal}.items():
        if version.tags.get(key) != value or key == "seal":
            store.set_model_version_tag(name, version.version, key, value)


def _of_mlflow(store: MlflowClient, version: ModelVersion) -> dict[str, str]:
    """Path -> SHA-256 of the files of MLflow's own beside a version's; what it notes when a version is loaded comes and goes."""
    found = (one.path for one in store.list_logged_model_artifacts(logged(store, version).model_id) if not one.is_dir)
    digests = {}
    for path in set(found) - {REGISTERED_MODEL_META_FILE_NAME, contents.MANIFEST}:
        with files(store, version, path) as folder:
            digests[path] = contents.digest((folder / path).read_bytes())
    return digests


def record(store: MlflowClient, version: ModelVersion, one: Candidate, values: Mapping[str, float]) -> None:
    """Numbers on the run and on the model, with the data that they were measured on."""
    run_id, model = str(version.run_id), logged(store, version)
    # The newest of a number is what counts: no older than those that are there, whatever the clock was set to since.
    now = max([round(time.time() * 1000), *(one.timestamp + 1 for one in model.metrics or [])])
    data = {"dataset_name": runs.dataset(one, "test").name, "dataset_digest": runs.dataset(one, "test").digest}
    store.log_batch(run_id, [Metric(key, value, now, 0, model_id=model.model_id, run_id=run_id, **data) for key, value in values.items()])


@contextmanager
def same_path() -> Iterator[None]:
    """MLflow puts a version's own code in front of sys.path and leaves it there."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
