"""What the two stages that judge models share: the images, what was attacked, the figures. The only readers of the test split."""

from typing import Any

from basin.data.about import load_about
from basin.data.splits import load_split
from basin.evaluation.classes import BALANCE
from basin.stages import entry
from basin.types import Images, Labels


def images(number: int) -> tuple[Images, Labels]:
    """The first images of the test split and their labels; all where there are fewer."""
    test = load_split(entry.PREPARED, "test")
    n = min(number, len(test))
    return test.floats(slice(0, n)), test.labels[:n]


def describe(model: str, suite: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """What was attacked: names, kinds, data and seed."""
    about, tree = load_about(entry.PREPARED), recipe["classifier"]
    kinds = {"backbone": tree["backbone"]["kind"], "head": tree["head"]["kind"], "training": recipe["trained"]["training"]["kind"]}
    return {
        "model": model,
        "suite": suite,
        "data": about.name,
        "data_digest": about.digest,
        "classes": list(about.classes),
        "seed": recipe["seed"],
        "from": recipe["from"],
    } | kinds


def numbers(summary: dict[str, Any]) -> dict[str, float]:
    """The summary's figures under flat names."""
    flat = {key: summary[key] for key in ("n", "clean", "passes", *BALANCE)} | {
        "worst_case": summary["robust"],
        "interval_low": summary["interval"][0],
        "interval_high": summary["interval"][1],
    }
    flat |= {f"after.{name}": robust for name, robust in summary["attacks"].items()} | {"flags": len(summary["flags"])}
    flat |= {f"probe.{name}": figure for name, figure in summary.get("probes", {}).items()}
    return flat | {name: summary[name]["robust"] for name in ("masked", "certified") if summary.get(name)}
