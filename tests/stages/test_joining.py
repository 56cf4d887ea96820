"""A stage that is two processes: the bytes of one, and one sentence where one of them fails."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from basin.errors import Mistake
from basin.stages import joining

ROOT = Path(__file__).resolve().parents[2]
PARAMS = """
seed: 0
device: cpu
threads: 1
data: {kind: digits, train_limit: 400, test_limit: 24}
threat: {norm: linf, eps: 0.05}
backbone:
  natural:
    backbone: {kind: distribution, of: {kind: convnet, channels: [8], hidden: 16}, inference_draws: 2}
    training: {kind: natural}
    schedule: {epochs: 6, batch: 25, rate: 0.02}
suites:
  tiny:
    attacks: {pgd: {kind: pgd, steps: 2}, square: {kind: square, queries: 5}, features: {kind: features, steps: 2}}
    probe: {square: 0.5}
    earned: {features: pgd}
    masked: {attack: {kind: pgd, steps: 2}, solver: {method: dopri5, gradient: adjoint}}
    curve: {attack: {kind: pgd, steps: 2}, times: [0.5, 2]}
attack: {models: [backbone/natural], suites: [tiny], images: 20, batch: 5}
"""
ATTACK = ("attack", "backbone/natural", "tiny")
GRAPH = "stages: {backbone: {foreach: [natural], do: {meta: {gpu: 2}}}, attack: {meta: {gpu: 2}}}\n"


def run(folder: Path, *words: str, gpus: str = "", patch: str = "") -> subprocess.CompletedProcess:
    """A stage as DVC starts it, on a machine whose GPUs are these; `patch` is code that each of its processes runs before."""
    (folder / "sitecustomize.py").write_text(patch)
    path = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "pipeline")])
    env = os.environ | {"DVC_STAGE": f"{words[0]}@x", "CUDA_VISIBLE_DEVICES": gpus, "BASIN_TRACKING": "off", "PYTHONPATH": path}
    command = [sys.executable, "-m", f"basin.stages.{words[0]}", *words[1:]]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("stage", "gpus", "processes"),
    [
        ("backbone@x", "0,1,2", 2),
        ("backbone@x", "0", 1),
        ("backbone@x", "", 1),
        ("attack@x-y", "0,1", 2),
        ("report", "0,1", 1),
        ("", "0,1", 1),
    ],
)
def test_a_stage_is_as_many_processes_as_its_meta_says_of_the_gpus_there_are(
    stage: str, gpus: str, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", stage)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    assert joining.asked() == processes


def test_a_number_that_dvc_would_put_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "dvc.yaml").write_text("stages: {attack: {meta: {gpu: '${gpus}'}}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "attack@x")
    said = r"^dvc.yaml: attack: meta.gpu: the stage reads it as it stands \(got '\$\{gpus\}'\)\. Write the number itself\.$"
    with pytest.raises(Mistake, match=said):
        joining.asked()


def test_a_stage_that_is_one_process_refuses_torchruns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Mistake, match=r"^report: is one process \(got 2 of torchrun's\)\. Start it with: python -m\.$"):
        with joining.joined("report", False, "cpu"):
            pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one model, trained by one process."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "dvc.yaml").write_text(GRAPH)
    for words in (("prepare",), ("backbone", "natural")):
        done = run(folder, *words)
        assert done.returncode == 0, done.stderr
    return folder


def attacked(place: Path, tmp_path: Path, gpus: str = "") -> Path:
    """A copy of the project whose attack has run, by a process on each GPU."""
    folder = shutil.copytree(place, tmp_path / f"on {gpus}")
    done = run(folder, *ATTACK, gpus=gpus, patch=COUNT)
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("process-*"))) == (2 if gpus else 1)
    return folder


def made(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "outcomes").rglob("*.*")}


STOPPED = """
import sys
if "basin.stages.attack" in sys.orig_argv:
    from basin.evaluation.cascade import Evaluation
    def stop(*_): sys.exit(3)
    Evaluation._curve = stop
"""


@pytest.mark.slow
def test_an_attack_by_two_processes_writes_the_bytes_of_one_and_so_does_one_that_goes_on_for_two(place: Path, tmp_path: Path):
    one, two = (made(attacked(place, tmp_path, gpus)) for gpus in ("", "0,1"))
    assert one == two and "outcomes.csv" in one
    folder = shutil.copytree(place, tmp_path / "stopped")
    assert run(folder, *ATTACK, gpus="0,1", patch=STOPPED).returncode == 3
    done = run(folder, *ATTACK)
    assert "goes on after" in done.stderr and made(folder) == one


DOUBT = """
import os, sys
if "basin.stages.attack" in sys.orig_argv:
    from dataclasses import replace
    from basin.evaluation import robustness
    own = robustness.diagnosing
    def diagnosing(*told):
        diagnose = own(*told)
        flags = ["wrong-gradient"] * (os.environ.get("RANK", "0") == "0")
        return lambda outcomes: replace(diagnose(outcomes), flags=flags)
    robustness.diagnosing = diagnosing
"""


@pytest.mark.slow
def test_two_processes_attack_what_was_spared_together(place: Path, tmp_path: Path):
    """In a ball in which nothing falls, so that what had to be earned was not; and the first process has its doubts."""
    found = []
    for gpus in ("", "0,1"):
        folder = shutil.copytree(place, tmp_path / f"doubted on {gpus}")
        asked = PARAMS.replace("eps: 0.05", "eps: 0.00001").replace("kind: distribution, of: {kind: convnet", "kind: convnet")
        asked = asked.replace("hidden: 16}, inference_draws: 2}", "hidden: 16}")
        (folder / "params.yaml").write_text(asked)
        for words in (("backbone", "natural"), ATTACK):
            done = run(folder, *words, gpus=gpus * (words == ATTACK), patch=DOUBT)
            assert done.returncode == 0, done.stderr
        found.append(made(folder))
    assert found[0] == found[1] and b'"features in full"' in found[0]["summary.json"]


COUNT = "import os, sys\nif 'basin.stages.attack' in sys.orig_argv: open(f'process-{os.getpid()}', 'w')\n"
BROKEN = """
import os, sys
if os.environ.get("RANK", "0") == "{rank}" and "basin.stages.backbone" in sys.orig_argv:
    import basin.training.losses as losses
    def read(self): raise {error}
    losses.Losses.read = read
"""
WEIGHTS, HISTORY = "models/backbone/natural/weights.safetensors", "history/backbone/natural.csv"
SHARED = "backbone/natural: shared by 2 processes\n"
MISTAKE = 'losses.Mistake("here: it is wrong (got 1). Mend it.")'


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_in_one_process_ends_both_with_one_sentence(rank: int, place: Path, tmp_path: Path):
    folder = shutil.copytree(place, tmp_path / "place", ignore=shutil.ignore_patterns("models", "history"))
    done = run(folder, "backbone", "natural", gpus="0,1", patch=BROKEN.format(rank=rank, error=MISTAKE))
    assert (done.returncode, done.stderr) == (2, SHARED + "error: here: it is wrong (got 1). Mend it.\n")
    assert not (folder / "models").exists()


@pytest.mark.slow
def test_a_process_that_dies_is_told_and_may_be_tried_again(place: Path, tmp_path: Path):
    folder = shutil.copytree(place, tmp_path / "place")
    done = run(folder, "backbone", "natural", gpus="0,1", patch=BROKEN.format(rank=1, error="os._exit(9)"))
    assert done.returncode == 75
    told = r"error: processes: another one of this stage is gone \(got .*\)\. Run it again; what is done is kept\.\n"
    assert re.fullmatch(SHARED + told, done.stderr), done.stderr


DEAF = """
import os, signal, sys, time
if "basin.stages.backbone" in sys.orig_argv:
    import basin.training.losses as losses
    def read(self):
        if os.environ.get("RANK", "0") == "{rank}":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            time.sleep(1000)
        {error}
    losses.Losses.read = read
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "error", "ends"),
    [(0, "os._exit(9)", (75, f"error: {joining.GONE}\n")), (1, f"raise {MISTAKE}", (2, "error: here: it is wrong (got 1). Mend it.\n"))],
)
def test_one_that_waits_where_it_hears_of_nothing_ends_too(rank: int, error: str, ends: tuple[int, str], place: Path, tmp_path: Path):
    """As inside NCCL."""
    folder = shutil.copytree(place, tmp_path / "place", ignore=shutil.ignore_patterns("models", "history"))
    done = run(folder, "backbone", "natural", gpus="0,1", patch=DEAF.format(rank=rank, error=error))
    assert (done.returncode, done.stderr) == (ends[0], SHARED + ends[1])


SHORT = """
import os, sys
if "basin.stages.attack" in sys.orig_argv and os.environ.get("RANK") == "1":
    from basin.methods.attacks import pgd
    perturb = pgd.perturb
    def short(params, target, images, *rest):
        if len(images) > 3: raise MemoryError
        return perturb(params, target, images, *rest)
    pgd.perturb = short
"""


@pytest.mark.slow
def test_memory_that_is_short_in_one_process_halves_the_batches_of_both(place: Path, tmp_path: Path):
    folder = shutil.copytree(place, tmp_path / "place")
    done = run(folder, *ATTACK, gpus="0,1", patch=SHORT)
    assert done.returncode == 0, done.stderr
    assert "memory is short (MemoryError: in one of the processes); goes on with batches of 3" in done.stderr


@pytest.mark.slow
def test_torchrun_starts_the_processes_too_the_bytes_are_the_same_and_the_recipe_says_how_many(place: Path, tmp_path: Path):
    folder = shutil.copytree(place, tmp_path / "place")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    env = os.environ | {"BASIN_TRACKING": "off", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'pipeline'}"}
    done = subprocess.run([*torchrun, "basin.stages.backbone", "natural"], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert '"processes": 2' in (folder / "models/backbone/natural/recipe.json").read_text()
    again = shutil.copytree(place, tmp_path / "again")
    assert run(again, "backbone", "natural", gpus="0,1").returncode == 0
    assert all((folder / path).read_bytes() == (again / path).read_bytes() for path in (WEIGHTS, HISTORY))
    done = subprocess.run([*torchrun, "basin.stages.prepare"], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode and "error: prepare: is one process (got 2 of torchrun's). Start it with: python -m.\n" in done.stderr
