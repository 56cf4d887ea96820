"""exchange: every attacked model, judged at the points that were found on the others -> exchanged/MODEL."""

from basin.stages import entry


def main() -> None:
    with entry.stage("exchange", lambda config: config.attack) as stage:
        from basin import checkpoint, progress
        from basin.evaluation import certificate, exchange, outcomes
        from basin.evaluation.cascade import Evaluation
        from basin.models import artifact, recipe
        from basin.randomness import random_layers
        from basin.report import outcomes as reading
        from basin.report.table import worst_case
        from basin.stages import judging
        from basin.threat.ball import ThreatModel

        settings, threat = stage.config.attack, ThreatModel.of(stage.config.threat)
        found_on = reading.read_all(entry.OUTCOMES, settings.models, settings.suites)
        own = {model: reading.under_run(outcomes) for model, outcomes in found_on.items()}
        images, labels = judging.images(settings.images)
        for model in progress.each(settings.models, "exchange", "models"):
            classifier = artifact.load(entry.MODELS / model, stage.device).requires_grad_(False)
            seed, randomised = (stage.config.seed, f"exchange/{model}"), bool(random_layers(classifier))
            points = exchange.points(entry.OUTCOMES, model, settings.models, list(own[model]))
            asked = settings.images, settings.batch, threat.model_dump(), exchange.digest(points)
            weights = classifier.recipe, recipe.weights_digest(entry.MODELS / model)
            state = checkpoint.place(f"exchange/{model}", *asked, *weights, *stage.terms)
            stage.checkpoints.append(state)  # not removed earlier: dvc removes the folders of an interrupted exchange
            evaluation = Evaluation(classifier, None, threat, seed, settings.batch, state, randomised)
            found = exchange.exchange(evaluation, images, labels, points)
            about = judging.describe(model, "exchange", classifier.recipe) | {"flags": exchange.flags(found, worst_case(own[model]).value)}
            about["certified"] = certificate.certify(classifier, found, threat, settings.batch)
            summary = outcomes.write(entry.EXCHANGED / model, found, threat, about)
            stage.run.metrics({f"{model}.{key}": value for key, value in judging.numbers(summary).items() if not key.startswith("after.")})


if __name__ == "__main__":
    entry.launch(main)
