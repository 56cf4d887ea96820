"""Many checkouts that register, promote and collect on one MLflow server at once."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.repo import Repo
from mlflow import MlflowClient
from test_registry import MODELS, NAME, retrain, workspace  # noqa: F401
from test_servers import ONE_MODEL, ROOT, SILENT, answers, process

from basin.config import params
from basin.errors import Mistake
from basin.flow import server
from basin.registry import registration, removal, snapshot


def push(repo: Repo) -> dict[str, str]:
    """The models' folders into the one DVC remote, and into a dvc.lock; DVC's digests of them."""
    found = {model: repo.add(f"models/{model}", force=True)[0].outs[0].hash_info.value for model in MODELS}
    repo.push()
    outs = [{"path": f"models/{model}", "md5": md5} for model, md5 in found.items()]
    Path("dvc.lock").write_text(json.dumps({"stages": {"all": {"outs": outs}}}), encoding="utf-8")
    return found


def work(folder: Path, number: int, together) -> None:
    """One checkout: it registers its model, another one in its place, and what it then needs no more is collected."""
    os.chdir(folder / str(number))
    settings, repo = params.load(), Repo.init(no_scm=True)
    with repo.config.edit() as config:
        config |= {"remote": {"all": {"url": str(folder / "remote")}}, "core": {"remote": "all", "no_scm": True, "analytics": False}}
    repo = Repo()
    together.wait()
    # Of two neighbours with one model one goes on to another, which is shared with more; of the first two both do.
    again = number == 1 or number % 4 == 0
    for seed in (number // 2, 100 + number // 8) if again else (number // 2,):
        retrain(settings, "head/ode", seed=100 + seed, held=20)
        receipt = registration.register_all(settings, push(repo))
        Path("report").mkdir(exist_ok=True)
        Path("report/registered.json").write_text(json.dumps(receipt), encoding="utf-8")
        registration.promote(settings, dry_run=False)
    for _ in range(10):
        try:
            removal.remove(removal.gc(settings))
            return
        except Mistake as mistake:  # somebody's promotion has found the version in the meantime
            assert "has an alias (got a version in use). Run `basin gc` again." in str(mistake)
    raise AssertionError("gc was refused ten times")


def many(folder: Path, processes: int) -> None:
    """From a process that has imported everything and opened nothing."""
    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(processes)
    workers = [fork.Process(target=work, args=(folder, number, together)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number in range(processes):  # an alias that one kept for another's sake may have moved since
        os.chdir(folder / str(number))
        removal.remove(removal.gc(params.load()))
    sys.exit(sum(worker.exitcode != 0 for worker in workers))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [int(os.environ.get("WRITERS", "20"))])
def test_many_checkouts_on_one_server_lose_nothing(processes, workspace, tmp_path, capsys):  # noqa: F811
    for number in range(processes):
        shutil.copytree(workspace, tmp_path / str(number))
        (tmp_path / str(number) / "params.yaml").write_text(ONE_MODEL, encoding="utf-8")
    port, began = server.free_port(), time.monotonic()
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "2", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    files = ["--no-serve-artifacts", "--default-artifact-root", (tmp_path / "files").as_uri()]  # a disk that all see: a request less a file
    command = [sys.executable, "-m", "mlflow", "server", *where, *files]
    url = f"http://127.0.0.1:{port}"
    with process(command, answers(f"{url}/health"), tmp_path / "server.log", env=SILENT, cwd=tmp_path):
        code = f"import test_writers as t; t.many(t.Path({str(tmp_path)!r}), {processes})"
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "pipeline", ROOT / "tests", ROOT / "tests/registry")))
        env = SILENT | {"PYTHONPATH": paths, "MLFLOW_TRACKING_URI": url, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=1800)
        assert done.returncode == 0, done.stderr[-4000:]
        store = MlflowClient(url)
        found = {version.version: version for version in store.search_model_versions(f"name = '{NAME}'")}
        aliases = store.get_registered_model(NAME).aliases
    needed = {json.loads((tmp_path / str(n) / "dvc.lock").read_text())["stages"]["all"]["outs"][1]["md5"] for n in range(processes)}
    assert needed <= {version.tags["dvc.md5"] for version in found.values()}, "lost"
    assert all(snapshot.cached(md5, tmp_path / "remote/files/md5") for md5 in needed)
    assert all(version.version in aliases.values() or version.tags["dvc.md5"] in needed for version in found.values()), "nobody needs it"
    assert set(aliases) == {"champion", "ode"} and set(aliases.values()) <= set(found)
    assert [v.version for v in found.values() if v.tags.get("standing") == "champion"] == [aliases["champion"]]
    assert all("seal" in version.tags for version in found.values())
    with capsys.disabled():
        print(f"\n{processes} checkouts: {len(found)} versions, {time.monotonic() - began:.0f} s")
