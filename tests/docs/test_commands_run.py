"""Every `basin`, `dvc` and `make` in the pages is run, here in a tiny project or by another test, or says why it is not.

A command is shown with words that stand for the reader's own; WORDS says what they are here.
"""

from pathlib import Path

import numpy as np
import pytest
from pages import ROOT
from PIL import Image
from shell import do, git
from test_commands import FRAGMENTS, shown

PARAMS = """\
seed: 0
device: cpu
threads: 1
data: {kind: digits, train_limit: 200, test_limit: 40}
threat: {norm: linf, eps: 0.15}
backbone:
  natural:
    backbone: {kind: convnet, channels: [2], hidden: 16}
    training: {kind: natural}
    schedule: {epochs: 1, batch: 32, optimiser: adam, rate: 0.01, policy: constant}
adversarial:
  trades:
    from: backbone/natural
    training: {kind: trades, beta: 6.0, steps: 1, step: 1.0}
    schedule: {epochs: 2, batch: 32, optimiser: adam, rate: 0.01, policy: constant}
head:
  sodef_natural:
    from: backbone/natural
    head: {kind: sodef, form: paper, drift: two_layers, width: 10, T: 2.0, solver: {method: rk4, steps: 2, gradient: exact}}
    training: {kind: natural}
    schedule: {epochs: 2, batch: 32, optimiser: adam, rate: 0.001, a1: 1.0, a2: 0.05, a3: 0.05}
suites:
  quick: {}
attack: {models: [backbone/natural, adversarial/trades, head/sodef_natural], suites: [quick], images: 40, batch: 40}
registry: {name: null}
"""
NET = """
import torch

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(192, 3)).eval()
"""
CHAMPION, OTHER = "digits-linf-0.15@champion", "digits-linf-0.15/1"
WORDS = {
    "NAME@champion": CHAMPION,
    "models:/NAME@champion": f"models:/{CHAMPION}",
    "NAME/3": OTHER,
    "STAGE": "prepare",
    "PLACE": "../store",
    "TARGET": "models/backbone/natural",
    "DATA": "data/prepared",
    "1000": "20",
    "net.py:FUNCTION": "net.py:model",
}

PHOTOGRAPHS = (  # beside photographs and a net of one's own
    "basin init robust --data my/photographs",
    "basin evaluate net.py:model --data my/photographs --eps 8/255 --normalise 0.485,0.456,0.406/0.229,0.224,0.225",
    "basin evaluate net.py:FUNCTION ...",
)
RUN = (  # in the order in which they make sense, in a project with one commit
    "basin check",
    "basin doctor",
    "dvc remote add -d store PLACE",
    "dvc stage list",
    "dvc dag --mermaid",
    "dvc --wait-for-lock repro --single-item STAGE",
    "dvc repro prepare",
    "dvc repro STAGE",
    "dvc repro attack@head/sodef_natural-quick",
    "basin repro",
    "dvc repro report",
    "dvc status",
    "dvc repro",
    "dvc push",
    "dvc pull",
    "dvc fetch -A",
    "dvc push --run-cache",
    "dvc pull --run-cache",
    "dvc repro --single-item --pull",
    "dvc metrics show",
    "dvc metrics diff HEAD",
    "dvc plots show",
    "basin models",
    "basin models --data digits --norm linf --eps 0.15 --min-robust 0.5",
    "basin show digits-linf-0.15@champion",
    "basin compare NAME/3 NAME@champion",
    "basin promote --dry-run",
    "basin promote",
    "basin leaderboard --to FOLDER",
    "basin pull NAME@champion --to FOLDER",
    "basin registry verify",
    "basin registry sync",
    "basin score models:/digits-linf-0.15@champion photos/ --csv scores.csv",
    "basin evaluate TARGET --data DATA --norm linf --eps 8/255 --suite adaptive --images 1000 --seed 0 --json answer.json "
    "--outcomes FOLDER",
    "basin evaluate models:/NAME@champion ...",
    "basin gc",
    "basin checkout NAME@champion",
    "dvc exp run -S head.sodef_natural.head.T=1.0",
    "dvc exp show",
    "dvc exp apply NAME",
    "dvc exp remove NAME",
    "basin use NAME",
    "basin use best_fashion",
    "basin use certified_fashion",
    "basin use cifar10_jpeg",
    "basin use fashion_methods",
    "basin use fashion_mnist",
    "basin use stable_digits",
    "basin use stable_fashion",
    "basin use suites",
    "basin use verdicts",
    "basin use digits",
)
NOT_HERE = {  # by their first words
    "basin flow": "tests/flow/test_flow.py",
    "basin flow --workers 8 --on ray": "tests/flow/test_flow_cluster.py",
    "basin serve": "tests/flow/test_flow_serving.py",
    "basin ui": "tests/registry/test_servers.py",
    "basin evaluate net.py:from_": "tests/docs/test_recipes.py",
    "make docs": "tests/docs/test_site.py",
    "make check": "reads the code without running it",
    "make test": "these tests",
    "make chaos": "tests/chaos/test_chaos.py",
    "make imports": "tests/test_rooms.py",
    "make repro": "`basin repro` in this checkout",
    "make flow": "`basin flow` in this checkout",
    "make serve": "`basin serve` in this checkout",
    "make ui": "`basin ui` in this checkout",
    "make setup": "made the environment in which this runs",
    "make bench": "not run: minutes; tests/test_speed.py takes its parts",
    "make audit": "not run: the network",
    "make lock": "not run: the network",
    "make clean": "not run: removes what a person has computed",
    "dvc remote add --default store s3://BUCKET/basin": "not run: a store that a person pays for",
    "dvc remote modify --local": "not run: a person's credentials",
    "dvc queue": "not run: named in a decision against it",
}


def covered(words: list[str]) -> bool:
    """Whether a call is run, is the first words of one that is, or is marked."""
    text = " ".join(words)
    run = any(f"{call} ".startswith(f"{text} ") for call in (*PHOTOGRAPHS, *RUN))
    return run or tuple(words) in FRAGMENTS or any(text.startswith(start) for start in NOT_HERE)


def test_every_command_is_run_or_marked():
    assert sorted({" ".join(words) for words in shown() if len(words) > 1 and not covered(words)}) == []


def test_nothing_is_run_or_marked_that_no_page_shows():
    texts = {" ".join(words) for words in shown()}
    assert {call for call in (*PHOTOGRAPHS, *RUN) if call not in texts} == {"dvc exp remove NAME"}  # shown without a name
    assert [start for start in NOT_HERE if not any(text.startswith(start) for text in texts)] == []
    assert [why for why in NOT_HERE.values() if why.startswith("tests/") and not (ROOT / why).is_file()] == []


def photographs(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("cats", "dogs", "owls"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / name / f"{number:02}.png")


@pytest.mark.slow
def test_a_net_and_photographs_of_ones_own(tmp_path):
    photographs(tmp_path / "my/photographs")
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    init, evaluate, any_function = PHOTOGRAPHS
    do(tmp_path, *init.split())
    assert (tmp_path / "robust/params.yaml").is_file()
    said = do(tmp_path, *evaluate.split(), "--suite", "quick")
    assert "worst case, 95% interval" in said
    with_all = [WORDS.get(word, word) for word in any_function.split()[:-1]] + evaluate.split()[3:7] + ["--suite", "quick"]
    assert "worst case, 95% interval" in do(tmp_path, *with_all)


@pytest.mark.slow
def test_the_commands_of_a_project(tmp_path):
    place = tmp_path / "project"
    place.mkdir()
    git(place, "init", "-q")
    do(tmp_path, "basin", "init", "project", "--data", "digits")
    (place / "params.yaml").write_text(PARAMS, encoding="utf-8")
    photographs(place / "photos")
    words = dict(WORDS)
    for number, call in enumerate(RUN):
        words["FOLDER"] = f"made{number}"
        program, *arguments = call.split()
        git(place, "add", "-A")  # `basin use`, `basin checkout` and `dvc exp` refuse to overwrite what is in no commit
        git(place, "commit", "-qm", call, "--allow-empty")
        if call == "basin evaluate models:/NAME@champion ...":
            arguments = [*arguments[:-1], "--data", "data/prepared", "--eps", "0.1", "--suite", "quick"]
        if call.endswith(" NAME"):
            words["NAME"] = "digits" if program == "basin" else do(place, "dvc", "exp", "list", "-A", "--name-only").split()[0]
        do(place, program, *[words.get(word, word) for word in arguments])
