"""What the three training stages share: run the phases, measure on the validation split, save the model and its history."""

import csv
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline import artifact, optimise, stability
from pipeline.classifier import Classifier
from pipeline.config import Adversarial, Backbone, Head
from pipeline.data import About, Split, load_about, load_split
from pipeline.lookup import Choice
from pipeline.optimise import Phase, Row
from pipeline.randomness import drawing, generator
from pipeline.types import Losses, NetworkLoss
from stages import entry

log = logging.getLogger(__name__)
BATCH = 1024  # images a pass where no gradient is taken


def recipe(
    stage: entry.Stage, model: str, asked: Backbone | Head | Adversarial, tree: dict[str, Any], parent: dict[str, Any] | None
) -> dict[str, Any]:
    """The recipe of a new model; `parent` is the recipe of the model it was built from, whose purifier it keeps unless it has its own."""
    about = load_about(entry.PREPARED)
    tree = tree | ({"purifier": asked.purifier.tree()} if asked.purifier else {})
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

    def loss(network: Any, x: Any, y: Any, g: torch.Generator) -> Losses:
        return training.module.loss(training.params, network, x, y, stage.config.threat, g)

    return loss


def training_images(asked: Backbone | Head | Adversarial) -> Split:
    """The training split, with purified copies of its images after it where the model asks for them."""
    train = load_split(entry.PREPARED, "train")
    return purified_copies(train, asked.augmentation) if asked.augmentation else train


@torch.no_grad()
def purified_copies(split: Split, purifier: Choice) -> Split:
    """The split followed by a copy of it that the purifier cleaned, in the stored 256 grey levels."""
    purify = purifier.module.Purifier(purifier.params)
    cleaned = [(purify(split.floats(rows)) * 255).round().byte() for rows in torch.arange(len(split)).split(BATCH)]
    return Split(torch.cat([split.images, *cleaned]), torch.cat([split.labels, split.labels]))


def end_to_end(stage: entry.Stage, asked: Backbone | Adversarial, classifier: Classifier) -> Phase:
    """Backbone and head together, in one phase."""
    loss = method_loss(stage, asked.training)
    return Phase(asked.training.kind, asked.schedule, [classifier.backbone, classifier.head], lambda x, y, g: loss(classifier, x, y, g))


def fit(stage: entry.Stage, model: str, classifier: Classifier, phases: list[Phase], train: Split, parent: Path | None) -> None:
    """Train, then write models/<model> and history/<model>.csv."""
    validation = load_split(entry.PREPARED, "validation")
    started_from = artifact.read_recipe(parent) | {"weights": artifact.weights_digest(parent)} if parent else None
    checkpoint = stage.checkpoint(classifier.recipe, artifact.sources(classifier), started_from)
    history = optimise.run(
        classifier,
        phases,
        train,
        partial(accuracy, classifier, validation, stage.device),
        (stage.config.seed, model),
        checkpoint,
        lambda step, row: stage.run.metrics({key: row[key] for key in ("loss", "accuracy")}, step),
    )
    report_flows(stage, classifier, validation)
    artifact.save(entry.MODELS / model, classifier, parent)
    write_history(entry.HISTORY / f"{model}.csv", history)
    stage.run.artifact(entry.MODELS / model)


@torch.no_grad()
def accuracy(classifier: Classifier, split: Split, device: torch.device) -> float:
    """The share of a split's images that are classified right."""
    right, draws = 0, generator(0, "accuracy", device=device)
    for rows in torch.arange(len(split)).split(BATCH):
        with drawing(classifier, draws):
            right += int((classifier(split.floats(rows).to(device)).argmax(1).cpu() == split.labels[rows]).sum())
    return round(right / len(split), 6)


def report_flows(stage: entry.Stage, classifier: Classifier, validation: Split) -> None:
    """Measure each flow at held-out images, and warn where its fixed step is outside the stable region."""
    part = {module: name.partition(".")[0] for name, module in classifier.named_modules()}
    for flow, z0 in stability.starts(classifier, validation.floats(slice(0, 64)).to(stage.device)):
        stiffness = stability.stiffness(flow, z0)
        numbers = {"nfe": flow.nfe, "stiffness": stiffness} | (stability.measure(flow, z0).numbers() if z0.ndim == 2 else {})
        stage.run.metrics({f"{part[flow]}.{name}": value for name, value in numbers.items()})
        if stability.is_unstable(flow, stiffness):
            log.warning(
                "%s: the step is too long for this flow (got h |lambda| = %.2f). Raise solver.steps, or shorten T.", stage.name, stiffness
            )


def write_history(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
