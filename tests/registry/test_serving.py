"""A version behind `mlflow models serve`: what is promised over HTTP, and why a wrong request is wrong."""

import base64
import csv
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from small import CONVNET, classifier
from test_registry import NAME, registered_workspace, workspace  # noqa: F401

from basin.errors import Mistake
from basin.flow import server
from basin.models import artifact
from basin.registry import scoring
from basin.registry.serving import Asked, answer, decode, read

ROOT = Path(__file__).parents[2]
SHAPE = (1, 8, 8)
JSON = {"Content-Type": "application/json"}


def picture(seed: int, size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "L") -> bytes:
    """An image file."""
    depth = () if mode == "L" else (len(mode),)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, *depth), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(file := io.BytesIO(), kind)
    return file.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def floats(n: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, *SHAPE), dtype=np.float32)


@pytest.fixture(scope="module")
def served(registered_workspace) -> Iterator[SimpleNamespace]:  # noqa: F811
    """The champion behind `mlflow models serve`, and the same model here."""
    port = server.free_port()
    env = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{registered_workspace}/mlflow.db",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    env.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{NAME}@champion", "--env-manager", "local"]
    place = registered_workspace / "elsewhere"
    place.mkdir()
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], cwd=place, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not up(url := f"http://127.0.0.1:{port}"):
            assert process.poll() is None and time.monotonic() < deadline, (place / "log").read_text()
            time.sleep(0.2)
        session = requests.Session()
        yield SimpleNamespace(
            model=artifact.load(registered_workspace / "models/head/ode"),
            root=registered_workspace,
            send=lambda body, headers=JSON: session.post(
                f"{url}/invocations", body if isinstance(body, str | bytes) else json.dumps(body), headers=headers, timeout=60
            ),
        )
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def up(url: str) -> bool:
    try:
        return requests.get(f"{url}/ping", timeout=5).ok
    except requests.ConnectionError:
        return False


def expected(served, images: np.ndarray, output: str = "logits") -> np.ndarray:
    return answer(served.model, torch.from_numpy(images), Asked(output=output)).numpy()


def right(n: int = 2, seed: int = 0) -> list[tuple[dict, np.ndarray]]:
    """Requests of every form, each with the images that it means."""
    x, files = floats(n, seed), [picture(seed + i) for i in range(n)]
    decoded = np.stack([decode(file, SHAPE) for file in files])
    return [
        ({"inputs": x.tolist()}, x),
        ({"instances": x.tolist()}, x),
        ({"instances": x.reshape(n, -1).tolist()}, x),
        ({"dataframe_split": {"columns": ["image"], "data": [[one.tolist()] for one in x]}}, x),
        ({"dataframe_split": {"columns": ["image"], "data": [[text(file)] for file in files]}}, decoded),
        ({"dataframe_records": [{"image": one.ravel().tolist()} for one in x]}, x),
        ({"inputs": [text(file) for file in files]}, decoded),
        ({"instances": [text(picture(seed, kind="JPEG"))] * n}, np.stack([decode(picture(seed, kind="JPEG"), SHAPE)] * n)),
    ]


X = floats().tolist()
WRONG = [  # body, a part of the reason
    ({"inputs": floats().reshape(2, 8, 8).tolist()}, "images: wrong shape (got [2, 8, 8]). Give a float32 array [n, 1, 8, 8]"),
    ({"inputs": (floats() * 255).tolist()}, "images: values outside [0, 1] (got"),
    ('{"inputs": [[[' + "[[NaN" + ", 0" * 63 + "]]]]]}", "wrong shape"),
    ({"instances": [[0.0] * 63 + [float("nan")]]}, "images: values outside [0, 1] (got nan to nan)"),
    ({"instances": [[0.0] * 63 + [10**400]]}, "images: neither an even array of numbers nor a list of base64"),
    ({"instances": [[0.0] * 64, [0.0] * 63]}, "images: neither an even array of numbers nor a list of base64 (got a list of [2])"),
    ({"instances": [{"image": "?"}]}, "Failed to enforce schema"),
    ({"inputs": {"image": X}}, "un-named"),
    ({"inputs": []}, "an input of type <class 'list'> was found"),
    ({"inputs": 3}, "images: wrong shape (got [])"),
    ({"inputs": None}, "an input of type <class 'NoneType'> was found"),
    ({"inputs": ["no base64!"]}, "image 0: not base64 (got "),
    (
        {"inputs": [text(picture(0)), text(b"something")]},
        "image 1: cannot be read as an image (got other bytes). Give a whole PNG or JPEG file.",
    ),
    ({"inputs": [text(picture(0)[:60])]}, "image 0: cannot be read as an image (got "),
    ({"inputs": [text(picture(0, size=(9, 8)))]}, "image 0: wrong height and width (got [9, 8]). The model reads [8, 8]."),
    ({"inputs": X, "params": {"output": "logit"}}, "params: output: input should be 'logits', 'probabilities' or 'vote' (got 'logit')"),
    ({"inputs": X, "params": {"outputs": "vote"}}, "request: unknown key (got 'outputs'). Did you mean 'output'?"),
    ({"inputs": X, "params": {"output": "vote"}}, "params: output: this model draws nothing, so there is nothing to vote (got 'vote')."),
    ({"inputs": X, "params": {"draws": 0}}, "params: draws: input should be greater than or equal to 1 (got 0). It is a number of passes"),
    ({"inputs": X, "params": {"draws": 10**30}}, "draws"),
    ({"inputs": X, "params": {"seed": "one"}}, "seed"),
    ({"inputs": X, "params": [1]}, "Parameters must be a dictionary"),
    ({"inputs": X, "param": {}}, "request: unknown key (got 'param'). Did you mean 'params'?"),
    ({"inputs": X, "instances": X}, "exactly one of the input fields"),
    ({}, "exactly one of the input fields"),
    ([X], "request: not a JSON object (got a list)"),
    ("", "request: not JSON (got Expecting value"),
    ('{"inputs": ', "request: not JSON (got "),
    (b"\xff\xfe", "request: not JSON (got "),
    ("[" * 100_000, "request: not JSON (got "),
    ({"messages": ["hello"]}, "request: unknown key (got 'messages')"),
    ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}, "Failed to enforce schema"),
    ({"dataframe_split": [1]}, "Dataframe split format must be a dictionary"),
    ({"dataframe_records": [{}]}, ""),
]
WRONG_TYPES = [
    ("a,b\n1,2\n", {"Content-Type": "text/csv"}, 400),
    (b"no parquet", {"Content-Type": "application/vnd.apache.parquet"}, 400),
    (json.dumps({"inputs": X}), {"Content-Type": "image/png"}, 415),
    (json.dumps({"inputs": X}), {"Content-Type": "application/json; charset=latin-1"}, 415),
    (json.dumps({"inputs": X}).encode(), {}, 415),
]


def check_right(served, body: dict, images: np.ndarray, output: str) -> None:
    reply = served.send(body | {"params": {"output": output}} if output != "logits" else body)
    assert reply.status_code == 200, reply.text
    assert np.array_equal(np.float32(reply.json()["predictions"]), expected(served, images, output))


def check_wrong(reply: requests.Response, reason: str, status: int = 400) -> None:
    assert reply.status_code == status, reply.text
    words = reply.json()["message"] if status == 400 else reply.text
    assert words and reason in words, words
    assert "Traceback" not in reply.text and "stack_trace" not in reply.text


def test_requests_of_every_form_get_the_models_own_answer(served):
    for number, (body, images) in enumerate(right()):
        check_right(served, body, images, ("logits", "probabilities")[number % 2])


def test_wrong_requests_get_a_400_with_a_reason(served):
    for body, reason in WRONG:
        check_wrong(served.send(body), reason)
    for body, headers, status in WRONG_TYPES:
        check_wrong(served.send(body, headers), "", status)
    assert served.send({"inputs": X}).ok, "and it still answers"


def test_a_reason_does_not_repeat_the_request(served):
    reply = served.send({"inputs": (floats(50) * 255).tolist()})
    assert reply.json()["message"].startswith("images: values outside [0, 1] (got") and len(reply.text) < 400


@pytest.mark.slow
def test_a_thousand_requests(served, capsys):
    draw, right_ones, wrong_ones = random.Random(0), 0, 0
    for number in range(1000):
        if draw.random() < 0.7:
            body, images = draw.choice(right(draw.randint(1, 8), number))
            check_right(served, body, images, draw.choice(("logits", "probabilities")))
            right_ones += 1
        else:
            wrong_ones += 1
            kind = draw.randrange(4)
            if kind == 0:
                body, headers, status = draw.choice(WRONG_TYPES)
                check_wrong(served.send(body, headers), "", status)
            elif kind == 1:  # a right one with a few bytes of it changed
                broken = bytearray(json.dumps(draw.choice(right(2, number))[0]).encode())
                for _ in range(5):
                    broken[draw.randrange(len(broken))] = draw.randrange(256)
                reply = served.send(bytes(broken))
                assert reply.status_code in (200, 400) and "Traceback" not in reply.text and "stack_trace" not in reply.text
            elif kind == 2:  # a damaged image
                damaged = bytearray(picture(number, kind=draw.choice(("PNG", "JPEG"))))
                for _ in range(3):
                    damaged[draw.randrange(len(damaged))] = draw.randrange(256)
                reply = served.send({"inputs": [text(bytes(damaged))]})
                assert reply.status_code in (200, 400) and "Traceback" not in reply.text and "stack_trace" not in reply.text
            else:
                body, reason = draw.choice(WRONG)
                check_wrong(served.send(body), reason)
    one = floats(1)
    torch.set_num_threads(1)
    over_http, direct = [], []
    for _ in range(200):
        began = time.perf_counter()
        assert served.send({"inputs": one.tolist()}).ok
        middle = time.perf_counter()
        expected(served, one)
        over_http.append(middle - began)
        direct.append(time.perf_counter() - middle)
    http, called = statistics.median(over_http) * 1000, statistics.median(direct) * 1000
    with capsys.disabled():
        print(f"\n{right_ones} right and {wrong_ones} wrong requests")
        print(f"one image: {http:.2f} ms over HTTP, {called:.2f} ms called, medians of 200, ratio {http / called:.1f}")


@pytest.fixture(scope="module")
def drawn():
    """A model whose weights are distributions."""
    return classifier({"kind": "distribution", "of": CONVNET, "scale": 1.0}).eval()


def test_the_vote_of_a_randomised_model(drawn):
    x = torch.from_numpy(floats(5))
    shares = answer(drawn, x, Asked(output="vote", draws=40))
    assert torch.equal(shares, answer(drawn, x, Asked(output="vote", draws=40))), "the same request has the same answer"
    assert not torch.equal(shares, answer(drawn, x, Asked(output="vote", draws=40, seed=1)))
    assert torch.allclose(shares.sum(1), torch.ones(5)) and torch.equal(shares * 40, (shares * 40).round()) and (shares.amax(1) < 1).any()
    many = answer(drawn, x, Asked(output="vote", draws=1000, seed=2))
    assert (answer(drawn, x, Asked(output="vote", draws=1000)) - many).abs().max() < 0.1, "one share, estimated twice"


def test_the_logits_of_a_randomised_model_do_not_depend_on_earlier_requests(drawn):
    x = torch.from_numpy(floats(3))
    first = answer(drawn, x, Asked())
    assert torch.equal(first, answer(drawn, x, Asked())) and not torch.equal(first, answer(drawn, x, Asked(seed=1)))
    torch.testing.assert_close(answer(drawn, x, Asked(output="probabilities")), first.softmax(1))


def test_images_from_files():
    grey = decode(picture(0), SHAPE)
    assert grey.dtype == np.float32 and np.array_equal(grey, decode(picture(0), SHAPE)) and grey.max() <= 1
    assert decode(picture(0, mode="RGB"), (3, 8, 8)).shape == (3, 8, 8)
    assert decode(picture(0, mode="RGBA"), SHAPE).shape == SHAPE, "transparency is dropped"
    assert np.array_equal(read(np.array([text(picture(0))], dtype=object), SHAPE), grey[None])
    with pytest.raises(Mistake, match=r"image: more than 8 bits a channel \(got mode I;16\). Convert it to 8 bits first."):
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(deep := io.BytesIO(), "PNG")
        decode(deep.getvalue(), SHAPE)


def test_a_folder_is_scored(tmp_path, trained):
    folder, target = tmp_path / "images", tmp_path / "scores.csv"
    (folder / "sub").mkdir(parents=True)
    for name, content in {"b.png": picture(1), "a.jpg": picture(2, kind="JPEG"), "sub/c.png": picture(3), "d.png": b"no image"}.items():
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("left out")
    (folder / "large.png").write_bytes(picture(4, size=(16, 16)))
    classes = [f"digit {i}" for i in range(10)]
    assert scoring.score(trained, folder, SHAPE, classes, target) == (5, 2)
    rows = {row["file"]: row for row in csv.DictReader(target.open())}
    assert list(rows) == ["a.jpg", "b.png", "d.png", "large.png", "sub/c.png"]
    assert rows["d.png"]["problem"].startswith("image: cannot be read") and rows["d.png"]["class"] == ""
    assert rows["large.png"]["problem"] == "image: wrong height and width (got [16, 16]). The model reads [8, 8]."
    shares = trained(torch.from_numpy(decode(picture(1), SHAPE))[None]).softmax(1)[0]
    assert (rows["b.png"]["class"], rows["b.png"]["probability"]) == (classes[shares.argmax()], f"{shares.max():.6f}")
    assert scoring.score(trained, folder, SHAPE, classes, target, resize=True) == (5, 1)


def test_a_file_name_that_is_not_utf8_is_scored(tmp_path, trained):
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(picture(1))
    assert scoring.score(trained, tmp_path, SHAPE, list(map(str, range(10))), tmp_path / "scores.csv") == (1, 0)
    (row,) = csv.DictReader((tmp_path / "scores.csv").open(encoding="utf-8"))
    assert row["file"] == r"\udcff.png" and not row["problem"]


def test_a_version_scores_a_folder_on_the_command_line(served, tmp_path):
    (tmp_path / "one.png").write_bytes(picture(0))
    (tmp_path / "two.png").write_bytes(b"")
    command = [
        sys.executable,
        "-c",
        "from basin.cli import app; app.main()",
        "score",
        f"models:/{NAME}@champion",
        str(tmp_path),
        "--csv",
        str(tmp_path / "t.csv"),
    ]
    done = subprocess.run(command, cwd=served.root, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 't.csv'}: 1 of 2 images scored, 1 could not be read\n", done.stderr


def test_a_folder_without_images_is_a_mistake(tmp_path, trained):
    with pytest.raises(Mistake, match="no image files"):
        scoring.score(trained, tmp_path, SHAPE, [], tmp_path / "scores.csv")
    with pytest.raises(Mistake, match=r"^FOLDER: no such folder \(got '.*/away'\)\. Give a folder of images\.$"):
        scoring.score(trained, tmp_path / "away", SHAPE, [], tmp_path / "scores.csv")
