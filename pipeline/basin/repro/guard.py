"""A guard between us and a command, so that nothing of the command outlives whoever asked for it.

A killed dvc leaves its stage running, and Prefect's cancel ends the flow's own process only: the stage then goes on writing beside its
successor (prefect #17593, dvc #9805). So a command runs as

    flow --> guard, in a session of its own --> command, in another session: the group that is ended as a whole

The guard ends the group (SIGTERM, `GRACE` seconds for a last checkpoint, SIGKILL) when it is told to, when its parent is gone however it
died, and when the command has ended but left something behind. It looks for its parent five times a second instead of asking the kernel
for PR_SET_PDEATHSIG: that one exists on Linux only, and it fires at the death of the parent's *thread*. A guard that is killed itself has
a witness, a fork in another session, which ends the group in its place and holds the locks until then.

This file runs as a program too, by path and isolated (`python -I .../guard.py PARENT COMMAND...`), so it imports nothing of ours.
POSIX only.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

GRACE = 10.0  # seconds between SIGTERM and SIGKILL
LOOK = 0.2  # seconds between two looks at the parent
STOPPED = 128 + signal.SIGTERM  # the guard's own exit code when it had to end the command
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Stopped(Exception):
    """The command was ended by `Guards.end`, not by a failure of its own."""


class Guards:
    """The guarded commands of one run. After `end()` all of them are gone and no new one starts. Safe across threads."""

    def __init__(self) -> None:
        self._live: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self.ended = False

    def start(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, keep: Iterable[int] = (), **popen: Any
    ) -> subprocess.Popen:
        """Start a command under a guard; the `Popen` is the guard's and has the command's exit code (128 + n for a signal).

        `keep` are file descriptors that the guard holds open until the command is really gone: locks outlive a killed parent.
        """
        guarded = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), *command]
        with self._lock:
            if self.ended:
                raise Stopped("this run is being stopped")
            process = subprocess.Popen(guarded, env=env, start_new_session=True, pass_fds=tuple(keep), **popen)
            self._live = {other for other in self._live if other.poll() is None} | {process}
        return process

    def end(self) -> None:
        """Stop every command, wait until it is gone."""
        with self._lock:
            self.ended = True
            for process in self._live:
                process.terminate()
            for process in self._live:
                process.wait()


def _reap() -> None:
    """Collect dead descendants: a zombie would count as a living member of its group."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _end_group(group: int) -> None:
    """SIGTERM, grace, SIGKILL to every process of the group; returns as soon as none is left."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 2.0)):
        deadline = time.monotonic() + patience
        sent = False
        while time.monotonic() < deadline:
            _reap()
            try:
                os.killpg(group, 0 if sent else number)
            except (ProcessLookupError, PermissionError):  # macOS answers EPERM for zombies
                return
            sent = True
            time.sleep(0.02)


def _adopt_descendants() -> None:
    """Orphans of the group become the guard's children, so that it can reap them. Linux only; elsewhere init does it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _witness() -> tuple[int, int]:
    """A fork that ends the group whose number is written to it, once nobody can write any more; its PID and where to write.

    For no other process has the pipe's writing end: it closes with the guard, however that dies.
    """
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(reading)
        return pid, writing
    os.setsid()
    os.close(writing)
    with open(reading, "rb") as pipe:
        group = pipe.read()
    if group:
        _end_group(int(group))
    os._exit(0)


def guard(parent: int, command: Sequence[str]) -> int:
    """Run the command until it ends, until SIGTERM, or until the process `parent` is gone; the exit code."""
    witness, to_witness = _witness()
    told = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    _adopt_descendants()
    try:
        child = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    os.write(to_witness, b"%d" % child.pid)
    code = None
    while code is None and not told.is_set() and os.getppid() == parent:
        try:
            code = child.wait(LOOK)
        except subprocess.TimeoutExpired:
            continue
    _end_group(child.pid)
    os.close(to_witness)
    with suppress(ChildProcessError):  # it was killed, and collected
        os.waitpid(witness, 0)  # it holds the locks
    return STOPPED if code is None else code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.argv[2:]))
