"""An attack that is killed outright three times, anywhere, ends in the files of one that was left alone."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from test_stages import made, rerun, run, start, workspace

ATTACK = ("attack", "backbone/natural", "own")
PARAMS = """
seed: 0
device: cpu
threads: 1
data: {kind: digits, train_limit: 400, test_limit: 100}
threat: {norm: linf, eps: 0.08}
backbone:
  natural:
    backbone: {kind: convnet, channels: [8, 16], hidden: 32}
    training: {kind: pgd, steps: 2}
    schedule: {epochs: 6, batch: 50, rate: 0.01}
suites:
  own:
    adaptive: {steps: 20, targets: 3, queries: 200, doublings: 2}
    curve: {attack: {kind: pgd, steps: 20}, times: [0.2, 0.5]}
attack: {models: [backbone/natural], suites: [own], images: 100, batch: 50}
"""


def checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".basin/checkpoints/**/*.safetensors") if not path.name.startswith(".")]


def seconds(folder: Path) -> tuple[float, float]:
    """Of an attack that is left alone: until its first checkpoint, and from there to its end."""
    began, process = time.monotonic(), start(folder, *ATTACK)
    while not checkpoints(folder) and process.poll() is None:
        time.sleep(0.01)
    first = time.monotonic() - began
    assert process.wait(200) == 0
    return first, time.monotonic() - began - first


@pytest.mark.slow
def test_three_kills_at_random_moments_leave_no_trace(tmp_path):
    whole = workspace(tmp_path / "whole", PARAMS)
    run(whole, "prepare")
    run(whole, "backbone", "natural")
    cut = shutil.copytree(whole, tmp_path / "cut")
    startup, work = seconds(whole)
    draw, left = random.Random(0), []
    for _ in range(3):
        process = start(cut, *ATTACK)
        time.sleep(startup + draw.uniform(0, work / 4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not (cut / "outcomes").exists()
        left += [path.read_bytes() for path in checkpoints(cut)]
    assert left, "no kill came after a checkpoint"
    assert "goes on after" in rerun(cut, *ATTACK)
    assert made(cut) == made(whole) and len(made(cut)) > 8
    assert not checkpoints(cut)
