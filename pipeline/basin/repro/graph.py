"""The graph of stages and their reproduction; with lock.py the only code that knows DVC.

dvc.yaml is the one place where the graph is written and dvc.lock the one memory of what is done; whoever schedules (plain `dvc repro`,
the Prefect flow) asks here. DVC's Python objects answer questions in this process; stages run in a child `dvc`, under a guard.
"""

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from basin import files
from basin.config import params
from basin.config.params import Config
from basin.errors import EXIT_CODE, Mistake, did_you_mean
from basin.repro import keys
from basin.repro.guard import Guards, Stopped

# `dvc` without its advice to `git add` after each stage. `-P`: our folders stay off its import path. No console script need be on PATH.
QUIETER = "import logging, dvc.cli, sys; logging.getLogger('dvc.repo.scm_context').setLevel('WARNING'); sys.exit(dvc.cli.main())"
DVC = (sys.executable, "-P", "-c", QUIETER)

Outcome = Literal["ran", "unchanged", "restored"]


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml: its full name (`head@sodef_natural`), the names it needs first, its paths and its `meta`."""

    name: str
    upstream: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    frozen: bool = False

    @property
    def gpus(self) -> float:
        """How many GPUs it wants where there are any: `meta: {gpu: 1}`; `{gpu: 0.5}` shares one with another stage that does."""
        return self._amount("gpu", 0.0)

    @property
    def cpus(self) -> int:
        """How many of the run's workers it takes: `meta: {cpu: 2}`; 1 where nothing is said."""
        return max(1, round(self._amount("cpu", 1.0)))

    def _amount(self, key: str, default: float) -> float:
        asked = self.meta.get(key, default)
        if isinstance(asked, bool) or not isinstance(asked, int | float) or not 0 <= asked < float("inf"):
            raise Mistake(f"dvc.yaml: {self.name}: meta.{key}: should be a number, 0 or above (got {asked!r}). Say how many it wants.")
        return float(asked)


class StageFailed(Exception):
    """A stage did not finish. `code` is the stage's own exit code, None where dvc refused before or after it."""

    def __init__(self, name: str, code: int | None, reason: str):
        super().__init__(name, code, reason)
        self.name, self.code, self.reason = name, code, reason

    @property
    def bad_input(self) -> bool:
        """The stage says that its input is wrong: trying again cannot help."""
        return self.code == EXIT_CODE

    def __str__(self) -> str:
        return f"{self.name}: {'not run by dvc' if self.code is None else f'exit code {self.code}'}: {self.reason}"


@contextmanager
def _repository() -> Iterator[Any]:
    """DVC's view of the workspace; its complaints about dvc.yaml, params.yaml, dvc.lock and its locks become a `Mistake`."""
    from dvc.exceptions import DvcException, NotDvcRepoError  # type: ignore[import-untyped]
    from dvc.lock import LockError  # type: ignore[import-untyped]
    from dvc.repo import Repo  # type: ignore[import-untyped]
    from dvc.scm import SCMError  # type: ignore[import-untyped]

    try:
        with Repo() as repo:
            if Path(repo.root_dir) != Path.cwd().resolve():
                raise Mistake(f"workspace: not the top folder of a DVC project (got {Path.cwd()}). Change to {repo.root_dir} first.")
            yield repo
    except NotDvcRepoError:
        raise Mistake(f"workspace: no DVC project (got {Path.cwd()}). Change to the folder that holds dvc.yaml.") from None
    except SCMError:
        raise Mistake(f"workspace: not a git repository (got {Path.cwd()}). Make it one: git init; DVC and commits need it.") from None
    except LockError as error:
        raise Mistake(f"workspace: another dvc is at work here (got {error}). Wait for it to end, then start again.") from error
    except DvcException as error:
        raise Mistake(f"dvc: the project cannot be read (got {error}). Mend that file, then check with: dvc status.") from error


def graph() -> list[Stage]:
    """Every stage of the workspace in the order in which `dvc repro` goes through them: each after all that it needs."""
    with _repository() as repo:
        from dvc.repo.reproduce import plan_repro  # type: ignore[import-untyped]

        edges = repo.index.graph  # stage -> what it needs
        order = plan_repro(edges)
        return [
            Stage(
                name=stage.addressing,
                upstream=tuple(sorted(needed.addressing for needed in edges.successors(stage))),
                outs=tuple(out.def_path for out in stage.outs),
                meta=dict(stage.meta or {}),
                frozen=stage.frozen,
            )
            for stage in order
        ]


def choose(stages: Sequence[Stage], targets: Iterable[str] = ()) -> list[Stage]:
    """The targets and everything they need, in order; all stages without targets.

    A target is a stage's name, or a family's: `backbone` is every `backbone@...`.
    """
    by_name = {stage.name: stage for stage in stages}
    families = {name.partition("@")[0] for name in by_name}
    wanted: set[str] = set()
    pending = []
    for target in targets:
        found = [name for name in by_name if target in (name, name.partition("@")[0])]
        if not found:
            raise Mistake(f"target: no such stage (got '{target}'). {did_you_mean(target, by_name.keys() | families)}")
        pending += found
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending += by_name[name].upstream
    return [stage for stage in stages if stage.name in wanted] if wanted else list(stages)


def command(stage: str) -> str:
    """What DVC runs for a stage, for a shell."""
    with _repository() as repo:
        (found,) = repo.stage.collect(stage)
        return " && ".join([found.cmd] if isinstance(found.cmd, str) else found.cmd)


def cache() -> Path:
    """Where DVC's cache keeps a file of digest abc...: in ab/c... below this folder."""
    with _repository() as repo:
        return Path(repo.cache.local.path)


def status() -> dict[str, list]:
    """Stages whose own dependencies, outputs or command changed since dvc.lock, with DVC's reasons. Not while stages run."""
    with _repository() as repo:
        return repo.status()


def unchanged(stages: Sequence[Stage]) -> set[str]:
    """The stages that reproduction would not touch: they and all they need are as dvc.lock says. `stages` in order, whole ancestries."""
    changed = status()
    clean: set[str] = set()
    for stage in stages:
        if stage.name not in changed and clean.issuperset(stage.upstream):
            clean.add(stage.name)
    return clean


def is_changed(path: str | Path) -> bool:
    """Whether the file holds anything that is in no commit; True as well where git does not know the file or there is no git."""
    try:
        asked = subprocess.run(
            ["git", "status", "--porcelain", "--ignored", "--", str(path)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        return True
    return asked.returncode != 0 or bool(asked.stdout.strip())


def check() -> Config:
    """The config of params.yaml. Raises Mistake with everything in it that is wrong or that DVC will miss, before anything is started."""
    config = params.load()
    if messages := [*keys.missing(params.read(path := Path("params.yaml")))]:
        raise Mistake(*(f"{path}: {message}" for message in messages))
    return config


def change(overrides: Sequence[str], path: str = "params.yaml") -> None:
    """Set KEY=VALUE entries of params.yaml as `dvc exp run -S` does, comments kept.

    Raises Mistake, and changes nothing, where one is wrong.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]

    before = Path(path).read_bytes()
    try:
        apply_overrides(path, list(overrides))
        check()
    except (DvcException, ValueError) as error:
        files.write(Path(path), before)
        said = " ".join(str(error.__cause__ or error).split())
        raise Mistake(
            f"changes: cannot be made in {path} (got {', '.join(overrides)}: {said}). Write KEY=VALUE, of a key that is there."
        ) from error
    except Mistake:
        files.write(Path(path), before)
        raise


def has_remote() -> bool:
    """Whether there is a place to pull from and push to."""
    with _repository() as repo:
        return bool(repo.config["core"].get("remote"))


def measured(revision: str) -> dict[str, Any]:
    """The metrics of a commit or an experiment, as dotted keys; {} where it has none."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            # Not dvc.api's, which fails where the workspace lacks the file.
            found = repo.metrics.show(revs=[revision], on_error="return").get(revision, {})
    except DvcException:
        return {}
    return {key: value for file in found.get("data", {}).values() for key, value in _flat(file.get("data", {})).items()}


def has_experiment(name: str) -> bool:
    """Whether the current commit has an experiment of that name."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", errors="replace", check=False).stdout.strip()
    reference = f"refs/exps/{head[:2]}/{head[2:]}/{name}"
    return bool(head) and subprocess.run(["git", "show-ref", "--verify", "--quiet", reference], check=False).returncode == 0


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Stages say `python -m ...`: let that be this Python even where its folder is not on PATH. Lines arrive as they are written."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **extra}


def lines(pipe: IO[bytes]) -> Iterator[str]:
    """Lines as a terminal would show them in the end, blank ones left out: of a redrawn progress bar the last state."""
    for line in pipe:
        if text := line.decode(errors="replace").rstrip().rsplit("\r", 1)[-1]:
            yield text


def reproduce_one(
    stage: str,
    on_line: Callable[[str], object],
    guards: Guards | None = None,
    env: Mapping[str, str] | None = None,
    keep: Iterable[int] = (),
    pull: bool = False,
    run: bool = True,
) -> Outcome:
    """Bring one stage up to date, its inputs taken as they are; every line of dvc and of the stage goes to `on_line`.

    `env` is added to the stage's environment; `keep` are locks to hold until the stage is gone. `pull`: what some machine has pushed to
    DVC's remote counts as made here, the run cache included. Without `run`, a stage that is not in the cache fails.
    Raises `StageFailed` with the stage's exit code, and `Stopped` when the guards were told to end.
    """
    guards = guards or Guards()
    # Without --wait-for-lock a stage that ends while another commits for over 3 s fails, and its work is lost.
    command = [*DVC, "--wait-for-lock", "repro", "--single-item", *(["--pull"] if pull else []), stage]
    process = guards.start(command, child_environment(env or {}), keep, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    outcome: Outcome = "unchanged"
    last: deque[str] = deque(maxlen=50)
    with process.stdout as pipe:
        for line in lines(pipe):
            on_line(line)
            last.append(line)
            if line == f"Running stage '{stage}':":
                outcome = "ran"
                if not run:
                    process.terminate()  # the guard ends dvc and what it has begun
            elif line.startswith(f"Stage '{stage}' is cached - skipping run") and outcome == "unchanged":
                outcome = "restored"
    if process.wait() == 0:
        return outcome
    if guards.ended:
        raise Stopped(f"{stage}: stopped")
    if outcome == "ran" and not run:
        raise StageFailed(stage, None, "no result in the run cache was made from the inputs that are here (see: dvc status)")
    raise failure(stage, last)


def failure(stage: str, lines: Iterable[str]) -> StageFailed:
    """What stopped a stage, from its last words and then dvc's, `ERROR: failed to reproduce 'x': failed to run: ..., exited with N`."""
    said = list(lines)
    verdict = next((line for line in reversed(said) if line.startswith("ERROR: ")), "dvc ended without a word")
    exited = re.search(r"failed to run: .*, exited with (-?\d+)$", verdict)
    if not exited:
        return StageFailed(stage, None, verdict.removeprefix("ERROR: "))
    code = int(exited[1])
    own = [line for line in said if not line.startswith(("ERROR: failed to reproduce", "> ", "Running stage"))]
    killed = f"killed by signal {-code if code < 0 else code - 128}" if code < 0 or code > 128 else ""
    return StageFailed(stage, code, killed or (own[-1] if own else verdict))
