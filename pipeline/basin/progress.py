"""How far long work is, for whoever waits: in a terminal one line that is drawn again, where the output is a file a line every half minute.

Work is nested (epochs, and the batches of one), and the line tells all of it, with what is left by the clock. A thread of its own writes
it, so that a step of minutes is not silent. Nothing that is computed depends on it.
"""

import logging
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

EVERY, REDRAWN = 30.0, 0.5  # seconds between lines of a file; between drawings in a terminal
CLEAR = "\r\x1b[2K"
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Work:
    """`done` of `total` steps, of which `began` were done when it began; `unit` in the plural."""

    name: str
    total: int
    unit: str
    done: int = 0
    began: int = 0

    def __str__(self) -> str:
        return f"{self.name}: {self.done} of {self.total} {self.unit}"


@dataclass
class Shown:
    """The work under way in a thread, the whole first, its parts after it."""

    stack: list[Work] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    ended: threading.Event = field(default_factory=threading.Event)

    def line(self) -> str:
        """What is done, for how long, and what is left if the rest takes as long as what was done."""
        taken = time.monotonic() - self.since
        works = list(self.stack)
        share = self.share(works) if works else 0.0
        first = works[0].began / works[0].total if works and works[0].total else 0.0
        left = f", about {clock(taken * (1 - share) / (share - first))} to go" if share > first else ""
        return f"{', '.join(map(str, works))}; {clock(taken)}{left}"

    def share(self, works: Sequence[Work]) -> float:
        """How much of the first is done, parts of its current step counted."""
        if not works:
            return 0.0
        return min((works[0].done + self.share(works[1:])) / max(works[0].total, 1), 1.0)

    def report(self) -> None:
        """Until it has ended: draw the line, or log it; nothing where no such line is wanted."""
        if not log.isEnabledFor(logging.INFO):
            return
        terminal = sys.stderr.isatty()
        drawn = False
        while not self.ended.wait(REDRAWN if terminal else EVERY):
            if terminal:
                sys.stderr.write(f"{CLEAR}{self.line()[: shutil.get_terminal_size().columns - 1]}\r")
                sys.stderr.flush()
                drawn = True
            else:
                log.info("%s", self.line())
        if drawn:
            sys.stderr.write(CLEAR)
            sys.stderr.flush()


_here = threading.local()


@contextmanager
def work(name: str, total: int, unit: str, done: int = 0) -> Iterator[Work]:
    """Work of `total` steps, whose `done` the caller raises; within other work of this thread, a part of it."""
    outer: Shown | None = getattr(_here, "shown", None)
    shown = outer or Shown()
    shown.stack.append(one := Work(name, total, unit, done, done))
    _here.shown = shown
    if not outer:
        (reporter := threading.Thread(target=shown.report, daemon=True)).start()
    try:
        yield one
    finally:
        shown.stack.remove(one)
        if not outer:
            _here.shown = None
            shown.ended.set()
            reporter.join()


def each(items: Sequence[T], name: str, unit: str, done: int = 0) -> Iterator[T]:
    """The items, one after the other, as work of which `done` steps came before them."""
    with work(name, done + len(items), unit, done) as one:
        for item in items:
            yield item
            one.done += 1


def clock(seconds: float) -> str:
    """0:01:30."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
