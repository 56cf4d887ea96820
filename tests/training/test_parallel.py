"""Two processes train as one: the same weights within float error, whatever a loss or a layer looks at beyond its own rows."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from basin.config.schedule import Schedule
from basin.errors import Mistake
from basin.processes import ALONE, Group
from basin.randomness import Random, drawing, generator
from basin.training.pace import Paced

ROOT = Path(__file__).resolve().parents[2]
RESNET = {"kind": "resnet", "depth": 8, "width": 4}
DRAWN = {"kind": "distribution", "of": {"kind": "convnet", "channels": [4], "hidden": 8}}
CASES: dict[str, dict[str, Any]] = {
    "natural": {},
    "pgd, batch norm": {"backbone": RESNET, "kind": "pgd", "steps": 2},
    "trades": {"kind": "trades", "steps": 2},
    "free": {"kind": "free", "replays": 2},
    "yopo": {"kind": "yopo", "m": 2, "n": 2},
    "mart, awp": {"kind": "mart", "steps": 2, "schedule": {"awp": {"gamma": 0.01}}},
    "drawn outputs": {"backbone": DRAWN},
}


def trained(case: dict[str, Any], group: Any, place: Path) -> dict[str, torch.Tensor]:
    """The weights after two epochs of 5 batches, the last of one image, and the losses that were recorded."""
    from small import classifier, method

    from basin.config.splits import SplitSettings
    from basin.data.splits import divide
    from basin.methods.augmentations import crop
    from basin.methods.sources import digits
    from basin.training import optimise
    from basin.training.phase import Phase

    case = {"kind": "natural"} | case
    schedule = Schedule(**{"epochs": 2, "batch": 24, "rate": 0.01, "optimiser": "sgd"} | case.pop("schedule", {}))
    model = classifier(**{"backbone": case.pop("backbone")} if "backbone" in case else {})
    train = divide(digits.read(digits.Params()), SplitSettings(), seed=0)["train"].take(torch.arange(97))
    loss = method(case.pop("kind"), **case)
    phase = Phase("p", schedule, [model.backbone, model.head], lambda x, y, g: loss(model, x, y, g))
    augment = partial(crop.augment, crop.Params())
    history = optimise.run(model, [phase], train, lambda: 0.5, (0, "small"), place / "state", group=group, augment=augment)
    return dict(model.state_dict()) | {"losses": torch.tensor([row["loss"] for row in history])}


def main(place: Path, device: str) -> None:
    """One of two processes: every case, one after the other; each writes what it ends with."""
    from basin.stages import joining

    with joining.joined("test", True, device) as group:
        for name, case in CASES.items():
            save_file(trained(dict(case), group, place), place / f"{name}-{group.rank}")


@pytest.mark.parametrize("n", [1, 2, 5, 97])
def test_every_row_is_one_processs_or_all_are_everybodys(n: int):
    groups = [Group(rank, 3) for rank in range(3)]
    shares = [list(range(n)[group.rows(n)]) for group in groups]
    assert sum(shares, []) == list(range(n)) if n >= 3 else shares == [list(range(n))] * 3


def test_a_part_of_a_batch_is_drawn_as_in_the_whole_batch():
    layer, whole = Random(), torch.zeros(6, 2)
    with drawing(layer, generator(0, "draws")):
        drawn = layer.normal_rows(whole)
    for rows in (slice(0, 4), slice(4, 6)):
        layer.part = rows, 6
        with drawing(layer, generator(0, "draws")):
            assert torch.equal(layer.normal_rows(whole[rows]), drawn[rows])


@pytest.mark.parametrize(("asked", "told"), [({"compile": True}, "schedule.compile"), ({}, "solver.gradient")])
def test_what_several_processes_cannot_share_is_refused(asked: dict[str, bool], told: str):
    from small import classifier

    solver = {"method": "rk4", "steps": 2, "gradient": "adjoint"}
    backbone = classifier({"kind": "odenet", "channels": 4, "halvings": 1, "solver": solver}).backbone
    with pytest.raises(Mistake, match=rf"^here: {told}: .*is for one process \(got \w+\)\. Set it to \w+\.$"):
        Paced(backbone, Schedule(epochs=1, **asked), torch.device("cpu"), "here", Group(0, 2))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left their weights."""
    place = tmp_path_factory.mktemp("two")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "pipeline", ROOT / "tests")))
    both = [subprocess.Popen([sys.executable, __file__, str(place)], env=env | {"RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(600) for process in both] == [0, 0]
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_with_the_weights_of_one(name: str, two: Path, tmp_path: Path):
    one, first, second = trained(dict(CASES[name]), ALONE, tmp_path), *(load_file(two / f"{name}-{rank}") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in one), "both hold the same model"
    torch.testing.assert_close({key: first[key] for key in one}, one, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "cpu")
