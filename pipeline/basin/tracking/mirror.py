"""Delivers journals to MLflow. `python -m basin.tracking.mirror` sends what earlier runs could not; a stage starts it otherwise."""

import fcntl
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from basin.files import checkout
from basin.tracking.delivery import Delivery
from basin.tracking.journal import PATIENCE, RUNS, cause, kept
from basin.tracking.lines import Line, complete_lines

POLL = 0.2  # seconds between two looks at the journal
AGAIN = 20  # seconds between two attempts while MLflow is away
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
log = logging.getLogger(__name__)

Ended = Callable[[TextIO], bool]


def is_child_of_another(stage: int) -> Ended:
    """Of a stage whose mirror is a child of its own."""
    return lambda journal: os.getppid() != stage


def is_unlocked(journal: TextIO) -> bool:
    """Of any stage: it holds a lock on its journal, as we do, to the end."""
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(journal, fcntl.LOCK_SH)
        return False
    return True


def mirror(journal: Path, has_ended: Ended | None = None) -> bool:
    """Deliver a journal as it grows, until its stage `has_ended` (None: an old journal).

    True: everything has arrived and the journal is gone. Complains once.
    """
    waiting: list[Line] = []
    delivery, again, complained = Delivery(journal), 0.0, False
    with journal.open(encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH if has_ended else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # of a stage that is running, or another process delivers it
            return True
        if not os.fstat(file.fileno()).st_nlink:  # which it has done
            return True
        while True:
            ended = has_ended is None or has_ended(file)  # asked before reading: nothing is written after
            waiting += complete_lines(file)
            ended = ended or any("end" in line for line in waiting)
            if ended and has_ended:
                signal.alarm(PATIENCE)
            headless = bool(waiting) and not delivery.run_id and "start" not in waiting[0]
            if ended and headless:
                return _put_aside(journal)
            if ended or (waiting and not headless and time.monotonic() >= again):
                try:
                    delivery.send(waiting, ended)
                    waiting = []
                except Exception as error:  # whatever MLflow, its database or the network come up with
                    again = time.monotonic() + AGAIN
                    if not complained:
                        log.warning(kept(cause(error), journal))
                    complained = True
            if ended:
                break
            time.sleep(POLL)
        if not waiting:
            journal.unlink(missing_ok=True)
            delivery.known.unlink(missing_ok=True)
        return not waiting


def _put_aside(journal: Path) -> bool:
    """Nothing can be made of a journal that does not say whose it is, today or later."""
    aside = journal.rename(journal.with_suffix(".headless"))
    journal.with_suffix(".run").unlink(missing_ok=True)
    log.warning("%s: its first line, which says whose run it is, is missing or damaged. What is left is kept in %s.", journal, aside.name)
    return False


@contextmanager
def _each_request_once() -> Iterator[None]:
    """A request repeated blindly could make a run twice; the journal repeats it knowingly."""
    before = os.environ.get(RETRIES)
    os.environ[RETRIES] = "0"
    try:
        yield
    finally:
        del os.environ[RETRIES]
        if before is not None:
            os.environ[RETRIES] = before


def deliver_all() -> bool:
    """Deliver every journal that earlier runs left; those of stages still running are passed over."""
    with _each_request_once():
        return all([mirror(journal) for journal in sorted((checkout() / RUNS).rglob("*.jsonl")) if journal.exists()])


def of_a_run(pipe: Path) -> bool:
    """Deliver the journals whose names are written into a pipe, in turn, until stdin, which the run keeps open, is at its end.

    False, and no further journal is taken, where one cannot be delivered: whoever hands one over sees that nobody reads, and does without.
    """
    reading, names = os.open(pipe, os.O_RDWR | os.O_NONBLOCK), b""  # for writing too, so that it is never at its end
    try:
        while reading in select.select([reading, sys.stdin], [], [])[0]:
            *whole, names = (names + os.read(reading, 4096)).split(b"\n")
            for name in whole:
                if not mirror(Path(os.fsdecode(name)), is_unlocked):
                    return False
                signal.alarm(0)
        return True
    finally:
        pipe.unlink(missing_ok=True)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s")
    if sys.argv[1:]:
        os.nice(5)  # training first, but a stage waits for this at its end
        one, other = sys.argv[1:]
        with _each_request_once():
            sys.exit(not (of_a_run(Path(other)) if one == "--run" else mirror(Path(one), is_child_of_another(int(other)))))
    sys.exit(not deliver_all())
