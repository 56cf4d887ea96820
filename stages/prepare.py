"""prepare: the data set -> data/prepared/{train,validation,test}.safetensors, about.json."""

from basin.data import splits
from stages import entry


def main() -> None:
    with entry.stage("prepare", lambda config: config.data, gpu=False) as stage:
        source = stage.config.source
        about = splits.prepare(
            source.module.read(source.params), stage.config.splits, source.kind, source.kind, stage.config.seed, entry.PREPARED
        )
        stage.run.tags({"data_digest": about.digest})
        stage.run.metrics({f"images.{split}": count for split, count in about.counts.items()})


if __name__ == "__main__":
    entry.launch(main)
