"""How fast Basin is, in ratios: each figure beside its floor or its peer, alternating in one run. Writes docs/results/speed.json and .md.

    python -m benchmarks.speed [--parts attacks,verdicts,training,closed,ode,start,share,growth,resnet] [--device cpu] [--peers] [--toy]
        [--resume] [--folder docs/results]

`make bench` is that, `make bench-gpu` what a GPU has of it. A ratio is the median over rounds, with its quartiles; what moved by more than
both spreads against the speed.json that is there is said. Each part is written when it is there, with the machine and the commit that it
is of; `--resume` leaves those that this machine has measured, unless it has them all. `--peers` installs the libraries that cannot live
beside MLflow into a folder for as long as it lasts (benchmarks/peers.py). `resnet` is measured on a GPU, `closed` and `start` on a CPU, or
where they are asked for.
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
from typing import Any, TypeVar

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
from benchmarks import as_command, closed_pace, commit, line, ode_pace, peers, resnet_pace, side_by_side, training_pace
from benchmarks.attacks import CONVNET, LINEAR, train

log = logging.getLogger(__name__)
BALL = ThreatModel(norm="linf", eps=0.1)
HEAD = "| what | seconds | beside | ratio | quartiles | rounds |"
BASIN = "from basin.cli.app import main; main()"
STAGE = """
import os
os.environ["BASIN_TRACKING"] = "off"
from basin.stages import entry
with entry.stage("attack/model/suite", lambda config: {}):
    import basin.evaluation.robustness, basin.models.artifact
    os._exit(0)
"""
LOAD = "import sys, mlflow; mlflow.set_tracking_uri('sqlite:///mlflow.db'); mlflow.pyfunc.load_model('models:/' + sys.argv[1])"
COMMANDS = (["--help"], ["models"], ["check"])  # of `basin`
NETS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {  # a robust net of digits: its backbone, its head, and how many images
    "convnet": (CONVNET, LINEAR, 200),
    "with batch norm": ({"kind": "resnet", "depth": 8, "width": 8}, LINEAR, 100),
    "with an ODE head": (CONVNET, {"kind": "ode", "width": 16, "solver": {"steps": 4}}, 100),
}
ELSEWHERE = {"cpu": ("resnet",), "cuda": ("closed", "start")}  # parts that a device is not asked for by itself
ONCE = 0.25  # of a ratio of one round: what it may be off by itself
Row = dict[str, Any]
T = TypeVar("T")


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
    """The ready-made suites beside AutoAttack, on robust models of digits; once each."""
    splits = divide(digits.read(digits.Params()), SplitSettings(test=0.4), 0)
    for net, (backbone, head, images) in NETS.items():
        model, n = train("pgd", splits["train"], 0, backbone, head).to(size.device), 20 if size.toy else images
        x, y = splits["test"].floats(slice(0, n)), splits["test"].labels[:n]
        reference = 0.0
        for name in ("autoattack", "quick", "standard", "adaptive"):
            seconds, found = _timed(partial(evaluate, model, None, x, y, BALL, ready(name), (0, name)))
            reference = reference or seconds
            says = f"robust {found.worst_case:.4f}, {found.outcomes.passes // n} passes an image"
            row = {"what": f"{name}, {net}, n = {n}", "says": says, "seconds": seconds, "floor": reference}
            yield row | {"ratio": seconds / reference, "rounds": 1, "after": found.attacks}


def start(size: Size) -> Iterator[Row]:
    """Commands beside a process that imports torch, by the clock on the wall."""
    alone = partial(_process, "import torch")
    for words in COMMANDS:
        own = partial(_process, BASIN, *words)
        yield {"what": f"basin {' '.join(words)}"} | side_by_side(own, alone, 3 if size.toy else 5, time.perf_counter)


def share(size: Size) -> Iterator[Row]:
    """The default run in a clone over what its MLflow runs take; with nothing to do, and what reads its results, over importing torch."""
    with TemporaryDirectory() as place:
        subprocess.run(["git", "clone", "-q", ".", place], check=True)
        repro = partial(_process, BASIN, "repro", *(["backbone@natural"] if size.toy else []), folder=place)
        whole, runs = _timed(repro)[0], _of_runs(Path(place))
        yield {"what": "basin repro, over its runs", "seconds": whole, "floor": runs, "ratio": whole / runs, "rounds": 1}
        alone = partial(_process, "import torch")
        yield {"what": "basin repro, nothing to do"} | side_by_side(repro, alone, 3, time.perf_counter)
        yield {"what": "a stage that is not tracked, until it computes"} | side_by_side(
            partial(_process, STAGE, folder=place), alone, 3, time.perf_counter
        )
        if not size.toy:
            champion = "digits-linf-0.15@champion"
            show = partial(_process, BASIN, "show", champion, folder=place)
            yield {"what": f"basin show {champion}"} | side_by_side(show, alone, 3, time.perf_counter)
            load = partial(_process, LOAD, champion, folder=place)
            yield {"what": "a model out of the registry, in a new process"} | side_by_side(load, alone, 3, time.perf_counter)


def growth(size: Size) -> Iterator[Row]:
    """The exponent with which time, or memory, grows to four times as much of something; 1 is in proportion."""
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
    yield from ode_pace.growth(size.rounds, size.device)


PARTS: dict[str, Callable[[Size], Iterable[Row]]] = {
    "attacks": attacks,
    "verdicts": verdicts,
    "training": lambda size: training_pace.measure(size.rounds, size.device),
    "closed": lambda size: closed_pace.measure(size.rounds, size.images),
    "ode": lambda size: ode_pace.measure(size.rounds, size.device),
    "start": start,
    "share": share,
    "growth": growth,
    "resnet": lambda size: resnet_pace.measure(size.device, size.toy),
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
    if importlib.util.find_spec("adv_lib"):
        from adv_lib import attacks

        yield "PGD-20, adv-lib", 20, lambda: attacks.pgd_linf(model, x, y, BALL.eps, steps=20, relative_step_size=0.1)
        yield "Auto-PGD-100, adv-lib", 101, lambda: attacks.apgd(model, x, y, BALL.eps, norm=torch.inf, loss_function="ce")
    yield "Auto-PGD-100", 101, partial(_run, choose("attacks", {"kind": "apgd"}), model, x, y)
    from pyautoattack.autopgd_base import APGDAttack

    silent = logging.Logger("pyautoattack")
    silent.disabled = True
    settings: Row = {"eps": BALL.eps, "norm": "Linf", "seed": 0, "device": str(x.device), "logger": silent, "loss": "ce"}
    yield "Auto-PGD-100, pyautoattack", 101, lambda: APGDAttack(foreign.sealed(model), **settings).perturb(x, y)


def _process(code: str, *words: str, folder: str = ".") -> None:
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise Mistake(
            f"{' '.join(words) or code}: ended with code {done.returncode} (got {done.stderr.strip()[-200:]!r}). Mend that first."
        )


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def _of_runs(checkout: Path) -> float:
    """The seconds that the runs of a checkout's stages took together; the one over them is the whole."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{checkout / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()], "tags.stage != 'repro'")
    return sum(run.info.end_time - run.info.start_time for run in runs) / 1000


# The record -------------------------------------------------------------------------------------------------------------------------------


def moved(before: Sequence[Row], now: Sequence[Row]) -> Iterator[str]:
    """What is outside of the other's spread, both ways; and what says something else."""
    old = {row["what"]: row for row in before}
    for row in now:
        if not (was := old.get(row["what"])):
            continue
        (low, high), (low_before, high_before) = _spread(row), _spread(was)
        if low > high_before or high < low_before:
            yield f"{row['what']}: {was['ratio']:.2f} -> {row['ratio']:.2f}"
        if row.get("says") != was.get("says"):
            yield f"{row['what']}: {was.get('says')} -> {row.get('says')}"


def _spread(row: Row) -> tuple[float, float]:
    return (row["low"], row["high"]) if "low" in row else (row["ratio"] * (1 - ONCE), row["ratio"] * (1 + ONCE))


def page(parts: Mapping[str, Any], name: str) -> str:
    about = (
        "Made by `python -m benchmarks.speed`, part by part. Ratios are medians over rounds that alternate, with their quartiles: of an "
        "attack over the gradients that it needs, of a suite over AutoAttack, of a tight training loop over ours, of an ODE over its drift "
        "alone, of a command over importing torch, of the default run over what its MLflow runs take, of an epoch of ResNet-18 over what "
        "its multiplications take at the pace of one large matrix product; growth is an exponent."
    )
    lines = ["# How fast", "", textwrap.fill(about, 140)]
    for part, found in parts.items():
        lines += [
            "",
            f"## {part.capitalize()}",
            "",
            textwrap.fill(f"`{found['command']}` on {found['machine']}, commit {found['commit']}.", 140),
        ]
        lines += ["", HEAD, "|---|---|---|---|---|---|", *map(_line, found["rows"])]
    return "\n".join(lines) + f"\n\nThe figures as a file: [{name}.json]({name}.json).\n"


def _line(row: Row) -> str:
    spread = f"{row['low']:.2f} to {row['high']:.2f}" if "low" in row else ""
    what = f"{row['what']}: {row['says']}" if "says" in row else row["what"]
    cells = [f"{row[key]:.3g}{' bytes' * ('unit' in row)}" for key in ("seconds", "floor")]
    return f"| {what} | {cells[0]} | {cells[1]} | {row['ratio']:.3g} | {spread} | {row['rounds']} |"


def machine(device: torch.device) -> str:
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"one thread of {platform.machine()}"
    capability = "" if device.type == "cuda" else f" with {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind}{capability}, torch {version('torch')}, pyautoattack {version('pyautoattack')}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", help="of " + ",".join(PARTS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--peers", action="store_true", help="with libraries that are installed for as long as it lasts")
    parser.add_argument("--toy", action="store_true", help="small, to see that it runs")
    parser.add_argument("--resume", action="store_true", help="leave the parts that this machine has measured, unless it has them all")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    parts = asked.parts.split(",") if asked.parts else [part for part in PARTS if part not in ELSEWHERE[asked.device]]
    if unknown := [part for part in parts if part not in PARTS]:
        raise Mistake(f"--parts: no such part (got {unknown[0]!r}). Known: {', '.join(PARTS)}.")
    place, size = asked.folder / ("speed.json" if asked.device == "cpu" else "speed_gpu.json"), Size(torch.device(asked.device), asked.toy)
    found: Row = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
    words = f"--device {asked.device}{' --peers' * asked.peers}{' --toy' * asked.toy}"
    about = {"command": f"python -m benchmarks.speed {words}", "machine": machine(size.device)}
    left = [part for part in parts if not found.get(part, {}).items() >= about.items()]
    about["commit"] = commit()
    with peers.importable(asked.peers):
        for part in (left or parts) if asked.resume else parts:
            log.info("%s", part)
            rows: list[Row] = []
            for row in PARTS[part](size):
                rows.append(row)
                log.info("  %s", line(row))
            for change in moved(found.get(part, {}).get("rows", []), rows):
                log.info("  moved: %s", change)
            found[part] = about | {"rows": rows}
            place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            place.with_suffix(".md").write_text(page(found, place.stem), encoding="utf-8")


if __name__ == "__main__":
    as_command(main)
