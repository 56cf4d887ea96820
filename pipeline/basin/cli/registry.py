"""The commands of `basin` that look models up, compare them, and look after MLflow's registry."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from basin import files

registry_app = typer.Typer(no_args_is_help=True, help="Compare MLflow's registry with the runs, and mend it.")
Target = Annotated[str, typer.Argument(help="NAME@ALIAS or NAME/VERSION, e.g. digits-linf-0.15@champion; `basin models` lists them")]


def _tried(path: Path | None) -> Path | None:
    if path:
        files.try_file("--json", path)
    return path


Json = Annotated[Path | None, typer.Option("--json", callback=_tried, help="where to write the answer for a program")]


def attach(app: typer.Typer) -> None:
    """Add the commands to the console script."""
    for command in (models, show, compare, leaderboard, pull, promote, checkout, gc):
        app.command()(command)
    app.add_typer(registry_app, name="registry")


def models(
    data: Annotated[str | None, typer.Option(help="name of the data set, e.g. digits")] = None,
    norm: Annotated[str | None, typer.Option(help="of the threat that they were attacked with: linf | l2 | l1")] = None,
    eps: Annotated[str | None, typer.Option(help="its radius in pixels scaled to [0, 1], e.g. 0.1 or 8/255")] = None,
    min_robust: Annotated[float, typer.Option(min=0, max=1, help="worst-case robust accuracy of at least, 0 to 1")] = 0.0,
    min_clean: Annotated[float, typer.Option(min=0, max=1, help="clean accuracy of at least, 0 to 1")] = 0.0,
    json_file: Json = None,
) -> None:
    """The models of the registry, of each name the most robust first: aliases, worst case, clean accuracy, what the gate says.

    `basin models --data digits --norm linf --eps 0.15 --min-robust 0.5` lists those that fit a need.
    """
    from basin.config.threat import asked
    from basin.registry import lookup

    threat = asked(norm or "linf", eps or 1.0)
    found = lookup.find(data, norm, threat.eps if eps else None, min_robust, min_clean)
    write(json_file, found)
    rows = [("version", "aliases", "model", "worst case", "clean", "n", "standing", "flags not resolved"), *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows if found else [("No model of the registry fits.",)]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    low, high = one["interval"]
    worst, version = f"{one['worst_case']:.1%} [{low:.1%}, {high:.1%}]", f"{one['name']}/{one['version']}"
    called = ", ".join(one["aliases"])
    return version, called, one["model"], worst, f"{one['clean']:.1%}", str(one["n"]), one["standing"], one["unresolved"]


def show(target: Target, json_file: Json = None) -> None:
    """Everything that stands in a version: its card, tags, metrics and files."""
    from basin.registry import lookup

    found = lookup.show(target)
    write(json_file, found)
    typer.echo(found["card"] or "No card.")
    for title, table in (("Tags", found["tags"]), ("Metrics", found["metrics"])):
        typer.echo(f"\n{title}\n" + "\n".join(f"  {key}: {value}" for key, value in sorted(table.items())))
    typer.echo("\nFiles\n" + "\n".join(f"  {name}" for name in found["files"]))


def compare(a: Target, b: Target, json_file: Json = None) -> None:
    """Two versions side by side, and the difference of their robust accuracies on the images that both were attacked on.

    The interval is that of Agresti and Min (2005) for paired images; the gate asks McNemar's exact test (docs/registry.md).
    """
    from basin.registry import lookup

    found = lookup.compare(a, b)
    write(json_file, found)
    for kind in ("metrics", "tags"):
        typer.echo("\n".join(f"{key:24} {_cell(one):>24}  {_cell(other)}" for key, (one, other) in found[kind].items()) + "\n")
    if difference := found["difference"]:
        low, high = (100 * value for value in difference["interval"])
        typer.echo(f"A - B: {100 * difference['value']:+.1f} points [{low:+.1f}, {high:+.1f}] on {difference['n']} images that both met")
        for side, ways in found["attacked_by_less"].items():
            typer.echo("\n".join(f"{side.upper()} was attacked by less: {way}" for way in ways), nl=bool(ways))
    else:
        typer.echo("Not comparable: measured on other data, other images or another threat.")


def leaderboard(
    data: Annotated[str | None, typer.Option(help="name of the data set, e.g. digits; that of params.yaml by default")] = None,
    norm: Annotated[str | None, typer.Option(help="of the threat: linf | l2 | l1; that of params.yaml by default")] = None,
    eps: Annotated[str | None, typer.Option(help="its radius, e.g. 0.1 or 8/255; that of params.yaml by default")] = None,
    to: Annotated[Path, typer.Option(help="the folder to make, or to write anew")] = Path("leaderboard"),
) -> None:
    """All that the registry holds for one data set and threat, as a folder of pages to be put on a web server."""
    from basin.config import params
    from basin.config.threat import asked
    from basin.registry import board

    files.try_folder(to)
    if not (data and norm and eps):
        config = params.load()
        data, norm, eps = data or config.data_name, norm or config.threat.norm, eps or str(config.threat.eps)
    written = board.leaderboard(to, data, norm, asked(norm, eps).eps)
    typer.echo(f"{to / 'index.html'}: {written} versions")


def pull(
    target: Target,
    to: Annotated[Path | None, typer.Option(help="the folder to make; NAME-VERSION by default")] = None,
    json_file: Json = None,
) -> None:
    """Take a model folder (weights, recipe, twin) out of the registry; every file is compared with its digest."""
    from basin.registry import lookup

    folder = to or Path(target.removeprefix("models:/").replace("@", "-").replace("/", "-"))
    found = lookup.pull(target, folder)
    write(json_file, {"folder": str(folder), "files": found})
    typer.echo(f"{folder}: {len(found)} files. Next: basin evaluate {folder} --data data/prepared --eps 0.1")


def promote(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what the gate decides")] = False, json_file: Json = None
) -> None:
    """Ask the promotion gate of params.yaml who is champion, challenger or unreliable, and why; move the alias if that changes.

    Registration does the same at the end of every run. docs/registry.md says what the gate asks.
    """
    from basin.config import params
    from basin.registry import registration

    decisions = registration.promote(params.load(), dry_run)
    write(json_file, {name: {"standing": one.standing, "reasons": list(one.reasons)} for name, one in decisions.items()})
    for name, one in decisions.items():
        typer.echo(f"{one.standing:10}  {name}: {'; '.join(one.reasons)}")
    typer.echo("Nothing was changed." if dry_run else "The registry says so.")


def checkout(target: Target) -> None:
    """Restore the run of a version into this folder: its commit, params.yaml, dvc.lock and DVC's outputs.

    Refuses to touch anything where tracked files have changes that are in no commit, or where a part of the run is missing, and says which.
    """
    from basin.registry import checkout as restoring

    run, outs = restoring.checkout(target)
    typer.echo(f"Commit {run.at['commit'][:12]} and {len(outs)} outputs are in place. Next: dvc repro. Back: git switch -")


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="remove without asking")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list")] = False,
    json_file: Json = None,
) -> None:
    """List the versions that no alias, no dvc.lock of a commit and no report needs, ask, and remove them with their files.

    A champion has an alias and is never removed; of several checkouts on one MLflow the last one that needs a version removes it.
    """
    from basin.config import params
    from basin.registry import removal

    found = removal.gc(params.load())
    write(json_file, found)
    for one in found:
        stays = f"  stays for {', '.join(one['needed_by'])}" if one["needed_by"] else ""
        typer.echo(f"{one['name']}/{one['version']}  {one['model']}  {one['dvc.md5']}{stays}")
    if not found or dry_run:
        typer.echo(f"{len(found)} versions that nothing needs.")
    elif yes or typer.confirm(f"Remove these {len(found)} versions?"):
        removal.remove(found)
        stay = sum(bool(one["needed_by"]) for one in found)
        typer.echo(f"{len(found) - stay} versions removed." + (f" {stay} given up, which other checkouts need." if stay else ""))


@registry_app.command()
def verify(json_file: Json = None) -> None:
    """What of MLflow's registry is missing, stale, foreign or changed by hand; exit code 1 where anything is."""
    from basin.registry import upkeep

    problems = upkeep.verify(*run())
    write(json_file, problems)
    typer.echo("\n".join(problems) or "The registry is what the runs left.")
    sys.exit(bool(problems))


@registry_app.command()
def sync(json_file: Json = None) -> None:
    """Mend MLflow's registry from DVC's cache: this run and those before it; trains nothing. Exit code 1 where something stays lost."""
    from basin.registry import upkeep

    lost = upkeep.sync(*run())
    problems = [*lost, *upkeep.verify(*run())]
    write(json_file, problems)
    typer.echo("\n".join(problems) or "The registry is what the runs left.")
    sys.exit(bool(problems))


def run() -> tuple[Any, dict[str, str | None]]:
    """The config, and DVC's digest of each model's folder."""
    from basin.config import params
    from basin.registry import snapshot

    settings = params.load()
    return settings, snapshot.digests(settings)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value or "-")


def write(path: Path | None, answer: Any) -> None:
    """The answer as JSON, where it is asked for."""
    if path:
        with telling():
            files.write(path, json.dumps(answer, indent=1) + "\n")


@contextmanager
def telling() -> Iterator[None]:
    """What was computed is told where it cannot be written after all."""
    try:
        yield
    except files.Unwritten as unwritten:
        typer.echo(unwritten.kept)
        raise
