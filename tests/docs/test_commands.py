"""Every `basin`, `dvc` and `make` in the pages exists, with the options that it shows. Parsed by their own parsers, and not run."""

import re
from typing import Any

import pytest
import typer
from dvc.cli.parser import DvcParser, get_main_parser
from pages import PAGES, ROOT, commands

from basin.cli.app import app
from basin.repro import project

BASIN = typer.main.get_command(app)
DVC = get_main_parser()
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

PROGRAMS = ("basin", "dvc", "make")
SHOWN = [*PAGES, ROOT / "pipeline/basin/repro/template/README.md"]  # the second is a new project's

UNCHECKED = {
    "mlflow": "MLflow's own command line takes seconds to import; tests/registry starts its server and its serving",
    "prefect": "Prefect's own; tests/flow starts its server",
    "ray": "an extra, on machines of a cluster; tests/flow/test_flow_cluster.py starts one",
    "python": "a benchmark of minutes to hours",
    "pip": "the network",
    "uv": "the network; tests/cli/test_wheel.py builds and installs the wheel",
    "git": "stands for an address of the reader's",
    "apt-get": "the network, and Debian",
}
FRAGMENTS = {
    ("dvc", "exp", "run", "-S"): "the option alone, whose value is the reader's",
    ("dvc", "remote", "modify", "--local"): "the option alone: what is modified are a person's credentials",
}


def shown(programs: tuple[str, ...] = PROGRAMS) -> list[list[str]]:
    """The calls of the programs in all the pages."""
    return [words for page in SHOWN for words in commands(page.read_text(encoding="utf-8"), programs)]


def unfit(words: list[str]) -> str | None:
    """What is wrong with a call, or None."""
    if tuple(words) in FRAGMENTS or len(words) == 1:
        return None
    return {"basin": unfit_basin, "dvc": unfit_dvc, "make": unfit_make}[words[0]](words[1:])


def unfit_make(words: list[str]) -> str | None:
    unknown = [word for word in words if "=" not in word and word not in TARGETS]
    return f"make has no {unknown}" if unknown else None


def unfit_dvc(words: list[str]) -> str | None:
    """A command alone may be named without what it needs."""

    def refuse(_: Any, message: str, *__: Any) -> None:
        raise ValueError(message)  # DVC's own is logged, with a page of help, and empty

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DvcParser, "error", refuse)
        try:
            DVC.parse_args(words)
        except ValueError as error:
            return None if "required" in str(error) and not any(word.startswith("-") for word in words) else f"dvc: {error}"
    return None


def unfit_basin(words: list[str]) -> str | None:
    command: Any = BASIN
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"basin has no {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    try:
        if words:
            command.make_context("basin", [word for word in words if word != "..."])
    except Exception as error:  # click's, of the copy that typer brings
        if not ("..." in words and "Missing" in str(error)):
            return f"basin: {error}"
    if command.name == "use" and words and not words[0].isupper() and words[0] not in project.runs():
        return f"basin use: no ready-made run {words[0]}"
    return None


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_exists_with_its_options(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a `--json FILE` is tried when it is read
    found = {tuple(words): unfit(words) for words in commands(page.read_text(encoding="utf-8"), PROGRAMS)}
    assert [f"{' '.join(words)}: {wrong}" for words, wrong in found.items() if wrong] == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("    basin frobnicate\n", "basin has no frobnicate"),
        ("    basin flow --wokers 4\n", "basin: No such option: --wokers"),
        ("    basin flow --workers four\n", "basin: Input should be a valid integer"),
        ("say `basin evaluate net.py:f --data D`.\n", "basin: Missing parameter: eps"),
        ("    cd robust && basin check now\n", "basin: Got unexpected extra argument"),
        ("```bash\nbasin use no_such    # a run\n```\n", "basin use: no ready-made run no_such"),
        ("    dvc repro --nothing\n", "dvc: unrecognized arguments"),
        ("    dvc no_such\n", "dvc: argument command: invalid choice"),
        ("    make nothing    for nobody\n", "make has no ['nothing']"),
    ],
)
def test_a_wrong_command_is_seen(text, wrong):
    (words,) = commands(text, PROGRAMS)
    assert (unfit(words) or "").startswith(wrong)


def test_the_pages_show_commands_and_nothing_is_excused_that_is_not_there():
    calls = shown((*PROGRAMS, *UNCHECKED))
    assert {*PROGRAMS, *UNCHECKED} <= {words[0] for words in calls} and len(calls) > 150
    assert all(list(words) in calls for words in FRAGMENTS)
