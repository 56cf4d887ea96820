"""adversarial@NAME: the model it is built `from`, trained further end to end -> models/adversarial/NAME."""

from basin.config.params import Adversarial
from basin.stages import entry


def main(name: str) -> None:
    model = f"adversarial/{name}"
    with entry.stage(model, lambda config: config.entry(model), shared=True) as stage:
        from basin.models import artifact
        from basin.randomness import construct
        from basin.stages import train

        asked: Adversarial = stage.config.adversarial[name]
        below = entry.MODELS / asked.from_
        parent = artifact.load(below, stage.device)
        with construct(stage.config.seed, model):
            classifier = artifact.build(train.recipe(stage, model, asked, parent.recipe["classifier"], parent.recipe)).to(stage.device)
        classifier.load_state_dict(parent.state_dict())
        images = train.training_images(stage, asked)
        train.fit(stage, asked, classifier, [train.end_to_end(stage, asked, classifier)], images, below)


if __name__ == "__main__":
    entry.launch(main)
