"""attack@MODEL-SUITE: a suite of attacks on a model, image by image -> outcomes/MODEL/SUITE."""

from dataclasses import asdict

from pipeline import artifact, outcomes, robustness, trajectories
from stages import entry, judging


def main(model: str, suite_name: str) -> None:
    name = f"attack/{model}/{suite_name}"
    with entry.stage(name, lambda config: config.suite(suite_name)) as stage:
        settings, suite = stage.config.attack, stage.config.suites[suite_name]
        classifier = artifact.load(entry.MODELS / model, stage.device).requires_grad_(False)
        twin = artifact.load_twin(entry.MODELS / model, stage.device)
        images, labels = judging.images(settings.images)
        asked = suite.model_dump(mode="json"), settings.model_dump(mode="json"), stage.config.threat.model_dump()
        checkpoint = stage.checkpoint(*asked, classifier.recipe, artifact.weights_digest(entry.MODELS / model))
        twin = twin and twin.requires_grad_(False)
        seed = stage.config.seed, name
        result = robustness.evaluate(classifier, twin, images, labels, stage.config.threat, suite, seed, settings.batch, checkpoint)
        about = judging.describe(model, suite_name, classifier.recipe) | vars(result.diagnosis) | {"declared": asdict(result.declared)}
        summary = outcomes.write(entry.OUTCOMES / model / suite_name, result.outcomes, stage.config.threat, about)
        stability = trajectories.write(entry.OUTCOMES / model / suite_name, classifier, result.outcomes.images, result.outcomes.points)
        stage.run.metrics(judging.numbers(summary) | stability)
        stage.run.tags({"flags": ", ".join(summary["flags"]) or "none"} | {f"flag.{name}": "raised" for name in summary["flags"]})
        stage.run.artifact(entry.OUTCOMES / model / suite_name / "outcomes.csv")


if __name__ == "__main__":
    entry.launch(main)
