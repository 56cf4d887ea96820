"""prepare: the data set -> data/prepared/{train,validation,test}.safetensors, about.json."""

from pipeline import data
from stages import entry


def main() -> None:
    with entry.stage("prepare", lambda config: config.data, models=False) as stage:
        source = stage.config.source
        about = data.prepare(
            source.module.read(source.params), stage.config.splits, source.kind, source.kind, stage.config.seed, entry.PREPARED
        )
        stage.run.tags({"data_digest": about.digest})
        stage.run.metrics({f"images.{split}": count for split, count in about.counts.items()})


if __name__ == "__main__":
    entry.launch(main)
