"""What a finished run offers to the registry: its model folders with what was measured on them. Knows nothing of MLflow."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import artifact, tracking
from pipeline.config import Config
from pipeline.errors import Mistake
from pipeline.report import outcomes as measured
from pipeline.report.table import Row, tabulate

SHOWN = ("clean", "worst_case", "interval_low", "interval_high", "masked", "twin", "n")


@dataclass(frozen=True)
class Candidate:
    """A model folder of this run with what was measured on it."""

    model: str
    folder: Path
    md5: str  # DVC's digest of the folder
    recipe: dict[str, Any]
    row: Row
    protocol: str
    data: str
    threat: str

    @property
    def metrics(self) -> dict[str, float]:
        numbers = self.row.metrics()
        suites = {f"robust.{name}": share.value for name, share in self.row.suites.items()}
        return {name: numbers[name] for name in SHOWN if name in numbers} | suites

    @property
    def tags(self) -> dict[str, str]:
        """What the version is, to be seen and searched; MLflow's table shows them in this order."""
        tree, recipe = self.recipe["classifier"], self.recipe
        numbers = {name: f"{self.metrics[name]:g}" for name in ("worst_case", "clean", "masked", "twin") if name in self.metrics}
        what: dict[str, Any] = {
            "head": tree["head"]["kind"], "training": recipe["trained"]["training"]["kind"], "backbone": tree["backbone"]["kind"],
            "chain": " <- ".join([self.model, *reversed(recipe["chain"])]), "stage": self.model.split("/")[0],
            "threat": self.threat, "suites": ", ".join(self.row.suites), "protocol": self.protocol,
            "data": self.data, "data_digest": recipe["data_digest"], "seed": recipe["seed"],
            "device": recipe["device"], "dvc.md5": self.md5,
        }  # fmt: skip
        return {"model": self.model} | numbers | {name: str(value) for name, value in what.items()}

    @property
    def measured(self) -> str:
        """Stands for all the numbers."""
        return tracking.digest(self.metrics)

    @property
    def description(self) -> str:
        """Markdown for the version's page; its first words are all that a table of versions shows."""
        tree, numbers, worst = self.recipe["classifier"], self.metrics, self.row.worst
        built = f", built from `{self.recipe['from']}`" if self.recipe["from"] else ""
        trained = f"{self.recipe['trained']['training']['kind']} training on {self.data}{built}"
        low, high = (f"{value:.1%}" for value in worst.interval)
        lines = [
            f"{self.model}: {worst.value:.1%} robust, {numbers['clean']:.1%} clean", "",
            f"{tree['head']['kind']} head on {tree['backbone']['kind']}, {trained}. Threat {self.threat}, {worst.n} test images.", "",
            "| accuracy | |", "|---|---|",
            f"| clean | {numbers['clean']:.1%} |",
            *(f"| robust, suite `{name}` | {share.value:.1%} |" for name, share in self.row.suites.items()),
            f"| **robust, worst case of all** | **{worst.value:.1%}** (95%: {low} to {high}) |",
        ]  # fmt: skip
        lines += [f"| what {self.row.masked_attack} alone would report | {numbers['masked']:.1%} |"] if "masked" in numbers else []
        lines += [f"| the model it was built from, `{self.row.twin.model}` | {numbers['twin']:.1%} |"] if self.row.twin else []
        return "\n".join(lines)


def read(config: Config, digests: Mapping[str, str | None], root: Path = Path()) -> list[Candidate]:
    """The attacked models of a finished run. Raises Mistake where a folder or an outcome is missing, or DVC does not know it."""
    suites = config.attack.suites
    everything = {model: {suite: measured.read(root / "outcomes", model, suite) for suite in suites} for model in config.attack.models}
    measured.check_comparable(one for by_suite in everything.values() for one in by_suite.values())
    found = []
    for row in tabulate(everything, suites).rows:
        folder = root / "models" / row.model
        if not (md5 := digests.get(row.model)):
            raise Mistake(f"{folder}: dvc.lock does not know this folder (got no digest of it). Run `dvc repro`, which records it.")
        recipe = artifact.read_recipe(folder)
        found.append(Candidate(row.model, folder, md5, recipe, row, protocol(config), config.source.kind, str(config.threat)))
    return found


def protocol(config: Config) -> str:
    """12 digits for how robustness was measured: threat, suites, number of images. Only versions that share them are compared."""
    suites = {name: config.suites[name].model_dump(mode="json") for name in config.attack.suites}
    return tracking.digest([config.threat.model_dump(mode="json"), suites, config.attack.images])


def receipt(name: str, run: list[Candidate]) -> dict[str, Any]:
    """What DVC keeps of a registration: no ids, no times."""
    best = min(run, key=lambda one: (-one.metrics["worst_case"], -one.metrics["clean"]))
    models = {one.model: {"dvc.md5": one.md5, "worst_case": one.metrics["worst_case"]} for one in run}
    return {"name": name, "best": best.model, "models": models}


def write(path: Path, registered: dict[str, Any]) -> None:
    """The receipt as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(registered, indent=1, sort_keys=True) + "\n")
