"""Writing files whole, what is said where they cannot be written, by which version they were, and which folder outlives an experiment."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any

from basin.errors import Mistake

VERSION = "0.1.0"  # of Basin, as in pyproject.toml; files that are read years later carry it
EXPERIMENTS = Path(".dvc", "tmp", "exps")  # in a checkout: where DVC puts the workspaces of experiments
IN_PLACE = (Path("/dev"), Path("/proc"))  # what is there is no file to be replaced: /dev/stdout


class Unwritten(Mistake):
    """A file that could not be written. `kept`: its text, or what else is worth telling, for whoever can show it to the user."""

    def __init__(self, path: Path, error: OSError, kept: str = ""):
        super().__init__(
            f"{path}: cannot be written (got {error.strerror or error}). "
            "Make room there, or give a place that you may write to; what was there before is as it was."
        )
        self.kept = kept


def checkout() -> Path:
    """The checkout that the person looks at: the working directory, or the one whose temporary workspace this is.

    `dvc exp run --temp` and `--queue` work below `EXPERIMENTS`, which DVC deletes: what is to outlive them belongs here.
    """
    return next((above for above in Path.cwd().parents if Path.cwd().is_relative_to(above / EXPERIMENTS)), Path())


def stays_below(name: str) -> bool:
    """Whether a file's name, which another wrote, is one below the folder that it is said to be of."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def check_format(path: Path, found: Any, known: int, by: Any = None) -> None:
    """Raise Mistake where a file is of a format that this version does not read, which names the version that does: `by`."""
    if found != known:
        version = f"Basin {by}" if by else "the Basin that wrote it"
        raise Mistake(f"{path}: this Basin, {VERSION}, reads format {known} (got {str(found)[:40]!r}). Read it with {version}.")


def write(path: Path, content: bytes | str | Iterator[bytes]) -> None:
    """Write beside `path` and rename: a reader sees the old file or the new one, never half of it. Text is UTF-8.

    The mode is what the umask says. (`safetensors.torch.save_file` gives 0600, which nobody else could read from a shared cache.)
    Raises Unwritten where that cannot be done; the old file is still there.
    """
    pieces = [content.encode()] if isinstance(content, str) else [content] if isinstance(content, bytes) else content
    try:
        if _in_place(path):
            path.write_bytes(b"".join(pieces))
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            with open(unfinished, "wb", opener=_no_link) as file:
                file.writelines(pieces)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise Unwritten(path, error, content if isinstance(content, str) else "") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep others that ask from a folder, which is made. Raises Unwritten where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise Unwritten(folder, error) from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _no_link(path: str, flags: int) -> int:
    """Open what is there, and nothing that a link at its place leads to."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _in_place(path: Path) -> bool:
    return any(path.absolute().is_relative_to(place) for place in IN_PLACE) or (path.exists() and not path.is_file())


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` and of all that is in it when the block ends well."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        yield unfinished
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def try_folder(folder: Path) -> None:
    """Raise Unwritten where no file can be made in a folder, or where it is yet to be made: before hours of work, not after them."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise Unwritten(folder, error) from error


def try_file(option: str, path: Path) -> None:
    """Raise Mistake, beginning with `option`, where a file cannot be written at `path`, whose folder has to be there."""
    if not path.parent.is_dir():
        raise Mistake(f"{option}: no such folder (got {str(path.parent)!r}). Make it first.")
    if path.is_dir():
        raise Mistake(f"{option}: is a folder (got {str(path)!r}). Give a file in it.")
    if not path.exists() or path.is_file():
        try_folder(path.parent)
