"""A project of one's own: a folder with params.yaml, the graph, `.dvc` and what git and DVC leave out, for an installed Basin."""

import json
import os
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path
from string import Template
from typing import Any

from ruamel.yaml import YAML

from basin import files
from basin.config.splits import NAME, SplitSettings
from basin.config.threat import asked
from basin.errors import Mistake, did_you_mean
from basin.repro import code, graph, watched

TEMPLATE = Path(__file__).parent / "template"
RUNS = TEMPLATE / "runs"
WRITTEN = ("params.yaml", "dvc.yaml", "code.yaml", "models", "history", "outcomes", "exchanged", "report")  # ours alone
MOST_SIDE, SIDE = 128, 64  # larger images, and those of several sizes, are brought to SIDE: what a small net on a processor can train on
EPS = "8/255"  # of the threat on images of one's own
WIDTHS = (16, 32, 64, 128, 128)
NO_GIT = (
    "git: this folder is in no repository, so no commit stands beside a run and `dvc exp` does not work. "
    "To have both: git init && dvc config --unset core.no_scm"
)


def make(folder: Path, data: str, name: str | None = None, eps: str | None = None) -> list[str]:
    """Make the project; what is worth telling, a line each. Raises Mistake, and writes nothing, where a file of another's is in the way."""
    asked("linf", EPS if eps is None else eps)
    if name is not None and not re.match(NAME, name):
        raise Mistake(f"--name: should be letters (a to z), digits, _ and -, 1 to 64 of them (got {name!r}). Give such a name.")
    if there := [one for one in WRITTEN if (folder / one).exists()]:
        advice = f"Give a folder of its own: basin init {folder / 'robust'}."
        raise Mistake(f"{folder / there[0]}: is there already (got a project, or a file of another's). {advice}")
    run, told = _run(folder, data, name, eps)
    kind = YAML(typ="safe", pure=True).load(run)["data"]["kind"]
    _append(folder / ".gitignore", "gitignore")
    _append(folder / ".dvcignore", "dvcignore")
    told += _init_dvc(folder)  # what may fail comes before what would be in the way of another try
    readme = folder / ("BASIN.md" if (folder / "README.md").exists() else "README.md")
    files.write(readme, (TEMPLATE / "README.md").read_bytes())
    files.write(folder / "dvc.yaml", watched.graph(code.graph(), kind))
    files.write(folder / code.FILE, code.text())
    files.write(folder / "params.yaml", run)
    return told


def runs(folder: Path = Path("params")) -> dict[str, Path]:
    """The ready-made runs by name: Basin's, and those under params/ here, which come before."""
    return {path.stem: path for place in (RUNS, folder) for path in sorted(place.glob("*.yaml"))}


def _run(folder: Path, data: str, name: str | None, eps: str | None) -> tuple[str, list[str]]:
    """The params.yaml for what the person said of their data."""
    if Path(data).is_dir() or data.endswith(".npz"):
        return _own(folder, Path(data), name, eps or EPS)
    if data not in runs():
        raise Mistake(f"--data: no folder of images, no .npz, no ready-made run (got {data!r}). {did_you_mean(data, runs())}")
    for option, value, key in (("--name", name, "data.name"), ("--eps", eps, "threat.eps")):
        if value is not None:
            raise Mistake(
                f"{option}: is for images of your own (got {value} with the run {data}). Leave it out, and set {key} in params.yaml."
            )
    return runs()[data].read_text(encoding="utf-8"), []


def _own(folder: Path, data: Path, name: str | None, eps: str) -> tuple[str, list[str]]:
    """A first run on somebody's images: a small net, trained naturally and adversarially."""
    place = os.path.relpath(data, folder) if data.resolve().is_relative_to(folder.resolve()) else str(data.resolve())
    sides, table, told = _npz(data, place) if data.suffix == ".npz" else _folder(data, place)
    table = {"kind": table.pop("kind"), "name": name or SplitSettings.named(data), **table}
    channels = WIDTHS[: max(1, min(len(WIDTHS), (sides // 16).bit_length()))]
    lines = "\n".join(f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in table.items())
    template = Template((TEMPLATE / "own.yaml").read_text(encoding="utf-8"))
    return template.substitute(data=lines, eps=eps, channels=list(channels)), told


def _npz(data: Path, place: str) -> tuple[int, dict[str, Any], list[str]]:
    from basin.methods.sources import npz

    return min(npz.read(npz.Params(file=str(data))).train.shape[1:]), {"kind": "npz", "file": place}, []


def _folder(data: Path, place: str) -> tuple[int, dict[str, Any], list[str]]:
    """The shorter side that images are to have, the table `data`, and what was seen."""
    from basin.methods.sources import folder

    sizes, bad = folder.sizes(folder.Params(folder=str(data)))
    told = []
    if bad:
        told.append(f"{data}: {bad} files are no images. `basin check` names all; `unreadable: leave_out` in params.yaml leaves them out.")
    size = None if len(sizes) == 1 and max(max(sizes)) <= MOST_SIDE else [SIDE, SIDE]
    if size:
        told.append(f"{data}: images of {len(sizes)} sizes, up to {max(sizes)}; brought to {size}. Change that as you like: data.size.")
    table = {"kind": "folder", "folder": place, "size": size, "channels": 3, "unreadable": "refuse"}
    return min(size or next(iter(sizes))), table, told


def _append(path: Path, template: str) -> None:
    """Add the lines that a file lacks."""
    there = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = (TEMPLATE / template).read_text(encoding="utf-8").splitlines()
    if new := [line for line in lines if line not in there.splitlines()]:
        files.write(path, "\n".join([*there.splitlines(), *new, ""]))


def _init_dvc(folder: Path) -> list[str]:
    """DVC's own folder: with git where the folder is in a repository, without it elsewhere, with a word on what that costs."""
    if (folder / ".dvc").is_dir():
        return []
    top = _git_top(folder)
    flag = ["--no-scm"] if top is None else [] if top == folder.resolve() else ["--subdir"]
    words = ["init", "-q", *flag]
    done = subprocess.run([*graph.DVC, *words], cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())[-300:]
        raise Mistake(f"{folder}: DVC cannot begin a project there (got {said}). Mend that, then run in it: dvc {' '.join(words)}.")
    (settings := ConfigParser()).read(config := folder / ".dvc/config", encoding="utf-8")
    plots = {"html_template": "../report/plots/page.html"}  # which the report writes: DVC's own needs a network
    settings.read_dict({"core": {"analytics": "false", "check_update": "false"}, "plots": plots})
    with config.open("w", encoding="utf-8") as file:
        settings.write(file)
    return [] if top else [NO_GIT]


def _git_top(folder: Path) -> Path | None:
    try:
        command = ["git", "rev-parse", "--show-toplevel"]
        said = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(said.strip()).resolve()
