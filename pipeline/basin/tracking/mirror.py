"""Delivers journals to MLflow. `python -m basin.tracking.mirror` sends what earlier runs could not; a stage starts it otherwise."""

import fcntl
import hashlib
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from pydantic import AfterValidator, BaseModel, Field

from basin import files
from basin.files import checkout
from basin.tracking.journal import PATIENCE, RUNS, cause, kept, shown, uri

POLL = 0.2  # seconds between two looks at the journal
AGAIN = 20  # seconds between two attempts while MLflow is away
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
JOURNAL = "journal"  # the tag of a run that says which journal it was made for
METRICS, OTHERS = 1000, 100  # MLflow's limits on one call
LONGEST_PARAM, LONGEST_TAG, LONGEST_KEY, LONGEST_DIGEST = 6000, 8000, 250, 36  # and on one entry, in characters
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
            waiting += _complete_lines(file)
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


def _complete_lines(file: TextIO) -> Iterator[Line]:
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


class Delivery:
    """Sends the lines of one journal to one run, made at the first attempt. Sending a line twice changes nothing.

    Whose run it is stands in two places, because this process or the server can be killed between any two calls: in a file beside the
    journal, and in the run's tag `journal`, which MLflow writes together with the run.
    """

    def __init__(self, journal: Path) -> None:
        self.store: Any = None
        self.run_id = ""
        self.name, self.known, self.resume = journal.name, journal.with_suffix(".run"), Path()
        self.sent: dict[str, str] = {}  # file -> digest of what has been uploaded
        self.overtaken = False  # by a later attempt, which has ended the run: its last words stay

    def send(self, lines: list[Line], ended: bool) -> None:
        if not self.run_id and lines:
            self._begin(lines[0], lines[-1])
        if self.overtaken:
            lines = [line | {"tags": {}} for line in lines]
        self._batches(lines)
        for line in lines:
            if path := line.get("artifact"):
                self._artifact(Path(path))
        if ended and self.run_id and not self.overtaken:
            self._end(lines[-1] if lines else {})

    def _begin(self, first: Line, last: Line) -> None:
        """Continue the run of an earlier attempt at the same stage, else make one with its params."""
        from basin.tracking.client import client, experiment_id

        self.store, start = client(), first["start"]
        self.resume = checkout() / RUNS / start["resume"]
        experiment = experiment_id(self.store, start["experiment"])
        known = self._earlier(self.known) or self._earlier(self.resume) or self._made(experiment, self.name)
        run_id = known or self._make(experiment, first, self.name)
        for place in (self.known, self.resume):
            files.write(place, json.dumps({"uri": shown(uri()), "run_id": run_id, "sent": self.sent}).encode())
        self.run_id = run_id
        self.overtaken = (self.store.get_run(run_id).info.end_time or 0) > last["time"]
        if not self.overtaken:
            self.store.update_run(self.run_id, "RUNNING")
        if over := self._over(experiment, start.get("parent")):
            self.store.set_tag(self.run_id, "mlflow.parentRunId", over)
        self._params(start["params"])
        self._dataset(start["experiment"], first.get("tags", {}).get("data_digest", ""))

    def _make(self, experiment: str, first: Line, journal: str) -> str:
        tags = {JOURNAL: journal}
        return self.store.create_run(experiment, first["time"], tags, run_name=first["start"]["run_name"]).info.run_id

    def _made(self, experiment: str, journal: str) -> str | None:
        """The run that was made for a journal: for this one, where nobody lived to hear of it; for a parent's, by an earlier stage."""
        found = self.store.search_runs([experiment], f"tags.{JOURNAL} = '{journal}'", max_results=1)
        return found[0].info.run_id if found else None

    def _over(self, experiment: str, parent: str | None) -> str | None:
        """The run over this one. Its journal is delivered when all stages have ended; the first of them makes the run, alone, as those of a
        flow have a mirror each."""
        if not parent:
            return None
        with (checkout() / ".basin/parent.lock").open("w", encoding="utf-8") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if found := self._made(experiment, parent):
                return found
            journal = checkout() / RUNS / parent
            lines = _complete_lines(journal.open(encoding="utf-8")) if journal.exists() else iter(())
            first = next(lines, {})
            return self._make(experiment, first, parent) if "start" in first else None

    def _earlier(self, place: Path) -> str | None:
        """The run that an earlier delivery or a killed attempt left, where MLflow still has it."""
        from mlflow.exceptions import MlflowException

        if not place.exists() or (left := json.loads(place.read_text(encoding="utf-8")))["uri"] != shown(uri()):
            return None
        try:
            found = self.store.get_run(left["run_id"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if found.info.lifecycle_stage != "active":
            return None
        self.sent = left.get("sent", {})
        return left["run_id"]

    def _params(self, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        entries = [Param(key[:LONGEST_KEY], _short(value, LONGEST_PARAM)) for key, value in params.items()]
        for at in range(0, len(entries), OTHERS):
            self.store.log_batch(self.run_id, params=entries[at : at + OTHERS])
        if any(len(value) > LONGEST_PARAM for value in params.values()):
            self.store.log_dict(self.run_id, params, "params.json")

    def _dataset(self, name: str, digest: str) -> None:
        from mlflow.entities import Dataset, DatasetInput

        if digest:
            self.store.log_inputs(self.run_id, [DatasetInput(Dataset(name, digest[:LONGEST_DIGEST], "local", "data/prepared"))])

    def _batches(self, lines: list[Line]) -> None:
        from mlflow.entities import Metric, RunTag

        metrics = [Metric(k[:LONGEST_KEY], v, line["time"], line["step"]) for line in lines for k, v in line.get("metrics", {}).items()]
        for at in range(0, len(metrics), METRICS):
            self.store.log_batch(self.run_id, metrics=metrics[at : at + METRICS])
        tags = {key: _short(str(value), LONGEST_TAG) for line in lines for key, value in line.get("tags", {}).items()}
        entries = [RunTag(key[:LONGEST_KEY], value) for key, value in tags.items()]
        for at in range(0, len(entries), OTHERS):
            self.store.log_batch(self.run_id, tags=entries[at : at + OTHERS])

    def _artifact(self, path: Path) -> None:
        """Each file once: what this run already has with the same content stays."""
        if not path.exists():
            log.warning("tracking: %s is no longer there to be attached to its run.", path)
            return
        for one in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
            with one.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            if self.sent.get(str(one)) != digest:
                below = one.parent.relative_to(path.parent).as_posix()
                self.store.log_artifact(self.run_id, str(one), None if below == "." else below)
                self.sent[str(one)] = digest
                files.write(self.known, json.dumps({"uri": shown(uri()), "run_id": self.run_id, "sent": self.sent}).encode())

    def _end(self, last: Line) -> None:
        """A journal without a last word is that of a stage that was killed."""
        status = last.get("end", "KILLED")
        self.store.set_terminated(self.run_id, status, last.get("time"))
        if status == "FINISHED":
            self.resume.unlink(missing_ok=True)
            if "error" in self.store.get_run(self.run_id).data.tags:  # of an earlier attempt
                self.store.delete_tag(self.run_id, "error")


def _short(value: str, longest: int) -> str:
    return value if len(value) <= longest else value[: longest - 3] + "..."


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
