"""head@NAME: a new head on the backbone of the model it is built `from` -> models/head/NAME."""

from basin.config.params import Head
from basin.stages import entry


def main(name: str) -> None:
    model = f"head/{name}"
    with entry.stage(model, lambda config: config.entry(model), shared=True) as stage:
        from basin.models import artifact
        from basin.randomness import construct
        from basin.stages import train

        asked: Head = stage.config.head[name]
        below = entry.MODELS / asked.from_
        parent = artifact.load(below, stage.device)
        tree = parent.recipe["classifier"] | {"head": asked.head.tree()}
        with construct(stage.config.seed, model):
            classifier = artifact.build(train.recipe(stage, model, asked, tree, parent.recipe)).to(stage.device)
        classifier.backbone.load_state_dict(parent.backbone.state_dict())
        images = train.training_images(stage, asked)
        phases = asked.head.module.phases(asked.schedules, classifier, train.method_loss(stage, asked.training), images)
        train.fit(stage, asked, classifier, phases, images, below)


if __name__ == "__main__":
    entry.launch(main)
