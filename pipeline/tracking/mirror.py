"""Delivers journals to MLflow. `python -m pipeline.tracking.mirror` sends what earlier runs could not; a stage starts it otherwise."""

import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pipeline.tracking import PATIENCE, RUNS, cause, kept, uri

POLL = 0.2  # seconds between two looks at the journal
AGAIN = 20  # seconds between two attempts while MLflow is away
METRICS, OTHERS = 1000, 100  # MLflow's limits on one call
LONGEST_PARAM, LONGEST_TAG, LONGEST_KEY, LONGEST_DIGEST = 6000, 8000, 250, 36  # and on one entry, in characters
Line = dict[str, Any]
log = logging.getLogger(__name__)


def mirror(journal: Path, stage: int | None = None) -> bool:
    """Deliver a journal as it grows, until its stage (a process id; None: an old journal) has ended.

    True: everything has arrived and the journal is gone. Complains once.
    """
    waiting: list[Line] = []
    delivery, again, complained = Delivery(), 0.0, False
    with journal.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        while True:
            ended = stage is None or os.getppid() != stage  # asked before reading: nothing is written after
            waiting += _complete_lines(file)
            ended = ended or any("end" in line for line in waiting)
            if ended and stage:
                signal.alarm(PATIENCE)
            if ended or (waiting and time.monotonic() >= again):
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
            journal.unlink()
        return not waiting


def _complete_lines(file: TextIO) -> Iterator[Line]:
    """What was written since the last look; a line that is still being written waits for the next."""
    while True:
        before = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(before)
            return
        try:
            yield json.loads(line)
        except ValueError:  # the disk was full for a moment
            log.warning("tracking: one damaged line of %s is left out.", file.name)


class Delivery:
    """Sends the lines of one journal to one run, made at the first attempt. Sending a line twice changes nothing."""

    def __init__(self) -> None:
        self.store: Any = None
        self.run_id = ""
        self.resume = Path()

    def send(self, lines: list[Line], ended: bool) -> None:
        if not self.run_id and lines:
            self._begin(lines[0])
        self._batches(lines)
        for line in lines:
            if path := line.get("artifact"):
                self._artifact(Path(path))
        if ended and self.run_id:
            self._end(lines[-1] if lines else {})

    def _begin(self, first: Line) -> None:
        """Continue the run of an earlier attempt at the same stage, else make one with its params."""
        from pipeline.tracking.client import client, experiment_id

        self.store, start = client(), first["start"]
        self.resume = RUNS / start["resume"]
        experiment = experiment_id(self.store, start["experiment"])
        self.run_id = self._earlier() or self.store.create_run(experiment, first["time"], run_name=start["run_name"]).info.run_id
        self.resume.write_text(json.dumps({"uri": uri(), "run_id": self.run_id}) + "\n")
        self.store.update_run(self.run_id, "RUNNING")
        self._params(start["params"])
        self._dataset(start["experiment"], first["tags"].get("data_digest", ""))

    def _earlier(self) -> str | None:
        """The run that a killed attempt left, where MLflow still has it."""
        from mlflow.exceptions import MlflowException

        if not self.resume.exists() or (left := json.loads(self.resume.read_text()))["uri"] != uri():
            return None
        try:
            found = self.store.get_run(left["run_id"])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return left["run_id"] if found.info.lifecycle_stage == "active" else None

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
        if path.is_dir():
            self.store.log_artifacts(self.run_id, str(path), path.name)
        elif path.exists():
            self.store.log_artifact(self.run_id, str(path))
        else:
            log.warning("tracking: %s is no longer there to be attached to its run.", path)

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


def deliver_all() -> bool:
    """Deliver every journal that earlier runs left; those of stages still running are passed over."""
    arrived = True
    for journal in sorted(RUNS.rglob("*.jsonl")):
        with journal.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
        arrived = mirror(journal) and arrived
    return arrived


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s")
    if sys.argv[1:]:
        os.nice(10)  # training first
        sys.exit(not mirror(Path(sys.argv[1]), int(sys.argv[2])))
    sys.exit(not deliver_all())
