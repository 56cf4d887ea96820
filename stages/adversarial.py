"""adversarial@NAME: the model it is built `from`, trained further end to end -> models/adversarial/NAME."""

from pipeline import artifact
from pipeline.config import Adversarial
from stages import entry, train


def main(name: str) -> None:
    model = f"adversarial/{name}"
    with entry.stage(model, lambda config: config.entry(model)) as stage:
        asked: Adversarial = stage.config.adversarial[name]
        below = entry.MODELS / asked.from_
        classifier = artifact.load(below, stage.device)
        classifier.recipe = train.recipe(stage, model, asked, classifier.recipe["classifier"], classifier.recipe)
        train.fit(stage, model, classifier, [train.end_to_end(stage, asked, classifier)], below)


if __name__ == "__main__":
    entry.launch(main)
