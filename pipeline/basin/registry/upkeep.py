"""Is the registry what the runs say, and making it so again."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from basin.config.params import Config, Gate
from basin.errors import Mistake
from basin.registry import candidates, contents, promotion, snapshot, versions
from basin.registry.candidates import SCHEMA
from basin.registry.opening import aliases, opened
from basin.registry.promotion import CHAMPION
from basin.registry.removal import removed
from basin.tracking.mirror import deliver_all

Digests = Mapping[str, str | None]
log = logging.getLogger(__name__)


def verify(config: Config, digests: Digests, root: Path = Path(), files: bool = True) -> list[str]:
    """What is not as this run and those before it left it, in words; empty where all is. Changes nothing.

    Missing, stale (older numbers, an alias elsewhere), foreign, changed by hand; without `files` the bytes of files are not looked at.
    DVC cannot see the registry: after `mlflow.db` was deleted, `dvc repro` finds everything up to date.
    """
    run, name = candidates.read(config, digests, root), config.registered_name
    with opened("Nothing was changed.") as store:
        return [
            *_of_run(store, name, config, run),
            *_of_gate(store, name, config.registry.gate),
            *(problem for version in _all(store, name) for problem in _of_version(store, version, files)),
            *_of_earlier(store, {one.md5 for one in run}),
        ]


def _of_run(store: MlflowClient, name: str, config: Config, run: list[candidates.Candidate]) -> Iterator[str]:
    known = aliases(store, name)
    for one in run:
        version = versions.find(store, name, one.md5, one.model)
        if version is None:
            yield f"{one.model}: missing from registered model {name}"
        elif not versions.is_current(version, one) and not promotion.keeps(store, version, one):
            yield f"{one.model}: version {version.version} of {name} carries older numbers"
        if (wanted := config.alias(one.model)) not in known:
            yield f"{name}@{wanted}: the alias is missing"
        elif version and known[wanted] != int(version.version):
            yield f"{name}@{wanted}: points to version {known[wanted]} instead of {version.version}"


def _of_gate(store: MlflowClient, name: str, gate: Gate) -> Iterator[str]:
    """The champion is who the gate says, and every version is told what it is."""
    holder, ranked = aliases(store, name).get(CHAMPION), promotion.contenders(store, name)
    decisions = promotion.judge(ranked, holder, gate)
    for one in ranked:
        standing = decisions[one.number].standing
        if standing == CHAMPION and one.number != holder:
            yield f"{name}@{CHAMPION}: is {f'version {holder}' if holder else 'missing'}, the gate says {one.name}"
        if one.version.tags.get("standing") != standing:
            yield f"{name}/{one.number}: stands as {one.version.tags.get('standing')}, the gate says {standing}"


def _all(store: MlflowClient, name: str) -> list[ModelVersion]:
    return versions.search(store, name, {})


def _of_version(store: MlflowClient, version: ModelVersion, files: bool) -> Iterator[str]:
    where = f"{version.name}/{version.version}"
    if "dvc.md5" not in version.tags:
        yield f"{where}: foreign, not registered by Basin"
    elif version.tags.get("schema") != SCHEMA or "seal" not in version.tags:
        yield f"{where}: stale, not written to its end or by an older Basin"
    else:
        yield from (f"{where}: changed by hand: {what}" for what in _changed(store, version, files))


def _changed(store: MlflowClient, version: ModelVersion, files: bool) -> list[str]:
    with versions.files(store, version, "" if files else contents.MANIFEST) as folder:
        broken = contents.changed_files(folder, version.tags["seal"], files)
        if broken == [contents.MANIFEST]:
            return [f"file {contents.MANIFEST}"]
        card = contents.card_of(folder)  # which versions of before its pictures were on the pages show as it is
        text = [] if version.description in (card, versions.card_on_pages(store, version, card)) else ["description"]
        return [*(f"file {name}" for name in broken), *contents.changed(folder, version.tags, versions.metrics(store, version)), *text]


def _of_earlier(store: MlflowClient, current: set[str]) -> Iterator[str]:
    """Versions of earlier runs that are gone and can be brought back, each once; those that cannot are one line of the log."""
    known = [one for one in dict.fromkeys(snapshot.promised()) if one[2] not in current | removed()]
    gone = [(name, model, md5) for name, model, md5 in known if versions.find(store, name, md5, model) is None]
    within_reach = {md5 for run in _earlier() for md5 in _cached(run)} if gone else set()
    for name, model, md5 in gone:
        if md5 in within_reach:
            yield f"{model}: {name} lacks the version of an earlier run (dvc.md5 {md5})"
    if lost := sorted({md5 for _, _, md5 in gone} - within_reach):
        log.warning(
            "registry: %d version(s) of earlier runs are gone, and so are their outputs in DVC's cache (dvc.md5 %s). "
            "Fetch them, then sync: dvc fetch -A; basin registry sync.", len(lost), ", ".join(lost[:3]),
        )  # fmt: skip


def _cached(run: snapshot.Snapshot) -> set[str | None]:
    """DVC's digests of the models of a run that DVC's cache has whole."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            settings, known = run.open(Path(folder))
        except Mistake:  # of other versions of Basin: `sync` says so
            return set()
        settings = _without(settings, {model for model, md5 in known.items() if md5 in removed()})
        return {known[model] for model in settings.attack.models} if run.is_cached(settings) else set()


def _missing(store: MlflowClient, config: Config, digests: Digests) -> list[tuple[str, str]]:
    wanted = [(model, md5) for model in config.attack.models if (md5 := digests[model])]
    return [(model, md5) for model, md5 in wanted if versions.find(store, config.registered_name, md5, model) is None]


def sync(config: Config, digests: Digests, root: Path = Path()) -> list[str]:
    """Mend the registry from DVC's cache, without training: this run, and those that were registered here or committed before it.

    Runs are replayed in their order, so that the gate decides as it did. Returns, in words, what could not be brought back; runs whose
    outputs are not in DVC's cache are one line of the log, and no failure.
    """
    from basin.registry import registration  # it loads torch

    deliver_all()  # what stages logged while MLflow was away, so that versions are attached to the runs that trained them
    with opened("Nothing was changed.") as store:
        for version in _all(store, config.registered_name):
            if "measured" in version.tags and ("seal" not in version.tags or _changed(store, version, True)):
                for tag in {"measured", "seal"} & version.tags.keys():  # so that the replay writes it anew
                    store.delete_model_version_tag(version.name, version.version, tag)
    lost: list[str] = []
    absent: list[str] = []
    replay, seen = False, {snapshot.of(root, {}).digest}
    for run in _earlier():
        if run.digest in seen:
            continue
        seen.add(run.digest)
        with tempfile.TemporaryDirectory() as folder:
            try:
                settings, known = run.open(Path(folder))
                settings = _without(settings, {model for model, md5 in known.items() if md5 in removed()})
                if settings.attack.models and (replay := replay or _is_needed(settings, known)):
                    if not run.restore(Path(folder), settings):
                        absent.append(run.at["commit"][:12])
                        continue
                    registration.register_all(settings, known, Path(folder), run.at)
            except Mistake as mistake:
                lost.append(f"{mistake}")
    if absent:
        log.warning(
            "registry: of %d earlier run(s) the outputs are not in DVC's cache (commit %s). Fetch them, then sync again: dvc fetch -A.",
            len(absent), absent[0] if len(absent) == 1 else f"{absent[0]} to {absent[-1]}",
        )  # fmt: skip
    registration.register_all(config, digests, root)
    return lost


def _without(config: Config, models: set[str]) -> Config:
    """The same run, some models not attacked."""
    left = [model for model in config.attack.models if model not in models]
    return config.model_copy(update={"attack": config.attack.model_copy(update={"models": left})})


def _earlier() -> Iterator[snapshot.Snapshot]:
    """Committed runs before those of this workspace, of which many are committed too."""
    kept = list(snapshot.kept())
    known = {run.digest for run in kept}
    yield from (run for run in snapshot.committed() if run.digest not in known)
    yield from kept


def _is_needed(config: Config, digests: Digests) -> bool:
    with opened("Nothing was changed.") as store:
        if _missing(store, config, digests):
            return True
        found = [versions.find(store, config.registered_name, digests[model], model) for model in config.attack.models]
        return any(version and "measured" not in version.tags for version in found)
