"""The console script `basin`: what `dvc repro`, Prefect and MLflow do not have a command for."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline import environment
from pipeline.errors import Mistake, did_you_mean, exit_on_mistake

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", help="Train defences, attack them, keep every number."
)
registry_app = typer.Typer(no_args_is_help=True, help="Compare MLflow's registry with the run, and mend it.")
app.add_typer(registry_app, name="registry")

Targets = Annotated[list[str] | None, typer.Argument(help="stages as `dvc stage list` names them; all by default")]


@app.command()
def use(name: Annotated[str, typer.Argument(help="a run under params/, without .yaml")]) -> None:
    """Make params/NAME.yaml the params.yaml of this folder. Refuses to overwrite changes that are in no commit."""
    from pipeline import repro

    runs = {path.stem: path for path in Path("params").glob("*.yaml")}
    if name not in runs:
        raise Mistake(f"params/{name}.yaml: no such run (got {name!r}). {did_you_mean(name, runs)}")
    chosen, current = runs[name].read_bytes(), Path("params.yaml")
    known = [path.read_bytes() for path in runs.values()]
    if current.exists() and current.read_bytes() not in known and repro.is_changed(current):
        raise Mistake("params.yaml: has changes that are in no commit. Commit them, or keep a copy under params/, then run this again.")
    current.write_bytes(chosen)
    typer.echo(f"params.yaml is now {runs[name]}. Next: dvc repro")


@app.command()
def repro(targets: Targets = None) -> None:
    """`dvc repro`, after params.yaml has been checked as a whole; then the result, and where to look."""
    from pipeline import repro as dvc
    from stages import summary

    code = dvc.reproduce(targets or [])
    if code == 0:
        summary.show()
    sys.exit(code)


@app.command()
def flow(targets: Targets = None, workers: Annotated[int, typer.Option(min=1, help="how many stages may run at once")] = 2) -> None:
    """The same graph as a Prefect flow: in parallel as the graph allows, retried, watched."""
    from pipeline import flow as prefect_flow
    from stages import summary

    code = prefect_flow.main(targets or None, workers)
    if code == 0:
        summary.show()
    sys.exit(code)


@app.command()
def check() -> None:
    """Read params.yaml and report every mistake in it."""
    from pipeline import config

    config.load()
    typer.echo("params.yaml: no mistakes")


def main() -> None:
    """Entry point: bad input ends in its text and exit code 2."""
    environment.apply()
    with exit_on_mistake():
        app()
