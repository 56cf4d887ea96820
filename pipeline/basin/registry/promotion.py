"""The gate (basin/registry/gate.py) asked about the versions of a registered model, and its answer written down."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from basin.config.params import Gate
from basin.errors import Mistake, said
from basin.registry import contents, versions
from basin.registry.candidates import SCHEMA, Candidate
from basin.registry.gate import Contender, Decision, attacked_by_less, decide, disqualified
from basin.report.outcomes import EXCHANGED, Outcome, read_all
from basin.report.table import held

CHAMPION = "champion"
log = logging.getLogger(__name__)


class Registered(Contender):
    """A version as a `gate.Contender`; its files are looked at where the gate asks for them. Raises Mistake where a tag is no number."""

    def __init__(self, store: MlflowClient, version: ModelVersion):
        tags = version.tags
        self.store, self.version, self.number, self.model = store, version, int(version.version), tags["model"]
        self.name = f"version {self.number} ({self.model})"
        try:
            self.clean, self.worst = float(tags["clean"]), float(tags["worst_case"])
            self.masked = float(tags["masked"]) if "masked" in tags else None
        except ValueError as error:
            where = f"{version.name}/{self.number}: a tag was changed by hand"
            raise Mistake(f"{where} (got {said(error)}). To mend it: basin registry sync.") from None
        self.unresolved: Sequence[str] = [] if tags["unresolved"] == "none" else tags["unresolved"].split(", ")
        self.measured_on = (tags["threat"], tags["data_digest"])

    @cached_property
    def suites(self) -> Mapping[str, Any]:
        with versions.files(self.store, self.version, "run") as folder:
            return json.loads((folder / contents.PROTOCOL).read_text(encoding="utf-8"))["suites"]

    @cached_property
    def outcomes(self) -> Mapping[str, Outcome]:
        """suite -> outcome; their stored points cannot be read any more where the store is not local."""
        with versions.files(self.store, self.version) as folder:
            suites = [suite for suite in self.suites if (folder / "outcomes" / self.model / suite).is_dir()]
            return read_all(folder / "outcomes", [self.model], suites, folder / EXCHANGED)[self.model]

    @cached_property
    def held(self) -> Mapping[int, float]:
        return _held(self.outcomes)


def _registered(store: MlflowClient, version: ModelVersion) -> Registered | None:
    """None, and a line, where the gate cannot judge it."""
    try:
        return Registered(store, version)
    except Mistake as mistake:
        log.warning("%s The gate leaves it out.", mistake)
        return None


class Unregistered(Contender):
    """A model of a finished run as a `gate.Contender`."""

    def __init__(self, one: Candidate):
        self.name, self.clean, self.worst = one.model, one.metrics["clean"], one.metrics["worst_case"]
        self.masked, self.unresolved = one.metrics.get("masked"), one.unresolved
        self.measured_on = (one.tags["threat"], one.tags["data_digest"])
        self.one = one

    @property
    def suites(self) -> Mapping[str, Any]:
        return self.one.protocol["suites"]

    @cached_property
    def held(self) -> Mapping[int, float]:
        return _held(self.one.outcomes)


def _held(outcomes: Mapping[str, Outcome]) -> dict[int, float]:
    return dict(zip(next(iter(outcomes.values())).image.tolist(), held(outcomes).tolist(), strict=True))


def keeps(store: MlflowClient, version: ModelVersion, one: Candidate) -> bool:
    """Whether a version's numbers stay as they are, because this run attacked the model by less and by nothing else."""
    if "seal" not in version.tags:
        return False
    registered, now = _registered(store, version), Unregistered(one)
    if registered is None or registered.measured_on != now.measured_on:
        return False
    return bool(attacked_by_less(now, registered)) and not attacked_by_less(registered, now)


def contenders(store: MlflowClient, name: str) -> list[Registered]:
    """The versions that the gate can judge: highest worst case first, then highest clean accuracy, then the oldest."""
    sealed = [version for version in versions.search(store, name, {"schema": SCHEMA}) if "seal" in version.tags]
    found = (_registered(store, version) for version in sealed)
    return sorted(filter(None, found), key=lambda one: (-one.worst, -one.clean, one.number))


def judge(ranked: Sequence[Registered], holder: int | None, gate: Gate) -> dict[int, Decision]:
    """version -> what it is. `holder`: the version that is champion now; it stays unless it is disqualified or beaten."""
    champion: Contender | None = next((one for one in ranked if one.number == holder and not disqualified(one, gate)), None)
    won: dict[str, Decision] = {}
    for one in ranked:
        if one is not champion and (decision := decide(one, champion, gate)).standing == "champion":
            champion, won[one.name] = one, decision
    stays = Decision("champion", ("holds the title",))
    return {one.number: won.get(one.name, stays) if one is champion else decide(one, champion, gate) for one in ranked}


def write(store: MlflowClient, name: str, ranked: Sequence[Registered], decisions: Mapping[int, Decision]) -> None:
    """Standing and reasons as tags, where they differ; a champion that stays keeps the reasons for which it became one."""
    for one in ranked:
        decision, tags = decisions[one.number], one.version.tags
        stays = decision.standing == CHAMPION == tags.get("standing")
        reasons = tags.get("reasons", "") if stays else "; ".join(decision.reasons)
        for key, value in {"standing": decision.standing, "reasons": reasons}.items():
            if tags.get(key) != value:
                store.set_model_version_tag(name, one.version.version, key, value)
