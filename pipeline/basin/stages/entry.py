"""What every stage does before and after its own work: config, device, determinism, tracking, one error text for bad input.

A wrong call is answered before torch is loaded: a stage imports what computes when it is under way.
"""

import hashlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basin import environment
from basin.config import params
from basin.config.params import Config
from basin.config.settings import Settings
from basin.data.about import load_about
from basin.errors import Mistake, exit_on_mistake
from basin.processes import ALONE, Group
from basin.repro import code
from basin.stages import joining
from basin.tracking import journal

PREPARED = Path("data/prepared")
ALL_READ = ("seed", "device", "threads", "data", "threat")  # of the config, by every stage
MODELS, HISTORY, OUTCOMES, EXCHANGED, REPORT = map(Path, ("models", "history", "outcomes", "exchanged", "report"))


@dataclass(frozen=True)
class Stage:
    """A running stage: its name, the config, where to compute (cpu or cuda), the run that MLflow sees, the processes that share it, of
    which the first alone writes, and the checkpoints that are not needed once it has ended well."""

    name: str
    config: Config
    device: str
    run: journal.Run
    group: Group = ALONE
    checkpoints: list[Path] = field(default_factory=list)

    @property
    def terms(self) -> tuple[int, int, str]:
        """What the bytes of any result depend on, beside what is asked for; for the name of a checkpoint."""
        return self.config.seed, self.config.threads, self.device


def launch(main: Callable[..., None]) -> None:
    """Run a stage's `main` on the command line's words; bad input ends in its text and exit code 2."""
    environment.apply()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _interrupt)
    with exit_on_mistake():
        try:
            main(*sys.argv[1:])
        except KeyboardInterrupt as stopped:
            if stopped.args:
                sys.exit(128 + signal.SIGTERM)
            sys.stderr.write("Stopped; what is done is kept. To go on, run the same command again.\n")
            sys.exit(128 + signal.SIGINT)


def _interrupt(*_: object) -> None:
    """SIGTERM as an interruption, so that `finally` blocks run and nothing takes it for an error of a model's own code."""
    raise KeyboardInterrupt(signal.SIGTERM)


@contextmanager
def stage(
    name: str,
    asked: Callable[[Config], Settings | dict[str, Any]],
    gpu: bool = True,
    computes: bool = True,
    reads: Callable[[Config], object] = lambda _: None,
    shared: bool = False,
) -> Iterator[Stage]:
    """Set up stage `name`; `asked` picks its own part of the config, for the record, and `reads` what else it goes by. Without models to
    run it needs no `gpu`; one that reads and writes alone `computes` nothing, and torch is not loaded. One that is `shared` may be
    several processes.

    DVC records the params and sources that it finds when a stage has ended: one that began with others fails, and is not recorded.
    """
    code.check()
    config, began = params.load(), sources()
    chosen = asked(config)
    device = prepare_torch(config.device if gpu else "cpu", config.threads) if computes else "cpu"
    tags = {"seed": config.seed, "device": device}
    if (PREPARED / "about.json").exists():
        tags["data_digest"] = load_about(PREPARED).digest
    recorded = chosen if isinstance(chosen, dict) else chosen.model_dump(mode="json", by_alias=True)
    with joining.joined(name, shared, device) as group, _tracked(group, name, recorded, tags, config.data_name) as run:
        yield (running := Stage(name, config, device, run, group))
        _check_unchanged(name, lambda config: (asked(config), reads(config), [getattr(config, key) for key in ALL_READ]), config, began)
        for checkpoint in running.checkpoints if group.first else ():
            checkpoint.unlink(missing_ok=True)


def _tracked(group: Group, *told: Any) -> AbstractContextManager[journal.Run]:
    """The run of the first process; of the others nothing is told."""
    return journal.run(*told) if group.first else nullcontext(journal.Run(Path(os.devnull)))


def sources() -> dict[Path, str]:
    """The digest of every source file that a stage may load."""
    folder = Path(environment.__file__).parent
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*.py")}


def _check_unchanged(name: str, read: Callable[[Config], object], config: Config, began: dict[Path, str]) -> None:
    loaded = {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    changed = sorted(str(file) for file, digest in sources().items() if file in loaded and began.get(file, digest) != digest)
    if read(params.load()) != read(config):
        changed = ["params.yaml"]
    if changed:
        raise Mistake(f"{changed[0]}: changed while {name} ran (got another than at its start). Nothing of it is recorded; run it again.")


def prepare_torch(asked: str, threads: int) -> str:
    """Same params, same machine, same bytes: a fixed number of threads, and deterministic kernels only. The device of params.yaml.

    Raises Mistake where a GPU is asked for and there is none.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise Mistake(
            "params.yaml: device: there is no GPU here that torch can use (got 'cuda'). "
            "Set it to cpu, or to auto for a GPU where there is one."
        )
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms does this and loads torch._dynamo for it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a search for reads of it, some 3% of a convnet's time
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 in a convolution too
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"
