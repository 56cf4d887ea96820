"""register: the attacked models -> MLflow's registry; aliases and champion. The receipt is what DVC keeps of it."""

from pipeline import registry, repro
from pipeline.registry import candidates
from stages import entry


def main() -> None:
    with entry.stage("register", lambda config: config.registry) as stage:
        digests = {model: repro.digest(entry.MODELS / model) for model in stage.config.attack.models}
        candidates.write(entry.REPORT / "registered.json", registry.register_all(stage.config, digests))


if __name__ == "__main__":
    entry.launch(main)
