"""A project of one's own: what `basin init` writes, and by what DVC sees that Basin's code is another."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from dvc.repo import Repo
from PIL import Image
from ruamel.yaml import YAML

from basin.cli import app
from basin.config import params
from basin.errors import Mistake
from basin.repro import code, graph, project, watched

ROOT = Path(__file__).parents[2]


def images(folder: Path, size: tuple[int, int] = (64, 64), classes: int = 3, each: int = 6) -> Path:
    draw = np.random.default_rng(0)
    for name in ("cat", "dog", "owl")[:classes]:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project on a folder of images, without git."""
    (place := tmp_path_factory.mktemp("one") / "own").mkdir()
    assert project.make(place, str(images(place.parent / "my pets")), None, "8/255") == [project.NO_GIT]
    return place


@pytest.fixture
def made(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    shutil.copytree(fresh, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own"


def test_the_graph_is_the_checkouts_with_its_code_as_keys(made: Path):
    assert graph.check().registered_name == "my_pets-linf-8_255"
    names = [stage.name for stage in graph.graph()]
    assert names[0] == "prepare" and names[-1] == "register" and "attack@adversarial/pgd-standard" in names
    with Repo() as repo:
        asked = {
            key for stage in repo.index.stages for dep in stage.deps for key in getattr(dep, "params", ()) if dep.def_path == "code.yaml"
        }
        paths = {dep.def_path for stage in repo.index.stages for dep in stage.deps}
    assert asked and {key.removeprefix("code.") for key in asked} <= code.digests().keys()
    assert not [path for path in paths if path.startswith("pipeline")]
    assert "PYTHONPATH" not in Path("dvc.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["checkout", "project"])
def test_the_graph_watches_what_the_kind_of_data_names(place: str):
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8") if place == "checkout" else code.graph()
    assert watched.graph(text, "digits") == text, "a run with no images of one's own to watch"
    for kind, key in watched.KEYS.items():
        watching = watched.graph(text, kind)
        bodies = [YAML(typ="safe").load(one)["stages"] for one in (text, watching)]
        assert bodies[1]["prepare"]["deps"] == [f"${{data.{key}}}", *bodies[0]["prepare"]["deps"]]
        assert bodies[1] | {"prepare": None} == bodies[0] | {"prepare": None}
        assert watched.graph(watching, kind) == watching == watched.graph(watched.graph(text, "npz"), kind)
        assert watched.graph(watching, "cifar10") == text


@pytest.mark.slow  # five seconds: a stage by DVC itself
def test_an_image_that_is_added_makes_prepare_run_again_and_none_is_copied(made: Path):
    """DVC's own word, with its own command: `basin` need not be asked."""
    subprocess.run([*graph.DVC, "repro", "-q", "prepare"], check=True, env=graph.child_environment({"BASIN_TRACKING": "off"}))
    with Repo() as repo:
        assert repo.status(targets=["prepare"]) == {}
    kept = [path for path in Path(".dvc/cache").rglob("*") if path.is_file()]
    place = Path(params.load().data["folder"])
    shutil.copy(place / "cat/0.png", place / "cat/new.png")
    try:
        with Repo() as repo:
            assert repo.status(targets=["prepare"]) == {"prepare": [{"changed deps": {str(place): "modified"}}]}
    finally:
        (place / "cat/new.png").unlink()
    assert len([path for path in kept if path.parent.parent.name == "md5"]) == 4, "three splits and about.json"


def test_another_run_in_a_project_of_ones_own_images_is_watched_for_itself(made: Path):
    Path("params.yaml").unlink()
    app.use("digits")
    assert "${data.f" not in Path("dvc.yaml").read_text(encoding="utf-8") and graph.graph()[0].name == "prepare"


def test_every_dependency_on_code_of_the_checkout_is_a_key(made: Path):
    here = {code.key(dep) for body in code.bodies(code.read(ROOT / "dvc.yaml")) for dep in body["deps"] if code.is_code(dep)}
    there = [
        key
        for body in code.bodies(code.read(Path("dvc.yaml")))
        for one in body["params"]
        if isinstance(one, dict)
        for key in one["code.yaml"]
    ]
    assert {key.removeprefix("code.") for key in there} == here and len(here) > 20


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("report/page.py", {"basin", "basin/report"}),
        ("methods/heads/sodef.py", {"basin", "basin/methods/heads/sodef"}),
        ("methods/attacks/pgd.py", {"basin", "basin/methods/attacks", "basin/methods/attacks/pgd"}),
        ("stages/train.py", {"basin", "basin/stages/train"}),
    ],
)
def test_an_upgrade_changes_the_keys_of_what_it_changes(file: str, keys: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(ROOT / "pipeline/basin", tmp_path / "basin", ignore=shutil.ignore_patterns("__pycache__"))
    before = code.digests()
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "basin")
    with (tmp_path / "basin" / file).open("a", encoding="utf-8") as source:
        source.write("\n")
    after = code.digests()
    assert before.keys() == after.keys() and {key for key in before if before[key] != after[key]} - {"basin"} == keys - {"basin"}
    assert before["basin"] != after["basin"]


def test_a_stage_of_another_code_is_refused_until_basin_has_looked(made: Path):
    code.check()
    code.FILE.write_text(code.text().replace("version: ", "version: 0.0."), encoding="utf-8")
    with pytest.raises(Mistake) as mistake:
        code.check()
    assert str(mistake.value) == (
        "code.yaml: not of the code that runs here (got another than Basin 0.1.0). Run `basin repro`, which mends it."
    )
    assert code.keep() and not code.keep()
    code.check()


@pytest.fixture
def newer(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the next version's graph will be, its installation done and not yet followed."""
    monkeypatch.setattr(code, "GRAPH", tmp_path / "graph.yaml")
    code.GRAPH.write_text((ROOT / "dvc.yaml").read_text(encoding="utf-8").replace("the numbers, side by side", "figures"), encoding="utf-8")
    return code.graph()


def test_an_upgrade_brings_its_graph(made: Path, newer: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    assert code.OWN.read_text(encoding="utf-8") != newer and code.keep()
    assert code.OWN.read_text(encoding="utf-8") == newer and not code.OFFERED.exists()
    assert caplog.messages == ["dvc.yaml: now the graph of Basin 0.1.0. Commit it with code.yaml."]
    assert not code.keep() and "figures" in [stage.desc for stage in Repo().index.stages]


@pytest.mark.parametrize("brought", [True, False])
def test_an_upgrade_leaves_a_graph_that_was_edited_and_shows_its_own(made: Path, newer: str, brought: bool):
    own = code.OWN.read_text(encoding="utf-8") + "# mine\n"
    code.OWN.write_text(own, encoding="utf-8")
    for _ in range(2):  # until the user has decided
        with pytest.raises(Mistake) as mistake:
            code.keep()
    assert str(mistake.value) == (
        "dvc.yaml: has changes of yours, and Basin's graph has changed (got Basin 0.1.0). Bring yours into dvc.yaml.new, which is Basin's, "
        "then: mv dvc.yaml.new dvc.yaml. To keep yours as it is: rm dvc.yaml.new."
    )
    assert code.OWN.read_text(encoding="utf-8") == own and code.OFFERED.read_text(encoding="utf-8") == newer
    if brought:
        code.OWN.write_text(newer + "# mine\n", encoding="utf-8")
    code.OFFERED.unlink()
    assert not code.keep() and not code.OFFERED.exists()
    assert code.OWN.read_text(encoding="utf-8") == (newer + "# mine\n" if brought else own)


def test_an_edited_graph_stays_where_an_upgrade_changes_code_alone(made: Path):
    code.OWN.write_text(own := code.OWN.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    code.FILE.write_text(code.text().replace("version: ", "version: 0.0."), encoding="utf-8")
    assert code.keep() and code.OWN.read_text(encoding="utf-8") == own and not code.OFFERED.exists()


def test_beside_code_of_ones_own_in_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for folder in ("stages", "pipeline"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise SystemExit('not Basin\\'s')", encoding="utf-8")
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    (tmp_path / ".gitignore").write_text("mine\n/models/", encoding="utf-8")
    assert project.make(tmp_path, "digits", None) == []
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine" and (tmp_path / "BASIN.md").is_file()
    assert (tmp_path / ".gitignore").read_text(encoding="utf-8").splitlines()[:3] == ["mine", "/models/", "/.basin/"]
    assert "no_scm" not in (tmp_path / ".dvc/config").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert len(graph.graph()) == 16 and params.load().registered_name == "digits-linf-0.15"
    assert len((tmp_path / "BASIN.md").read_text(encoding="utf-8").splitlines()) == 10
    with pytest.raises(Mistake) as mistake:
        project.make(tmp_path, "digits", None)
    assert str(mistake.value) == (
        f"{tmp_path}/params.yaml: is there already (got a project, or a file of another's). "
        f"Give a folder of its own: basin init {tmp_path}/robust."
    )


def test_outputs_of_models_that_are_gone_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    config = params.load(ROOT / "params/digits.yaml")
    monkeypatch.chdir(tmp_path)
    for place in ("models/adversarial/pgd", "models/adversarial/gone", "outcomes/adversarial/gone", "history/adversarial"):
        Path(place).mkdir(parents=True)
    for name in ("pgd", "gone"):
        Path(f"history/adversarial/{name}.csv").touch()
    watched.tell_of_others(config)
    (told,) = caplog.messages
    assert told == (
        "models/adversarial/gone: of no model of params.yaml, and watched all the same. "
        "DVC's cache has them: rm -r models/adversarial/gone outcomes/adversarial/gone history/adversarial/gone.csv"
    )


def test_a_name_that_is_none_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(Mistake, match=r"^--name: should be letters \(a to z\), digits, _ and -, 1 to 64 of them \(got 'bad/name'\)\."):
        project.make(tmp_path / "own", str(tmp_path), "bad/name", "8/255")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "asked"), [("--name", {"name": "mine"}), ("--eps", {"eps": "0.01"})])
def test_what_a_ready_made_run_would_not_heed_is_refused(option: str, asked: dict[str, str], tmp_path: Path):
    with pytest.raises(Mistake, match=rf"^{option}: is for images of your own \(got .* with the run digits\)\. Leave it out, and set "):
        project.make(tmp_path, "digits", **asked)
    assert not any(tmp_path.iterdir())


def test_a_folder_within_a_repository(tmp_path: Path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (place := tmp_path / "robust").mkdir()
    assert project.make(place, "digits", None) == [] and (place / ".dvc").is_dir() and not (tmp_path / ".dvc").exists()


def test_what_is_seen_of_the_images_is_said_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (place := tmp_path / "own").mkdir()
    folder = images(place / "images")
    Image.fromarray(np.zeros((200, 300, 3), np.uint8)).save(folder / "cat" / "large.png")
    (folder / "dog" / "odd.png").write_bytes(b"none")
    told = project.make(place, str(folder), "pets", "0.05")
    assert told[:2] == [
        f"{folder}: 1 files are no images. `basin check` names all; `unreadable: leave_out` in params.yaml leaves them out.",
        f"{folder}: images of 2 sizes, up to (200, 300); brought to [64, 64]. Change that as you like: data.size.",
    ]
    monkeypatch.chdir(place)
    config = params.load()
    assert config.data == {
        "kind": "folder", "name": "pets", "folder": "images", "size": [64, 64], "channels": 3, "unreadable": "refuse",
        "validation": None, "test": None,
    }  # fmt: skip
    assert config.registered_name == "pets-linf-0.05"


@pytest.mark.parametrize(
    ("data", "eps", "told"),
    [
        ("digts", "8/255", "--data: no folder of images, no .npz, no ready-made run (got 'digts'). Did you mean 'digits'?"),
        ("digits", "much", "eps: input should be a valid number (got 'much'). It is radius"),
    ],
)
def test_a_wrong_word_makes_nothing(data: str, eps: str, told: str, tmp_path: Path):
    with pytest.raises(Mistake) as mistake:
        project.make(tmp_path, data, None, eps)
    assert str(mistake.value).startswith(told) and not list(tmp_path.iterdir())
