"""adversarial@NAME: the model it is built `from`, trained further end to end -> models/adversarial/NAME."""

from pipeline import artifact
from pipeline.config import Adversarial
from pipeline.randomness import construct
from stages import entry, train


def main(name: str) -> None:
    model = f"adversarial/{name}"
    with entry.stage(model, lambda config: config.entry(model)) as stage:
        asked: Adversarial = stage.config.adversarial[name]
        below = entry.MODELS / asked.from_
        parent = artifact.load(below, stage.device)
        with construct(stage.config.seed, model):
            classifier = artifact.build(train.recipe(stage, model, asked, parent.recipe["classifier"], parent.recipe)).to(stage.device)
        classifier.load_state_dict(parent.state_dict())
        images = train.training_images(stage, asked)
        train.fit(stage, model, classifier, [train.end_to_end(stage, asked, classifier)], images, below)


if __name__ == "__main__":
    entry.launch(main)
