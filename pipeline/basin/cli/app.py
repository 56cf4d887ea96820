"""The console script `basin`: what `dvc repro`, Prefect and MLflow do not have a command for."""

import json
import logging
import os
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from basin import environment, files
from basin.cli import registry
from basin.errors import EXIT_CODE, Mistake, did_you_mean, exit_on_mistake

app = typer.Typer(no_args_is_help=True)

PREPARED, REPORT, RECEIPT = Path("data/prepared"), Path("report/index.html"), Path("report/registered.json")
Targets = Annotated[list[str] | None, typer.Argument(help="stages as `dvc stage list` names them; all by default")]
Workers = Annotated[int, typer.Option(min=1, help="how many stages may run at once")]


def _say_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"basin {version('basin')}")
        raise typer.Exit
    return asked


@app.callback()
def about(
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="say the version, and end")] = False,
) -> None:
    """Train defences, attack them, keep every model and number."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="where the project is to be: empty, or beside code of your own")],
    data: Annotated[
        str | None,
        typer.Option(help="a folder of images, one sub-folder a class | an .npz | the name of a ready-made run, e.g. digits; asked for"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="what your own images are called in reports and in the registry")] = None,
    eps: Annotated[
        str | None, typer.Option(help="radius of the threat in pixels scaled to [0, 1], for your own images, e.g. 0.1; 8/255 by default")
    ] = None,
) -> None:
    """Make a project of your own: params.yaml, the graph, .dvc, .gitignore, README.md. Then `basin repro` runs in it."""
    from basin.repro import project

    if data is None and sys.stdin.isatty():
        data = typer.prompt("Your images (a folder with one sub-folder a class, or an .npz), or a ready-made run", default="digits")
    if data is None:
        raise Mistake(
            f"--data: not given (got nothing). Give a folder of images, an .npz or a ready-made run. {did_you_mean('', project.runs())}"
        )
    for line in project.make(folder, data, name, eps):
        typer.echo(line)
    typer.echo(f"{folder}: a project. Next: cd {shlex.quote(str(folder))} && basin check && basin repro")


@app.command()
def use(name: Annotated[str, typer.Argument(help="a ready-made run: Basin's, or one under params/, without .yaml")]) -> None:
    """Make a ready-made run the params.yaml of this folder. Refuses to overwrite changes that are in no commit."""
    from basin.config import params
    from basin.repro import graph, project, watched

    runs, current = project.runs(), Path("params.yaml")
    if name not in runs:
        raise Mistake(f"params/{name}.yaml: no such run (got {name!r}). {did_you_mean(name, runs)}")
    is_ready_made = current.exists() and current.read_bytes() in {path.read_bytes() for path in runs.values()}
    if current.exists() and not is_ready_made and graph.is_changed(current):
        raise Mistake("params.yaml: has changes that are in no commit. Commit them, or keep a copy under params/, then run this again.")
    config = params.load(runs[name])
    files.write(current, runs[name].read_bytes())
    watched.keep(config)
    typer.echo(f"params.yaml is now the run {name}. Next: basin repro")


@app.command()
def check(
    data: Annotated[bool, typer.Option(help="whether to read the data too: all of it, as `prepare` does")] = True,
) -> None:
    """Read params.yaml and the data, and report every mistake in them."""
    from basin.config import suite
    from basin.data.about import load_about
    from basin.repro import code, fitting, graph, watched

    config = graph.check()
    code.keep()
    watched.keep(config)
    if data:
        from basin.data import splits

        source = config.source.module.read(config.source.params)
        parts = splits.placed(source, config.splits, config.seed)
        typer.echo("\n".join(splits.described(config.data_name, source, parts, config.attack.images)))
        shape, names, where = source.train.shape, source.classes, f"data {config.data_name}"
    elif (PREPARED / "about.json").exists():
        about = load_about(PREPARED)
        shape, names, where = about.shape, about.classes, str(PREPARED)
    else:
        typer.echo("params.yaml: no mistakes")
        return
    fitting.check(config, shape, names)
    typer.echo("params.yaml: no mistakes, and its models can be built")
    for name in config.attack.suites:
        for attack, words in suite.replaced(config.suites[name].attacks, len(names)).items():
            typer.echo(f"suites.{name}.attacks.{attack}: on the {len(names)} classes of {where} {words}")


@app.command()
def doctor() -> None:
    """Look at what Basin stands on (installation, device, project, data, servers): what is wrong and what to do; code 2 if any is."""
    from basin.cli import doctor

    found = list(doctor.findings())
    for well, line in found:
        typer.echo(f"{'ok   ' if well else 'WRONG'}  {line}")
    sys.exit(0 if all(well for well, _ in found) else EXIT_CODE)


@app.command()
def repro(targets: Targets = None) -> None:
    """`dvc repro`, after params.yaml was checked as a whole; then the result, and where to look."""
    from basin.config import params
    from basin.repro import whole
    from basin.tracking import parent
    from basin.tracking.shared import one_mirror

    _show_the_table_once(targets)
    with one_mirror(), parent.over(params.load(), targets or ()) as ended:
        ended(code := whole.reproduce(targets or []))
    _finish(code, targets)


@app.command()
def flow(
    targets: Targets = None,
    workers: Workers = 2,
    on: Annotated[str, typer.Option(help="here | ray | ray://HOST:PORT: the nodes of that cluster (docs/cluster.md)")] = "here",
) -> None:
    """The same graph as a Prefect flow: in parallel as the graph allows, retried, watched."""
    from basin.flow import commands

    _show_the_table_once(targets)
    _finish(commands.main(targets or None, workers, on), targets)


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(help="models:/NAME@ALIAS | a model folder | FILE.py:FUNCTION that returns an nn.Module")],
    data: Annotated[str, typer.Option(help="a prepared folder | an .npz of images and labels | a folder of images")],
    eps: Annotated[str, typer.Option(help="radius in pixels scaled to [0, 1], e.g. 0.1 or 8/255")],
    norm: Annotated[str, typer.Option(help="linf | l2 | l1")] = "linf",
    also: Annotated[list[str] | None, typer.Option(help="a further threat, as NORM:EPS, e.g. l2:0.5; may be given again")] = None,
    suite: Annotated[str, typer.Option(help="quick | standard | autoattack | adaptive")] = "adaptive",
    images: Annotated[int | None, typer.Option(min=1, help="how many images, with the classes in proportion; all by default")] = None,
    batch: Annotated[int, typer.Option(min=1, help="how many are attacked at once: it bounds the memory, docs/evaluation.md")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="of everything that is drawn")] = 0,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one) | cpu | cuda")] = "auto",
    normalise: Annotated[
        str | None,
        typer.Option(help="what images are brought to first: MEAN,.../STD,... a channel each | model: what the model names itself"),
    ] = None,
    thorough: Annotated[bool, typer.Option(help="no shortcut: every attack on every image that holds, every gradient in float32")] = False,
    json_file: registry.Json = None,
    outcomes: Annotated[Path | None, typer.Option(help="a folder for the outcomes image by image, and the points found")] = None,
) -> None:
    """The robust accuracy of any model: the per-image worst case over a suite, with its interval and flags.

    Interrupted and called again in the same folder, it goes on after the last finished attack.
    """
    from basin.config.suite import IN_FULL
    from basin.config.threat import asked, asked_also
    from basin.evaluation import outside
    from basin.progress import clock
    from basin.registry import lookup

    if outcomes:
        files.try_folder(outcomes)
    others = [asked_also(one) for one in also or ()]
    with registry.telling():
        result = outside.run(
            target, data, asked(norm, eps), suite, images, seed, lookup.load_with_twin, outcomes, device, normalise, thorough, others, batch
        )
    registry.write(json_file, result)
    typer.echo(f"The model: {'; '.join(result['facts']) or 'a function of each image, with a gradient'}")
    for name, robust in result["attacks"].items():
        given, spared = result["spared"].get(name, (0, 0))
        later = " at first" if name + IN_FULL in result["attacks"] else ""
        typer.echo(f"{robust:7.1%}  after {name}" + f", given the {given} closest to falling, {spared} spared{later}" * bool(spared))
    for name, (given, spared) in result["spared"].items():
        if spared and not given and name + IN_FULL not in result["attacks"]:
            typer.echo(f" spared  all {spared} by {name}: what had to take something before it took nothing")
    for name, words in result["replaced"].items():
        typer.echo(f"{name}: {words} (on {result['declared']['classes']} classes{', random' * result['declared']['randomised']})")
    low, high = result["interval"]
    typer.echo(f"{result['clean']:7.1%}  clean, n = {result['n']}")
    typer.echo(f"{result['worst_case']:7.1%}  worst case, 95% interval {low:.1%} to {high:.1%}, {norm} {eps}, suite {suite}")
    if result["uneven"]:
        typer.echo(f"{result['largest_class']:7.1%}  are of one class: what that answer alone would score")
        typer.echo(f"{result['balanced_clean']:7.1%}  clean, mean over the classes; worst case {result['balanced_worst_case']:.1%}")
    for name, found in result.get("threats", {}).items():
        typer.echo(f"{found['worst_case']:7.1%}  under {name}")
    if "union" in result:
        typer.echo(f"{result['union']['worst_case']:7.1%}  under every one of them, image by image")
    typer.echo(f"Flags: {', '.join(result['flags']) or 'none'} (docs/flags.md)")
    each = result["passes"] / result["n"]
    typer.echo(f"Cost: {result['passes']:,} passes, {each:,.0f} an image, in {clock(result['seconds'])} on {result['device']}")


@app.command()
def score(
    target: Annotated[str, typer.Argument(help="models:/NAME@ALIAS | a model folder")],
    folder: Annotated[Path, typer.Argument(help="where the images are, at any depth")],
    csv_file: Annotated[Path, typer.Option("--csv", help="where to write file, class, probability and problem")],
    resize: Annotated[bool, typer.Option(help="bring every image to the height and width that the model reads")] = False,
) -> None:
    """The class of every image file under a folder, as CSV. A file that cannot be read is a row with its problem."""
    from basin.registry import lookup, scoring

    files.try_file("--csv", csv_file)
    with registry.telling():
        read, problems = scoring.run(target, folder, csv_file, resize, lookup.load_with_twin)
    typer.echo(f"{csv_file}: {read - problems} of {read} images scored" + (f", {problems} could not be read" if problems else ""))


@app.command()
def serve(
    pool: Annotated[str, typer.Option(help="the work pool whose runs this workspace takes")] = "basin",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="of Prefect's pages, where PREFECT_API_URL names no server that is there already")
    ] = 4200,
) -> None:
    """Offer prefect.yaml's deployments (repro, sweep, evaluate, nightly) on Prefect's pages, and work on their runs, until interrupted."""
    from basin.flow import serving

    serving.serve(pool, port)


@app.command()
def ui(
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="port of MLflow's pages")] = 5000,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="port of Prefect's pages")] = 4200,
) -> None:
    """MLflow's and Prefect's pages, for this machine only, until interrupted."""
    from basin.config import params
    from basin.flow import server

    server.show(mlflow_port, prefect_port, params.load().data_name if Path("params.yaml").exists() else "")


registry.attach(app)


def _show_the_table_once(targets: list[str] | None) -> None:
    """After a whole run `_finish` does, so the stage does not."""
    from basin.report.console import LATER

    if not targets:
        os.environ[LATER] = "1"


def _finish(code: int, targets: list[str] | None) -> None:
    """After a whole run: the table, where to look, what to do next; then the run's exit code."""
    if code == 0 and not targets:
        from basin.config import params
        from basin.registry import lookup, upkeep
        from basin.registry.promotion import CHAMPION
        from basin.report import console, writing
        from basin.tracking import journal

        attack = params.load().attack
        console.show(writing.read(Path("outcomes"), attack.models, attack.suites))
        name = json.loads(RECEIPT.read_text(encoding="utf-8"))["name"]
        known = [version for version in lookup.find(name=name) if version["aliases"]]
        for one in known:
            typer.echo(f"{one['name']}/{one['version']} {one['model']}: {one['standing']} ({one['reasons']})")
        champion = f"models:/{name}@{CHAMPION}" if any(CHAMPION in one["aliases"] for one in known) else "none, the gate let no model pass"
        typer.echo(f"Report: {REPORT}    Champion: {champion}")
        tries = "  |  dvc exp run -S seed=1" * (journal.commit()["commit"] != "none")  # DVC's experiments need a commit
        typer.echo(f"Next:  basin ui{tries}  |  basin use NAME")
        if problems := upkeep.verify(*registry.run(), files=False):
            typer.echo("\n".join([*problems, "To mend it: basin registry sync"]))
    sys.exit(code)


def main() -> None:
    """Entry point: bad input ends in its text and exit code 2."""
    environment.apply()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line for each of Prefect's requests otherwise
    with exit_on_mistake():
        app()
