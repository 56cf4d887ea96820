"""What the three training stages share: run the phases, measure on the validation split, save the model and its history."""

import csv
import io
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch

from basin import checkpoint, files, progress
from basin.config.kinds import Choice
from basin.config.params import Adversarial, Backbone, Head
from basin.data.about import About, load_about
from basin.data.splits import Split, load_split
from basin.errors import Mistake
from basin.evaluation import classes
from basin.methods.attacks import pgd
from basin.models import artifact, stability
from basin.models import recipe as recipes
from basin.models.classifier import Classifier
from basin.models.start import Start
from basin.randomness import drawing, generator
from basin.stages import entry
from basin.threat.ball import ThreatModel
from basin.threat.target import Target
from basin.training import optimise
from basin.training.optimise import Row
from basin.training.phase import Phase
from basin.types import Images, Losses, NetworkLoss

log = logging.getLogger(__name__)
BATCH = 1024  # images a pass where no weights are trained
WATCHED = pgd.Params(steps=10, step=0.25)  # of a length at which Rice et al. watch: 2/255 where the radius is 8/255


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
    } | ({"processes": stage.group.size} if stage.group.size > 1 else {})  # fmt: skip


def normalise(about: About, began: Start | None) -> dict[str, Any]:
    """The data's own normalisation, or that of the weights to start from; for grey images the mean of its channels."""
    if began is None or began.mean is None or began.std is None:
        return {"mean": list(about.mean), "std": list(about.std)}
    tree = {"mean": began.mean, "std": began.std}
    if (channels := len(about.mean)) == 1:
        return {name: [sum(values) / len(values)] for name, values in tree.items()}
    if {len(values) for values in tree.values()} != {channels}:
        raise Mistake(f"{began.where}: its normalisation is not of {channels} channels (got {tree}). Give one number for each.")
    return tree


def method_loss(stage: entry.Stage, training: Choice) -> NetworkLoss:
    """A training method's loss, with its settings and the threat model filled in."""

    threat = ThreatModel.of(stage.config.threat)

    def loss(network: Any, x: Any, y: Any, g: torch.Generator) -> Losses:
        return training.module.loss(training.params, network, x, y, threat, g)

    return loss


def training_images(stage: entry.Stage, asked: Backbone | Head | Adversarial) -> Split:
    """The training split, with purified copies of its images after it where the model asks for them."""
    train = load_split(entry.PREPARED, "train")
    return purified_copies(stage, train, asked.cleaned) if asked.cleaned else train


def augment(asked: Backbone | Head | Adversarial, images: Images, draws: torch.Generator) -> Images:
    """What a model's `augmentation` makes of a batch of training images."""
    for one in asked.augmentation or []:
        images = one.module.augment(one.params, images, draws)
    return images


@torch.no_grad()
def purified_copies(stage: entry.Stage, split: Split, purifier: Choice) -> Split:
    """The split followed by a copy of it that the purifier cleaned, in the stored 256 grey levels. Masks are drawn once, by the seed."""
    purify = purifier.module.Purifier(purifier.params)
    batches = progress.each(_batches(split), f"{stage.name}: purified copies", "batches")
    with drawing(purify, generator(stage.config.seed, stage.name, "purified copies", device=stage.device)):
        cleaned = [(purify(split.floats(rows).to(stage.device)) * 255).round().byte().cpu() for rows in batches]
    return Split(torch.cat([split.images, *cleaned]), torch.cat([split.labels, split.labels]))


def end_to_end(stage: entry.Stage, asked: Backbone | Adversarial, classifier: Classifier) -> Phase:
    """Backbone and head together, in one phase."""
    loss = method_loss(stage, asked.training)
    return Phase(asked.training.kind, asked.schedule, [classifier.backbone, classifier.head], lambda x, y, g: loss(classifier, x, y, g))


def fit(
    stage: entry.Stage,
    asked: Backbone | Head | Adversarial,
    classifier: Classifier,
    phases: list[Phase],
    train: Split,
    parent: Path | None,
) -> None:
    """Train what was asked for, then write models/<model> and history/<model>.csv."""
    model = classifier.recipe["model"]
    validation = load_split(entry.PREPARED, "validation")
    started_from = recipes.read_recipe(parent) | {"weights": recipes.weights_digest(parent)} if parent else None
    state = checkpoint.place(stage.name, classifier.recipe, artifact.sources(classifier), started_from, *stage.terms)
    history = optimise.run(
        classifier,
        phases,
        train,
        partial(accuracy, classifier, validation, ThreatModel.of(stage.config.threat), stage.device),
        (stage.config.seed, model),
        state,
        lambda step, row: stage.run.metrics({name: value for name, value in row.items() if isinstance(value, float)}, step),
        keep=True,
        augment=partial(augment, asked),
        group=stage.group,
    )
    stage.checkpoints.append(state)
    if not stage.group.first:
        return
    report_flows(stage, classifier, validation)
    report_answers(stage.name, classifier, validation, stage.device)
    artifact.save(entry.MODELS / model, classifier, parent)
    write_history(entry.HISTORY / f"{model}.csv", history)
    stage.run.tags({"weights": recipes.weights_digest(entry.MODELS / model)})
    stage.run.artifact(entry.MODELS / model)


@torch.no_grad()
def accuracy(classifier: Classifier, split: Split, threat: ThreatModel, device: str, attacked: int = 0) -> float:
    """The share of a split's images that are classified right; with `attacked`, of its first so many, under ten steps of PGD."""
    if attacked:
        split = split.take(torch.arange(min(attacked, len(split))))
    right, draws, target = 0, generator(0, "accuracy", device=device), Target(classifier, threat)
    for rows in _batches(split):
        x, y = split.floats(rows).to(device), split.labels[rows].to(device)
        with drawing(classifier, draws):
            x = pgd.perturb(WATCHED, target, x, y, draws) if attacked else x
            right += int((classifier(x).argmax(1) == y).sum())
    return round(right / len(split), 6)


def _batches(split: Split) -> tuple[torch.Tensor, ...]:
    return torch.arange(len(split)).split(BATCH)


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


@torch.no_grad()
def report_answers(name: str, classifier: Classifier, validation: Split, device: str) -> None:
    """Warn where the trained model answers held-out images no better than chance, before others are built from it."""
    with drawing(classifier, generator(0, "answers", device=device)):
        answers = torch.cat([classifier(validation.floats(rows).to(device)).argmax(1).cpu() for rows in _batches(validation)])
    if classes.guessing(validation.labels.numpy(), answers.numpy()) > 1:
        log.warning(
            "%s: the answers to the validation images are no better than chance (got %.1f%% right). "
            "If the loss was lower in earlier epochs, lower schedule.rate; else train for longer, or look at the labels.",
            name, 100 * (answers == validation.labels).float().mean(),
        )  # fmt: skip


def write_history(path: Path, rows: list[Row]) -> None:
    table = csv.DictWriter(text := io.StringIO(), list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    files.write(path, text.getvalue())
