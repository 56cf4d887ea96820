"""What the entries of params.yaml may be called, so that DVC, a file system and MLflow take it, and what they may refer to."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from basin.config.flags import MEANINGS
from basin.config.suite import ADDED, READY
from basin.errors import did_you_mean

STAGES = ("backbone", "head", "adversarial")  # a model is named STAGE/NAME
NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
KEPT = re.compile(r"champion|latest|v\d+", re.IGNORECASE)  # aliases that are Basin's, or that MLflow does not give away
COLUMNS = (  # of the report's table, beside one for each suite (report/table.py)
    "model", "backbone", "head", "training", "clean",
    "worst_case", "interval_low", "interval_high", "masked", "certified", "twin", "twin_model", "twin_source", "n",
    "largest_class", "balanced_clean", "balanced_worst_case", "union", "union_low", "union_high",
)  # fmt: skip
ALL_ADDED = f"{', '.join(ADDED[:-1])} and {ADDED[-1]}"
# Stricter than MLflow, which asks for names in quotes and in addresses, and takes what it cannot ask for.
REGISTERED = r"^[A-Za-z0-9]([A-Za-z0-9_ .-]{0,253}[A-Za-z0-9_-])?$"


def alias(model: str, models: Collection[str]) -> str:
    """A model's alias in the registry: its name; with its stage in front where two stages have the name or the word is kept."""
    stage, name = model.split("/", 1)
    twice = sum(other.split("/", 1)[1].lower() == name.lower() for other in models) > 1
    return f"{stage}_{name}" if twice or KEPT.fullmatch(name) else name


def mistakes(raw: Mapping[str, Any], recorded: bool = False) -> Iterator[str]:
    """Names that something will not take, and references to what the file does not have. Works on whatever can be read of the file."""
    stages = {stage: _table(raw, stage) for stage in STAGES}
    entries = {f"{stage}/{name}": entry for stage, table in stages.items() for name, entry in table.items()}
    suites = _table(raw, "suites")
    for key, table in {**stages, "suites": suites}.items():
        yield from _names(key, table)
    yield from _suites(suites, recorded)
    yield from _aliases(entries)
    yield from _parents(entries)
    attack = _table(raw, "attack")
    yield from _asked("attack.models", attack.get("models"), entries)
    yield from _asked("attack.suites", attack.get("suites"), suites)
    yield from _under_the_run(attack.get("suites"), suites)
    if not recorded:
        yield from _flags(_table(_table(raw, "registry"), "gate").get("accepted_flags"))


def _table(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    return table if isinstance(table := raw.get(key), dict) else {}


def _names(key: str, table: Mapping[str, Any]) -> Iterator[str]:
    """Names that are none, and names that are one on a file system that does not tell capitals."""
    seen: dict[str, str] = {}
    for name in table:
        if not NAME.fullmatch(name):
            yield f"{key}.{name}: a name is made of letters (a to z), digits and underscores, 1 to 64 of them (got {name!r}). Rename it."
        if (other := seen.setdefault(name.lower(), name)) != name:
            yield f"{key}.{name}: differs from another name in capitals alone (got {name!r} and {other!r}). Rename one."


def _suites(suites: Mapping[str, Any], recorded: bool) -> Iterator[str]:
    for name, suite in suites.items():
        if name.lower() == "exchange":
            yield f"suites.{name}: the name is that of the points of other models (got a suite of that name). Rename it."
        if name.lower() in COLUMNS:
            yield f"suites.{name}: the name is that of a column of the report (got a suite of that name). Rename it."
        if not isinstance(suite, dict):
            continue
        taken = name if name in READY else suite.get("ready")
        own = [key for key in suite if key not in ADDED and (key, suite[key]) != ("ready", taken)]
        if taken in READY and own and not recorded:
            yield f"suites.{name}: is ready-made; a run may add {ALL_ADDED} to it (got {own[0]}). Give yours another name."
        if taken is not None and taken not in READY:
            yield f"suites.{name}.ready: no such ready-made suite (got {_short(str(taken))}). {did_you_mean(str(taken), READY)}"
        elif taken is None and not any(suite.get(key) for key in ("attacks", "adaptive")):
            yield f"suites.{name}: should hold attacks, or an adaptive table (got {str(suite)[:80]}). Give one of them."
        yield from _names(f"suites.{name}.attacks", _table(suite, "attacks"))


def _aliases(entries: Mapping[str, Any]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for model in entries:
        wanted = alias(model, entries).lower()
        if (other := seen.setdefault(wanted, model)).split("/")[0] != model.split("/")[0]:
            yield f"{model.replace('/', '.', 1)}: its alias in the registry is that of {other} (got {wanted!r}). Rename one."


def _parents(entries: Mapping[str, Any]) -> Iterator[str]:
    """`from:` names a model of the file and makes no cycle."""
    above = {
        model: entry["from"]
        for model, entry in entries.items()
        if not model.startswith("backbone/") and isinstance(entry, dict) and isinstance(entry.get("from"), str)
    }
    for model, parent in above.items():
        key = f"{model.replace('/', '.', 1)}.from"
        if parent not in entries:
            yield f"{key}: names no model of this file (got {_short(parent)}). {did_you_mean(parent, entries)}"
        elif model in _ancestors(model, above):
            chain = " <- ".join([model, *_ancestors(model, above)])
            yield f"{key}: goes round in a cycle (got {chain}). Start one of them from a backbone."


def _ancestors(model: str, above: Mapping[str, str]) -> list[str]:
    """The chain of `from:` upwards from a model; ends at a backbone, or at the first model met twice."""
    chain: list[str] = []
    while (parent := above.get(chain[-1] if chain else model)) is not None and parent not in chain:
        chain.append(parent)
    return chain


def _asked(key: str, asked: Any, known: Collection[str]) -> Iterator[str]:
    names = [name for name in asked if isinstance(name, str)] if isinstance(asked, list) else []
    for i, name in enumerate(names):
        if name not in known:
            yield f"{key}: names nothing of this file (got {_short(name)}). {did_you_mean(name, known)}"
        elif name in names[:i]:
            yield f"{key}: names it twice (got {name!r}). Take one out."


def _under_the_run(asked: Any, suites: Mapping[str, Any]) -> Iterator[str]:
    """The worst case of a run is under its own threat, so one suite at least is."""
    if isinstance(asked, list) and asked and all(isinstance(name, str) and _table(suites, name).get("threat") for name in asked):
        yield f"attack.suites: each has a threat of its own (got {', '.join(asked)}). Name one under the run's threat too."


def _flags(accepted: Any) -> Iterator[str]:
    for name in accepted if isinstance(accepted, list) else ():
        if name not in MEANINGS:
            yield f"registry.gate.accepted_flags: no such flag (got {_short(str(name))}). {did_you_mean(str(name), MEANINGS)}"


def _short(name: str) -> str:
    return repr(name)[:80]
