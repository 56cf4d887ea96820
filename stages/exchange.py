"""exchange: every attacked model, judged at the points that were found on the others -> exchanged/MODEL."""

from pipeline import artifact, exchange, outcomes
from pipeline.evaluation import Evaluation
from pipeline.randomness import random_layers
from pipeline.report import outcomes as reading
from pipeline.report.table import worst_case
from stages import entry, judging


def main() -> None:
    with entry.stage("exchange", lambda config: config.attack) as stage:
        settings, threat = stage.config.attack, stage.config.threat
        own = reading.read_all(entry.OUTCOMES, settings.models, settings.suites)
        images, labels = judging.images(settings.images)
        for model in settings.models:
            classifier = artifact.load(entry.MODELS / model, stage.device).requires_grad_(False)
            seed, randomised = (stage.config.seed, f"exchange/{model}"), bool(random_layers(classifier))
            evaluation = Evaluation(classifier, None, threat, seed, settings.batch, randomised=randomised)
            points = exchange.points(entry.OUTCOMES, model, settings.models, settings.suites)
            found = exchange.exchange(evaluation, images, labels, points)
            about = judging.describe(model, "exchange", classifier.recipe) | {"flags": exchange.flags(found, worst_case(own[model]).value)}
            summary = outcomes.write(entry.EXCHANGED / model, found, threat, about)
            stage.run.metrics({f"{model}.{key}": value for key, value in judging.numbers(summary).items() if not key.startswith("after.")})


if __name__ == "__main__":
    entry.launch(main)
