"""`basin evaluate`: any model, any images, one answer; and every bad call ends in one sentence that says what to do."""

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from small import SODEF, classifier, few, fit

from basin.cli import app
from basin.config import suite as ready_made
from basin.config.splits import SplitSettings
from basin.config.suite import Suite
from basin.config.threat import asked
from basin.data.splits import prepare
from basin.errors import Mistake, exit_on_mistake
from basin.evaluation import outside
from basin.evaluation.robustness import check, check_labels
from basin.evaluation.subject import subject
from basin.methods.sources import digits as source
from basin.models import artifact

ROOT = Path(__file__).resolve().parents[2]
BASIN = [sys.executable, "-c", "from basin.cli.app import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
KEYS = {"n", "clean", "worst_case", "interval", "attacks", "masked", "flags", "passes", "seconds"}
MODELS = """
import itertools, os, time
import random as python
import numpy as np
import torch
from torch import nn
from beside import SCALE

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()

class Made(nn.Module):
    def __init__(self, forward, classes=10):
        super().__init__()
        self.inside, self.made = net(), forward

    def forward(self, x):
        return self.made(SCALE * self.inside(x), x)

class Recorder(nn.Module):
    '''Keeps the first images that it sees.'''
    def forward(self, x):
        if len(x) > 2 and not os.path.exists("seen.pt"):
            torch.save(x, "seen.pt")
        return x.flatten(1)[:, :10]

def made(forward):
    return Made(forward).eval()

def few_at_once(z, x):
    if len(x) > 4:
        raise RuntimeError("too many")
    return z

def training(): return net().train()
def nan(): return made(lambda z, x: z * torch.nan)
def nan_later(): return made(lambda z, x: torch.where(torch.arange(len(x))[:, None] == 5, torch.nan, z))
def probabilities(): return made(lambda z, x: z.softmax(1))
def pair(): return made(lambda z, x: (z, x))
def words(): return made(lambda z, x: "seven")
def flat(): return made(lambda z, x: z.flatten())
def random(): return made(lambda z, x: z + 0.1 * torch.randn_like(z))
def random_elsewhere(): return made(lambda z, x: z + 0.1 * (np.random.randn() + python.gauss(0, 1)) * torch.arange(10))
def two(): return made(lambda z, x: z[:, :2])
def three(): return made(lambda z, x: z[:, :3])
def recorder(): return Recorder().eval()
def number(): return 3
def few(): return made(few_at_once)
def slow(calls=itertools.count()):
    return made(lambda z, x: (time.sleep(0.05 * (x.requires_grad and len(x) != 16 and next(calls) < 100)), z)[1])
value = 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, digits):
    """A folder with a model of ours and its twin, models of another's, and the same test images in four forms."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "net.py").write_text(MODELS)
    (folder / "beside.py").write_text("SCALE = 1.0\n")
    train, test = digits["train"].take(torch.arange(300)), digits["test"]
    artifact.save(folder / "models/twin", fit(classifier(seed=1), train, epochs=2).eval())
    sodef = fit(classifier(head=SODEF | {"T": 0.5, "solver": {"steps": 2}}), train, epochs=2)
    artifact.save(folder / "models/sodef", sodef.eval(), folder / "models/twin")
    prepare(source.read(source.Params()), SplitSettings(), "digits", "digits", 0, folder / "data")
    x, y = few(test, 40)
    floats = (x * 0.9 + 0.0123).clamp(0, 1)
    np.savez(folder / "pixels.npz", images=test.images[:40].numpy(), labels=y.numpy())
    np.savez(folder / "floats.npz", images=floats.numpy(), labels=y.numpy())
    np.savez(folder / "beyond.npz", images=x.numpy() * 2, labels=y.numpy())
    np.savez(folder / "labels.npz", images=x.numpy(), labels=y.numpy() + 7)
    np.savez(folder / "wide.npz", images=np.zeros((4, 1, 9, 9), np.float32), labels=np.arange(4))
    np.savez(folder / "empty.npz", images=np.zeros((0, 1, 8, 8), np.float32), labels=np.zeros(0, int))
    np.savez(folder / "few.npz", images=x.numpy(), labels=y.numpy() % 2)
    for i, (image, label) in enumerate(zip(test.images[:40, 0].numpy(), y.tolist())):
        (folder / f"pictures/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"pictures/{label}/{i:02}.png")
    return folder


@pytest.fixture
def basin(place, monkeypatch, capsys):
    """`basin(target, data, ...)`: the command in this process; (exit code, what it said, its JSON)."""
    monkeypatch.chdir(place)

    def run(target="net.py:net", data="pixels.npz", *more: str, eps="0.1", suite="quick"):
        answer = place / "answer.json"
        answer.unlink(missing_ok=True)
        words = ["evaluate", target, "--data", data, "--eps", eps, "--suite", suite, "--json", str(answer), *more]
        with pytest.raises(SystemExit) as ended, exit_on_mistake(lambda text: sys.stderr.write(text)):
            app.app(words)
        said = capsys.readouterr()
        return ended.value.code or 0, said.out + said.err, json.loads(answer.read_text()) if answer.exists() else None

    return run


# What can be judged -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "data"), [("models/sodef", "data"), *(("net.py:net", data) for data in ("data", "pixels.npz", "floats.npz", "pictures"))]
)
def test_any_model_on_any_images(target, data, basin):
    code, said, found = basin(target, data, "--images", "20")
    assert code == 0, said
    assert KEYS <= found.keys() and found["n"] == 20 and list(found["attacks"])[:3] == ["margin", "pma_short", "apgd_nearest"]
    low, high = found["interval"]
    assert 0 <= low <= found["worst_case"] == list(found["attacks"].values())[-1] <= high <= 1 and found["worst_case"] <= found["clean"]
    assert (found["masked"] is not None) is (target == "models/sodef")  # whose naive gradient is the adjoint's
    assert found["declared"]["twin"] is (target == "models/sodef")
    assert "worst case, 95% interval" in said and " to go" not in said  # no line of progress in seconds where there is no terminal


def test_the_answer_is_that_of_an_attack_written_out(basin, place, monkeypatch):
    """FGSM in plain torch."""
    monkeypatch.setitem(ready_made.READY, "quick", {"attacks": {"fgsm": {"kind": "fgsm"}}})
    found = basin(data="floats.npz")[2]
    model, _ = outside.models("net.py:net", lambda _: None)
    x, y = outside.images("floats.npz", None, 0)
    x.requires_grad_()
    torch.nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
    right = (model(x).argmax(1) == y) & (model((x + 0.1 * x.grad.sign()).clamp(0, 1)).argmax(1) == y)
    assert found["clean"] == pytest.approx((model(x).argmax(1) == y).float().mean().item())
    assert found["attacks"]["fgsm"] == pytest.approx(right.float().mean().item())


def test_several_threats_are_judged_side_by_side(basin, place, monkeypatch, tmp_path):
    """FGSM in two balls: each as it would be alone, and the union image by image."""
    monkeypatch.setitem(ready_made.READY, "quick", {"attacks": {"fgsm": {"kind": "fgsm"}}})
    alone = [basin("net.py:net", "floats.npz", "--norm", norm, eps=eps)[2] for norm, eps in (("linf", "0.05"), ("l2", "0.3"))]
    words = ["--also", "l2:0.3", "--also", "linf:0.05", "--outcomes", str(tmp_path / "found")]
    _, said, both = basin("net.py:net", "floats.npz", *words, eps="0.05")
    kept = [
        np.genfromtxt(folder / "outcomes.csv", delimiter=",", names=True, encoding="utf-8", dtype=None)["robust"]
        for folder in (tmp_path / "found", tmp_path / "found/l2-0.3")
    ]
    assert (
        [one["worst_case"] for one in both["threats"].values()] == [one["worst_case"] for one in alone] == [kept[0].mean(), kept[1].mean()]
    )
    assert both["worst_case"] == alone[0]["worst_case"] and "union" not in alone[0]
    assert both["union"]["worst_case"] == np.minimum(*kept).mean() and "under every one of them" in said


def test_the_model_sees_exactly_the_floats_of_the_file(basin, place):
    basin("net.py:recorder", "floats.npz")
    images = outside.images(str(place / "floats.npz"), None, 0)[0]
    assert torch.equal(torch.load(place / "seen.pt", weights_only=True)[:16], images[:16])
    with np.load(place / "floats.npz") as stored:
        assert sorted(map(bytes, stored["images"])) == sorted(map(bytes, images.numpy()))
    assert images.mul(255).sub(images.mul(255).round()).abs().max() > 0.1  # between grey levels


def test_of_a_folder_of_images_every_class_comes_first(place):
    """It is read class by class; the first ten would be zeros."""
    x, y = outside.images(str(place / "pictures"), 10, 0)
    assert sorted(y.tolist()) == list(range(10)) and x.shape == (10, 3, 8, 8)
    assert torch.equal(outside.images(str(place / "pictures"), 10, 0)[0], x)


@pytest.mark.parametrize("number", [10, 20, None])
def test_of_sorted_arrays_every_class_comes_in_proportion(number, place, tmp_path, digits):
    """The first ten would be zeros; each image keeps its label."""
    order = digits["test"].labels.argsort(stable=True)
    images, labels = digits["test"].images[order], digits["test"].labels[order]
    np.savez(tmp_path / "sorted.npz", images=images.numpy(), labels=labels.numpy())
    x, y = outside.images(str(tmp_path / "sorted.npz"), number, 0)
    assert y[:10].sort().values.tolist() == list(range(10)) and len(y) == (number or len(labels))
    if number == 20:
        assert y.bincount().tolist() == [2] * 10
    label_of = {image.tobytes(): int(label) for image, label in zip(images.numpy(), labels)}
    assert [label_of[image.mul(255).round().byte().numpy().tobytes()] for image in x] == y.tolist()
    again, other = (outside.images(str(tmp_path / "sorted.npz"), number, seed)[0] for seed in (0, 1))
    assert torch.equal(again, x) and not torch.equal(other, x)


def test_the_number_that_the_literature_quotes(basin):
    weak, strong = (basin("net.py:net", "floats.npz", "--images", "20", suite=suite, eps="0.05")[2] for suite in ("quick", "autoattack"))
    assert list(strong["attacks"]) == ["autoattack"] and strong["worst_case"] <= weak["worst_case"] and strong["clean"] == weak["clean"] > 0
    assert strong["passes"] > weak["passes"]


@pytest.mark.parametrize("target", ["net.py:two", "net.py:three"])
def test_few_classes_are_enough(target, basin, monkeypatch):
    monkeypatch.setattr(ready_made, "READY", short(ready_made.READY))
    code, said, found = basin(target, "few.npz", suite="adaptive")
    assert code == 0 and found["worst_case"] <= found["clean"], said


def test_a_model_that_takes_few_at_once_is_looked_at_with_few(basin):
    code, said, found = basin("net.py:few", "pixels.npz", "--batch", "4")
    assert code == 0 and found["n"] == 40, said


def test_what_is_replaced_is_said_and_written(basin, monkeypatch):
    monkeypatch.setattr(ready_made, "READY", short(ready_made.READY))
    code, said, found = basin("net.py:two", "few.npz", suite="standard")
    words = "apgd (loss {}_targeted, order nearest, steps 2, targets 1)"
    words = f"{words.format('dlr')} is run as {words.format('margin')}"
    assert code == 0 and found["replaced"] == {"apgd_nearest": words}
    assert f"apgd_nearest: {words} (on 2 classes)\n" in said


def short(suites):
    """The same attacks with next to no steps."""
    text = json.dumps(suites)
    for word, number in {"steps": 2, "queries": 5, "targets": 1}.items():
        text = re.sub(rf'"{word}": \d+', f'"{word}": {number}', text)
    made = json.loads(text)
    made["adaptive"]["adaptive"] |= {"doublings": 0, "draws": 2}
    return made


# What cannot ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"eps": "0"}, "eps: input should be greater than 0 (got '0'). It is radius in pixels scaled to [0, 1], above 0 and"),
        ({"eps": "1.5"}, "eps: input should be less than or equal to 1 (got '1.5'). It is radius in pixels scaled to [0, 1], above 0 and"),
        ({"eps": "8/0"}, "eps: input should be a valid number (got '8/0'). It is radius in pixels scaled to [0, 1], above 0 and"),
        ({"more": ["--norm", "l1nf"]}, "norm: no such norm (got 'l1nf'). Did you mean 'linf'?"),
        ({"more": ["--device", "gpu"]}, "--device: no such device (got 'gpu'). Give auto, cpu or cuda."),
        ({"more": ["--device", "cuda"]}, "--device: there is no GPU here that torch can use (got 'cuda'). Give cpu, or auto for a GPU"),
        ({"suite": "adaptiv"}, "suite: no such suite (got 'adaptiv'). Did you mean 'adaptive'?"),
        ({"more": ["--images", "41"]}, "--images: there are only 40 (got 41). Ask for 40 or fewer."),
        ({"more": ["--json", "no/such/x.json"]}, "--json: no such folder (got 'no/such'). Make it first."),
        (
            {"target": "models/none"},
            "TARGET: no such model (got 'models/none'). Give models:/NAME@ALIAS, a model folder, or FILE.py:FUNCTION.",
        ),
        ({"target": "models"}, "models/recipe.json: not found. Run the stage that makes it: dvc repro."),
        ({"target": "nets.py:net"}, "TARGET: no such file (got 'nets.py'). Give FILE.py:FUNCTION."),
        ({"target": "net.py:nett"}, "TARGET: net.py: no such function (got 'nett'). Did you mean 'net'?"),
        ({"target": "net.py:value"}, "TARGET: net.py: no such function (got 'value'). Known: few, "),
        ({"target": "net.py:number"}, "TARGET: net.py:number should return an nn.Module on images in [0, 1] (got int). Return one."),
        ({"target": "net.py:training"}, "model: is in training mode (got model.training = True). Call model.eval() first."),
        ({"target": "net.py:nan"}, "model: should give finite logits (got values that are not). Mend its forward pass."),
        ({"target": "net.py:nan_later"}, "model: its logits are not finite (got so at image 5, 1 in all). Mend its forward pass."),
        ({"target": "net.py:words"}, "model: cannot take float32 images [2, 1, 8, 8] (got TypeError: its answer is str, not logits)."),
        ({"target": "net.py:flat"}, "model: should give logits [n, classes] (got float32 [20] for 2 images). Mend its forward pass."),
        ({"more": ["--also", "l2"]}, "--also: no NORM:EPS (got 'l2': eps: input should be a valid number). Write e.g. l2:0.5."),
        ({"data": ""}, "--data: no such file or folder (got ''). Give a prepared folder, an .npz file, or a folder of images."),
        ({"data": "none"}, "--data: no such file or folder (got 'none'). Give a prepared folder, an .npz file, or a folder of images."),
        ({"data": "net.py"}, "--data: a file of another kind (got 'net.py'). Give a prepared folder, an .npz file, or a folder of images."),
        (
            {"data": "beyond.npz"},
            "beyond.npz: images: float images must be in [0, 1] (got 2.0). Scale them to [0, 1], or store uint8 in 0..255.",
        ),
        ({"data": "empty.npz"}, "empty.npz: images: needs shape [n, c, h, w] or [n, h, w], none of them 0 (got [0, 1, 8, 8]). Reshape"),
        ({"data": "labels.npz"}, "labels: should be in 0..9 (got 16). Check the data's classes."),
        ({"data": "wide.npz"}, "model: cannot take float32 images [2, 1, 9, 9] (got RuntimeError: "),
    ],
    ids=str,
)
def test_a_bad_call_ends_in_one_sentence_and_exit_code_2(words, message, basin):
    more = words.pop("more", [])
    words = {"target": "net.py:net", "data": "pixels.npz"} | words
    code, said, found = basin(words.pop("target"), words.pop("data"), *more, **words)
    assert (code, found) == (2, None) and said.startswith(f"error: {message}") and len(said.splitlines()) == 1, said


TAKEN = "from torch import nn\n\ndef net():\n    "
FILES = {
    "sys.exit at import": ("import sys\nsys.exit(3)\n", ", line 2: cannot be used (got SystemExit: 3). Mend the file."),
    "sys.exit inside": (TAKEN + "raise SystemExit('over')", ", line 4: cannot be used (got SystemExit: over). Mend the file."),
    "GeneratorExit": (TAKEN + "raise GeneratorExit", ", line 4: cannot be used (got GeneratorExit: ). Mend the file."),
    "a syntax error": ("x = 1\ny = = 2\n", ", line 2: cannot be used (got SyntaxError: invalid syntax (bad.py, line 2)). Mend the file."),
    "a syntax error beside it": ("\nimport wrong\n", ", line 2: cannot be used (got SyntaxError: invalid syntax (wrong.py, line 1))."),
    "a missing module": ("\nimport no_such\n", ", line 2: cannot be used (got ModuleNotFoundError: No module named 'no_such'). Mend"),
    "a missing name": ("from beside import NO\n", ", line 1: cannot be used (got ImportError: cannot import name 'NO' from 'beside'"),
    "a relative import": ("from . import beside\n", ", line 1: cannot be used (got ImportError: attempted relative import with no known"),
    "an exception": (TAKEN + "x = 1\n    return x / 0\n", ", line 5: cannot be used (got ZeroDivisionError: division by zero). Mend"),
    "words in lines": (TAKEN + "raise ValueError('a\\nb')", ", line 4: cannot be used (got ValueError: a b). Mend the file."),
    "a null byte": ("x = 1\0\n", ": cannot be used (got "),
    "not UTF-8": ("x = '\udcff'\n", ", line 1: cannot be used (got SyntaxError: (unicode error) 'utf-8' codec can't decode byte 0xff"),
    "needs arguments": (
        "def net(x): return x",
        ": cannot be used (got TypeError: net() missing 1 required positional argument: 'x').",
    ),
    "nothing": ("def net(): pass", ":net should return an nn.Module on images in [0, 1] (got NoneType). Return one."),
    "a class": (TAKEN + "return nn.Linear", ":net should return an nn.Module on images in [0, 1] (got type). Return one."),
    "endless": (TAKEN + "return net()", ", line 4: cannot be used (got RecursionError: maximum recursion depth exceeded"),
    "no function": ("", ": no such function (got 'net'). Known: none."),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_fails_is_one_sentence_with_its_line(case, basin, place):
    text, message = FILES[case]
    (place / "bad.py").write_text(text, encoding="utf-8", errors="surrogateescape")
    (place / "wrong.py").write_text("= 1\n", encoding="utf-8")
    code, said, found = basin("bad.py:net")
    assert (code, found) == (2, None) and said.startswith(f"error: TARGET: bad.py{message}") and len(said.splitlines()) == 1, said


def test_a_module_in_training_mode_and_a_class_are_refused(basin, place):
    (place / "bad.py").write_text("from torch import nn\nclass net(nn.Module): pass\n", encoding="utf-8")
    assert basin("bad.py:net")[:2] == (2, "error: model: is in training mode (got model.training = True). Call model.eval() first.\n")


def test_an_interruption_of_a_file_passes(place):
    (place / "bad.py").write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        outside.models(str(place / "bad.py:net"), lambda _: None)


def test_the_normalisation_that_is_asked_for_reaches_the_model(basin):
    code, _, found = basin("net.py:net", "pixels.npz", "--normalise", "0.5/0.25")
    assert code == 0 and found["clean"] != basin("net.py:net", "pixels.npz")[2]["clean"]
    code, said, _ = basin("net.py:net", "pixels.npz", "--normalise", "0.5,0.5,0.5/0.2,0.2,0.2")
    assert (code, said) == (2, "error: --normalise: a mean and a std for each channel are needed (got 3 for 1). Give as many.\n")


def test_a_model_that_returns_probabilities_is_judged_and_flagged(basin):
    code, _, found = basin("net.py:probabilities")
    assert code == 0 and "probabilities" in found["flags"]


def test_the_command_itself_ends_without_a_traceback(place):
    command = [*BASIN, "evaluate", "net.py:training", "--data", "pixels.npz", "--eps", "0.1"]
    done = subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: model: is in training mode (got model.training = True). Call model.eval() first.\n"


X, Y = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 2, Y, "images: should be in [0, 1] (got "),
        (X - 1, Y, "images: should be in [0, 1] (got -"),
        (X * torch.nan, Y, "images: should be in [0, 1] (got nan to nan). Scale them; normalisation belongs into the model."),
        (X[0], Y, "images: should be float32 [n, c, h, w], one or more (got float32 [1, 8, 8]). Bring them to that form."),
        (X[:0], Y[:0], "images: should be float32 [n, c, h, w], one or more (got float32 [0, 1, 8, 8]). Bring them to that form."),
        (X.double(), Y, "images: should be float32 [n, c, h, w], one or more (got float64 [3, 1, 8, 8]). Bring them to that form."),
        (X, Y[:2], "labels: should be int64 [3], one an image (got int64 [2]). Bring them to that form."),
        (X, Y.float(), "labels: should be int64 [3], one an image (got float32 [3]). Bring them to that form."),
        (X, Y[:, None], "labels: should be int64 [3], one an image (got int64 [3, 1]). Bring them to that form."),
        (X, Y - 1, "labels: should be in 0..9 (got -1). Check the data's classes."),
        (X, Y + 8, "labels: should be in 0..9 (got 10). Check the data's classes."),
        (X.expand(3, 3, 8, 8), Y, "model: cannot take float32 images [2, 3, 8, 8] (got RuntimeError: "),
    ],
)
def test_a_bad_call_from_python_raises_a_mistake(x, y, message):
    """Of what `evaluate` does first: the tests hold the annotations of `evaluate` itself to their shapes."""

    def looked_at(x, y):
        check(x, y)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
        check_labels(y, subject(model, x)(x).shape[1])

    looked_at(X, Y)
    with pytest.raises(Mistake, match=re.escape(message)):
        looked_at(x, y)


def test_the_python_door_of_the_documentation_opens(place):
    """As documented, in a process without our tests' checks of annotations; a wrong shape is told there too."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/evaluation.md").read_text(), re.S)
    given = "import torch\ntorch.manual_seed(0)\nmodel = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    given += "images = torch.rand(8, 1, 8, 8)\nlabels = model(images).argmax(1)\n"
    wrong = "from basin.errors import Mistake\n"
    for change in ("model.eval = lambda: torch.sum\n", "images = images[0]\n"):
        again = change + code.partition("\n\n")[2]
        wrong += f"try:\n    exec({again!r})\nexcept Mistake as mistake:\n    print(mistake)\n"
    done = subprocess.run([sys.executable, "-c", given + code + wrong], cwd=place, env=ENVIRONMENT, capture_output=True, text=True)
    first, kind, shape = done.stdout.splitlines()
    assert 0 <= float(first.split()[0]) <= 1 and "Declaration(classes=10, randomised=False" in first and done.stderr == ""
    assert shape.startswith("images: should be float32 [n, c, h, w], one or more (got float32 [1, 8, 8]).")
    assert kind == "model: should be a torch.nn.Module (got builtin_function_or_method). Call it in the forward pass of one."


@pytest.mark.parametrize("eps", [0, -0.1, 1.01, float("nan"), "0"])
def test_a_radius_that_is_none_is_refused_from_python_too(eps):
    with pytest.raises(Mistake, match=r"^eps: input should be .* \(got "):
        asked("linf", eps)


def test_an_unknown_attack_is_refused_with_the_nearest_name():
    with pytest.raises(ValidationError, match="unknown kind of attacks. Did you mean 'square'?"):
        Suite.model_validate({"attacks": {"x": {"kind": "sqare"}}})


@pytest.mark.parametrize(("takes", "given"), [(1, 1), (3, 3), (2, 3)])
def test_grey_images_read_as_colour_lose_it_where_the_model_takes_one_channel_alone(takes, given):
    grey, model = X[:, :1].repeat(1, 3, 1, 1), torch.nn.Conv2d(takes, 2, 3)
    assert outside._as_taken(model, grey).shape[1] == given
    coloured = grey + torch.tensor([0.0, 0.1, 0.2]).view(1, 3, 1, 1)
    assert outside._as_taken(model, coloured).shape[1] == 3


# The same again ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "suite"), [("net.py:random", "adaptive"), ("net.py:random_elsewhere", "quick"), ("models/sodef", "quick")]
)
def test_the_same_evaluation_twice_is_the_same_image_by_image(target, suite, basin, monkeypatch, tmp_path):
    """A model of another's may draw from the global generators of torch, NumPy and Python, which stand elsewhere each time."""
    monkeypatch.setattr(ready_made, "READY", short(ready_made.READY))
    answers, files = [], []
    for run in ("one", "two"):
        torch.rand(len(files) + 1), np.random.rand(len(files) + 1), random.random()  # noqa: NPY002
        answers.append(basin(target, "floats.npz", "--images", "12", "--outcomes", str(tmp_path / run), suite=suite)[2])
        files.append({path.name: path.read_bytes() for path in sorted((tmp_path / run).iterdir())})
    assert files[0] == files[1] and list(files[0]) == ["adversarial.safetensors", "outcomes.csv", "summary.json"]
    assert answers[0] | {"seconds": 0} == answers[1] | {"seconds": 0}
    stored = load_file(tmp_path / "one" / "adversarial.safetensors")
    assert (stored["images"] - stored["clean"]).abs().max() <= 0.1 + 1e-6


def evaluating(place: Path, name: str, **popen) -> subprocess.Popen:
    command = [*BASIN, "evaluate", "net.py:slow", "--data", "pixels.npz", "--eps", "0.001", "--suite", "quick", "--json", name]
    return subprocess.Popen(command, cwd=place, env=ENVIRONMENT, **popen)


@pytest.mark.slow
def test_killed_it_goes_on_where_it_stopped_and_a_terminal_sees_how_far_it_is(place):
    process = evaluating(place, "killed.json", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(place.glob(".basin/checkpoints/evaluate/*.safetensors")) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (place / "killed.json").exists()

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = evaluating(place, "resumed.json", stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    said = "".join(iter(lambda: _read(ours), ""))
    assert process.wait(60) == 0 and re.search(r"evaluate: goes on after 1 of \d steps", said)
    assert re.search(r"evaluate: \d of \d attacks.*; 0:00:\d\d, about 0:00:\d\d to go", said)

    process = evaluating(place, "whole.json", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert "goes on" not in (said := process.communicate(timeout=60)[1]) and " to go" not in said
    resumed, whole = (json.loads((place / f"{name}.json").read_text()) for name in ("resumed", "whole"))
    assert resumed | {"seconds": 0} == whole | {"seconds": 0}
    assert list(place.glob(".basin/checkpoints/evaluate/*")) == []


def _read(terminal: int) -> str:
    """What has come, "" at the end, which Linux tells with an error."""
    try:
        return os.read(terminal, 4096).decode()
    except OSError:
        return ""


def test_what_differs_has_a_checkpoint_of_its_own(place, basin, monkeypatch):
    """Model, what it computes, images, radius, suite and seed."""
    seen: list[Path] = []

    def recorded(*_, checkpoint, **__):
        seen.append(checkpoint)
        raise Mistake("seen")

    monkeypatch.setattr(outside, "evaluate", recorded)
    calls = [{}, {"target": "net.py:random"}, {"data": "floats.npz"}, {"eps": "0.2"}, {"suite": "standard"}]
    for call in calls:
        basin(**call)
    basin("net.py:net", "pixels.npz", "--seed", "1")
    basin("net.py:net", "pixels.npz", "--norm", "l2")
    (place / "beside.py").write_text("SCALE = 1.5\n")  # imported by the file: neither its text nor a weight has changed
    monkeypatch.delitem(sys.modules, "beside")
    basin("net.py:probabilities")
    (place / "beside.py").write_text("SCALE = 1.0\n")
    monkeypatch.delitem(sys.modules, "beside")
    basin("net.py:probabilities")
    assert len(set(seen)) == len(seen) == 9
    basin()
    assert seen[-1] == seen[0]
