"""dvc.lock, DVC's memory of what is done: what it records, the order of its entries, and mending it after a kill."""

import json
import logging
import re
import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel
from ruamel.yaml import YAML, YAMLError

from basin import files
from basin.config.document import UNREADABLE
from basin.errors import Mistake
from basin.repro.graph import Stage

DEEPEST = 40  # levels; dvc writes half a dozen and the tables of params.yaml
INDENTED = re.compile(rf"^[ \t?:-]{{{4 * DEEPEST}}}", re.MULTILINE)
log = logging.getLogger(__name__)
PATIENCE = 10  # times 3 s that a reader of dvc.lock waits for dvc; then it reads what is there


class Out(BaseModel, strict=True):
    path: str
    md5: str | None = None  # none of what lies elsewhere


class Done(BaseModel, strict=True):
    outs: list[Out] = []


class Recorded(BaseModel, strict=True):
    """What is read of dvc.lock; the rest is dvc's."""

    stages: dict[str, Done] = {}


def digest(path: str | Path, lock: Path | str = "dvc.lock") -> str | None:
    """DVC's digest of an output as dvc.lock records it (a folder's ends in `.dir`); None if no stage has written it yet."""
    return next((outs[name] for outs in _locked_stages(lock).values() if (name := Path(path).as_posix()) in outs), None)


def stages(text: str, lock: Path | str = "dvc.lock") -> dict[str, dict[str, str | None]]:
    """stage -> its outputs -> their digests, of a lock file's text. Raises Mistake where it is none that dvc wrote."""
    try:
        found = Recorded.model_validate(_loaded(text) or {}).stages
    except UNREADABLE as error:
        got = " ".join(str(error).split())[:200]
        raise Mistake(f"{lock}: not a lock file that dvc wrote (got {got}). Take it from git again: git checkout {lock}.") from error
    return {name: {out.path: out.md5 for out in stage.outs} for name, stage in found.items()}


def _loaded(text: str) -> Any:
    """The parser is in C, and deep nesting would end the process."""
    depths = accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text))
    if INDENTED.search(text) or max(depths, default=0) > DEEPEST:
        raise YAMLError(f"over {DEEPEST} levels")
    return YAML(typ="safe").load(text)


def _locked_stages(lock: Path | str) -> dict[str, dict[str, str | None]]:
    """Nothing where there is no lock file yet."""
    return stages(_text(Path(lock)), lock) if Path(lock).exists() else {}


def _text(lock: Path) -> str:
    """The lock file, whole: dvc writes it in place under its own lock, and half of it reads as a shorter one.

    Bytes that are no UTF-8 come as the sign for such, which leaves the file to be refused by what it then says.
    """
    from dvc.lock import Lock, LockError  # type: ignore[import-untyped]

    place = Path(".dvc/tmp/lock")
    for _ in range(PATIENCE if place.exists() else 0):
        try:
            with Lock(str(place)):  # waits 3 s
                return lock.read_text(encoding="utf-8", errors="replace")
        except LockError:
            continue
    return lock.read_text(encoding="utf-8", errors="replace")


def recorded(lock: Path | str = "dvc.lock") -> list[str]:
    """The stages that dvc.lock records, in its order."""
    return list(_locked_stages(lock))


def settle(before: Sequence[str], stages: Iterable[Stage], lock: Path | str = "dvc.lock") -> None:
    """Bring entries that are new since `before` into the order of `stages`, as if `dvc repro` had added them one after the other.

    Stages that run beside each other are recorded as they finish; without this, two flows of the same work would differ.
    """
    from dvc.utils.serialize import modify_yaml  # type: ignore[import-untyped]

    now = recorded(lock)
    new = [stage.name for stage in stages if stage.name in now and stage.name not in before]
    order = sorted(now, key=lambda name: (name in new, new.index(name) if name in new else now.index(name)))
    if order != now:
        with modify_yaml(lock) as content:
            content["stages"] = {name: content["stages"][name] for name in order}


def mend(lock: Path = Path("dvc.lock"), kept: Path = Path(".basin/dvc.lock"), rwlock: Path = Path(".dvc/tmp/rwlock")) -> None:
    """Put the last whole lock file back where a kill has left half of one: dvc writes it in place.

    Stages that it then lacks come back from dvc's run cache. Before a run; a dvc that is at work is waited for.
    """
    _wait_for_others(rwlock)
    if lock.exists() and _is_whole(text := _text(lock)):
        files.write(kept, text.encode())
    elif lock.exists() and "<<<<<<<" not in text:  # which a person has to settle
        log.warning("%s: half written by a dvc that was killed; the one before is put back", lock)
        files.write(lock, kept.read_bytes()) if kept.exists() else lock.unlink()
    if rwlock.exists() and not _is_json(rwlock.read_text(encoding="utf-8", errors="replace")):
        rwlock.unlink()  # who holds which file: nobody


def _wait_for_others(rwlock: Path) -> None:
    """Until no dvc that somebody started by hand runs a stage here: beside it ours would end in dvc's own words."""
    told = False
    while rwlock.exists() and (holder := _at_work(rwlock)):
        if not told:
            log.warning("workspace: another dvc is at work here (PID %d). Waiting for it to end; Ctrl-C gives up.", holder)
            told = True
        time.sleep(0.5)


def _at_work(rwlock: Path) -> int | None:
    """The process of a dvc that holds files: an entry of a killed one stays, and its number is used again."""
    try:
        held = json.loads(rwlock.read_text(encoding="utf-8"))
    except ValueError:  # it is being written, or was when dvc was killed
        return None
    infos = [*held.get("write", {}).values(), *(info for infos in held.get("read", {}).values() for info in infos)]
    return next((info["pid"] for info in infos if _is_dvc(info["pid"])), None)


def _is_dvc(pid: int) -> bool:
    try:
        return any("dvc" in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _is_whole(text: str) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # type: ignore[import-untyped]
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(_loaded(text))
    except (*UNREADABLE, Invalid):
        return False
    return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
