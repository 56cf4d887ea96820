"""Fixtures for tests that need a whole workspace: a small DVC project, and one real Prefect server for the session."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: its threads and other tests' on few cores wait for each other

ROOT = Path(__file__).resolve().parents[1]

# Every annotation of the rooms, shapes included, is checked at each call; an int will do for a float (PEP 484).
ROOMS = [f"basin.{path.stem}" for path in (ROOT / "pipeline/basin").iterdir() if not path.stem.startswith("_")]
install_import_hook(ROOMS, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# The smallest params.yaml that is right; the stages of the test projects do not read it.
PARAMS = """
seed: 0
data: {kind: digits}
threat: {norm: linf, eps: 0.15}
backbone: {natural: {backbone: {kind: convnet}, training: {kind: natural}, schedule: {epochs: 1}}}
suites: {short: {attacks: {fgsm: {kind: fgsm}}}}
attack: {models: [backbone/natural], suites: [short], images: 10}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`project(dvc_yaml)`: a DVC project of its own in the current folder, children able to import this repository."""

    def make(dvc_yaml: str, folder: str = "project") -> Path:
        place = tmp_path / folder
        (place / ".dvc").mkdir(parents=True)
        (place / ".dvc" / "config").write_text("[core]\n    no_scm = True\n    analytics = false\n")  # what `dvc init --no-scm` does
        (place / "dvc.yaml").write_text(dvc_yaml)
        (place / "params.yaml").write_text(PARAMS)
        monkeypatch.chdir(place)
        return place

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    return make


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a real `prefect server` on the loopback address, with a home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        from basin import environment
        from basin.flow import server

        home = tmp_path_factory.mktemp("prefect")
        for name, value in (environment.SILENT | environment.SAFE | {"PREFECT_HOME": str(home)}).items():
            patch.setenv(name, value)
        # Look for schedules to fill every 2 s instead of every 60 s.
        patch.setenv("PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS", "2")
        patch.setenv("PREFECT_API_URL", url := server.start(home))
        yield url


@pytest.fixture(scope="session")
def flow(prefect_server: str) -> SimpleNamespace:
    """The flows, talking to that server. Imported here, because prefect reads its settings when it is imported."""
    import prefect.context

    from basin.flow.reproduction import StagesFailed, repro
    from basin.flow.sweep import sweep

    prefect.context.refresh_global_settings_context()
    return SimpleNamespace(repro=repro, sweep=sweep, StagesFailed=StagesFailed)


@pytest.fixture(scope="session")
def digits() -> Iterator[dict]:
    """The digits, divided: train, validation, test."""
    from basin.config.splits import SplitSettings
    from basin.data.splits import divide
    from basin.methods.sources import digits

    yield divide(digits.read(digits.Params()), SplitSettings(), seed=0)


@pytest.fixture(scope="session")
def trained(digits):
    """A small classifier of digits, naturally trained, frozen."""
    from small import classifier, fit

    return fit(classifier(), digits["train"], epochs=4).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def twin(digits):
    """Another one: other weights, the same data."""
    from small import classifier, fit

    return fit(classifier(seed=1), digits["train"], epochs=2).eval().requires_grad_(False)
