"""How fast Basin is, in ratios: each figure beside its floor or its peer, alternating in one run. Writes docs/results/speed.json and .md.

    python -m benchmarks.speed [--parts attacks,verdicts,training,ode,start,share,growth] [--device cpu] [--toy] [--folder docs/results]

`make bench` is that, `make bench-gpu` the same on a GPU. A ratio is the median over rounds, with its quartiles; what moved by more than
both spreads against the speed.json that is there is said. Each part is written when it is there, and with `--resume` not measured again.
torchattacks, which cannot live beside MLflow, takes part where it can be imported: `uv pip install --no-deps --target FOLDER torchattacks`,
then PYTHONPATH=FOLDER.
"""

import argparse
import importlib.util
import json
import logging
import math
import platform
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from basin.config.kinds import Choice, choose
from basin.config.splits import SplitSettings
from basin.config.suite import ready
from basin.data.splits import divide
from basin.errors import Mistake
from basin.evaluation.robustness import evaluate
from basin.methods.sources import digits
from basin.randomness import construct, generator
from basin.threat import foreign
from basin.threat.ball import ThreatModel
from basin.threat.target import Target, gradient
from benchmarks import as_command, line, ode_pace, side_by_side, training_pace
from benchmarks.attacks import train

log = logging.getLogger(__name__)
BALL = ThreatModel(norm="linf", eps=0.1)
HEAD = "| what | seconds | beside | ratio | quartiles | rounds |"
BASIN = "from basin.cli.app import main; main()"
COMMANDS = (["--help"], ["models"], ["check"])  # of `basin`
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What is measured on, and how much of it."""

    device: torch.device
    toy: bool

    @property
    def rounds(self) -> int:
        return 3 if self.toy else 9

    @property
    def images(self) -> int:
        return 32 if self.toy else 256


# Parts ------------------------------------------------------------------------------------------------------------------------------------


def attacks(size: Size) -> Iterator[Row]:
    """Attacks over as many gradients as they have steps, ours and others'."""
    model, x, y = _unbroken(size)

    def floor(gradients: int) -> None:
        for _ in range(gradients):
            gradient(model, x, y)

    for name, gradients, call in _compared(model, x, y):
        yield {"what": name} | side_by_side(call, partial(floor, gradients), size.rounds)


def verdicts(size: Size) -> Iterator[Row]:
    """The ready-made suites beside AutoAttack, on a robust model of digits; once each."""
    splits = divide(digits.read(digits.Params()), SplitSettings(test=0.4), 0)
    model, n = train("pgd", splits["train"], 0).to(size.device), 40 if size.toy else 200
    x, y = splits["test"].floats(slice(0, n)), splits["test"].labels[:n]
    reference = 0.0
    for name in ("autoattack", "quick", "standard", "adaptive"):
        began = time.perf_counter()
        found = evaluate(model, None, x, y, BALL, ready(name), (0, name))
        seconds = time.perf_counter() - began
        reference = reference or seconds
        row = {"what": f"{name}, n = {n}: robust {found.worst_case:.4f}, {found.outcomes.passes // n} passes an image"}
        yield row | {"seconds": seconds, "floor": reference, "ratio": seconds / reference, "rounds": 1, "after": found.attacks}


def start(size: Size) -> Iterator[Row]:
    """Commands beside a process that imports torch, by the clock on the wall."""
    alone = partial(_process, "import torch")
    for words in COMMANDS:
        own = partial(_process, BASIN, *words)
        yield {"what": f"basin {' '.join(words)}"} | side_by_side(own, alone, 3 if size.toy else 5, time.perf_counter)


def share(size: Size) -> Iterator[Row]:
    """The default run in a clone over what its MLflow runs take; with nothing to do over a process that imports torch. By the wall."""
    with TemporaryDirectory() as place:
        subprocess.run(["git", "clone", "-q", ".", place], check=True)
        repro = partial(_process, BASIN, "repro", *(["backbone@natural"] if size.toy else []), folder=place)
        whole, runs = _seconds(repro), _of_runs(Path(place))
        yield {"what": "basin repro, over its runs", "seconds": whole, "floor": runs, "ratio": whole / runs, "rounds": 1}
        idle = side_by_side(repro, partial(_process, "import torch"), 3, time.perf_counter)
        yield {"what": "basin repro, nothing to do"} | idle


def growth(size: Size) -> Iterator[Row]:
    """The exponent with which time grows to four times as much of something; 1 is in proportion."""
    model, x, y = _unbroken(size)
    n = len(x) // 4
    small = partial(_run, choose("attacks", {"kind": "apgd", "steps": 10}), model, x[:n], y[:n])
    large = {
        "images": partial(_run, choose("attacks", {"kind": "apgd", "steps": 10}), model, x, y),
        "steps": partial(_run, choose("attacks", {"kind": "apgd", "steps": 40}), model, x[:n], y[:n]),
    }
    for what, call in large.items():
        row = side_by_side(call, small, size.rounds)
        yield {"what": f"Auto-PGD, in {what}"} | row | {key: math.log(row[key], 4) for key in ("ratio", "low", "high")}


PARTS: dict[str, Callable[[Size], Iterable[Row]]] = {
    "attacks": attacks,
    "verdicts": verdicts,
    "training": lambda size: training_pace.measure(size.rounds),
    "ode": lambda size: ode_pace.measure(size.rounds),
    "start": start,
    "share": share,
    "growth": growth,
}


def _unbroken(size: Size) -> tuple[nn.Module, Tensor, Tensor]:
    """A convolutional network of 28x28 pixels, images and labels, of which no attack breaks any: every step is taken for all of them."""
    with construct(0, "speed"):
        layers = [nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 10)]
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    layers[-1].bias[0] += 100.0  # type: ignore[index]
    x = torch.rand((size.images, 1, 28, 28), generator=generator(0, "images"))
    return model.to(size.device), x.to(size.device), torch.zeros(len(x), dtype=torch.int64, device=size.device)


def _run(attack: Choice, model: nn.Module, x: Tensor, y: Tensor) -> None:
    attack.module.perturb(attack.params, Target(model, BALL), x, y, generator(0, "speed", device=x.device))


def _compared(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(name, gradients that it needs, the call)."""
    yield "PGD-20", 20, partial(_run, choose("attacks", {"kind": "pgd", "steps": 20, "step": 0.1}), model, x, y)
    if importlib.util.find_spec("foolbox"):
        import foolbox

        theirs, called = foolbox.attacks.LinfPGD(steps=20, rel_stepsize=0.1), foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        yield "PGD-20, Foolbox", 20, lambda: theirs(called, x, y, epsilons=BALL.eps)
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        yield "PGD-20, torchattacks", 20, lambda: torchattacks.PGD(model, eps=BALL.eps, alpha=0.1 * BALL.eps, steps=20)(x, y)
    yield "Auto-PGD-100", 101, partial(_run, choose("attacks", {"kind": "apgd"}), model, x, y)
    from pyautoattack.autopgd_base import APGDAttack

    silent = logging.Logger("pyautoattack")
    silent.disabled = True
    settings: Row = {"eps": BALL.eps, "norm": "Linf", "seed": 0, "device": str(x.device), "logger": silent, "loss": "ce"}
    yield "Auto-PGD-100, pyautoattack", 101, lambda: APGDAttack(foreign.sealed(model), **settings).perturb(x, y)


def _process(code: str, *words: str, folder: str = ".") -> None:
    subprocess.run([sys.executable, "-c", code, *words], cwd=folder, check=False, capture_output=True)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _of_runs(checkout: Path) -> float:
    """The seconds that the runs of a checkout's stages took together; the one over them is the whole."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{checkout / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()], "tags.stage != 'repro'")
    return sum(run.info.end_time - run.info.start_time for run in runs) / 1000


# The record -------------------------------------------------------------------------------------------------------------------------------


def moved(before: Sequence[Row], now: Sequence[Row]) -> Iterator[str]:
    """What is outside of the other's quartiles, both ways."""
    old = {row["what"]: row for row in before}
    for row in now:
        was = old.get(row["what"], {})
        if "low" in row and "low" in was and (row["low"] > was["high"] or row["high"] < was["low"]):
            yield f"{row['what']}: {was['ratio']:.2f} -> {row['ratio']:.2f}"


def page(found: Mapping[str, Any], name: str) -> str:
    about = (
        f"Made by `{found['command']}` on {found['machine']}. Ratios are medians over rounds that alternate, with their quartiles: of an "
        "attack over the gradients that it needs, of a suite over AutoAttack, of a tight training loop over ours, of an ODE over its drift "
        "alone, of a command over importing torch, of the default run over what its MLflow runs take; growth is an exponent."
    )
    lines = ["# How fast", "", textwrap.fill(about, 140)]
    for part, rows in found["parts"].items():
        lines += ["", f"## {part.capitalize()}", "", HEAD, "|---|---|---|---|---|---|"]
        lines += [_line(row) for row in rows]
    return "\n".join(lines) + f"\n\nThe figures as a file: [{name}.json]({name}.json).\n"


def _line(row: Row) -> str:
    spread = f"{row['low']:.2f} to {row['high']:.2f}" if "low" in row else ""
    return f"| {row['what']} | {row['seconds']:.3g} | {row['floor']:.3g} | {row['ratio']:.3g} | {spread} | {row['rounds']} |"


def machine(device: torch.device) -> str:
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"one thread of {platform.machine()}"
    capability = "" if device.type == "cuda" else f" with {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind}{capability}, torch {version('torch')}, pyautoattack {version('pyautoattack')}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ",".join(PARTS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--toy", action="store_true", help="small, to see that it runs")
    parser.add_argument("--resume", action="store_true", help="leave the parts that are there")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    if unknown := [part for part in asked.parts.split(",") if part not in PARTS]:
        raise Mistake(f"--parts: no such part (got {unknown[0]!r}). Known: {', '.join(PARTS)}.")
    place, size = asked.folder / ("speed.json" if asked.device == "cpu" else "speed_gpu.json"), Size(torch.device(asked.device), asked.toy)
    before = json.loads(place.read_text(encoding="utf-8"))["parts"] if place.exists() else {}
    words = f"python -m benchmarks.speed --device {asked.device}{' --toy' * asked.toy}"
    found: Row = {"command": words, "machine": machine(size.device), "parts": dict(before)}
    for part in asked.parts.split(","):
        if asked.resume and part in before:
            continue
        log.info("%s", part)
        rows = found["parts"][part] = []
        for row in PARTS[part](size):
            rows.append(row)
            log.info("  %s", line(row))
        for change in moved(before.get(part, []), rows):
            log.info("  moved: %s", change)
        place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        place.with_suffix(".md").write_text(page(found, place.stem), encoding="utf-8")


if __name__ == "__main__":
    as_command(main)
