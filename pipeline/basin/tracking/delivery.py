"""What one journal says, sent to one run of MLflow."""

import fcntl
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from basin import files
from basin.files import checkout
from basin.tracking.journal import RUNS, shown, uri
from basin.tracking.lines import Line, complete_lines

JOURNAL = "journal"  # the tag of a run that says which journal it was made for
METRICS, OTHERS = 1000, 100  # MLflow's limits on one call
LONGEST_PARAM, LONGEST_TAG, LONGEST_KEY, LONGEST_DIGEST = 6000, 8000, 250, 36  # and on one entry, in characters
log = logging.getLogger(__name__)


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
            lines = complete_lines(journal.open(encoding="utf-8")) if journal.exists() else iter(())
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
