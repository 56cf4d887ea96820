"""Places that cannot be written: told before the work, and where it comes later, nothing computed is lost and the old file is whole."""

import csv
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PARAMS as ONE_EPOCH
from PIL import Image
from small import classifier

from basin import files
from basin.errors import Mistake
from basin.models import artifact

ROOT = Path(__file__).resolve().parents[2]
BASIN = [sys.executable, "-c", "from basin.cli.app import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "BASIN_TRACKING": "off"}
FINISHED = re.compile(r"evaluate: goes on after (\d) of \1 steps")  # how many, the processor decides: basin/evaluation/search.py
ADVICE = "Make room there, or give a place that you may write to; what was there before is as it was."
PARAMS = ONE_EPOCH.replace("epochs: 1", "epochs: 2")
FULL = 20_000  # bytes, of the largest file in `full`


@pytest.fixture
def place(tmp_path):
    """A model folder, images to judge it on, and one to score."""
    artifact.save(tmp_path / "model", classifier().eval())
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", images=draw.random((400, 1, 8, 8), np.float32), labels=draw.integers(0, 10, 400))
    (tmp_path / "photos").mkdir()
    Image.fromarray(draw.integers(0, 255, (8, 8), np.uint8)).save(tmp_path / "photos/one.png")
    return tmp_path


def basin(place: Path, *words: object, full: bool = False) -> tuple[int, str, str]:
    """The command as a program of its own; `full`: no file may become larger than `FULL`, as on a disk without room."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))  # Python ignores SIGXFSZ: a write fails with an error of its own

    command = [*BASIN, *map(str, words)]
    done = subprocess.run(
        command, cwd=place, env=ENVIRONMENT, capture_output=True, encoding="utf-8", preexec_fn=limited if full else None, check=False
    )
    return done.returncode, done.stdout, done.stderr


EVALUATE = ("evaluate", "model", "--data", "x.npz", "--eps", "0.05", "--suite", "quick")
SCORE = ("score", "model", "photos")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*EVALUATE, "--json", "no/x.json"), "--json: no such folder (got 'no'). Make it first."),
        ((*EVALUATE, "--json", "photos"), "--json: is a folder (got 'photos'). Give a file in it."),
        ((*EVALUATE, "--json", "/proc/x.json"), f"/proc: cannot be written (got No such file or directory). {ADVICE}"),
        ((*EVALUATE, "--outcomes", "x.npz/out"), f"x.npz/out: cannot be written (got Not a directory). {ADVICE}"),
        ((*EVALUATE, "--outcomes", "/proc/out/in"), f"/proc/out/in: cannot be written (got No such file or directory). {ADVICE}"),
        ((*SCORE, "--csv", "no/x.csv"), "--csv: no such folder (got 'no'). Make it first."),
        ((*SCORE, "--csv", "/proc/x.csv"), f"/proc: cannot be written (got No such file or directory). {ADVICE}"),
        (("models", "--json", "/proc/x.json"), f"/proc: cannot be written (got No such file or directory). {ADVICE}"),
        (("promote", "--json", "no/x.json"), "--json: no such folder (got 'no'). Make it first."),
    ],
    ids=lambda value: " ".join(value[::3]) if isinstance(value, tuple) else "",
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(place, words, message):
    """The model cannot be read either: nobody came as far as to look at it."""
    (place / "model/recipe.json").write_text("{", encoding="utf-8")
    before = sorted(place.rglob("*"))
    assert basin(place, *words) == (2, "", f"error: {message}\n")
    assert sorted(place.rglob("*")) == before


@pytest.mark.slow
def test_an_answer_that_cannot_be_written_after_all_is_printed(place):
    code, out, err = basin(place, *EVALUATE, "--json", "/dev/full")
    assert (code, err.splitlines()[-1]) == (2, f"error: /dev/full: cannot be written (got No space left on device). {ADVICE}")
    assert json.loads(out)["n"] == 400 and Path("/dev/full").is_char_device()
    code, out, err = basin(place, *SCORE, "--csv", "/dev/full")
    assert (code, err) == (2, f"error: /dev/full: cannot be written (got No space left on device). {ADVICE}\n")
    assert [row["file"] for row in csv.DictReader(out.splitlines())] == ["one.png"]


def test_a_device_is_written_to_and_stays_one(place):
    code, out, _ = basin(place, *SCORE, "--csv", "/dev/stdout")
    assert code == 0 and out.startswith("file,class,probability,problem\none.png,") and Path("/dev/stdout").is_symlink()


@pytest.mark.slow
def test_outcomes_that_cannot_be_written_cost_no_attack(place):
    """The answer is told, and a second call with room goes on after the last attack."""
    words = (*EVALUATE, "--images", "10", "--outcomes", "out")
    (place / "out/outcomes.csv").mkdir(parents=True)
    code, out, err = basin(place, *words)
    assert (code, err.splitlines()[-1]) == (2, f"error: out/outcomes.csv: cannot be written (got Is a directory). {ADVICE}")
    (place / "out/outcomes.csv").rmdir()
    code, _, err = basin(place, *words, "--json", "answer.json")
    assert code == 0 and FINISHED.search(err)
    assert json.loads((place / "answer.json").read_text(encoding="utf-8")).items() >= json.loads(out).items()
    assert not list(place.glob(".basin/checkpoints/evaluate/*"))


@pytest.mark.slow
def test_a_full_disk_leaves_the_outcomes_that_were_there(place):
    words = (*EVALUATE, "--outcomes", "out")
    assert basin(place, *words, "--images", "10")[0] == 0
    kept = {path.name: path.read_bytes() for path in (place / "out").iterdir()}
    code, _, err = basin(place, *words, full=True)
    assert code == 2 and re.fullmatch(r"error: \S+: cannot be written \(got File too large\)\. Make room there, .+", err.splitlines()[-1])
    assert "Traceback" not in err and {path.name: path.read_bytes() for path in (place / "out").iterdir()} == kept


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own with room for 200 kB."""
    (disk := tmp_path / "disk").mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_full_keeps_what_was_there_and_takes_nothing_half(small_disk):
    artifact.save(small_disk / "model", classifier(seed=1).eval())
    kept = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 8192))
    with pytest.raises(Mistake) as mistake:
        artifact.save(small_disk / "model", classifier(seed=2).eval())
    where = small_disk / ".model.unfinished/weights.safetensors"
    assert str(mistake.value) == f"{where}: cannot be written (got No space left on device). {ADVICE}"
    (small_disk / "filler").unlink()
    assert {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()} == kept
    assert artifact.load(small_disk / "model")


@pytest.mark.slow
def test_an_evaluation_whose_disk_is_full_ends_in_a_sentence_and_goes_on_when_there_is_room(place, small_disk):
    words = (*EVALUATE, "--outcomes", small_disk / "out")
    (small_disk / "filler").write_bytes(bytes(120_000))
    code, _, err = basin(place, *words)
    written = small_disk / "out/adversarial.safetensors"
    assert (code, err.splitlines()[-1]) == (2, f"error: {written}: cannot be written (got No space left on device). {ADVICE}")
    assert "Traceback" not in err
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    code, _, err = basin(place, *words)
    assert code == 0 and FINISHED.search(err) and written.stat().st_size > 200_000


def train(place: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "basin.stages.backbone", "natural"]
    done = subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, encoding="utf-8", check=False)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_a_model_that_cannot_be_written_costs_no_epoch(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "basin.stages.prepare"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=True)
    (tmp_path / "models").touch()
    code, err = train(tmp_path)
    written = "models/backbone/.natural.unfinished/weights.safetensors"
    assert (code, err.splitlines()[-1]) == (2, f"error: {written}: cannot be written (got Not a directory). {ADVICE}")
    (tmp_path / "models").unlink()
    code, err = train(tmp_path)
    assert code == 0 and "resuming at phase natural, epoch 2" in err and not list(tmp_path.glob(".basin/checkpoints/**/*.safetensors"))
    rows = list(csv.DictReader((tmp_path / "history/backbone/natural.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_writing_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    """A folder of another's may hold links that lead out of it."""
    mine = tmp_path / "mine"
    mine.write_text("mine", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/summary.json").symlink_to(mine)
    files.write(tmp_path / "folder/summary.json", "theirs")
    assert mine.read_text(encoding="utf-8") == "mine" and (tmp_path / "folder/summary.json").read_text(encoding="utf-8") == "theirs"
    (tmp_path / "folder/.x.unfinished").symlink_to(mine)
    with pytest.raises(files.Unwritten, match="x: cannot be written .got Too many levels of symbolic links.. Make room"):
        files.write(tmp_path / "folder/x", "theirs")
    assert mine.read_text(encoding="utf-8") == "mine"


def test_a_model_that_cannot_be_saved_leaves_the_one_before(tmp_path):
    """Its twin has no weights: found when half of the new model was written."""
    old, new = classifier(seed=1).eval(), classifier(seed=2).eval()
    artifact.save(tmp_path / "model", old)
    (tmp_path / "twin").mkdir()
    with pytest.raises(FileNotFoundError):
        artifact.save(tmp_path / "model", new, tmp_path / "twin")
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(artifact.load(tmp_path / "model")(x), old(x)) and sorted(p.name for p in tmp_path.iterdir()) == ["model", "twin"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone who may not write")
def test_a_read_only_folder():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        files.write(folder / "x", "old")
        os.seteuid(65534)
        try:
            with pytest.raises(Mistake) as one:
                files.try_folder(folder)
            with pytest.raises(Mistake) as other:
                files.write(folder / "x", "new")
        finally:
            os.seteuid(0)
        assert str(one.value) == f"{folder}: cannot be written (got Permission denied). {ADVICE}"
        assert str(other.value) == f"{folder}/x: cannot be written (got Permission denied). {ADVICE}"
        assert (folder / "x").read_text(encoding="utf-8") == "old" and [path.name for path in folder.iterdir()] == ["x"]
