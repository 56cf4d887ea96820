"""What every stage does before and after its own work: config, device, determinism, tracking, one error text for bad input."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint, config, environment, tracking
from pipeline.config import Config
from pipeline.data import load_about
from pipeline.errors import Mistake, exit_on_mistake
from pipeline.types import Settings

PREPARED = Path("data/prepared")
MODELS, HISTORY, OUTCOMES, EXCHANGED, REPORT = map(Path, ("models", "history", "outcomes", "exchanged", "report"))


@dataclass(frozen=True)
class Stage:
    """A running stage: its name, the config, where to compute, and the run that MLflow sees."""

    name: str
    config: Config
    device: torch.device
    run: tracking.Run

    def checkpoint(self, *asked: Any) -> Path:
        """Where this stage keeps its state."""
        return checkpoint.place(self.name, *asked, self.config.seed, self.config.threads, str(self.device))


def launch(main: Callable[..., None]) -> None:
    """Run a stage's `main` on the command line's words; bad input ends in its text and exit code 2."""
    environment.apply()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `finally` blocks run
    with exit_on_mistake():
        main(*sys.argv[1:])


@contextmanager
def stage(name: str, params: Callable[[Config], Settings | dict[str, Any]], models: bool = True) -> Iterator[Stage]:
    """Set up stage `name`; `params` picks its own part of the config, for the record. Without `models` to run it needs no GPU."""
    settings = config.load()
    device = choose_device(settings.device if models else "cpu")
    make_deterministic(settings.threads)
    chosen = params(settings)
    asked = chosen if isinstance(chosen, dict) else chosen.model_dump(mode="json", by_alias=True)
    tags = {"seed": settings.seed, "device": str(device)}
    if (PREPARED / "about.json").exists():
        tags["data_digest"] = load_about(PREPARED).digest
    with tracking.run(name, asked, tags, settings.source.kind) as run:
        yield Stage(name, settings, device, run)


def choose_device(asked: str) -> torch.device:
    """The device of params.yaml. Raises Mistake where a GPU is asked for and there is none."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise Mistake(
            "params.yaml: device: there is no GPU here that torch can use (got 'cuda'). "
            "Set it to cpu, or to auto for a GPU where there is one."
        )
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def make_deterministic(threads: int) -> None:
    """Same params, same machine, same bytes: a fixed number of threads, and deterministic kernels only."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
