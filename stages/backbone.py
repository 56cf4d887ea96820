"""backbone@NAME: a backbone with a linear classifier, trained from fresh weights -> models/backbone/NAME."""

from pipeline import artifact
from pipeline.config import Backbone
from pipeline.data import load_about
from pipeline.randomness import construct
from stages import entry, train


def main(name: str) -> None:
    model = f"backbone/{name}"
    with entry.stage(model, lambda config: config.entry(model)) as stage:
        asked: Backbone = stage.config.backbone[name]
        tree = {"normalise": train.normalise(load_about(entry.PREPARED)), "backbone": asked.backbone.tree(), "head": {"kind": "linear"}}
        with construct(stage.config.seed, model):
            classifier = artifact.build(train.recipe(stage, model, asked, tree, None)).to(stage.device)
        train.fit(stage, model, classifier, [train.end_to_end(stage, asked, classifier)], None)


if __name__ == "__main__":
    entry.launch(main)
