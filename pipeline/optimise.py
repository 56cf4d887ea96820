"""Minimise a loss over epochs, in phases; the one loop behind every training stage.

A stage is a list of phases run in order (a SODEF head has three). After every epoch the state goes to a checkpoint, and a run
that was killed goes on from there with the same result as if it had not been: what is drawn in an epoch depends on the epoch alone.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from pipeline import files
from pipeline.data import Split
from pipeline.errors import Mistake
from pipeline.randomness import drawing, generator
from pipeline.types import Images, Labels, Losses, Settings

log = logging.getLogger(__name__)
Loss = Callable[[Images, Labels, torch.Generator], Losses]
Row = dict[str, Any]  # one epoch of the history: phase, epoch, loss, accuracy


class Schedule(Settings):
    """How one phase is minimised."""

    epochs: int = Field(ge=1, description="a positive number of passes over the training images")
    batch: int = Field(128, ge=1, description="a positive number of images in a step")
    optimiser: Literal["adam", "sgd"] = Field("adam", description="adam, or sgd (Nesterov momentum 0.9)")
    rate: float = Field(1e-3, gt=0, description="the positive (peak) learning rate")
    policy: Literal["one_cycle", "constant"] = Field(
        "constant", description="one_cycle (linear up for 30% of the steps, cosine down) or constant"
    )
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, 0 for none")
    epsilon: float = Field(1e-8, gt=0, description="Adam's positive denominator term")
    amsgrad: bool = Field(False, description="whether Adam keeps the running maximum of its second moment")

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimiser == "adam":
            return torch.optim.Adam(parameters, lr=self.rate, eps=self.epsilon, amsgrad=self.amsgrad, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, lr=self.rate, momentum=0.9, nesterov=True, weight_decay=self.weight_decay)

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step 0 <= `step` < `steps`."""
        if self.policy == "constant":
            return self.rate
        up = 0.3 * steps
        return self.rate * ((step + 1) / (up + 1) if step < up else 0.5 * (1 + math.cos(math.pi * (step - up) / (steps - up))))


@dataclass(frozen=True)
class Phase:
    """A loss over some modules' parameters. What is not in `trained` stays as it is, in evaluation mode.

    A loss that is an iterator has one optimiser step after each loss that it yields, and is then asked for the next.
    A trained module that has a method `penalty` adds it to every loss; it is of all training images, as a prior is, and is divided by them.
    """

    name: str
    schedule: Schedule
    trained: Sequence[nn.Module]
    loss: Loss
    after_step: Callable[[], None] = lambda: None  # a retraction onto a constraint, for instance

    def parameters(self) -> list[nn.Parameter]:
        return [p for module in self.trained for p in module.parameters()]


@dataclass
class Progress:
    """Where a run of phases stands: what a checkpoint holds beside the tensors."""

    phase: int
    epoch: int
    history: list[Row]


def each(losses: Losses) -> Iterator[Tensor]:
    """The losses of a batch, one optimiser step each."""
    yield from [losses] if isinstance(losses, Tensor) else losses


def run(
    model: nn.Module,
    phases: Sequence[Phase],
    train: Split,
    accuracy: Callable[[], float],
    purpose: tuple[int, str],
    checkpoint: Path,
    watch: Callable[[int, Row], None] = lambda step, row: None,
) -> list[Row]:
    """Run the phases on `model` in place and return the history, one row an epoch.

    `accuracy` measures the model on held-out images after each epoch; `purpose` = (seed, model name) seeds every draw;
    `checkpoint` is read if it is there and removed at the end; `watch` sees each new row and its
    number in the history, from 1.
    Raises Mistake on a loss that is not finite; the checkpoint of the last good epoch stays.
    """
    done = _restore(checkpoint, model, phases)
    refresh(model, train)
    for i, phase in enumerate(phases[done.phase :], start=done.phase):
        optimiser = phase.schedule.build(phase.parameters())
        if i == done.phase and done.epoch:
            _restore_optimiser(checkpoint, optimiser)
        first = done.epoch if i == done.phase else 0
        epochs = range(first, phase.schedule.epochs)
        for epoch in tqdm(
            epochs, desc=f"{purpose[1]}: {phase.name}", initial=first, total=phase.schedule.epochs, unit="epoch", mininterval=2, delay=2
        ):
            row = _epoch(model, phase, optimiser, epoch, train, purpose)
            refresh(model, train)
            row["accuracy"] = accuracy()
            done.history.append(row)
            _save(checkpoint, model, optimiser, Progress(i, epoch + 1, done.history))
            watch(len(done.history), row)
    checkpoint.unlink(missing_ok=True)
    return done.history


@torch.no_grad()
def refresh(model: nn.Module, train: Split) -> None:
    """Have each module that keeps something of the training images (`refresh(model, train)`) compute it again."""
    for module in model.modules():
        if callable(again := getattr(module, "refresh", None)):
            again(model, train)


def penalty(phase: Phase) -> Tensor | float:
    """What the trained modules add to the loss of all training images."""
    layers = [layer for module in phase.trained for layer in module.modules()]
    return sum((term() for layer in layers if callable(term := getattr(layer, "penalty", None))), 0.0)


def _epoch(model: nn.Module, phase: Phase, optimiser: torch.optim.Optimizer, epoch: int, train: Split, purpose: tuple[int, str]) -> Row:
    model.eval().requires_grad_(False)
    model.training = True  # the whole, whose parts are in the mode that the phase gives them
    for module in phase.trained:
        module.train().requires_grad_(True)
    parameters = phase.parameters()
    device = parameters[0].device
    draws = generator(*purpose, phase.name, epoch, "draws", device=device)
    order = torch.randperm(len(train.labels), generator=generator(*purpose, phase.name, epoch, "order"))
    batches = order.split(phase.schedule.batch)
    total, seen = 0.0, 0
    for b, index in enumerate(batches):
        rate = phase.schedule.rate_at(epoch * len(batches) + b, phase.schedule.epochs * len(batches))
        for group in optimiser.param_groups:
            group["lr"] = rate
        x, y = train.floats(index).to(device), train.labels[index].to(device)
        with drawing(model, draws):
            for loss in each(phase.loss(x, y, draws)):
                loss = loss + penalty(phase) / len(order)
                optimiser.zero_grad()
                loss.backward()
                gradients = [parameter.grad.sum() for parameter in parameters if parameter.grad is not None]
                if not torch.stack([loss.detach(), *gradients]).isfinite().all():
                    raise Mistake(
                        f"{purpose[1]}, phase {phase.name}, epoch {epoch + 1}, step {b + 1}: the loss or its gradient is not finite at "
                        f"learning rate {rate:.3g} (got a loss of {loss.item()}). Lower schedule rate, or shorten T / add steps where an "
                        f"ODE is solved; the last good epoch is kept."
                    )
                optimiser.step()
                phase.after_step()
                total, seen = total + loss.item() * len(index), seen + len(index)
    optimiser.zero_grad()
    model.eval()
    return {"phase": phase.name, "epoch": epoch + 1, "loss": round(total / seen, 6)}


def _save(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    tensors = {f"model/{name}": tensor.cpu() for name, tensor in model.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{i}/{key}": value.cpu() for key, value in state.items() if value is not None}
    files.write(path, save(tensors, {"progress": json.dumps(vars(progress))}))


def _restore(path: Path, model: nn.Module, phases: Sequence[Phase]) -> Progress:
    """The state at the last checkpoint; the beginning where there is none or it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            state = {name.removeprefix("model/"): file.get_tensor(name) for name in file.keys() if name.startswith("model/")}
    except FileNotFoundError:
        return Progress(0, 0, [])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: unreadable checkpoint (%s); starting from the beginning", path, error)
        return Progress(0, 0, [])
    model.load_state_dict(state)
    log.info("resuming at phase %s, epoch %d", phases[progress.phase].name, progress.epoch)
    return progress


def _restore_optimiser(path: Path, optimiser: torch.optim.Optimizer) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():
            if name.startswith("optimiser/"):
                _, i, key = name.split("/")
                state.setdefault(int(i), {})[key] = file.get_tensor(name)
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
