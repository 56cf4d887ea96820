"""The stages themselves, on a tiny run: their files, the same bytes anywhere, and a kill in the middle that leaves no trace."""

import csv
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from basin.config.kinds import choose
from basin.data.splits import Split, load_split
from basin.errors import Mistake
from basin.methods.purifiers.tv import Params as TotalVariation
from basin.models.classifier import Classifier
from basin.stages import entry, train

ROOT = Path(__file__).resolve().parents[2]
PARAMS = """
seed: 0
device: cpu
threads: 1
data: {kind: digits, train_limit: 200, test_limit: 24}
threat: {norm: linf, eps: 0.1}
backbone:
  natural:
    backbone: {kind: convnet, channels: [8, 16], hidden: 32}
    training: {kind: natural}
    schedule: {epochs: 10, batch: 25, rate: 0.01, policy: one_cycle}
  long:
    backbone: {kind: resnet, depth: 8, width: 8}
    training: {kind: pgd, steps: 2}
    schedule: {epochs: 8, batch: 50, optimiser: sgd, rate: 0.02, policy: one_cycle}
adversarial:
  pgd: {from: backbone/natural, training: {kind: pgd, steps: 2}, schedule: {epochs: 1, batch: 50}}
head:
  sodef:
    from: adversarial/pgd
    head: {kind: sodef, width: 16, T: 2.0, solver: {steps: 4}}
    training: {kind: natural}
    schedule:
      features: {epochs: 9, batch: 20, rate: 0.02}
      stability: {epochs: 1, batch: 32, rows: 4}
      classifier: {epochs: 9, batch: 20, rate: 0.05}
suites:
  tiny:
    attacks:
      pgd: {kind: pgd, steps: 2}
      square: {kind: square, queries: 5}
      transfer: {kind: transfer, attacks: [{kind: fgsm}]}
    masked: {attack: {kind: pgd, steps: 2}, solver: {method: dopri5, gradient: adjoint}}
    curve: {attack: {kind: pgd, steps: 2}, times: [0.5, 2]}
attack: {models: [backbone/natural, head/sodef], suites: [tiny], images: 20, batch: 10}
"""
STAGES = [
    ("prepare",), ("backbone", "natural"), ("adversarial", "pgd"), ("head", "sodef"),
    ("attack", "backbone/natural", "tiny"), ("attack", "head/sodef", "tiny"), ("exchange",), ("report",),
]  # fmt: skip
MADE = ("data", "models", "history", "outcomes", "exchanged", "report")
ENVIRONMENT = {"PYTHONPATH": f"pipeline:{ROOT / 'pipeline'}", "BASIN_TRACKING": "off", "CUDA_VISIBLE_DEVICES": ""}


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """A stage's process: its folder and environment, and torch's settings put back afterwards."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BASIN_TRACKING", "off")
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(False)


def run(folder: Path, stage: str, *words: str) -> None:
    """A stage in this process, where annotations are checked."""
    import importlib

    with inside(folder):
        importlib.import_module(f"basin.stages.{stage}").main(*words)


def start(folder: Path, *words: str) -> subprocess.Popen:
    """`python -m basin.stages.STAGE ...`, as DVC runs it."""
    return subprocess.Popen(
        [sys.executable, "-m", f"basin.stages.{words[0]}", *words[1:]],
        cwd=folder, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def made(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for part in MADE for p in sorted((folder / part).rglob("*")) if p.is_file()}


def workspace(folder: Path, params: str = PARAMS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(params)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A workspace in which every stage has run."""
    folder = workspace(tmp_path_factory.mktemp("whole"))
    for stage in STAGES:
        run(folder, *stage)
    return folder


def test_every_stage_writes_its_files_and_no_others(whole):
    model = ["recipe.json", "weights.safetensors"]
    twin = ["twin/recipe.json", "twin/weights.safetensors"]
    outcome = ["adversarial.safetensors", "outcomes.csv", "summary.json"]
    assert sorted(made(whole)) == sorted(
        [f"data/prepared/{name}" for name in ("about.json", "test.safetensors", "train.safetensors", "validation.safetensors")]
        + [f"models/backbone/natural/{name}" for name in model]
        + [f"models/{name}/{file}" for name in ("adversarial/pgd", "head/sodef") for file in model + twin]
        + [f"history/{name}.csv" for name in ("backbone/natural", "adversarial/pgd", "head/sodef")]
        + [f"outcomes/{name}/tiny/{file}" for name in ("backbone/natural", "head/sodef") for file in outcome]
        + ["outcomes/head/sodef/tiny/stability.json"]
        + [f"exchanged/{name}/{file}" for name in ("backbone/natural", "head/sodef") for file in outcome]
        + [f"report/{name}" for name in ("curves.csv", "history.csv", "index.html", "metrics.json", "table.csv")]
        + [f"report/plots/{name}" for name in ("accuracy.json", "glance.json", "loss.json", "page.html", "radius.json")]
    )
    assert not list(whole.glob(".basin/checkpoints/**/*.safetensors"))  # a finished stage needs none


def test_a_stage_loads_nothing_that_it_does_not_need(whole, tmp_path):
    """Each of these takes a second or two: torch's compiler (which torch.optim, torch.func, deterministic kernels asked for in the usual
    way, and decompositions on the device meta would load), what it stands on, and what tracks, draws and reads."""
    shutil.copytree(whole, folder := tmp_path / "again")
    slow = ("torch._dynamo", "sympy", "torchdiffeq", "torchvision", "mlflow", "sqlalchemy", "pandas", "sklearn", "matplotlib")
    code = (
        "import sys, torch; from basin.stages import attack, backbone, head; backbone.main('natural'); head.main('sodef')\n"
        "print('scipy' in sys.modules, torch.are_deterministic_algorithms_enabled())\n"
        f"attack.main('backbone/natural', 'tiny'); print([name for name in {slow} if name in sys.modules])"  # SciPy judges the outcomes
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False True\n[]\n"


def test_no_output_holds_a_path_or_a_time(whole):
    clock = re.compile(rb"20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d")
    for name, content in made(whole).items():
        for path in (whole, ROOT, Path.home()):
            assert str(path).encode() not in content, name
        if not name.endswith(".safetensors") and name != "report/plots/page.html":  # which holds the text of Vega's library
            assert not clock.search(content), name


def test_the_defence_knows_what_it_stands_on(whole):
    recipe = json.loads((whole / "models/head/sodef/recipe.json").read_text())
    assert recipe["from"] == "adversarial/pgd" and recipe["chain"] == ["backbone/natural", "adversarial/pgd"]
    twin, parent = whole / "models/head/sodef/twin", whole / "models/adversarial/pgd"
    assert (twin / "weights.safetensors").read_bytes() == (parent / "weights.safetensors").read_bytes()


def test_models_are_judged_at_each_others_points(whole):
    table = json.loads((whole / "report/metrics.json").read_text())
    for model, other in (("backbone/natural", "head/sodef"), ("head/sodef", "backbone/natural")):
        own, exchanged = (
            json.loads((whole / f"{folder}/summary.json").read_text()) for folder in (f"outcomes/{model}/tiny", f"exchanged/{model}")
        )
        assert list(exchanged["attacks"]) == [f"{model}, tiny", f"{other}, tiny"]
        first, worst = exchanged["attacks"].values()
        assert worst <= first == own["robust"]  # the own points, judged again, first
        assert worst == exchanged["robust"] == table[model]["worst_case"]
        assert exchanged["flags"] == (["transfer-beats-white-box"] if own["robust"] - worst > 0.01 else [])


def test_a_suite_of_another_threat_changes_the_union_alone(whole, tmp_path):
    """Its points, which lie outside the run's ball, are no other model's; the worst case stays what it was."""
    shutil.copytree(whole, folder := tmp_path / "threats")
    text = PARAMS.replace("suites:\n", "suites:\n  other: {attacks: {pgd: {kind: pgd, steps: 2}}, threat: {norm: l2, eps: 0.6}}\n", 1)
    workspace(folder, text.replace("[tiny]", "[tiny, other]"))
    for model in ("backbone/natural", "head/sodef"):
        run(folder, "attack", model, "other")
    run(folder, "exchange")
    run(folder, "report")
    before, after = made(whole), made(folder)
    assert [name for name in before if before[name] != after[name]] == [
        f"report/{name}" for name in ("index.html", "metrics.json", "table.csv")
    ]
    old, new = (json.loads(files["report/metrics.json"]) for files in (before, after))
    for model, numbers in old.items():
        assert numbers.items() <= new[model].items()
        assert new[model]["union"] <= min(new[model]["worst_case"], new[model]["worst_case.l2-0.6"]) and "worst_case.l2-0.6" not in numbers


def test_history_has_a_row_an_epoch(whole):
    rows = list(csv.DictReader((whole / "history/head/sodef.csv").open()))
    epochs = {"features": 9, "stability": 1, "classifier": 9}
    assert [(row["phase"], row["epoch"]) for row in rows] == [(phase, str(i + 1)) for phase, n in epochs.items() for i in range(n)]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)


def test_an_attack_measures_what_the_model_has(whole):
    plain, defence = (json.loads((whole / f"outcomes/{name}/tiny/summary.json").read_text()) for name in ("backbone/natural", "head/sodef"))
    assert plain["clean"] > 0.5 and defence["clean"] > 0.5
    assert list(plain["attacks"]) == ["pgd", "square"] and plain["masked"] is None  # no twin, no flow
    assert list(defence["attacks"]) == ["pgd", "square", "transfer"] and defence["masked"]["robust"] >= defence["robust"]
    assert (defence["head"], defence["training"], defence["from"], defence["n"]) == ("sodef", "natural", "adversarial/pgd", 20)


def test_mlflow_is_told_the_flags_and_the_figures_behind_them(whole, tmp_path):
    folder = workspace(tmp_path / "tracked")
    for part in ("data", "models"):
        shutil.copytree(whole / part, folder / part)
    recipe = folder / "models/head/sodef/recipe.json"
    recipe.write_text(recipe.read_text().replace('"steps": 4', '"steps": 1').replace('"T": 2.0', '"T": 50.0'))
    environment = {**os.environ, **ENVIRONMENT, "BASIN_TRACKING": "on", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command = [sys.executable, "-m", "basin.stages.attack", "head/sodef", "tiny"]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=120)
    from mlflow import MlflowClient

    store = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = store.search_runs([store.get_experiment_by_name("digits").experiment_id])
    summary = json.loads((folder / "outcomes/head/sodef/tiny/summary.json").read_text())
    flags = {key.removeprefix("flag."): value for key, value in run.data.tags.items() if key.startswith("flag.")}
    assert flags == dict.fromkeys(summary["flags"], "raised") and "stiff-solve" in flags
    assert run.data.tags["flags"] == ", ".join(summary["flags"]) and run.data.metrics["flags"] == len(flags)
    probes = {key.removeprefix("probe."): value for key, value in run.data.metrics.items() if key.startswith("probe.")}
    assert probes == pytest.approx(summary["probes"]) and "one_step" in probes


def test_another_folder_and_a_fresh_process_give_the_same_bytes(whole, tmp_path):
    """Without the checks of annotations: they change nothing either."""
    folder = workspace(tmp_path / "a folder with spaces")
    code = f"import importlib\nfor stage, *words in {STAGES}: importlib.import_module(f'basin.stages.{{stage}}').main(*words)"
    subprocess.run([sys.executable, "-c", code], cwd=folder, env={**os.environ, **ENVIRONMENT}, check=True, timeout=120)
    mine, theirs = made(folder), made(whole)
    assert [name for name in theirs if mine.get(name) != theirs[name]] == [] and set(mine) == set(theirs)


def killed_in_the_middle(folder: Path, *stage: str) -> None:
    """Start a stage and SIGKILL it as soon as it has a checkpoint."""
    process = start(folder, *stage)
    end = time.monotonic() + 60
    while not list(folder.glob(".basin/checkpoints/**/*.safetensors")) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it ended before the kill: {err}"


def rerun(folder: Path, *stage: str) -> str:
    process = start(folder, *stage)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return err


def test_a_training_stage_that_was_killed_goes_on_to_the_same_bytes(whole, tmp_path):
    cut, undisturbed = workspace(tmp_path / "cut"), workspace(tmp_path / "undisturbed")
    for folder in (cut, undisturbed):
        shutil.copytree(whole / "data", folder / "data")
    run(undisturbed, "backbone", "long")
    killed_in_the_middle(cut, "backbone", "long")
    assert not (cut / "models").exists() and not (cut / "history").exists()
    assert "resuming at phase pgd, epoch " in rerun(cut, "backbone", "long")
    assert made(cut) == made(undisturbed)


@pytest.mark.slow
def test_an_attack_stage_that_was_killed_goes_on_to_the_same_bytes(whole, tmp_path):
    # The curve starts from every image that is classified right, and at this radius few fall: it takes its time after the first checkpoint.
    slow = PARAMS.replace(
        "curve: {attack: {kind: pgd, steps: 2}, times: [0.5, 2]}", "curve: {attack: {kind: pgd, steps: 500}, times: [0.01]}"
    )
    assert slow != PARAMS
    cut, undisturbed = workspace(tmp_path / "cut", slow), workspace(tmp_path / "undisturbed", slow)
    for folder in (cut, undisturbed):
        shutil.copytree(whole / "data", folder / "data")
        shutil.copytree(whole / "models", folder / "models")
    run(undisturbed, "attack", "head/sodef", "tiny")
    killed_in_the_middle(cut, "attack", "head/sodef", "tiny")
    assert not (cut / "outcomes").exists()
    workspace(cut, slow.replace("models: [backbone/natural, head/sodef]", "models: [head/sodef]"))
    rerun(cut, "attack", "head/sodef", "tiny")
    assert made(cut) == made(undisturbed)
    assert not list(cut.glob(".basin/checkpoints/**/*.safetensors")), "another list of models is no reason to begin anew"


PURIFIED = PARAMS.replace(
    "hidden: 32}\n", "hidden: 32}\n    purifier: {kind: tv, iterations: 3}\n    cleaned: {kind: tv, keep: 0.5, iterations: 3}\n"
)


def test_a_purifier_and_purified_copies_make_the_model_and_the_same_bytes_again(whole, tmp_path):
    folders = [workspace(tmp_path / name, PURIFIED) for name in ("one", "two")]
    for folder in folders:
        shutil.copytree(whole / "data", folder / "data")
        run(folder, "backbone", "natural")
    weights = "models/backbone/natural/weights.safetensors"
    assert made(folders[0]) == made(folders[1]) and made(folders[0])[weights] != made(whole)[weights]
    run(folders[0], "adversarial", "pgd")
    run(folders[0], "attack", "backbone/natural", "tiny")
    for model in ("backbone/natural", "adversarial/pgd"):  # which has none of its own, and keeps that of the model below
        tree = json.loads((folders[0] / f"models/{model}/recipe.json").read_text())["classifier"]
        assert tree["purifier"] == {"kind": "tv", **TotalVariation(iterations=3).model_dump()}


def test_purified_copies_follow_the_images_and_are_drawn_by_the_seed(whole, tmp_path):
    asked = choose("purifiers", {"kind": "tv", "keep": 0.5, "iterations": 3})

    def copies(seed: int) -> Split:
        folder = workspace(tmp_path / str(seed), PARAMS.replace("seed: 0", f"seed: {seed}"))
        with inside(folder), entry.stage("backbone/natural", lambda config: config.entry("backbone/natural")) as stage:
            return train.purified_copies(stage, load_split(whole / "data/prepared", "train"), asked)

    images = load_split(whole / "data/prepared", "train").images
    one, same, other = copies(0), copies(0), copies(1)
    assert torch.equal(one.images[: len(images)], images) and torch.equal(one.labels[: len(images)], one.labels[len(images) :])
    assert torch.equal(one.images, same.images) and not torch.equal(one.images, other.images)
    cleaned = one.images[len(images) :].float()
    assert cleaned.std((1, 2, 3)).mean() < images.float().std((1, 2, 3)).mean()


# Bad input that only a stage can see -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def refused(folder: Path, *stage: str) -> str:
    with pytest.raises(Mistake) as mistake:
        run(folder, *stage)
    return str(mistake.value)


def test_a_stage_without_its_input_names_the_command(tmp_path):
    folder = workspace(tmp_path / "empty")
    assert refused(folder, "backbone", "natural") == "data/prepared/about.json: no prepared data here. Run `dvc repro prepare`."
    run(folder, "prepare")
    said = "models/adversarial/pgd/recipe.json: not found. Run the stage that makes it: dvc repro."
    assert refused(folder, "head", "sodef") == said
    assert refused(folder, "attack", "adversarial/pgd", "tiny") == said


def test_damaged_weights_end_an_attack_as_a_person_sees_it(copy):
    path = copy / "models/backbone/natural/weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    process = start(copy, "attack", "backbone/natural", "tiny")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: models/backbone/natural/weights.safetensors: not the weights of the recipe beside it (got SHA-256 ")
    assert err.endswith("mended by `basin registry sync`.\n") and len(err.splitlines()) == 1


def test_a_damaged_recipe_ends_a_head(copy):
    (copy / "models/adversarial/pgd/recipe.json").write_text("{")
    assert refused(copy, "head", "sodef").startswith(
        "models/adversarial/pgd/recipe.json: damaged, or does not fit the file beside it (got J"
    )


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (("backbone", "natrual"), "params.yaml: no such model (got 'backbone/natrual'). Did you mean 'backbone/natural'?"),
        (("head", "sodf"), "params.yaml: no such model (got 'head/sodf'). Did you mean 'head/sodef'?"),
        (("attack", "head/sodf", "tiny"), "params.yaml: no such model (got 'head/sodf'). Did you mean 'head/sodef'?"),
        (("attack", "head/sodef", "tyni"), "params.yaml: suites: no such suite (got 'tyni'). Known: tiny."),
    ],
)
def test_a_name_that_is_not_in_the_file_is_named(stage, message, whole):
    assert refused(whole, *stage) == message


def test_a_rate_far_too_high_stops_with_advice_and_leaves_no_model(whole, tmp_path):
    folder = workspace(tmp_path / "hot", PARAMS.replace("rate: 0.02", "rate: 1.0e+30"))
    shutil.copytree(whole / "data", folder / "data")
    said = refused(folder, "backbone", "long")
    assert re.match(r"backbone/long, phase pgd, epoch \d, step \d: the loss or its gradient is not finite at learning rate \S+ \(got", said)
    assert not (folder / "models").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [("params.yaml", "params.yaml"), ("pipeline/basin/training/optimise.py", "optimise.py"), ("pipeline/basin/registry/gate.py", None)],
)
def test_a_stage_whose_params_or_sources_change_while_it_runs_fails(changed, told, whole, tmp_path):
    folder = workspace(tmp_path / "edited")
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(whole / "data", folder / "data")
    process = start(folder, "backbone", "long")
    while not list(folder.glob(".basin/checkpoints/**/*.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    text = (folder / changed).read_text()
    (folder / changed).write_text(text.replace("rate: 0.02", "rate: 0.03") if changed.endswith("yaml") else text + "\n")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == (2 if told else 0), said
    assert bool(list(folder.glob(".basin/checkpoints/**/*.safetensors"))) == bool(told), "kept, for whoever takes the change back"
    if told:
        end = f"{told}: changed while backbone/long ran (got another than at its start). Nothing of it is recorded; run it again."
        assert said.splitlines()[-1].endswith(end)


def test_what_others_read_may_change_while_a_stage_runs(whole, tmp_path):
    folder = workspace(tmp_path / "others")
    shutil.copytree(whole / "data", folder / "data")
    with inside(folder), entry.stage("backbone/natural", lambda config: config.entry("backbone/natural")):
        workspace(folder, PARAMS.replace("images: 20, batch: 10", "images: 10, batch: 10").replace("rate: 0.02", "rate: 0.03"))
    with pytest.raises(Mistake, match=r"^params.yaml: changed while prepare ran"), inside(folder):
        with entry.stage("prepare", lambda config: config.data):
            workspace(folder, PARAMS.replace("seed: 0", "seed: 1"))


def test_ctrl_c_is_one_sentence_and_the_stage_goes_on(whole, tmp_path):
    folder = workspace(tmp_path / "interrupted")
    shutil.copytree(whole / "data", folder / "data")
    process = start(folder, "backbone", "long")
    while not list(folder.glob(".basin/checkpoints/**/*.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and time.monotonic() - asked < 5
    assert said.splitlines()[-1] == "Stopped; what is done is kept. To go on, run the same command again."
    assert "Traceback" not in said and "KeyboardInterrupt" not in said
    assert "resuming at phase" in rerun(folder, "backbone", "long")


def test_a_signal_while_a_models_own_code_computes_is_no_error_of_the_model(tmp_path):
    """SIGTERM, which `kill` and every scheduler send, inside a backward pass: nothing there may take it for a gradient that fails."""
    code = """
import os, signal, torch
from basin.stages import entry
from basin.threat.target import derivative
class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.flatten(1)
    @staticmethod
    def backward(ctx, g):
        os.kill(os.getpid(), signal.SIGTERM)
        return g.view(2, 1, 1, 2)
entry.launch(lambda *_: derivative(Slow.apply, torch.zeros(2, 1, 1, 2), torch.tensor([0, 1])))
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, "")


class Bright(torch.nn.Module):
    """Reads an image's class from the brightness of its pixels, or gives one answer."""

    def __init__(self, reads: bool):
        super().__init__()
        self.reads = reads

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return -(self.reads * z.mean(1, keepdim=True) * 255 - torch.arange(5)).abs()


@pytest.mark.parametrize("reads", [False, True])
def test_a_training_that_ends_at_chance_says_so(reads, caplog):
    labels = torch.tensor([0] * 60 + [1, 2, 3, 4] * 5)
    split = Split(labels.byte()[:, None, None, None].expand(-1, 1, 2, 2).contiguous(), labels)
    with caplog.at_level(logging.WARNING):
        train.report_answers(
            "adversarial/pgd", Classifier(torch.nn.Identity(), torch.nn.Identity(), torch.nn.Flatten(), Bright(reads), {}), split, "cpu"
        )
    assert ("adversarial/pgd: the answers to the validation images are no better than chance (got 75.0% right)" in caplog.text) is not reads
