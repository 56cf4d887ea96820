"""attack@MODEL-SUITE: a suite of attacks on a model, image by image -> outcomes/MODEL/SUITE. The only reader of the test split."""

from dataclasses import asdict
from typing import Any

from pipeline import artifact, outcomes, robustness, trajectories
from pipeline.data import load_about, load_split
from stages import entry


def main(model: str, suite_name: str) -> None:
    name = f"attack/{model}/{suite_name}"
    with entry.stage(name, lambda config: config.suite(suite_name)) as stage:
        settings, suite = stage.config.attack, stage.config.suites[suite_name]
        classifier = artifact.load(entry.MODELS / model, stage.device).requires_grad_(False)
        twin = artifact.load_twin(entry.MODELS / model, stage.device)
        test = load_split(entry.PREPARED, "test")
        n = min(settings.images, len(test))
        images, labels = test.floats(slice(0, n)), test.labels[:n]
        asked = suite.model_dump(mode="json"), settings.model_dump(mode="json"), stage.config.threat.model_dump()
        checkpoint = stage.checkpoint(*asked, classifier.recipe, artifact.weights_digest(entry.MODELS / model))
        twin = twin and twin.requires_grad_(False)
        seed = stage.config.seed, name
        result = robustness.evaluate(classifier, twin, images, labels, stage.config.threat, suite, seed, settings.batch, checkpoint)
        about = describe(model, suite_name, classifier.recipe) | vars(result.diagnosis) | {"declared": asdict(result.declared)}
        summary = outcomes.write(entry.OUTCOMES / model / suite_name, result.outcomes, stage.config.threat, about)
        stability = trajectories.write(entry.OUTCOMES / model / suite_name, classifier, result.outcomes.images, result.outcomes.points)
        stage.run.metrics(numbers(summary) | stability)
        stage.run.artifact(entry.OUTCOMES / model / suite_name / "outcomes.csv")


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
    flat = {key: summary[key] for key in ("n", "clean", "robust", "passes")} | {
        "low": summary["interval"][0],
        "high": summary["interval"][1],
    }
    flat |= {f"after.{name}": robust for name, robust in summary["attacks"].items()}
    return flat | ({"masked": summary["masked"]["robust"]} if summary["masked"] else {})


if __name__ == "__main__":
    entry.launch(main)
