"""report: outcomes and histories -> report/index.html, table.csv, metrics.json, curves.csv, history.csv. Runs no model."""

import os

from basin.stages import entry


def main() -> None:
    with entry.stage("report", lambda config: config.attack, computes=False) as stage:
        from basin.report import console, writing

        attack = stage.config.attack
        table = writing.write(entry.OUTCOMES, entry.HISTORY, attack.models, attack.suites, entry.REPORT)
        if console.LATER not in os.environ:
            console.show(table)


if __name__ == "__main__":
    entry.launch(main)
