"""What only one process at a time may have: the workspace, a worker's place, and each GPU or a part of one.

Locks are `flock`s on files under .basin/: the kernel frees them however the holder dies, and no server keeps the count, so none can lose
it. A slot's locks are handed on to the guard of the stage (`Guards.start(keep=...)`): it stays taken until the last process that used it
is gone. BASIN_SLOTS names a folder for the GPUs' locks that all workspaces of one machine share.
"""

import fcntl
import logging
import math
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from basin.errors import Mistake

FOLDER = Path(".basin")
PARTS = 12  # of a GPU: halves, thirds, quarters and sixths come out even
PATIENCE = 15.0  # seconds for what a dead flow left behind to end: more than a guard's grace
log = logging.getLogger(__name__)


def try_lock(path: Path) -> IO[str] | None:
    """The open, locked file; None when someone else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def only_run(path: Path = FOLDER / "flow.lock", patience: float = 0.0, what: str = "run") -> Iterator[IO[str]]:
    """Hold the workspace; a `Mistake` names the process that has it already, after `patience` seconds, which begin with a word.

    Two runs in one workspace would start each stage twice: DVC guards its files, not its stages. The lock goes to the guards as well, so a
    run that takes over from a killed one waits until the last of its stages is gone.
    """
    started, told = time.monotonic(), False
    while (file := try_lock(path)) is None:
        holder = path.read_text(encoding="utf-8").strip() or "unknown"
        said = f"{path}: another {what} is at work in this workspace (PID {holder})."
        if patience and not told:
            log.warning("%s Waiting for it to end; Ctrl-C gives up.", said)
            told = True
        if time.monotonic() - started < (patience if _is_alive(holder) else max(patience, PATIENCE)):
            time.sleep(0.2)
            continue
        raise Mistake(f"{said} Wait for it to end, or stop it with: kill {holder}.")
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def devices() -> list[str]:
    """The ids of the GPUs that this process may use: CUDA_VISIBLE_DEVICES, else what nvidia-smi lists; none without either."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [part.strip() for part in visible.split(",")]
        return ids[: ids.index("-1")] if "-1" in ids else [part for part in ids if part]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", errors="replace", check=False)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return [str(index) for index in range(count)]


class Taken:
    """A slot held until `release`; `ids` are its devices, `keep` the locks' file descriptors, for the guard."""

    def __init__(self, ids: Sequence[str], locks: Sequence[IO[str]]):
        self.ids, self._locks = list(ids), list(locks)

    @property
    def keep(self) -> list[int]:
        return [lock.fileno() for lock in self._locks]

    @property
    def environment(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.ids)} if self.ids else {}

    def release(self) -> None:
        for lock in self._locks:
            lock.close()


def take(gpus: float, ids: Sequence[str], folder: Path | None = None, cpus: int = 0, workers: int = 0) -> Taken | None:
    """Lock `cpus` of `workers` places, and `gpus` devices, or all there are if that is fewer; None while too few are free.

    A share of a device is counted in `PARTS`, rounded up, and is all on one device: the first with room, so that shares gather there.
    """
    shared = folder or Path(os.environ.get("BASIN_SLOTS", FOLDER))
    whole, share = divmod(min(gpus, len(ids)), 1)
    wanted = [(PARTS, ids[::-1])] * int(whole) + [(math.ceil(share * PARTS - 1e-9), ids)] * (share > 0)
    devices: list[str] = []
    with ExitStack() as undo:
        locks = _some(min(cpus, workers), ((folder or FOLDER) / f"worker-{place}.lock" for place in range(workers)), undo)
        for parts, among in wanted:
            for device in among:
                paths = (shared / f"gpu-{device.replace('/', '_')}.{part}.lock" for part in range(PARTS))
                if locks is not None and device not in devices and (found := _some(parts, paths, undo)) is not None:
                    devices.append(device)
                    locks += found
                    break
        if locks is None or len(devices) < len(wanted):
            return None
        undo.pop_all()
    return Taken(sorted(devices, key=list(ids).index), locks)


def _some(wanted: int, paths: Iterable[Path], undo: ExitStack) -> list[IO[str]] | None:
    """Lock as many of the files; None, and none of them locked, where too few are free."""
    with ExitStack() as mine:
        locks: list[IO[str]] = []
        for path in paths:
            if len(locks) == wanted:
                break
            if lock := try_lock(path):
                locks.append(mine.enter_context(lock))
        if len(locks) < wanted:
            return None
        undo.push(mine.pop_all())
    return locks
