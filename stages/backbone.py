"""backbone@NAME: a backbone with a linear classifier, trained from fresh weights -> models/backbone/NAME."""

from pipeline import artifact
from pipeline.config import Backbone
from pipeline.data import load_about
from pipeline.optimise import Phase
from pipeline.randomness import construct
from stages import entry, train


def main(name: str) -> None:
    model = f"backbone/{name}"
    with entry.stage(model, lambda config: config.entry(model)) as stage:
        asked: Backbone = stage.config.backbone[name]
        tree = {"normalise": train.normalise(load_about(entry.PREPARED)), "backbone": asked.backbone.tree(), "head": {"kind": "linear"}}
        with construct(stage.config.seed, model):
            classifier = artifact.build(train.recipe(stage, model, asked, tree, None)).to(stage.device)
        loss = train.method_loss(stage, asked.training)
        phase = Phase(
            asked.training.kind, asked.schedule, [classifier.backbone, classifier.head], lambda x, y, g: loss(classifier, x, y, g)
        )
        train.fit(stage, model, classifier, [phase], None)


if __name__ == "__main__":
    entry.launch(main)
