"""`basin doctor`: each thing that is wrong is named with what to do, and the others are looked at all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from basin.cli import doctor
from basin.errors import Mistake

BASIN = [sys.executable, "-c", "from basin.cli.app import main; main()"]
ROOT = Path(__file__).parents[2]


def said(place: Path, **environment: str) -> tuple[int, list[str]]:
    here = {**os.environ, "PYTHONPATH": str(ROOT / "pipeline"), "CUDA_VISIBLE_DEVICES": "", **environment}
    here["PATH"] = environment.get("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run([*BASIN, "doctor"], cwd=place, env=here, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.mark.slow
def test_all_that_is_wrong_is_said_at_once_with_what_to_do(tmp_path: Path):
    (tmp_path / "params.yaml").write_text("seed: x\n", encoding="utf-8")
    (tmp_path / "data/prepared").mkdir(parents=True)
    (tmp_path / "data/prepared/about.json").write_text("{}", encoding="utf-8")
    code, lines = said(tmp_path, PATH="/nowhere", MLFLOW_TRACKING_URI="http://me:secret@127.0.0.1:9")
    wrong = [line.removeprefix("WRONG  ") for line in lines if line.startswith("WRONG")]
    assert code == 2 and not any("secret" in line for line in lines)
    for start in (
        "python: PATH has another Python than Basin's (got None).",
        "git: not found (got a PATH without it). Install it;",
        "params.yaml: seed: input should be a valid integer (got 'x').",
        "data/prepared/about.json: damaged, or not written by this version",
        "MLflow: http://...@127.0.0.1:9 does not answer (got URLError: <urlopen error [Errno 111] Connection refused>). Start it, or mend",
    ):
        assert any(line.startswith(start) for line in wrong), (start, wrong)
    assert any(line.startswith("ok     torch") for line in lines)


@pytest.mark.slow
def test_in_a_folder_without_a_project_nothing_is_wrong(tmp_path: Path):
    code, lines = said(tmp_path)
    assert [line for line in lines if not line.startswith("ok ")] == [] and code == 0
    assert "ok     project: none in this folder (`basin init FOLDER` makes one)" in lines


def test_a_library_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["torch<1", "no-such-thing==1", "numpy", 'ray; extra == "ray"'])
    with pytest.raises(Mistake) as mistake:
        list(doctor._pins())
    first, second = mistake.value.messages
    assert first.startswith("torch: not of a version that Basin stands on (got ") and first.endswith(
        "Run: python -m pip install 'torch<1'."
    )
    assert second.startswith("no-such-thing: not of a version that Basin stands on (got none).")


@pytest.mark.parametrize("where", ["nonsense", "ftp://here", "127.0.0.1:4200/api"])
def test_an_address_that_is_none_is_named(where: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_API_URL", where)
    with pytest.raises(Mistake, match=rf"^Prefect: is no address \(got '{where}'\)\. Set PREFECT_API_URL to http://\.\.\., or unset it\.$"):
        list(doctor._prefect())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://me:secret@here")
    with pytest.raises(Mistake, match=r"^MLflow: is no address \(got 'ftp://\.\.\.@here'\)\. Set MLFLOW_TRACKING_URI to http://"):
        list(doctor._mlflow())
    for kept in ("sqlite:///mlflow.db", "mlruns", "postgresql+psycopg://host/db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", kept)
        assert list(doctor._mlflow())[0].startswith("MLflow: no server is set; runs are kept in ")


def test_a_repository_made_after_dvc_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`basin init`, then `git init`: DVC goes on as if there were no git, and says of each `diff` that there is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = True\n", encoding="utf-8")
    assert list(doctor._git()) == ["git: in no repository: runs stand beside no commit"]
    me = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    for words in (("init", "-q"), (*me, "commit", "-qm", "first", "--allow-empty")):
        subprocess.run(["git", *words], check=True)
    with pytest.raises(Mistake, match="dvc config --unset core.no_scm"):
        list(doctor._git())
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
    assert list(doctor._git())[0].startswith("git: at commit ")
