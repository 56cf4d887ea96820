"""What the console script says of itself."""

from importlib.metadata import version

import pytest

from basin.cli import app
from basin.errors import Mistake
from basin.flow import server


def test_it_says_its_version(capsys):
    with pytest.raises(SystemExit) as end:
        app.app(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"basin {version('basin')}\n"


@pytest.mark.parametrize("words", [["ui", "--mlflow-port", "99999"], ["ui", "--prefect-port", "0"], ["serve", "--port", "-1"]])
def test_a_port_that_is_none_is_refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        app.app(words)
    assert end.value.code == 2 and words[1] in capsys.readouterr().err


def test_two_servers_want_two_ports():
    with pytest.raises(Mistake, match=r"^--prefect-port: is MLflow's too \(got 4200\)\. Give each its own\.$"):
        server.show(4200, 4200)


def test_a_run_that_is_not_valid_does_not_become_the_params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params").mkdir()
    (tmp_path / "params/bad.yaml").write_text("nonsense: 1\n")
    with pytest.raises(Mistake, match=r"^params/bad\.yaml: "):
        app.use("bad")
    assert not (tmp_path / "params.yaml").exists()
