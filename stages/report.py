"""report: outcomes and histories -> report/index.html, table.csv, metrics.json, curves.csv, history.csv. Runs no model."""

from rich.console import Console

from pipeline import report
from stages import entry


def main() -> None:
    with entry.stage("report", lambda config: config.attack, models=False) as stage:
        attack = stage.config.attack
        table = report.write(entry.OUTCOMES, entry.HISTORY, attack.models, attack.suites, entry.REPORT)
        Console().print(report.terminal(table))


if __name__ == "__main__":
    entry.launch(main)
