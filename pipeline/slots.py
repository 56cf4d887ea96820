"""What only one process at a time may have: the workspace, and each GPU.

Locks are `flock`s on files under .basin/: the kernel frees them however the holder dies. A GPU's lock is handed on to the guard of the
stage (`Guards.start(keep=...)`), so a device stays taken until the last process that used it is gone.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import Mistake

FOLDER = Path(".basin")


def _try_lock(path: Path) -> IO[str] | None:
    """The open, locked file; None when someone else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def only_flow(path: Path = FOLDER / "flow.lock") -> Iterator[None]:
    """Hold the workspace; a `Mistake` names the process that has it already.

    Two flows in one workspace would start each stage twice: DVC guards its files, not its stages.
    """
    file = _try_lock(path)
    if file is None:
        holder = path.read_text().strip() or "unknown"
        said = f"{path}: another flow is at work in this workspace (PID {holder})."
        raise Mistake(f"{said} Wait for it to end, or stop it with: kill {holder}.")
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def devices() -> list[str]:
    """The ids of the GPUs that this process may use: CUDA_VISIBLE_DEVICES, else what nvidia-smi lists; none without either."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [part.strip() for part in visible.split(",")]
        return ids[: ids.index("-1")] if "-1" in ids else [part for part in ids if part]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return [str(index) for index in range(count)]


class Taken:
    """Devices held until `release`; `keep` are the locks' file descriptors, for the guard."""

    def __init__(self, locks: dict[str, IO[str]]):
        self.ids = list(locks)
        self._locks = list(locks.values())

    @property
    def keep(self) -> list[int]:
        return [lock.fileno() for lock in self._locks]

    @property
    def environment(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.ids)} if self.ids else {}

    def release(self) -> None:
        for lock in self._locks:
            lock.close()


def take(wanted: int, ids: Sequence[str], folder: Path = FOLDER) -> Taken | None:
    """Lock `wanted` devices, or all there are if that is fewer (none on a machine without); None while too few are free."""
    locks: dict[str, IO[str]] = {}
    wanted = min(wanted, len(ids))
    with ExitStack() as undo:
        for device in ids:
            if len(locks) < wanted and (lock := _try_lock(folder / f"gpu-{device}.lock")):
                locks[device] = undo.enter_context(lock)
        if len(locks) < wanted:
            return None
        undo.pop_all()
    return Taken(locks)
