"""DVC's own commands on a real, tiny project: an experiment, differences, and a second clone that pulls and has nothing to do."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import vl_convert
from shell import do, git

from basin.report import figures
from basin.repro import project

pytestmark = pytest.mark.slow
PARAMS = """\
seed: 0
device: cpu
threads: 1
data: {kind: digits, train_limit: 200, test_limit: 40}
threat: {norm: linf, eps: 0.15}
backbone:
  natural:
    backbone: {kind: convnet, channels: [2], hidden: 8}
    training: {kind: natural}
    schedule: {epochs: 1, batch: 32, optimiser: adam, rate: 0.01, policy: constant}
adversarial: {}
head: {}
suites:
  short:
    attacks: {fgsm: {kind: fgsm}}
    curve: {attack: {kind: pgd, steps: 2}, times: [0.5, 2]}
attack: {models: [backbone/natural], suites: [short], images: 40, batch: 40}
registry: {name: null}
"""
MODEL = "backbone/natural"
EPOCHS = "backbone.natural.schedule.epochs"
COMMITTED = {"params.yaml", "dvc.yaml", "dvc.lock", "code.yaml", "report/table.csv", "report/metrics.json"}
KEPT_OUT = ("models/", "data/", "outcomes/", "history/", "exchanged/", ".basin/", "mlflow", "mlartifacts", "report/index.html")


def dvc(folder: Path, *words: str) -> str:
    return do(folder, "dvc", *words, BASIN_TRACKING="off")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one's own in git, with a run that is committed and pushed to a folder beside it."""
    (place := tmp_path_factory.mktemp("dvc") / "project").mkdir()
    git(place, "init", "-q")
    assert project.make(place, "digits", None) == []
    (place / "params.yaml").write_text(PARAMS, encoding="utf-8")
    dvc(place, "remote", "add", "-q", "-d", "store", "../../store")  # read from .dvc/config, so every clone beside it has it too
    dvc(place, "repro", "-q")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "the run")
    dvc(place, "push", "-q")
    return place


@pytest.fixture(scope="module")
def tried(made: Path) -> Path:
    """A copy in which an experiment was made; the commit has the run before it."""
    place = shutil.copytree(made, made.parent / "tried", symlinks=True)
    assert "Ran experiment(s): longer" in dvc(place, "exp", "run", "--name", "longer", "-S", f"{EPOCHS}=2", "report")
    return place


def test_what_a_run_leaves_is_in_git_where_it_is_small(made: Path):
    tracked = git(made, "ls-files").split()
    assert set(tracked) >= COMMITTED and not [name for name in tracked if name.startswith(KEPT_OUT)]
    assert git(made, "status", "--porcelain") == ""


def test_an_experiment_is_shown_with_its_params_and_figures(tried: Path):
    (row,) = (row for row in csv.DictReader(io.StringIO(dvc(tried, "exp", "show", "--csv"))) if row["Experiment"] == "longer")
    shown = {name.partition(":")[2] or name: value for name, value in row.items()}  # files are named where two have a key of that name
    told = json.loads((tried / "report/metrics.json").read_text(encoding="utf-8"))[MODEL]
    assert shown[EPOCHS] == "2" and told.keys() >= {"clean", "worst_case", "interval_low", "interval_high", "short", "n"}
    assert {name: float(shown[f"{MODEL}.{name}"]) for name in told} == told


def test_metrics_diff_has_the_figures_of_both(tried: Path):
    found = json.loads(dvc(tried, "metrics", "diff", "HEAD", "--all", "--json"))["report/metrics.json"]
    before = json.loads(git(tried, "show", "HEAD:report/metrics.json"))[MODEL]
    after = json.loads((tried / "report/metrics.json").read_text(encoding="utf-8"))[MODEL]
    for side, told in (("old", before), ("new", after)):
        assert {name.removeprefix(f"{MODEL}."): both[side] for name, both in found.items()} == told
    assert before["clean"] != after["clean"]


def test_plots_diff_draws_both_and_keeps_them_apart(tried: Path):
    dvc(tried, "plots", "diff", "HEAD", "longer", "-o", "drawn")
    specs = re.findall(r"var spec = (\{.*\});", (tried / "drawn/index.html").read_text(encoding="utf-8"))
    assert len(specs) == len(figures.PLOTS)
    for spec in specs:
        drawn = vl_convert.vegalite_to_svg(spec, vl_version=figures.VEGA_LITE)
        assert f">{MODEL} at HEAD<" in drawn and f">{MODEL} at longer<" in drawn


def test_a_second_clone_pulls_and_has_nothing_to_do(made: Path):
    clone = made.parent / "clone"
    git(made.parent, "clone", "-q", str(made), str(clone))
    dvc(clone, "pull", "-q")
    assert dvc(clone, "status") == "Data and pipelines are up to date.\n"
    assert dvc(clone, "repro").splitlines()[-1] == "Data and pipelines are up to date."
    assert git(clone, "status", "--porcelain") == ""
