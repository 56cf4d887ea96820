"""What a finished run offers to the registry: its model folders with what was measured on them. Knows nothing of MLflow."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basin import files
from basin.config import kinds
from basin.config.params import STAGES, Config
from basin.config.suite import IN_FULL
from basin.config.threat import Threat
from basin.errors import Mistake
from basin.models.recipe import read_recipe
from basin.registry import gate
from basin.report import outcomes as measured
from basin.report.table import UNION, Row, column, tabulate
from basin.tracking import journal

SCHEMA = "1"  # of tags, metrics and files: docs/registry.md
SHOWN = ("clean", "worst_case", "interval_low", "interval_high", "masked", "certified", "twin", "n")


@dataclass(frozen=True)
class Candidate:
    """A model folder of a run with what was measured on it."""

    model: str
    root: Path
    md5: str  # DVC's digest of the folder
    parents: dict[str, str | None]  # the chain of `from:` upwards: model -> DVC's digest
    recipe: dict[str, Any]
    row: Row
    outcomes: Mapping[str, measured.Outcome]
    protocol: dict[str, Any]
    data: str

    @property
    def folder(self) -> Path:
        return self.root / "models" / self.model

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers that the outcomes say; accuracies are fractions."""
        numbers = self.row.metrics()
        suites = {f"worst_case.{name}": float(one.robust.mean().round(6)) for name, one in self.outcomes.items()}
        counts = {"flags": len(self.flags), "unresolved": len(self.unresolved)}
        shown = (*SHOWN, *map(column, self.row.threats), *UNION)
        return {name: numbers[name] for name in shown if name in numbers} | suites | counts

    @property
    def flags(self) -> list[str]:
        """Of the suites under the run's threat, of which the worst case is."""
        return list(dict.fromkeys(flag for one in measured.under_run(self.outcomes).values() for flag in one.summary.flags))

    @property
    def unresolved(self) -> list[str]:
        """Flags that no adaptive suite answers."""
        ours = measured.under_run(self.outcomes)
        adaptive = [name for name, suite in self.protocol["suites"].items() if suite.get("adaptive") and name in ours]
        raised = {name: one.summary.flags for name, one in ours.items()}
        took = {name: set(ours[name].attack.tolist()) for name in adaptive}
        return gate.unresolved(raised, adaptive, any(_black_box_last(ours[name].summary.attacks, took[name]) for name in adaptive))

    @property
    def threat(self) -> str:
        return str(Threat(**self.protocol["threat"]))

    @property
    def tags(self) -> dict[str, str]:
        """What the version is, to be seen and searched; MLflow's table shows them in this order."""
        tree, recipe, threat = self.recipe["classifier"], self.recipe, self.protocol["threat"]
        numbers = {name: f"{self.metrics[name]:g}" for name in ("worst_case", "clean", "masked", "twin", "union") if name in self.metrics}
        what: dict[str, Any] = {
            "flags": ", ".join(self.flags) or "none", "unresolved": ", ".join(self.unresolved) or "none", "n": self.row.worst.n,
            "head": tree["head"]["kind"], "training": recipe["trained"]["training"]["kind"], "backbone": tree["backbone"]["kind"],
            "chain": " <- ".join([self.model, *self.parents]), "stage": self.model.split("/")[0],
            "threat": self.threat, "norm": threat["norm"], "eps": f"{threat['eps']:g}", "suites": ", ".join(self.outcomes),
            "protocol": journal.digest(self.protocol), "data": self.data, "data_digest": recipe["data_digest"],
            "params": journal.digest(recipe["trained"]), "seed": recipe["seed"], "device": recipe["device"],
            "dvc.md5": self.md5, "schema": SCHEMA,
        }  # fmt: skip
        return {"model": self.model} | numbers | {name: str(value) for name, value in what.items()}

    @property
    def measured(self) -> str:
        """Stands for all the numbers."""
        return journal.digest(self.metrics)


def read(config: Config, digests: Mapping[str, str | None], root: Path = Path()) -> list[Candidate]:
    """The attacked models of a finished run. Raises Mistake where a folder or an outcome is missing, or DVC does not know it."""
    suites, found = config.attack.suites, []
    everything = measured.read_all(root / "outcomes", config.attack.models, suites, root / measured.EXCHANGED)
    for row in tabulate(everything, suites).rows:
        folder, outcomes = root / "models" / row.model, everything[row.model]
        if not (md5 := digests.get(row.model)):
            raise Mistake(f"{folder}: dvc.lock does not know this folder (got no digest of it). Run `dvc repro`, which records it.")
        recipe = read_recipe(folder)
        parents = {parent: digests.get(parent) for parent in reversed(recipe["chain"])}
        found.append(Candidate(row.model, root, md5, parents, recipe, row, outcomes, protocol(config, outcomes), config.data_name))
    return found


def protocol(config: Config, outcomes: Mapping[str, Any]) -> dict[str, Any]:
    """How robustness was measured, as JSON: threat, the suites with their settings, number of images asked for."""
    suites = {name: config.suites[name].model_dump(mode="json") if name in config.suites else {name: True} for name in outcomes}
    return {"threat": config.threat.model_dump(mode="json"), "suites": suites, "images": config.attack.images}


def names(config: Config) -> list[str]:
    """Every model of the run, attacked or not."""
    return [f"{stage}/{name}" for stage in STAGES for name in getattr(config, stage)]


def _black_box_last(attempts: Iterable[str], took: Collection[str]) -> bool:
    """Whether the last attempt of an adaptive suite that took an image was one that sees no gradient at all."""
    last = [name.removesuffix(IN_FULL) for name in attempts if name in took][-1:]
    if not last or (kind := last[0]) not in kinds.kinds("attacks"):
        return False
    module = kinds.find("attacks", kind)
    return getattr(module, "BLACK_BOX", False) and not getattr(module, "NEEDS_TWIN", False)


def pipeline(run: list[Candidate]) -> str:
    """12 digits for a pipeline run: its models and how they were attacked."""
    return journal.digest([[one.model, one.md5, one.protocol] for one in run])


def receipt(name: str, run: list[Candidate]) -> dict[str, Any]:
    """What DVC keeps of a registration: no ids, no times."""
    best = min(run, key=lambda one: (-one.metrics["worst_case"], -one.metrics["clean"]))
    models = {one.model: {"dvc.md5": one.md5, "worst_case": one.metrics["worst_case"]} for one in run}
    return {"name": name, "best": best.model, "pipeline": pipeline(run), "models": models}


def write(path: Path, registered: dict[str, Any]) -> None:
    """The receipt as a file."""
    files.write(path, json.dumps(registered, indent=1, sort_keys=True) + "\n")
