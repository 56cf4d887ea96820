"""Training at the device's pace: the same bytes twice, bfloat16 close to float32, a device that is not waited for, and what is refused."""

import logging
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save
from small import CONVNET, SODEF, TRAINED, classifier, method
from waits import Waits

from basin import checkpoint
from basin.config import kinds
from basin.config.schedule import Schedule
from basin.errors import Mistake
from basin.models import precision
from basin.randomness import generator
from basin.training import losses, optimise, pace
from basin.training.batches import Batches
from basin.training.phase import Phase

RESNET = {"kind": "resnet", "depth": 8, "width": 4}
ODENET = {"kind": "odenet", "channels": 4, "halvings": 1, "solver": {"steps": 1}}
CPU = torch.device("cpu")


@pytest.fixture
def train(digits):
    return digits["validation"].take(torch.arange(120))


@pytest.fixture
def late(monkeypatch):
    """Losses are read as rarely as on a GPU."""
    monkeypatch.setitem(losses.EVERY, "cpu", losses.EVERY["cuda"])


def phase(model, kind="natural", settings=None, **schedule):
    loss = method(kind, **(settings or {}))
    schedule = Schedule(**({"epochs": 2, "batch": 40, "rate": 0.01} | schedule))
    return Phase(kind, schedule, [model.backbone, model.head], lambda x, y, g: loss(model, x, y, g))


def trained(train, folder, backbone=CONVNET, kind="natural", settings=None, **schedule):
    model = classifier(backbone)
    history = optimise.run(model, [phase(model, kind, settings, **schedule)], train, lambda: 0.0, (0, "x"), folder / "c.safetensors")
    return model, history


def right(model, split):
    with torch.no_grad():
        return (model(split.floats()).argmax(1) == split.labels).float().mean().item()


# What a schedule may ask for --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("backbone", [CONVNET, RESNET], ids=["convnet", "resnet"])
def test_the_same_schedule_gives_the_same_bytes(backbone, precision, optimiser, train, tmp_path):
    once, again = (trained(train, tmp_path, backbone, "fast", precision=precision, optimiser=optimiser) for _ in range(2))
    assert save(once[0].state_dict()) == save(again[0].state_dict()) and once[1] == again[1]


def test_bfloat16_trains_to_what_float32_does(digits, tmp_path):
    """Not to the same bits; weights and moments are float32, and the accuracies are within the noise of 360 images."""
    models = {p: trained(digits["train"], tmp_path, RESNET, epochs=4, batch=64, precision=p)[0] for p in ("float32", "bf16")}
    wide, narrow = models.values()
    assert {tensor.dtype for tensor in narrow.parameters()} == {torch.float32}
    assert not torch.equal(wide.head.classifier.weight, narrow.head.classifier.weight)
    assert right(wide, digits["test"]) > 0.9 and abs(right(narrow, digits["test"]) - right(wide, digits["test"])) < 0.04


def test_what_is_stepped_and_kept_is_float32(train, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(checkpoint, "write", lambda path, groups, progress: written.append(groups))
    trained(train, tmp_path, precision="bf16")
    tensors = {(group, name): tensor for group, named in written[-1].items() for name, tensor in named.items()}
    assert {key for key, tensor in tensors.items() if tensor.is_floating_point() and tensor.dtype != torch.float32} == set()
    assert {group for group, _ in tensors} >= {"model", "optimiser"}


def test_only_the_backbones_steps_are_in_bfloat16(train, tmp_path):
    """A head and a loss see float32, and what measures a model after an epoch sees a model in float32."""
    model, seen = classifier(), []
    model.backbone.layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(("backbone", output.dtype)))
    model.head.register_forward_hook(lambda layer, inputs, output: seen.append(("head", output.dtype)))
    x = train.floats(slice(0, 5))

    def accuracy():
        seen.append(("measured", model(x).dtype))
        return 0.0

    steps = phase(model, epochs=1, batch=120, precision="bf16")
    optimise.run(model, [steps], train, accuracy, (0, "x"), tmp_path / "c.safetensors")
    narrow, wide = torch.bfloat16, torch.float32
    assert seen == [("backbone", narrow), ("head", wide), ("backbone", wide), ("head", wide), ("measured", wide)]


@pytest.mark.slow  # a minute: what compiles is a C++ compiler
@pytest.mark.parametrize("kind", ["natural", "pgd"])
def test_compiled_it_trains_to_what_it_does_otherwise(kind, train, tmp_path):
    (plain, history), *compiled = (trained(train, tmp_path, kind=kind, compile=one) for one in (False, True, True))
    assert save(compiled[0][0].state_dict()) == save(compiled[1][0].state_dict())
    assert [row["loss"] for row in compiled[0][1]] == pytest.approx([row["loss"] for row in history], rel=1e-3)


@pytest.mark.slow
def test_without_a_compiler_it_is_refused_in_a_sentence(tmp_path):
    code = "import test_pace, torch, pathlib; from basin.methods.sources import digits\n"
    code += "images = digits.read(digits.Params()).train.take(torch.arange(40))\n"
    code += f"test_pace.trained(images, pathlib.Path({str(tmp_path)!r}), compile=True)"
    places = {"PYTHONPATH": os.pathsep.join(sys.path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "CXX": "/nowhere/g++"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | places, capture_output=True, text=True)
    assert re.search(r"Mistake: x, phase natural: schedule\.compile: fails here \(got .*C\+\+.*\)\. Set it to false\.\n$", done.stderr)


@pytest.mark.slow
def test_a_method_that_looks_for_the_first_layer_is_not_given_a_compiled_one(train, tmp_path):
    text = r"training: yopo: does not see the first layer of a compiled backbone \(got compile: true\)\. Set it to false\."
    with pytest.raises(Mistake, match=text):
        trained(train, tmp_path, kind="yopo", compile=True)


def test_an_ode_is_not_solved_in_bfloat16(train, tmp_path):
    with pytest.raises(Mistake) as mistake:
        trained(train, tmp_path, ODENET, precision="bf16")
    assert str(mistake.value) == (
        "x, phase natural: schedule.precision: this backbone solves an ODE, which bfloat16 makes slower and less exact (got bf16). "
        "Set it to float32."
    )


@pytest.mark.parametrize(
    ("backbone", "able", "said"),
    [
        (CONVNET, False, "this processor has no instructions for it"),
        (ODENET | {"blocks": "residual"}, True, "this backbone normalises in groups"),
        (CONVNET, True, None),
    ],
)
def test_where_bfloat16_is_slow_it_is_said(backbone, able, said, monkeypatch, caplog):
    monkeypatch.setattr(pace, "has_bfloat16", lambda device: able)
    with caplog.at_level(logging.WARNING):
        pace.check(classifier(backbone).backbone, CPU, "x, phase natural")
    texts = [f"x, phase natural: precision: bf16 is slower here than float32: {said}"] if said else []
    assert [record.getMessage() for record in caplog.records] == texts


@pytest.mark.parametrize(("has", "quick"), [("_is_amx_tile_supported", True), ("_is_avx512_bf16_supported", True), (None, False)])
def test_a_processor_is_asked_for_its_instructions(has, quick, monkeypatch):
    """Tiles are Intel's; AMD's processors have dot products of bfloat16, and are quicker with them too."""
    for name in precision.INSTRUCTIONS:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == has, raising=False)
    assert precision.has_bfloat16(CPU) is quick


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_moments_lie_in_memory_as_their_weights_do(optimiser, train):
    """Fused kernels go through memory, not through indices; a checkpoint holds moments in the usual order."""
    model = classifier()
    steps = phase(model, optimiser=optimiser)
    x, y = train.floats(slice(0, 40)), train.labels[:40]

    def stepped(resume):
        model.load_state_dict(weights)
        work = optimise.Work(steps, {}, paced := pace.Paced(model.backbone, steps.schedule, CPU, "x"))
        for _ in range(2):
            with paced.in_place(model):
                work.align()
                work.step(torch.nn.functional.cross_entropy(model(x), y), 0.01, lambda loss, gradients: None)
            if resume:
                state = {group: {name: value.contiguous() for name, value in named.items()} for group, named in work.state().items()}
                work = optimise.Work(steps, state, paced)
        return save(model.state_dict())

    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert stepped(True) == stepped(False)


# A model is itself outside the steps ------------------------------------------------------------------------------------------------------


def test_channels_last_where_it_is_quicker_and_the_usual_order_afterwards(train, tmp_path):
    orders = {}
    for name, backbone in {"convnet": CONVNET, "resnet": RESNET, "odenet": ODENET}.items():
        model, during = classifier(backbone), []
        own = model.backbone
        steps = phase(model, epochs=1, batch=120)
        weight = next(p for p in own.parameters() if p.ndim == 4 and min(p.shape) > 1)

        def loss(x, y, g, during=during, weight=weight, inner=steps.loss):
            during.append(weight.is_contiguous(memory_format=torch.channels_last))
            return inner(x, y, g)

        optimise.run(model, [Phase("a", steps.schedule, steps.trained, loss)], train, lambda: 0.0, (0, "x"), tmp_path / "c.safetensors")
        assert model.backbone is own and all(p.is_contiguous() for p in model.parameters())
        orders[name] = during
    assert orders == {"convnet": [True], "resnet": [True], "odenet": [False]}


def test_after_an_error_the_model_has_its_own_backbone(train, tmp_path):
    model = classifier()
    own = model.backbone

    def failing(x, y, g):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        optimise.run(
            model, [Phase("a", Schedule(epochs=1), [model.head], failing)], train, lambda: 0.0, (0, "x"), tmp_path / "c.safetensors"
        )
    assert model.backbone is own and all(p.is_contiguous() for p in model.parameters())


def test_batches_are_those_of_the_split(train):
    batches = Batches(train, CPU)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    assert batches.images.dtype == torch.uint8
    for rows, positions in zip(batches.split(order, 50), order.split(50), strict=True):
        x, y = batches.at(rows, generator(0, "draws"))
        assert torch.equal(x, train.floats(positions)) and torch.equal(y, train.labels[positions])


@pytest.mark.parametrize(("size", "sizes"), [(64, [64, 65]), (43, [43, 43, 43]), (1, [1] * 129), (200, [129]), (127, [127, 2])])
def test_one_image_that_is_left_over_goes_with_the_batch_before_it(size, sizes, train):
    order = torch.randperm(129, generator=torch.Generator().manual_seed(0))
    parts = Batches(train, CPU).split(order, size)
    assert [len(part) for part in parts] == sizes and torch.equal(torch.cat(parts), order)


# The device is not waited for -------------------------------------------------------------------------------------------------------------


METHODS = {"natural": {}, "fast": {}, "pgd": {"steps": 2}, "trades": {"steps": 2}, "mart": {"steps": 2}, "alp": {"steps": 2}}
METHODS |= {"free": {"replays": 2}, "yopo": {"m": 2, "n": 2}, "lmt": {}}


def test_every_training_method_is_asked():
    assert set(METHODS) == set(kinds.kinds("training"))


@pytest.mark.parametrize("kind", METHODS)
def test_steps_ask_the_device_for_nothing(kind, train, tmp_path, late, monkeypatch):
    reads = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self, own=torch.Tensor.tolist: reads.append(1) or own(self))

    def waits(batch):
        reads.clear()
        with Waits() as counted:
            trained(train, tmp_path, TRAINED.get(kind, CONVNET), kind, METHODS[kind], epochs=1, batch=batch)
        return counted.seen, len(reads)

    (one, reads_of_one), (twelve, reads_of_twelve) = waits(120), waits(10)
    assert one == twelve and reads_of_one == reads_of_twelve


def test_a_bound_of_a_flow_asks_for_nothing(train, late):
    head = classifier(CONVNET, SODEF | {"bound": 0.5}).head
    with Waits() as counted:
        head.flow.retract()
    assert counted.seen == []
    assert torch.linalg.matrix_norm(head.flow.drift.linear.weight, 2).item() == pytest.approx(0.5, rel=1e-5)


def test_a_bound_that_is_kept_changes_no_bit():
    head = classifier(CONVNET, SODEF | {"bound": 50.0}).head
    before = head.flow.drift.linear.weight.clone()
    head.flow.retract()
    assert torch.equal(head.flow.drift.linear.weight, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_steps_do_not_wait_for_a_gpu(train, tmp_path):
    model = classifier().cuda()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroni") as few:
            optimise.run(model, [phase(model, "fast", batch=120)], train, lambda: 0.0, (0, "x"), tmp_path / "c.safetensors")
        with pytest.warns(UserWarning, match="synchroni") as many:
            optimise.run(model, [phase(model, "fast", batch=10)], train, lambda: 0.0, (0, "x"), tmp_path / "c.safetensors")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(few) == len(many)


def test_a_late_reading_names_the_step_and_keeps_the_last_good_epoch(train, tmp_path, late):
    model, calls = classifier(), []

    def loss(x, y, g):
        calls.append(1)
        return torch.nn.functional.cross_entropy(model(x), y) * (torch.inf if len(calls) == 5 else 1)

    path = tmp_path / "c.safetensors"
    with pytest.raises(Mistake, match=r"^x, phase a, epoch 2, step 2: the loss or its gradient is not finite .*\(got a loss of inf\)"):
        optimise.run(
            model, [Phase("a", Schedule(epochs=3, batch=40), [model.backbone, model.head], loss)], train, lambda: 0.0, (0, "x"), path
        )
    groups, progress = checkpoint.read(path)
    assert len(calls) == 6 and progress["epoch"] == 1
    assert all(tensor.isfinite().all() for group in groups.values() for tensor in group.values())


def test_what_broken_weights_raise_is_answered_with_the_step_that_broke_them(train, tmp_path, late):
    model = classifier(CONVNET, SODEF)

    def loss(x, y, g):
        return model(x).sum() * torch.nan

    def broken():
        if not model.head.projection.weight.isfinite().all():
            raise RuntimeError("linalg.qr: not finite")

    model.head.projection.retract = broken
    with pytest.raises(Mistake, match=r"epoch 1, step 1: the loss or its gradient is not finite .*\(got a loss of nan\)"):
        optimise.run(model, [Phase("a", Schedule(epochs=1), [model.head], loss)], train, lambda: 0.0, (0, "x"), tmp_path / "c.safetensors")
