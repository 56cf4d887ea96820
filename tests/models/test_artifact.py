"""A model is two files; what they say when one is missing, damaged or does not fit."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save
from small import CONVNET, SODEF, classifier, few

from basin.errors import Mistake
from basin.models import artifact, recipe


@pytest.fixture
def model():
    return classifier(head=SODEF).eval()


@pytest.fixture
def folder(model, tmp_path):
    artifact.save(tmp_path / "head" / "x", model)
    return tmp_path / "head" / "x"


def refused(folder) -> str:
    with pytest.raises(Mistake) as mistake:
        artifact.load(folder)
    assert len(mistake.value.messages) == 1
    return str(mistake.value)


def test_a_folder_is_two_files_that_others_can_read(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["recipe.json", "weights.safetensors"]
    (folder / "plain").touch()
    assert len({path.stat().st_mode & 0o777 for path in folder.iterdir()}) == 1


def test_saving_twice_gives_the_same_bytes_and_nothing_that_was_there_before(model, folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "stale").touch()
    artifact.save(tmp_path / "other", model)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "other").iterdir()}


def test_the_recipe_holds_the_sources_of_the_function_and_of_nothing_else(folder):
    sources = recipe.read_recipe(folder)["sources"]
    assert {
        "basin/methods/heads/sodef.py",
        "basin/methods/backbones/convnet.py",
        "basin/models/ode.py",
        "basin/models/classifier.py",
    } <= set(sources)
    assert not [path for path in sources if "attacks" in path or "report" in path or "resnet" in path or "stages" in path]
    assert all((artifact.ROOT / path).is_file() and len(digest) == 64 for path, digest in sources.items())


def test_the_recipe_does_not_depend_on_where_it_is_written(folder, tmp_path):
    assert str(tmp_path) not in (folder / "recipe.json").read_text()
    assert str(artifact.ROOT) not in (folder / "recipe.json").read_text()


def test_a_twin_travels_with_its_defence_but_not_the_twins_own(model, folder, tmp_path, digits):
    below, first = classifier(seed=5).eval(), classifier(seed=6).eval()
    artifact.save(tmp_path / "first", first)
    artifact.save(tmp_path / "below", below, twin=tmp_path / "first")
    artifact.save(folder, model, twin=tmp_path / "below")
    shutil.rmtree(tmp_path / "below")
    x, _ = few(digits["test"], 8)
    twin = artifact.load_twin(folder)
    assert torch.equal(twin(x), below(x)) and not twin.training
    assert artifact.load_twin(folder / "twin") is None
    assert artifact.load_twin(tmp_path / "first") is None


def test_dtype_and_buffers_come_back(folder, model):
    loaded = artifact.load(folder).state_dict()
    assert all(loaded[name].dtype == value.dtype and torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    assert "head.V" in loaded and "normalise.mean" in loaded


def test_missing_files_name_the_command(folder):
    (folder / "weights.safetensors").unlink()
    assert refused(folder) == f"{folder}/weights.safetensors: not found. Run the stage that makes it: dvc repro."
    (folder / "recipe.json").unlink()
    assert refused(folder) == f"{folder}/recipe.json: not found. Run the stage that makes it: dvc repro."


ADVICE = "Delete the folder and run `dvc checkout` or `dvc repro`; a registered version is mended by `basin registry sync`."


def first_recipe(folder):
    """As the first ones were, which did not know their weights."""
    recipe = json.loads((folder / "recipe.json").read_text())
    del recipe["weights"]
    (folder / "recipe.json").write_text(json.dumps(recipe))


def flipped(content: bytes, at: int, bit: int = 0) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


@pytest.mark.parametrize("at", [5, 60, -1, -1000])
@pytest.mark.parametrize("name", ["weights.safetensors", "twin/weights.safetensors"])
def test_a_flipped_bit_of_the_weights_is_refused(model, folder, tmp_path, name, at):
    artifact.save(tmp_path / "whole", model, folder)
    path = tmp_path / "whole" / name
    before = path.read_bytes()
    path.write_bytes(flipped(before, at % len(before)))
    with pytest.raises(Mistake) as mistake:
        artifact.load_twin(tmp_path / "whole") if "twin" in name else artifact.load(tmp_path / "whole")
    was, got = recipe.digest(before)[:12], recipe.weights_digest(path.parent)[:12]
    assert str(mistake.value) == f"{path}: not the weights of the recipe beside it (got SHA-256 {got} for {was}). {ADVICE}"
    path.write_bytes(before)
    assert artifact.load(tmp_path / "whole") and artifact.load_twin(tmp_path / "whole")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(model, folder, value):
    with torch.no_grad():
        list(model.backbone.parameters())[0].view(-1)[3] = value
    artifact.save(folder, model)
    name = "backbone." + next(name for name, _ in model.backbone.named_parameters())
    path = folder / "weights.safetensors"
    assert refused(folder) == f"{path}: holds weights that are not finite (got some in {name}). Train the model anew, at a lower rate."


@pytest.mark.parametrize("damage", [lambda b: b[:-10], lambda b: b"", lambda b: b[:50], lambda b: b"\xff" * len(b)])
def test_damaged_weights_are_named(folder, damage):
    path = folder / "weights.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert refused(folder).startswith(f"{path}: not the weights of the recipe beside it (got SHA-256 ")
    first_recipe(folder)
    said = refused(folder)
    assert said.startswith(f"{path}: damaged, or does not fit the file beside it (got SafetensorError: ") and said.endswith(f"). {ADVICE}")


def test_weights_of_another_model_are_refused(folder, tmp_path):
    path = folder / "weights.safetensors"
    other = classifier(CONVNET | {"hidden": 40})
    path.write_bytes(save(other.state_dict()))
    first_recipe(folder)
    assert refused(folder).startswith(f"{path}: damaged, or does not fit the file beside it (got RuntimeError: Error(s) in loading")


def test_weights_that_lack_one_are_refused(folder):
    path = folder / "weights.safetensors"
    tensors = load_file(path)
    del tensors["head.V"]
    path.write_bytes(save(tensors))
    first_recipe(folder)
    assert 'Missing key(s) in state_dict: "head.V"' in refused(folder)


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (lambda r: r[:-20], "JSONDecodeError: "),
        (lambda r: "", "JSONDecodeError: "),
        (lambda r: "[1]", "TypeError: "),
        (lambda r: "{}", "KeyError: 'format'"),
        (lambda r: r.replace('"classifier"', '"clasifier"'), "ValidationError: classifier: Field required"),
        (lambda r: r.replace('"width": 16', '"width": "many"'), "ValidationError: "),
        (lambda r: r.replace('"hidden": 32', '"hiden": 32'), "ValidationError: "),
        (lambda r: r.replace("\n", "\x00"), "JSONDecodeError: "),
        (lambda r: r.replace("2.0", "[" * 100_000 + "]" * 100_000), "RecursionError: "),
        (lambda r: r.replace('"hidden": 32', '"hidden": 1000000000000'), "RuntimeError: Error(s) in loading state_dict"),
        (lambda r: r.replace('"hidden": 32', f'"hidden": {10**30}'), "TypeError: empty()"),
        (lambda r: re.sub(r'"shape": \[.*?\]', '"shape": [1, 8000000, 8000000]', r, flags=re.DOTALL), "RuntimeError: Error(s) in loading"),
        (
            lambda r: re.sub(r'"shape": \[.*?\]', '"shape": [1, 8]', r, flags=re.DOTALL),
            "ValidationError: shape: List should",
        ),
        (lambda r: r.replace('"backbone/small"', "null"), "ValidationError: model: Input should be a valid string"),
    ],
)
def test_a_damaged_recipe_is_named(folder, damage, got):
    path = folder / "recipe.json"
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    said, weights = refused(folder), folder / "weights.safetensors"
    said = said.replace(str(weights), str(path))  # the one that is named is the one that does not fit
    assert said.startswith(f"{path}: damaged, or does not fit the file beside it (got {got}") and said.endswith(f"). {ADVICE}")
    assert len(said.splitlines()) == 1


def test_a_recipe_of_another_version_says_so(folder):
    path = folder / "recipe.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    assert refused(folder) == f"{path}: this Basin, 0.1.0, reads format 1 (got '2'). Read it with Basin 0.1.0."


def test_a_kind_that_is_gone_is_named(folder):
    path = folder / "recipe.json"
    recipe = json.loads(path.read_text())
    recipe["classifier"]["head"]["kind"] = "sodf"
    path.write_text(json.dumps(recipe))
    assert refused(folder) == "heads: unknown kind (got 'sodf'). Did you mean 'sodef'?"


def test_pickled_weights_are_not_opened(folder, model):
    """Loading a model runs no code of the file's."""
    torch.save(model.state_dict(), folder / "weights.safetensors")
    first_recipe(folder)
    assert "SafetensorError" in refused(folder)
