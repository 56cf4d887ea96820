"""Data sets as their authors published them: where the files lie, whether they are whole, how to get them. torchvision fetches them and
knows their checksums. Of Python's pickles the opcodes are read; nothing is ever unpickled.
"""

import gzip
import hashlib
import io
import logging
import pickletools
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from basin.config.place import Place
from basin.errors import Mistake

MOST = 1 << 28  # bytes that are read of a file; the largest are SVHN's 182 MB
UNPACKED = 1 << 26  # bytes that are unpacked of a .gz, of which only IDX files have one; the largest has 47,040,016
DAMAGED = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error)
Operations = list[tuple[str, Any]]
Checksums = Mapping[str, str]  # a file's name -> the MD5 sums, one or more between blanks, with which it was published
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A data set. `name` is that of its class in torchvision. Its `files` lie together in one of `places` under a folder, plain or .gz, or
    in `archive`, a tar file there. `advice` says how else to get them."""

    name: str
    files: tuple[str, ...]
    places: tuple[str, ...]
    archive: str = ""
    advice: str = ""

    def read(self, place: Place, checksums: Callable[[], Checksums]) -> dict[str, tuple[str, bytes]]:
        """name -> (where it was found, its content). Raises Mistake where a file is absent, damaged, or not what was published."""
        root = Path(place.folder)
        if not (found := self._find(root)) and place.download:
            self._download(root)
            found = self._find(root)
        if not found:
            raise Mistake(self._absent(root))
        known = checksums()
        for where, raw in found.values():
            _check(where, raw, known.get(where.rpartition("/")[2], ""))
        return {name: (where, _plain(where, raw)) for name, (where, raw) in found.items()}

    def _find(self, root: Path) -> dict[str, tuple[str, bytes]]:
        for place in self.places:
            paths = {name: path for name in self.files if (path := _plain_or_gzipped(root / place / name))}
            if len(paths) == len(self.files):
                return {name: (str(path), _bytes(path)) for name, path in paths.items()}
        archive = root / self.archive
        return dict(self._packed(archive)) if archive.is_file() else {}

    def _packed(self, archive: Path) -> Iterator[tuple[str, tuple[str, bytes]]]:
        """The files in an archive, whatever folder they have there; nothing is written."""
        try:
            with tarfile.open(archive) as tar:
                files = {Path(member.name).name: member for member in tar if member.isfile()}
                for name in self.files:
                    if name not in files or (file := tar.extractfile(files[name])) is None:
                        raise Mistake(f"{archive}: not whole (got no {name} in it). Fetch it again.")
                    yield name, (f"{archive}/{name}", file.read(MOST))
        except DAMAGED as error:
            raise Mistake(f"{archive}: damaged (got {error}). Fetch it again.") from error

    def _absent(self, root: Path) -> str:
        places = ", ".join([*(str(root / place) for place in self.places), *([str(root / self.archive)] if self.archive else [])])
        absent = [name for name in self.files if not any(_plain_or_gzipped(root / place / name) for place in self.places)]
        fetch = f"`python -c \"from torchvision.datasets import {self.name}; {self.name}('{root}', download=True)\"`"
        return (
            f"data.folder: {self.name} not found (looked in {places}; got no {', '.join(absent) or 'place that has all files'}). "
            f"{self.advice.format(root=root)}Set `download: true`, or run {fetch} where there is a network."
        )

    def _download(self, root: Path) -> None:
        from torchvision import datasets

        log.info("fetching %s into %s", self.name, root)
        try:
            for split in ({"split": "train"}, {"split": "test"}) if self.name == "SVHN" else ({},):
                getattr(datasets, self.name)(str(root), download=True, **split)
        except (OSError, RuntimeError) as error:  # no network, every mirror failed, or a checksum did
            why = " ".join(str(error).split())
            raise Mistake(f"data.download: torchvision could not fetch {self.name} (got {why}).", self._absent(root)) from error


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((there for there in (path, path.with_name(f"{path.name}.gz")) if there.is_file()), None)


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST)
    except OSError as error:
        raise Mistake(f"{path}: cannot be read (got {error.strerror}). Mend its permissions.") from error


def _check(where: str, raw: bytes, published: str) -> None:
    if published and (found := hashlib.md5(raw, usedforsecurity=False).hexdigest()) not in published.split():
        raise Mistake(f"{where}: not the published file (got MD5 {found}, not {' or '.join(published.split())}). Fetch it again.")


def _plain(where: str, raw: bytes) -> bytes:
    if not where.endswith(".gz"):
        return raw
    try:
        return gzip.GzipFile(fileobj=io.BytesIO(raw)).read(UNPACKED)
    except DAMAGED as error:
        raise Mistake(f"{where}: damaged (got {error}). Fetch it again.") from error


# Pickles ----------------------------------------------------------------------------------------------------------------------------------


def opcodes(where: str, content: bytes) -> Operations:
    """What a pickle would do, opcode by opcode with its argument. None of it is done."""
    try:
        return [(code.name, argument) for code, argument, _ in pickletools.genops(content)]
    except (ValueError, LookupError, UnicodeError) as error:
        raise Mistake(f"{where}: damaged (got {error}). Fetch it again.") from error


def texts(argument: Any) -> str:
    """An argument that is text in whichever Python wrote it; "" of another."""
    return argument.decode("latin-1") if isinstance(argument, bytes | bytearray) else argument if isinstance(argument, str) else ""


def array(operations: Operations) -> bytes:
    """The bytes of the only array in a pickle: its longest text."""
    return max((texts(argument) for _, argument in operations), key=len, default="").encode("latin-1")


def listed(where: str, operations: Operations, key: str) -> list[Any]:
    """The numbers or texts in the list under a key of a pickled dictionary."""
    steps = [(name, argument) for name, argument in operations if not name.endswith(("PUT", "MEMOIZE", "FRAME"))]
    start = next((i for i, (_, argument) in enumerate(steps) if texts(argument) == key), len(steps)) + 1
    if [name for name, _ in steps[start : start + 1]] != ["EMPTY_LIST"]:
        raise Mistake(f"{where}: not the published file (got no list {key!r} in it). Fetch it again.")
    found: list[Any] = []
    for (name, argument), (following, _) in pairwise([*steps[start + 1 :], ("STOP", None)]):
        if name.startswith("APPEND") and following != "MARK":
            break
        found += [] if argument is None else [argument if isinstance(argument, int) else texts(argument)]
    return found
