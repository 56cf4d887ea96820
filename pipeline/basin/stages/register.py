"""register: the attacked models -> MLflow's registry; aliases and champion. The receipt is what DVC keeps of it."""

from basin.stages import entry


def main() -> None:
    with entry.stage("register", lambda config: config.registry, gpu=False, reads=lambda config: (config.attack, config.suites)) as stage:
        from basin.registry import candidates, registration, snapshot

        receipt = registration.register_all(stage.config, snapshot.digests(stage.config))
        stage.run.tags({"pipeline": receipt["pipeline"]})
        candidates.write(entry.REPORT / "registered.json", receipt)


if __name__ == "__main__":
    entry.launch(main)
