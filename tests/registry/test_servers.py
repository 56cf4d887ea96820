"""MLflow on PostgreSQL, an S3-compatible store and its own authentication; many processes at once; servers that are killed."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import sqlalchemy
from test_registry import NAME, PARAMS, digests, retrain, workspace  # noqa: F401

from basin.config import params
from basin.errors import Mistake
from basin.flow import server
from basin.registry import lookup, registration, upkeep
from basin.tracking import journal
from basin.tracking.mirror import deliver_all

ROOT = Path(__file__).parents[2]
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path(shutil.which("postgres") or "none").parent)
SILENT = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_") and key != "BASIN_TRACKING"} | {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
ONE_MODEL = PARAMS.replace("models: [backbone/natural, head/ode]", "models: [head/ode]")
EPOCHS, PROCESSES = 30, 20

pytestmark = pytest.mark.slow


@contextmanager
def process(command: list[str], ready: Callable[[], bool], log: Path, **options) -> Iterator[subprocess.Popen]:
    """A server until the end of the block."""
    with log.open("ab") as output:
        started = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        deadline = time.monotonic() + 120
        while not ready():
            assert started.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield started
    finally:
        kill(started, signal.SIGTERM)


def kill(started: subprocess.Popen, how: signal.Signals) -> None:
    if started.poll() is None:
        os.killpg(started.pid, how)
    started.wait(30)


def answers(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            return urllib.request.urlopen(url, timeout=5).status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    return ready


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of an empty PostgreSQL of Debian's packages, which does not run as root."""
    if not (POSTGRES / "initdb").exists():
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    folder, port = Path(tempfile.mkdtemp(prefix="postgres")), server.free_port()
    user = {"user": "postgres"} if os.getuid() == 0 else {}
    (folder / "password").write_text("secret")
    folder.chmod(0o755)
    if user:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    how = ["--username=basin", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--encoding=UTF8", "--no-sync"]
    subprocess.run([POSTGRES / "initdb", "-D", data, *how], check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
    command = [POSTGRES / "postgres", "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    address = f"postgresql://basin:secret@127.0.0.1:{port}/postgres"

    def ready() -> bool:
        try:
            engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
            engine.connect().close()
        except sqlalchemy.exc.OperationalError:
            return False
        return True

    with process(command, ready, folder.parent / f"{folder.name}.log", cwd=folder, **user):
        yield address
    shutil.rmtree(folder)
    (folder.parent / f"{folder.name}.log").unlink()


def database(address: str, name: str) -> str:
    """A new database of that PostgreSQL."""
    engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as made:
        made.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    return address.rsplit("/", 1)[0] + f"/{name}"


@pytest.fixture(scope="module")
def runs_of_many(workspace, tmp_path_factory) -> Path:  # noqa: F811
    """Ten finished runs with a model of its own each."""
    folder, before = tmp_path_factory.mktemp("many"), Path.cwd()
    for number in range(PROCESSES // 2):
        shutil.copytree(workspace, folder / str(number))
        os.chdir(folder / str(number))
        Path("params.yaml").write_text(ONE_MODEL)
        retrain(params.load(), "head/ode", seed=number, held=20)
        os.chdir(before)
    return folder


def work(folder: Path, number: int, uri: str, together) -> None:
    """One of the processes: a stage with its metrics, then the registration of a run that another process registers as well."""
    os.chdir(folder / str(number // 2))
    os.environ["MLFLOW_TRACKING_URI"] = uri
    os.environ.pop("BASIN_TRACKING", None)
    together.wait()
    with journal.run(f"backbone/b{number}", {"epochs": EPOCHS}, {"number": number}, experiment="digits") as run:
        for epoch in range(EPOCHS):
            run.metrics({"loss": 1 / (epoch + 1)}, step=epoch)
    registration.register_all(params.load(), digests())
    assert deliver_all(), "what twenty mirrors on few cores did not get through while their stages waited"


def many(folder: Path, uri: str) -> None:
    """PROCESSES at once, from a process that has imported everything and opened nothing. Runs in a process of its own."""
    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(PROCESSES)
    workers = [fork.Process(target=work, args=(folder, number, uri, together)) for number in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(sum(worker.exitcode != 0 for worker in workers))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_twenty_processes_log_and_register_at_once(kind, runs_of_many, tmp_path, monkeypatch, request, capsys):
    folder = tmp_path / "runs"
    shutil.copytree(runs_of_many, folder)
    uri = f"sqlite:///{tmp_path}/mlflow.db" if kind == "sqlite" else database(request.getfixturevalue("postgres"), "many")
    began = time.monotonic()
    code = f"import test_servers as t; t.many(t.Path({str(folder)!r}), {uri!r})"
    env = SILENT | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/registry"))),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": (tmp_path / "files").as_uri(),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(folder.rglob(".basin/runs/**/*.*"))
    with sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect() as found:

        def rows(query: str) -> list[tuple]:
            return [tuple(row) for row in found.execute(sqlalchemy.text(query))]

        stages = rows("SELECT name, status FROM runs WHERE name LIKE 'backbone/b%'")
        losses = rows("SELECT r.name, m.step, m.value FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid WHERE m.key = 'loss'")
        versions = rows("SELECT version, run_id FROM model_versions")
        folders = rows("SELECT value FROM model_version_tags WHERE key = 'dvc.md5'")
        sealed = rows("SELECT version FROM model_version_tags WHERE key = 'seal'")
        models = rows("SELECT model_id FROM logged_models")
        aliased = rows("SELECT alias FROM registered_model_aliases")
    assert sorted(stages) == sorted((f"backbone/b{number}", "FINISHED") for number in range(PROCESSES))
    assert Counter(losses) == {(f"backbone/b{n}", step, 1 / (step + 1)): 1 for n in range(PROCESSES) for step in range(EPOCHS)}
    expected = PROCESSES // 2
    assert sorted(version for version, _ in versions) == list(range(1, expected + 1))
    assert len(set(folders)) == len(folders) == len(models) == len(sealed) == expected
    assert {alias for (alias,) in aliased} == {"champion", "ode"}
    with capsys.disabled():
        print(f"\n{kind}: {len(stages)} runs, {len(losses)} metrics, {len(versions)} versions in {time.monotonic() - began:.0f} s")


@pytest.fixture
def store(tmp_path) -> Iterator[dict[str, str]]:
    """moto's S3 with a bucket: the environment of those who use it."""
    import boto3

    url = f"http://127.0.0.1:{(port := server.free_port())}"
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-west-1", "MLFLOW_S3_ENDPOINT_URL": url}
    with process([sys.executable, "-m", "moto.server", "-p", str(port)], answers(f"{url}/moto-api/"), tmp_path / "moto.log"):
        s3 = boto3.client("s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret", region_name="eu-west-1")
        s3.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield keys


def test_postgresql_s3_and_passwords_together(workspace, postgres, store, tmp_path, monkeypatch):  # noqa: F811
    """The server of docs/servers.md: nobody without a password, files in the bucket, and a version that comes back."""
    import boto3

    port, uri = server.free_port(), database(postgres, "server")
    (tmp_path / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        f"database_uri = {database(postgres, 'passwords')}\nadmin_username = admin\nadmin_password = a-long-password\n"
    )
    env = (
        SILENT
        | store
        | {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret of the server's"}
    )
    where = [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        uri,
        "--artifacts-destination",
        "s3://models",
    ]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--app-name", "basic-auth"]
    shutil.copytree(workspace, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    Path("params.yaml").write_text(ONE_MODEL)
    monkeypatch.delenv("BASIN_TRACKING", raising=False)
    with process(command, answers(f"http://127.0.0.1:{port}/health"), tmp_path / "server.log", env=env):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        with pytest.raises(Mistake, match="cannot be used .*40[13]|not authenticated|UNAUTHENTICATED"):
            registration.register_all(params.load(), digests())
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")
        registration.register_all(params.load(), digests())
        assert upkeep.verify(params.load(), digests()) == []
        classifier = lookup.load(f"{NAME}@champion")
    assert classifier.recipe["model"] == "head/ode"
    s3 = boto3.client("s3", endpoint_url=store["MLFLOW_S3_ENDPOINT_URL"], aws_access_key_id="key", aws_secret_access_key="secret")
    kept = [one["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket="models") for one in page["Contents"]]
    assert sum(key.endswith("ode/weights.safetensors") for key in kept) == 1 and not list((tmp_path / "run").rglob("mlartifacts"))


STAGE = """
import sys, time
from basin.tracking import journal
with journal.run(sys.argv[1], {"epochs": 40}, {}, experiment="digits") as run:
    for epoch in range(40):
        run.metrics({"loss": epoch / 10}, step=epoch)
        time.sleep(0.5)
    run.artifact("history.csv")
"""


def test_kills_of_server_and_mirrors_lose_and_double_nothing(tmp_path, monkeypatch, capsys):
    """The outbox: the server is killed, mirrors are killed, deliveries are killed; afterwards everything is there once."""
    draw, port = random.Random(0), server.free_port()
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--artifacts-destination", str(tmp_path / "files")]

    def serving():
        return process(command, answers(f"http://127.0.0.1:{port}/health"), tmp_path / "server.log", env=SILENT, cwd=tmp_path)

    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "history.csv").write_text("loss\n")
    env, stages, killed = SILENT | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}, [], Counter()
    names = [f"backbone/b{number}" for number in range(4)]
    for name in names:
        stages.append(subprocess.Popen([sys.executable, "-c", STAGE, name], cwd=folder, env=env, stderr=subprocess.DEVNULL))
    while any(stage.poll() is None for stage in stages):
        with serving() as started:
            time.sleep(draw.uniform(0, 4))
            if mirrors := [child for stage in stages if stage.poll() is None for child in psutil.Process(stage.pid).children()]:
                draw.choice(mirrors).kill()
                killed["mirrors"] += 1
            time.sleep(draw.uniform(0, 2))
            kill(started, signal.SIGKILL)
            killed["servers"] += 1
    deliver = [sys.executable, "-m", "basin.tracking.mirror"]
    with serving() as started:
        for _ in range(6):
            delivery = subprocess.Popen(deliver, cwd=folder, env=env, stderr=subprocess.DEVNULL)
            time.sleep(draw.uniform(0.5, 5))
            delivery.kill()
            delivery.wait()
            killed["deliveries"] += 1
    with serving():
        assert subprocess.run(deliver, cwd=folder, env=env, check=False).returncode == 0
    assert [path for path in (folder / ".basin/runs").rglob("*") if path.is_file()] == []
    with sqlite3.connect(tmp_path / "server.db") as found:
        assert sorted(found.execute("SELECT name, status FROM runs")) == [(name, "FINISHED") for name in names]
        metrics = Counter(found.execute("SELECT r.name, m.step, m.value FROM metrics m JOIN runs r USING (run_uuid) WHERE key = 'loss'"))
    assert metrics == {(name, epoch, epoch / 10): 1 for name in names for epoch in range(40)}
    assert len(list((tmp_path / "files").rglob("history.csv"))) == 4
    with capsys.disabled():
        print(f"\nkilled: {json.dumps(killed)}; 4 runs and {len(metrics)} metrics, once each")
