"""Minimise a loss over epochs, in phases; the one loop behind every training stage.

A stage is a list of phases run in order (a SODEF head has three). After every epoch the state goes to a checkpoint, and a run
that was killed goes on from there with the same result as if it had not been: what is drawn in an epoch depends on the epoch alone.

A phase ends with its last weights, with their mean (basin/training/averaging.py), or with those of its best epoch on the validation images.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from basin import checkpoint, progress
from basin.checkpoint import Groups
from basin.config.schedule import Schedule
from basin.data.splits import Split
from basin.models.classifier import Classifier
from basin.processes import ALONE, Group
from basin.randomness import drawing, generator
from basin.training.averaging import Mean, copied, measure_statistics
from basin.training.awp import Perturbed, gradients
from basin.training.batches import Augment, Batches
from basin.training.losses import Losses
from basin.training.optimisers import SGD, Adam
from basin.training.pace import Paced
from basin.training.phase import Phase

log = logging.getLogger(__name__)
Row = dict[str, Any]  # one epoch of the history: phase, epoch, loss, accuracy, and robust if a phase watches it


@dataclass
class Progress:
    """Where a run of phases stands: what a checkpoint holds beside the tensors."""

    phase: int = 0
    epoch: int = 0
    history: list[Row] = field(default_factory=list)

    def since_best(self, phase: Phase) -> int:
        """How many epochs came after the best of a phase that watches something; 0 of any other."""
        stopping = phase.schedule.stopping
        values = [row[stopping.watch] for row in self.history if row["phase"] == phase.name] if stopping else []
        return len(values) - 1 - values.index(max(values)) if values else 0

    def exhausted(self, phase: Phase) -> bool:
        """Whether a phase has no patience left."""
        return phase.schedule.stopping is not None and self.since_best(phase) >= phase.schedule.stopping.patience


def build(schedule: Schedule, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that a schedule asks for."""
    settings: dict[str, Any] = {"lr": schedule.rate, "weight_decay": schedule.weight_decay, "fused": True}
    if schedule.optimiser == "adam":
        return Adam(parameters, eps=schedule.epsilon, amsgrad=schedule.amsgrad, **settings)
    return SGD(parameters, momentum=0.9, nesterov=True, **settings)


class Work:
    """A phase under way: its optimiser, the mean of its weights, the weights to end with where they are not the last, and its passes."""

    def __init__(self, phase: Phase, saved: Groups, paced: Paced, group: Group = ALONE):
        """`saved` is what `state` was, or nothing; `group` shares the phase's batches."""
        self.phase, self.best, self.paced, self.group = phase, saved.get("best", {}), paced, group
        self.parameters = phase.parameters()
        self.optimiser = build(phase.schedule, self.parameters)
        self.perturbed = Perturbed(phase.schedule.awp, self.parameters, group)
        self.mean = Mean(phase.schedule.average, self.parameters)
        if saved:
            _load_optimiser(self.optimiser, saved["optimiser"])
            self.mean.load(saved["mean"])

    def state(self) -> Groups:
        moments = self.optimiser.state_dict()["state"].items()
        of_the_optimiser = {f"{i}/{key}": value for i, state in moments for key, value in state.items() if value is not None}
        return {"optimiser": of_the_optimiser, "mean": self.mean.state(), "best": self.best}

    def step(self, loss: Tensor, rate: float, gather: Callable[[Tensor, list[Tensor]], None]) -> None:
        """One step of the optimiser, at a learning rate, after `gather` has seen the loss and its gradients."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()
        self.group.average(gradients(self.parameters))
        self.perturbed.undo()
        gather(loss, gradients(self.parameters))
        if self.phase.schedule.clip:
            clip_grad_norm_(self.parameters, self.phase.schedule.clip)
        self.optimiser.step()
        self.phase.retract()
        self.mean.after_step()

    def align(self) -> None:
        """Have the moments lie in memory as their weights do now: fused kernels go through both at once."""
        for weight, moments in self.optimiser.state.items():
            for name, moment in moments.items():
                if moment is not None and moment.shape == weight.shape and moment.stride() != weight.stride():
                    moments[name] = torch.empty_like(weight).copy_(moment)

    def settle(self, model: nn.Module, train: Split) -> None:
        """What weights that were put in place ask for: the constraint, statistics, and what is kept of training images."""
        self.phase.retract()
        measure_statistics(model, self.phase.trained, train, self.phase.schedule.batch)
        refresh(model, train)


def run(
    model: Classifier,
    phases: Sequence[Phase],
    train: Split,
    accuracy: Callable[..., float],
    purpose: tuple[int, str],
    path: Path,
    watch: Callable[[int, Row], None] = lambda step, row: None,
    keep: bool = False,
    augment: Augment = lambda images, draws: images,
    group: Group = ALONE,
) -> list[Row]:
    """Run the phases on `model` in place and return the history, one row an epoch; the model ends in evaluation mode.

    `accuracy()` measures the model on held-out images after each epoch, `accuracy(n)` on n of them under attack where a phase watches
    that; `purpose` = (seed, model name) seeds every draw; the checkpoint at `path` is read if it is there and removed at the end, or,
    with `keep`, left for the caller to remove when the model is on disk; `watch` sees each new row and its number in the history, from 1;
    `augment` is what a batch of training images goes through before a loss sees it, and nothing else does;
    `group`: the processes that share each batch, of which the first measures and writes; all end with the same model.
    Raises Mistake on a loss that is not finite; the checkpoint of the last good epoch stays.
    """
    group.copy(path)
    done, saved = _restore(path, model, phases)
    batches = Batches(train, next(model.parameters()).device, augment)
    refresh(model, train)
    for i, phase in enumerate(phases[done.phase :], start=done.phase):
        where = f"{purpose[1]}, phase {phase.name}"
        work, saved = Work(phase, saved, Paced(model.backbone, phase.schedule, batches.device, where, group), group), {}
        for epoch in progress.each(range(done.epoch, phase.schedule.epochs), where, "epochs", done.epoch):
            if done.exhausted(phase):
                log.info("%s: ends after %d epochs, with the best of them", where, epoch)
                break
            row = _epoch(model, work, epoch, batches, purpose)
            refresh(model, train)
            with work.mean.in_place(model, partial(work.settle, model, train)):
                row |= group.told(partial(_measure, model, phase, phases, accuracy))
                done.history.append(row)
                if (phase.schedule.average or phase.schedule.stopping) and not done.since_best(phase):
                    work.best = copied(model)
            done.phase, done.epoch = i, epoch + 1
            if group.first:
                checkpoint.write(path, {"model": model.state_dict()} | work.state(), vars(done))
                watch(len(done.history), row)
        if work.best:
            model.load_state_dict(work.best)
        done.epoch = 0
    if not keep:
        path.unlink(missing_ok=True)
    model.eval()  # no epoch did it where all of them were at the checkpoint
    return done.history


def _measure(model: nn.Module, phase: Phase, phases: Sequence[Phase], accuracy: Callable[..., float]) -> Row:
    """The columns of held-out images and random parameters. All rows of a run have the same; what a phase does not watch is empty."""
    robust = {p.name: p.schedule.stopping.images for p in phases if p.schedule.stopping and p.schedule.stopping.watch == "robust"}
    row: Row = {"accuracy": accuracy()} | {name: round(value, 6) for name, value in lines(model).items()}
    if robust:
        row["robust"] = accuracy(robust[phase.name]) if phase.name in robust else ""
    return row


@torch.no_grad()
def lines(model: nn.Module) -> dict[str, float]:
    """What layers that have a `line` bring to a line of the history; each is given all layers that it is of."""
    layers: dict[Callable[[list[nn.Module]], dict[str, float]], list[nn.Module]] = {}
    for module in model.modules():
        if line := getattr(type(module), "line", None):
            layers.setdefault(line, []).append(module)
    return {name: value for line, own in layers.items() for name, value in line(own).items()}


@torch.no_grad()
def refresh(model: nn.Module, train: Split) -> None:
    """Have each module that keeps something of the training images (`refresh(model, train)`) compute it again."""
    for module in model.modules():
        if callable(again := getattr(module, "refresh", None)):
            again(model, train)


def _epoch(model: Classifier, work: Work, epoch: int, batches: Batches, purpose: tuple[int, str]) -> Row:
    phase = work.phase
    work.group.share(model.state_dict().values())
    model.eval().requires_grad_(False)
    model.training = True  # the whole, whose parts are in the mode that the phase gives them
    for module in phase.trained:
        module.train().requires_grad_(True)
    draws = generator(*purpose, phase.name, epoch, "draws", device=batches.device)
    order = torch.randperm(len(batches), generator=generator(*purpose, phase.name, epoch, "order"))
    losses = Losses(f"{purpose[1]}, phase {phase.name}, epoch {epoch + 1}", batches.device)
    with work.paced.in_place(model), drawing(model, draws), losses.to_blame():
        work.align()
        for step, rows in enumerate(progress.each(split := batches.split(order, phase.schedule.batch), "epoch", "batches")):
            rate = phase.schedule.rate_at(epoch * len(split) + step, phase.schedule.epochs * len(split))
            evaluate = partial(phase.loss, *batches.at(rows, draws), draws)
            for loss in work.perturbed.losses(evaluate, epoch, draws):
                work.step(loss + phase.penalty() / len(order), rate, partial(losses.add, step + 1, len(rows), rate))
    work.mean.after_epoch(epoch, phase.schedule.epochs)
    work.optimiser.zero_grad()
    model.eval()
    return {"phase": phase.name, "epoch": epoch + 1, "loss": round(losses.mean(), 6)}


def _restore(path: Path, model: nn.Module, phases: Sequence[Phase]) -> tuple[Progress, Groups]:
    """Where the last checkpoint stood, with the model's state in place: the beginning where there is none."""
    saved, progress = checkpoint.read(path)
    done = Progress(**progress)
    if saved:
        model.load_state_dict(saved["model"])
        log.info("resuming at phase %s, epoch %d", phases[done.phase].name, done.epoch)
    return done, saved


def _load_optimiser(optimiser: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in moments.items():
        i, key = name.split("/")
        state.setdefault(int(i), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
