"""The lines of a journal, as `journal.Run` writes them and a mirror reads them."""

import json
import logging
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TextIO

from pydantic import AfterValidator, BaseModel, Field

from basin import files

Line = dict[str, Any]
log = logging.getLogger(__name__)


def _below(name: str) -> str:
    if not files.stays_below(name):
        raise ValueError("leads out of the folder of the journals")
    return name


class Start(BaseModel, strict=True):
    """What a run is made from; `resume` names a file below RUNS, `parent` the journal of the run that it stands under."""

    experiment: str
    run_name: str
    params: dict[str, str]
    resume: Annotated[str, AfterValidator(_below)]
    parent: Annotated[str, AfterValidator(_below)] = ""


class Said(BaseModel, strict=True):
    """A line of a journal, as `journal.Run` writes it."""

    time: Annotated[int, Field(ge=0, lt=2**63)]
    start: Start | None = None
    metrics: dict[str, float] = {}
    step: Annotated[int, Field(ge=0, lt=2**63)] = 0
    artifact: str | None = None
    tags: dict[str, Any] = {}
    end: Literal["FINISHED", "FAILED", "KILLED"] | None = None


def complete_lines(file: TextIO) -> Iterator[Line]:
    """What was written since the last look; a line that is still being written waits for the next."""
    while True:
        before = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(before)
            return
        try:
            yield Said.model_validate(json.loads(line)).model_dump(exclude_unset=True)
        except (ValueError, RecursionError):  # the disk was full for a moment
            log.warning("tracking: one damaged line of %s is left out.", file.name)
