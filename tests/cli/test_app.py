"""What the console script says of itself."""

from importlib.metadata import version

import pytest

from basin.cli import app


def test_it_says_its_version(capsys):
    with pytest.raises(SystemExit) as end:
        app.app(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"basin {version('basin')}\n"
