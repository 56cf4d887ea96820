"""A new version, made of a model folder."""

import importlib.metadata
import json
import logging
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

from basin.models import artifact
from basin.models.ode import flows
from basin.registry import contents, runs, serving
from basin.registry.candidates import Candidate
from basin.registry.versions import pages, record, same_path

LIBRARIES = ("mlflow", "numpy", "torch", "torchvision", "torchdiffeq", "safetensors", "pydantic", "jaxtyping", "pillow")
BATCH = 64  # images of a pass whose time is taken
log = logging.getLogger(__name__)


def register(store: MlflowClient, name: str, one: Candidate, images: np.ndarray) -> ModelVersion:
    """A new version, attached to the run that trained the model; its numbers and files are for `refresh` to write."""
    run_id = runs.training(store, one)
    experiment = store.get_run(run_id).info.experiment_id
    used = {version.source for version in pages(store, f"tags.`dvc.md5` = '{one.md5}'")}
    for left in store.search_logged_models([experiment], f"tags.`dvc.md5` = '{one.md5}'"):
        if f"models:/{left.model_id}" not in used:  # of an attempt that was killed before there was a version
            store.delete_logged_model(left.model_id)
    model = store.create_logged_model(experiment, one.model.replace("/", "-"), run_id, {"dvc.md5": one.md5}, model_type="classifier")
    made = log_files(model.model_id, run_id, one, images)
    tags = {"model": one.model, "dvc.md5": one.md5}
    version = store.create_model_version(name, made.model_uri, run_id, tags, await_creation_for=0, model_id=made.model_id)
    record(store, version, one, measure(one.folder, images))
    store.set_logged_model_tags(made.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": int(version.version)}])})
    log.info("registry: %s is a new version of %s", one.model, name)
    return version


def log_files(model_id: str, run_id: str | None, one: Candidate, images: np.ndarray) -> ModelInfo:
    """The model folder, the code and MLflow's own files, put into a logged model; those that are there already are written over.

    `run_id`: the run that is to list the model among its outputs, which MLflow lets it do once.
    """
    classes = len(one.recipe["classes"])
    # Objects: arrays of float32 [n, c, h, w], or base64 of image files; anything narrower refuses one of them (docs/serving.md).
    inputs, outputs = TensorSpec(np.dtype("O"), (-1,)), TensorSpec(images.dtype, (-1, classes))
    params = [ParamSpec(key, "string" if isinstance(value, str) else "long", value) for key, value in serving.Asked()]
    with same_path():
        return Model.log(
            artifact_path=None,
            model_id=model_id,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(contents.PACKAGE / "registry" / "pyfunc.py"),
            artifacts={"model": str(one.folder)},
            code_paths=[str(contents.PACKAGE)],
            signature=ModelSignature(Schema([inputs]), Schema([outputs]), ParamSchema(params)),
            input_example=images[:2],
            pip_requirements=[f"{library}=={importlib.metadata.version(library).partition('+')[0]}" for library in libraries(one.recipe)],
        )


def libraries(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model of this recipe is loaded with."""
    return (*LIBRARIES, "timm") if '"kind": "timm"' in json.dumps(recipe) else LIBRARIES


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
