"""Errors that a person can act on.

A `Mistake` is something the user can mend: its text is `<where>: <what is wrong> (got <value>). <what to do>.`
Entry points print it without a traceback and exit with `EXIT_CODE`; anything else is a defect of ours and keeps its traceback.
"""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

EXIT_CODE = 2
NO_MEMORY = (  # of the processor, of CUDA, of its libraries; of a size that no number holds
    "can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED", "Storage size calculation overflowed",
)  # fmt: skip
THEIRS = (Exception, SystemExit, GeneratorExit)  # what code of another's making may raise; an interruption is the user's


class Mistake(Exception):
    """Bad input: one or several messages, each naming the key or file, the value, and what to do."""

    code = EXIT_CODE

    def __init__(self, *messages: str):
        self.messages = tuple(map(_writable, messages))
        super().__init__("\n".join(self.messages))


def _writable(text: str) -> str:
    """Half of a surrogate pair, which a file may name and no stream takes, as its number."""
    return text.encode("utf-8", "backslashreplace").decode()


class Absent(Mistake):
    """Nothing is wrong with the input: a server that is needed does not answer, and may later (sysexits.h: EX_TEMPFAIL)."""

    code = 75


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'?` when something close is known, else the whole list; for the end of a message."""
    known = sorted(known)
    close = difflib.get_close_matches(word[:100], known, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known) or 'none'}."


def said(error: BaseException) -> str:
    """What another's code raised, in a line."""
    try:
        text = str(error)
    except THEIRS:  # its own __str__ fails
        text = ""
    return f"{type(error).__name__}: {' '.join(text.split())}"[:200]


def short_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left: Python's own error, torch's of a GPU by its name, and by its words what others say of it."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(words in said(error) for words in NO_MEMORY))


@contextmanager
def refusing(where: str, advice: str) -> Iterator[None]:
    """Whatever another's code raises inside, as a `Mistake`: `<where> (got <error>). <advice>`; but that memory is short passes."""
    try:
        yield
    except Mistake:
        raise
    except THEIRS as error:
        if short_of_memory(error):
            raise
        raise Mistake(f"{where} (got {said(error)}). {advice}") from error


@contextmanager
def exit_on_mistake(write: Callable[[str], object] = sys.stderr.write) -> Iterator[None]:
    """Turn a `Mistake` into its text and exit code 2, or 75 where trying again may help; and memory that is short into one."""
    try:
        yield
    except Mistake as mistake:
        for message in mistake.messages:
            write(f"error: {message}\n")
        sys.exit(mistake.code)
    except (MemoryError, RuntimeError) as error:
        if not short_of_memory(error):
            raise
        write(f"error: memory: there is not enough (got {said(error)}). Take a smaller batch, a smaller model, or another machine.\n")
        sys.exit(EXIT_CODE)
