"""What the three training stages share: run the phases, measure on the validation split, save the model and its history."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline import artifact, ode, optimise
from pipeline.classifier import Classifier
from pipeline.config import Adversarial, Backbone, Head
from pipeline.data import About, Split, load_about, load_split
from pipeline.lookup import Choice
from pipeline.ode import Flow
from pipeline.optimise import Phase, Row
from pipeline.types import NetworkLoss
from stages import entry

BATCH = 1024  # images a pass where no gradient is taken


def recipe(stage: entry.Stage, model: str, asked: Backbone | Head | Adversarial, tree: dict[str, Any], parent: dict[str, Any] | None) -> dict[str, Any]:
    """The recipe of a new model; `parent` is the recipe of the model it was built from."""
    about = load_about(entry.PREPARED)
    chain = [*parent["chain"], parent["model"]] if parent else []
    return {
        "model": model, "shape": list(about.shape), "classes": list(about.classes), "classifier": tree,
        "trained": asked.model_dump(mode="json", by_alias=True), "threat": stage.config.threat.model_dump(mode="json"),
        "seed": stage.config.seed, "device": str(stage.device), "threads": stage.config.threads, "data_digest": about.digest,
        "from": chain[-1] if chain else None, "chain": chain,
    }  # fmt: skip


def normalise(about: About) -> dict[str, Any]:
    return {"mean": list(about.mean), "std": list(about.std)}


def method_loss(stage: entry.Stage, training: Choice) -> NetworkLoss:
    """A training method's loss, with its settings and the threat model filled in."""

    def loss(network: Any, x: Any, y: Any, g: torch.Generator) -> torch.Tensor:
        return training.module.loss(training.params, network, x, y, stage.config.threat, g)

    return loss


def fit(stage: entry.Stage, model: str, classifier: Classifier, phases: list[Phase], parent: Path | None) -> None:
    """Train, then write models/<model> and history/<model>.csv."""
    train, validation = load_split(entry.PREPARED, "train"), load_split(entry.PREPARED, "validation")
    started_from = artifact.read_recipe(parent) | {"weights": artifact.weights_digest(parent)} if parent else None
    checkpoint = stage.checkpoint(classifier.recipe, artifact.sources(classifier), started_from)
    steps = iter(range(1, 1_000_000))
    history = optimise.run(
        classifier,
        phases,
        train,
        partial(accuracy, classifier, validation, stage.device),
        (stage.config.seed, model),
        checkpoint,
        lambda row: stage.run.metrics({key: row[key] for key in ("loss", "accuracy")}, step=next(steps)),
    )
    for flow in ode.flows(classifier):
        report_stiffness(stage, classifier, flow, validation)
    artifact.save(entry.MODELS / model, classifier, parent)
    write_history(entry.HISTORY / f"{model}.csv", history)
    stage.run.artifact(entry.MODELS / model)


@torch.no_grad()
def accuracy(classifier: Classifier, split: Split, device: torch.device) -> float:
    """The share of a split's images that are classified right."""
    right = 0
    for rows in torch.arange(len(split)).split(BATCH):
        right += int((classifier(split.floats(rows).to(device)).argmax(1).cpu() == split.labels[rows]).sum())
    return round(right / len(split), 6)


def report_stiffness(stage: entry.Stage, classifier: Classifier, flow: Flow, validation: Split) -> None:
    """Measure the solve at the features of held-out images, and warn where its fixed step is outside the stable region."""
    with torch.no_grad():
        z0 = classifier.head.state(classifier.features(validation.floats(slice(0, 64)).to(stage.device)))  # type: ignore[operator]
        classifier.head.flow(z0)  # type: ignore[operator]
    stiffness = flow.stiffness(z0)
    stage.run.metrics({"nfe": flow.nfe, "stiffness": stiffness})
    if ode.is_unstable(flow, stiffness):
        entry.logging.warning(
            "%s: the fixed step is too long for this flow: h |lambda| = %.2f, above %.2f for %s. Raise solver.steps, or take the numbers of this "
            "model for those of its discretisation.", stage.name, stiffness, ode.STABILITY_LIMIT[flow.solver.method], flow.solver.method,
        )  # fmt: skip


def write_history(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
