"""Finished runs that can be brought back: params.yaml and dvc.lock as they were, and DVC's cache.

Two memories: `.basin/registry/`, into which each registration writes, and every commit in which dvc.lock changed.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from basin import files
from basin.config import params
from basin.config.params import Config
from basin.registry import candidates
from basin.repro import graph
from basin.repro.lock import digest, stages
from basin.tracking import journal

KEPT, ABOUT = Path(".basin/registry"), "about.json"  # in the checkout
PARAMS, LOCK = "params.yaml", "dvc.lock"
OWN = re.compile(r"^  register:\n(?:    .*\n)*", re.MULTILINE)  # the entry of the stage that writes here, which ends after it has written


@dataclass(frozen=True)
class Snapshot:
    """A run as text. `at`: the tags that say with which code it ran."""

    params: str
    lock: str
    at: Mapping[str, str]

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join([self.params, self.lock]).encode()).hexdigest()[:12]

    def open(self, folder: Path) -> tuple[Config, dict[str, str | None]]:
        """Write both files into an empty folder; the config, and DVC's digest of each model."""
        files.write(folder / PARAMS, self.params)
        files.write(folder / LOCK, self.lock)
        settings = params.load(folder / PARAMS, recorded=True)
        return settings, digests(settings, folder)

    def restore(self, folder: Path, settings: Config) -> bool:
        """Bring what registration reads from DVC's cache into the opened folder. False where any of it is not there."""
        return all(fetch(md5, folder / path, graph.cache()) for path, md5 in self.outs(settings).items())

    def is_cached(self, settings: Config) -> bool:
        """Whether it could."""
        return all(cached(md5, graph.cache()) for md5 in self.outs(settings).values())

    def outs(self, settings: Config) -> dict[str, str]:
        """path -> DVC's digest, of the outputs that registration reads; '' where the run never wrote one."""
        known = outputs(self.lock)
        models = settings.attack.models
        wanted = [f"models/{model}" for model in models] + ["data/prepared/validation.safetensors"]
        wanted += [f"outcomes/{model}/{suite}" for model in models for suite in settings.attack.suites]
        wanted += [path for path in ("exchanged", *(f"history/{model}.csv" for model in models)) if path in known]
        return {path: known.get(path, "") for path in wanted}


def outputs(lock: str) -> dict[str, str]:
    """path -> DVC's digest, of every output that a dvc.lock records."""
    return {path: md5 or "" for outs in stages(lock).values() for path, md5 in outs.items()}


def of(root: Path, at: Mapping[str, str]) -> Snapshot:
    """The run of a folder."""
    lock = (root / LOCK).read_text(encoding="utf-8") if (root / LOCK).exists() else ""
    return Snapshot((root / PARAMS).read_text(encoding="utf-8"), OWN.sub("", lock), at)


def digests(settings: Config, root: Path = Path()) -> dict[str, str | None]:
    """DVC's digest of each model's folder, by model, as a dvc.lock has it."""
    return {model: digest(Path("models", model), root / LOCK) for model in candidates.names(settings)}


def here() -> dict[str, str]:
    """Tags that say with which code the workspace runs: the commit, its author, and the tracked files that differ from it."""
    at = journal.commit()
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":(exclude){LOCK}", ":(exclude)report")
    names = ", ".join(line[3:] for line in changed.splitlines())
    author = git("log", "-1", "--format=%an").strip()
    return {"commit": at["commit"], "dirty": at["dirty"], "changed": names[:4000] or "none", "author": author[:200] or "none"}


def git(*arguments: str) -> str:
    """What git says; nothing where there is no git, or it refuses."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def memory() -> Path:
    """The folder of what this checkout remembers, of its experiments too."""
    return files.checkout() / KEPT


def keep(run: Snapshot, name: str, models: Mapping[str, str]) -> None:
    """Remember a run that was registered: as `name`, its models with DVC's digests."""
    known = sorted(memory().glob("*-*"))
    if not run.lock or any(folder.name.endswith(run.digest) for folder in known):
        return
    number = int(known[-1].name.partition("-")[0]) + 1 if known else 1
    folder = memory() / f"{number:05d}-{run.digest}"
    about = json.dumps({"at": dict(run.at), "name": name, "models": dict(models)}, indent=1)
    for file, text in ((PARAMS, run.params), (LOCK, run.lock), (ABOUT, about)):
        files.write(folder / file, text)


def kept() -> Iterator[Snapshot]:
    """The runs that were registered from this workspace, oldest first; one that was cut short while it was written is passed over."""
    yield from (of(about.parent, json.loads(about.read_text(encoding="utf-8"))["at"]) for about in sorted(memory().glob(f"*/{ABOUT}")))


def promised() -> Iterator[tuple[str, str, str]]:
    """Registered model, model and DVC's digest, of everything in the runs that were kept."""
    for about in (json.loads(path.read_text(encoding="utf-8")) for path in sorted(memory().glob(f"*/{ABOUT}"))):
        yield from ((about["name"], model, md5) for model, md5 in about["models"].items())


def committed() -> Iterator[Snapshot]:
    """The runs of every commit, of any branch or tag, in which dvc.lock changed, oldest first; whatever the clock was."""
    for commit in git("log", "--all", "--date-order", "--reverse", "--format=%H", "--", LOCK).split():
        params, lock = git("show", f"{commit}:./{PARAMS}"), git("show", f"{commit}:./{LOCK}")
        if params and lock:
            yield Snapshot(params, OWN.sub("", lock), {"commit": commit, "dirty": "false", "changed": "none"})


def fetch(md5: str, place: Path, cache: Path) -> bool:
    """Link an output of DVC's cache to its place, a folder's files one by one. False where any is missing or not what its name says."""
    return all([_link(cache / one[:2] / one[2:], one, place / name) for name, one in _files(md5, cache).items()] or [False])


def cached(md5: str, cache: Path) -> bool:
    """Whether DVC's cache has an output, a folder's files all of them."""
    return all([(cache / one[:2] / one[2:]).is_file() for one in _files(md5, cache).values()] or [False])


def _files(md5: str, cache: Path) -> dict[str, str]:
    """Name -> digest of an output's files: of a folder as its listing has them, '' for a file itself.

    Empty where that is missing, is not what its digest says, or leads out of the folder.
    """
    listing = cache / md5[:2] / md5[2:]
    if not md5 or not listing.is_file():
        return {}
    if not md5.endswith(".dir"):
        return {"": md5}
    content = listing.read_bytes()
    if _md5(content) != md5.removesuffix(".dir"):
        return {}
    found = {one["relpath"]: one["md5"] for one in json.loads(content)}
    return found if all(map(files.stays_below, found)) else {}


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _link(source: Path, md5: str, place: Path) -> bool:
    if not source.is_file() or _md5(source.read_bytes()) != md5:
        return False
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:  # another file system
        shutil.copyfile(source, place)
    return True
