"""Passwords that a whole run is given are found nowhere after it: in no file, log, database, page or command line."""

import base64
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from PIL import Image
from test_chaos import CLI, Checkout

from basin.flow import server

pytestmark = pytest.mark.slow
SECRETS = {"MLflow": "canary-of-mlflow-17", "Prefect": "canary-of-prefect-23", "S3": "canary-of-s3-42"}
PARAMS = """
seed: 0
device: cpu
threads: 1
data: {kind: digits, train_limit: 200, test_limit: 40}
threat: {norm: linf, eps: 0.1}
backbone:
  natural: {backbone: {kind: convnet, channels: [4], hidden: 8}, training: {kind: natural}, schedule: {epochs: 2, batch: 50}}
head: {}
adversarial: {}
suites: {tiny: {attacks: {fgsm: {kind: fgsm}}}}
attack: {models: [backbone/natural], suites: [tiny], images: 20, batch: 20}
registry: {name: null}
"""


def baits() -> list[bytes]:
    """Each secret as it is, and as HTTP's basic authentication sends it."""
    sent = [base64.b64encode(f"admin:{secret}".encode()) for secret in SECRETS.values()]
    return [*(secret.encode() for secret in SECRETS.values()), *(one.rstrip(b"=") for one in sent)]


@contextmanager
def guarded_mlflow(place: Path, secrets: Path) -> Iterator[str]:
    """A server that asks for a password, and its address; who may do what is in `secrets`, which is nobody's to read."""
    secrets.mkdir()
    (secrets / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 600\n"  # else each of a thousand requests waits for a slow hash
        f"database_uri = sqlite:///{secrets}/auth.db\nadmin_username = admin\nadmin_password = {SECRETS['MLflow']}\n",
        encoding="utf-8",
    )
    port = server.free_port()
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{place}/mlflow.db"]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *where,
        "--artifacts-destination",
        str(place / "files"),
        "--app-name",
        "basic-auth",
    ]
    extra = {"MLFLOW_AUTH_CONFIG_PATH": str(secrets / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the server"}
    place.mkdir()
    with (place / "log").open("wb") as log:
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | extra
        process = subprocess.Popen(command, cwd=place, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        until_answers(f"http://127.0.0.1:{port}/health")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def until_answers(address: str) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise AssertionError("no answer")


@contextmanager
def command_lines() -> Iterator[set[str]]:
    """Of all processes that are seen until the end of the block."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            seen.update(" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"]))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        ended.set()
        looking.join()


@pytest.mark.parametrize("way", ["environment", "address"])
def test_no_secret_of_a_run_is_found_anywhere(tmp_path, way):
    """Training, attack, registration, Prefect's flow, score, verify, report; and an MLflow that refuses the password."""
    with guarded_mlflow(tmp_path / "mlflow", tmp_path / "nobodys") as host, command_lines() as seen:
        signed = f"http://admin:{SECRETS['MLflow']}@{host}"
        given = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": SECRETS["MLflow"]}
        known = {"MLFLOW_TRACKING_URI": f"http://{host}", **given} if way == "environment" else {"MLFLOW_TRACKING_URI": signed}
        prefect = {name: f"admin:{SECRETS['Prefect']}" for name in ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")}
        aws = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRETS["S3"]}
        checkout = Checkout(tmp_path / "run", **known, **prefect, **aws)
        (checkout.place / "params.yaml").write_text(PARAMS, encoding="utf-8")
        (checkout.place / "photos").mkdir()
        Image.new("L", (8, 8), 128).save(checkout.place / "photos/one.png")

        def do(words: str, **env: str) -> tuple[int, str]:
            with checkout.said.open("ab") as log:
                began = log.tell()
                command, together = [*CLI, *words.split()], checkout.env | env
                done = subprocess.run(command, cwd=checkout.place, env=together, stdout=log, stderr=log, check=False)
            return done.returncode, checkout.said.read_bytes()[began:].decode("utf-8", "replace")

        model = "digits-linf-0.1@natural"
        for words in ("flow", "registry verify", f"score models:/{model} photos --csv scores.csv"):
            code, said = do(words)
            assert code == 0, said[-3000:]
        code, said = do("models", MLFLOW_TRACKING_URI=f"http://admin:{SECRETS['S3']}@{host}", MLFLOW_TRACKING_PASSWORD=SECRETS["S3"])
        assert code == 75 and "cannot be used" in said, said[-3000:]
    assert len(seen) > 5 and any("basin.stages.backbone" in line for line in seen)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "nobodys" not in path.parts]
    bait = baits()
    assert [str(path) for path in files if any(one in path.read_bytes() for one in bait)] == []
    assert [line for line in seen if any(one.decode() in line for one in bait)] == []
    assert (tmp_path / "run/report/index.html").exists() and list((tmp_path / "mlflow").rglob("MLmodel"))
    assert list((tmp_path / "run/.basin/prefect").rglob("*.db"))
