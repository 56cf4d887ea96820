"""backbone@NAME: a backbone with a linear classifier, trained from fresh weights, or from a file's -> models/backbone/NAME."""

from basin.config.params import Backbone
from basin.data.about import load_about
from basin.stages import entry


def main(name: str) -> None:
    model = f"backbone/{name}"
    with entry.stage(model, lambda config: config.entry(model), shared=True) as stage:
        from basin.models import artifact, start
        from basin.randomness import construct
        from basin.stages import train

        asked: Backbone = stage.config.backbone[name]
        kind = asked.backbone.module
        head = kind.head(asked.backbone.params) if hasattr(kind, "head") else {"kind": "linear"}
        began = start.read(asked.weights) if asked.weights else kind.start(asked.backbone.params) if hasattr(kind, "start") else None
        tree = {"normalise": train.normalise(load_about(entry.PREPARED), began), "backbone": asked.backbone.tree(), "head": head}
        with construct(stage.config.seed, model):
            classifier = artifact.build(train.recipe(stage, model, asked, tree, None)).to(stage.device)
        if began:
            start.put(began, classifier)
        images = train.training_images(stage, asked)
        train.fit(stage, asked, classifier, [train.end_to_end(stage, asked, classifier)], images, None)


if __name__ == "__main__":
    entry.launch(main)
