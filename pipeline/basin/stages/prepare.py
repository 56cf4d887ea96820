"""prepare: the data set -> data/prepared/{train,validation,test}.safetensors, about.json."""

from basin.data import splits
from basin.stages import entry


def main() -> None:
    with entry.stage("prepare", lambda config: config.data, gpu=False) as stage:
        source = stage.config.source
        read, name = source.module.read(source.params), stage.config.data_name
        about = splits.prepare(read, stage.config.splits, name, source.kind, stage.config.seed, entry.PREPARED)
        stage.run.tags({"data_digest": about.digest})
        stage.run.metrics({f"images.{split}": count for split, count in about.counts.items()})


if __name__ == "__main__":
    entry.launch(main)
