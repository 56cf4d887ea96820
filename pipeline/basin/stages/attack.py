"""attack@MODEL-SUITE: a suite of attacks on a model, image by image -> outcomes/MODEL/SUITE."""

from dataclasses import asdict

from basin.stages import entry


def main(model: str, suite_name: str) -> None:
    name = f"attack/{model}/{suite_name}"
    with entry.stage(
        name,
        lambda config: config.entry(model) and config.suite(suite_name),
        reads=lambda config: (config.entry(model), config.attack.images, config.attack.batch),
        shared=True,
    ) as stage:
        from basin import checkpoint
        from basin.evaluation import certificate, outcomes, robustness, trajectories
        from basin.models import artifact, recipe
        from basin.stages import judging
        from basin.threat.ball import ThreatModel

        settings, suite = stage.config.attack, stage.config.suites[suite_name]
        threat = ThreatModel.of(suite.threat or stage.config.threat)
        classifier = artifact.load(entry.MODELS / model, stage.device).requires_grad_(False)
        twin = artifact.load_twin(entry.MODELS / model, stage.device)
        images, labels = judging.images(settings.images)
        asked = suite.model_dump(mode="json"), settings.images, settings.batch, threat.model_dump()
        weights = recipe.weights_digest(entry.MODELS / model)
        state = checkpoint.place(name, *asked, classifier.recipe, weights, *stage.terms)
        if twin is not None:
            twin.requires_grad_(False)
        seed = stage.config.seed, name
        about = judging.describe(model, suite_name, classifier.recipe)
        known = len(about["classes"])
        result = robustness.evaluate(classifier, twin, images, labels, threat, suite, seed, settings.batch, state, known, stage.group)
        stage.checkpoints.append(state)
        if not stage.group.first:
            return
        about |= vars(result.diagnosis) | {"declared": asdict(result.declared), "facts": result.facts, "replaced": result.replaced}
        about |= {"run_threat": stage.config.threat.model_dump()} if suite.threat else {}
        about["certified"] = certificate.certify(classifier, result.outcomes, threat, settings.batch)
        summary = outcomes.write(entry.OUTCOMES / model / suite_name, result.outcomes, threat, about)
        stability = trajectories.write(entry.OUTCOMES / model / suite_name, classifier, result.outcomes.images, result.outcomes.points)
        stage.run.metrics(judging.numbers(summary) | stability)
        stage.run.tags(
            {"weights": weights, "flags": ", ".join(summary["flags"]) or "none"} | {f"flag.{name}": "raised" for name in summary["flags"]}
        )
        stage.run.artifact(entry.OUTCOMES / model / suite_name / "outcomes.csv")


if __name__ == "__main__":
    entry.launch(main)
