"""The runs behind a version: which one trained it, which belong to one pipeline run, and on what data.

Runs of one pipeline run carry its digest in their tag `pipeline`. A tag and not the parent run, which is the `basin repro`
that did the work: DVC reuses what is unchanged, so a training run belongs to every pipeline run that used its model, and a run can have one
parent only.
"""

from collections.abc import Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

from basin.registry.candidates import Candidate
from basin.tracking import client as mlflow_client
from basin.tracking import journal

KEPT = 100  # pipeline runs that a run remembers


def training(store: MlflowClient, one: Candidate) -> str:
    """The newest finished run that trained this model with these params; a new run where MLflow has none (restored from DVC's cache)."""
    return _newest(store, one, one.model, one.recipe["trained"]) or _again(store, one)


def _again(store: MlflowClient, one: Candidate) -> str:
    made = store.create_run(
        mlflow_client.experiment_id(store, one.data), run_name=one.model, tags=_tags(one, one.model, one.recipe["trained"])
    )
    for key, value in journal.flatten(one.recipe["trained"]).items():
        store.log_param(made.info.run_id, key, value)
    store.set_terminated(made.info.run_id)
    return made.info.run_id


def _tags(one: Candidate, stage: str, asked: Any) -> dict[str, str]:
    """What a stage's run is known by: what was asked of it, and the weights that it made or attacked, which depend on more."""
    about = {"data_digest": one.recipe["data_digest"], "seed": str(one.recipe["seed"]), "weights": one.recipe.get("weights", "none")}
    return {"stage": stage, "asked": journal.digest(asked)} | about


def _newest(store: MlflowClient, one: Candidate, stage: str, asked: Any) -> str | None:
    experiment, tags = mlflow_client.experiment_id(store, one.data), _tags(one, stage, asked)
    known = " and ".join([*(f"tags.`{key}` = '{value}'" for key, value in tags.items()), "attributes.status = 'FINISHED'"])
    found = store.search_runs([experiment], known, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0].info.run_id if found else None


def gather(store: MlflowClient, run: Sequence[Candidate], name: str) -> None:
    """Write the name of a pipeline run into the tag of every training and attack that belongs to it."""
    for one in run:
        attacks = {f"attack/{one.model}/{suite}": asked for suite, asked in one.protocol["suites"].items()}
        for stage, asked in {one.model: one.recipe["trained"], **attacks}.items():
            if run_id := _newest(store, one, stage, asked):
                known = store.get_run(run_id).data.tags.get("pipeline", "").split()
                if name not in known:
                    store.set_tag(run_id, "pipeline", " ".join([*known, name][-KEPT:]))


def dataset(one: Candidate, split: str) -> Dataset:
    """A split of the prepared data, as MLflow has data sets. The digest is that of all splits."""
    return Dataset(f"{one.data}/{split}", one.recipe["data_digest"][:36], "local", f"data/prepared/{split}.safetensors")


def inputs(store: MlflowClient, run_id: str, one: Candidate) -> None:
    """What the model was trained and evaluated on, as inputs of its run."""
    use = {"training": dataset(one, "train"), "evaluation": dataset(one, "test")}
    store.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)]) for context, data in use.items()])
