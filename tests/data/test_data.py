"""Splits are disjoint, complete, stratified and drawn by seed; what is written reads back, and damage is named."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save

from basin.config.splits import SplitSettings
from basin.data import stored
from basin.data.about import load_about
from basin.data.splits import SPLITS, STD_FLOOR, Source, Split, divide, load_split, prepare
from basin.errors import Mistake

CLASSES = ("circle", "square", "star")
few = settings(max_examples=60, deadline=None)


def split_of(counts: list[int], channels: int = 1, seed: int = 0) -> Split:
    """`counts[label]` images of each class, shuffled; every pixel tells the label (high digit) and the image (low digits)."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[torch.randperm(sum(counts), generator=draw)]
    position = torch.arange(len(labels))
    images = torch.stack([labels, position // 256, position % 256, position * 7 % 256], 1).to(torch.uint8).reshape(-1, 1, 2, 2)
    return Split(images.repeat(1, channels, 1, 1), labels)


def source_of(counts: list[int], test: list[int] | None = None) -> Source:
    return Source(split_of(counts), split_of(test, seed=1) if test else None, tuple(f"c{label}" for label in range(len(counts))))


sizes = st.lists(st.integers(3, 40), min_size=2, max_size=6)
shares = st.floats(0.01, 0.45)


# Dividing ---------------------------------------------------------------------------------------------------------------------------------


@few
@given(sizes, shares, shares, st.integers(0, 2**31))
def test_splits_are_disjoint_complete_and_hold_every_class(counts, validation, test, seed):
    divided = divide(source_of(counts), SplitSettings(validation=validation, test=test), seed)
    together = torch.cat([divided[name].index for name in SPLITS])
    assert sorted(together.tolist()) == list(range(sum(counts)))
    for split in divided.values():
        assert set(split.labels.tolist()) == set(range(len(counts)))


@few
@given(sizes, shares, shares, st.integers(0, 2**31))
def test_each_class_is_cut_by_its_share(counts, validation, test, seed):
    divided = divide(source_of(counts), SplitSettings(validation=validation, test=test), seed)
    for name, share in (("validation", validation), ("test", test)):
        held = torch.bincount(divided[name].labels, minlength=len(counts))
        assert all(abs(got - share * count) <= 2 for got, count in zip(held.tolist(), counts, strict=True))


@few
@given(sizes, st.integers(0, 2**31))
def test_labels_stay_with_their_images(counts, seed):
    source = source_of(counts, test=counts)
    for name, split in divide(source, SplitSettings(), seed).items():
        whole = source.test if name == "test" else source.train
        assert torch.equal(split.images, whole.images[split.index])
        assert torch.equal(split.labels, whole.labels[split.index])
        assert torch.equal(split.images[:, 0, 0, 0].long(), split.labels)


@few
@given(sizes, st.integers(0, 2**31), st.data())
def test_every_beginning_of_a_split_holds_the_classes_in_proportion(counts, seed, data):
    split = divide(source_of(counts), SplitSettings(), seed)["train"]
    n = data.draw(st.integers(1, len(split)))
    whole = torch.bincount(split.labels, minlength=len(counts)).double()
    first = torch.bincount(split.labels[:n], minlength=len(counts))
    assert (first - n * whole / len(split)).abs().max() <= len(counts)
    if n >= len(counts):
        assert first.min() >= 1


def test_which_class_comes_first_is_drawn():
    """Not the one that the source happens to begin with: a beginning that is no multiple of the classes would favour it."""
    in_order = Split(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), torch.arange(4).repeat_interleave(10))
    firsts = {int(divide(Source(in_order, in_order, tuple("abcd")), SplitSettings(), seed)["test"].labels[0]) for seed in range(40)}
    assert firsts == {0, 1, 2, 3}


def test_a_source_with_its_own_test_split_keeps_all_of_it():
    source = source_of([30, 30], test=[7, 9])
    divided = divide(source, SplitSettings(validation=0.1), 0)
    assert sorted(divided["test"].index.tolist()) == list(range(16))
    assert len(divided["train"]) + len(divided["validation"]) == 60
    assert len(divided["validation"]) == 6


def test_default_shares():
    assert {name: len(split) for name, split in divide(source_of([100, 100]), SplitSettings(), 0).items()} == {
        "train": 140,
        "validation": 20,
        "test": 40,
    }


def test_the_test_split_does_not_move_with_validation():
    source = source_of([50, 80])
    one, other = (divide(source, SplitSettings(validation=share), 3)["test"] for share in (0.1, 0.4))
    assert set(one.index.tolist()) == set(other.index.tolist())


def test_the_seed_moves_the_splits():
    source = source_of([50, 80])
    assert set(divide(source, SplitSettings(), 0)["test"].index.tolist()) != set(divide(source, SplitSettings(), 1)["test"].index.tolist())


def test_limits_keep_the_beginning_and_shrink_validation_in_proportion():
    source = source_of([200, 100], test=[60, 30])
    whole, limited = (divide(source, limits, 0) for limits in (SplitSettings(), SplitSettings(train_limit=60, test_limit=9)))
    assert {name: len(split) for name, split in limited.items()} == {"train": 60, "validation": 7, "test": 9}
    assert torch.equal(limited["train"].index, whole["train"].index[:60])
    assert torch.bincount(limited["train"].labels).tolist() == [40, 20]
    assert torch.bincount(limited["test"].labels).tolist() == [6, 3]


def test_a_limit_above_the_data_is_no_limit():
    assert len(divide(source_of([20, 20]), SplitSettings(train_limit=10**6, test_limit=10**6), 0)["test"]) == 8


def test_too_few_images_name_every_such_class():
    with pytest.raises(Mistake) as mistake:
        divide(source_of([2, 9, 1]), SplitSettings(), 0)
    assert mistake.value.messages == (
        "data: class 'c0' has too few images for train, validation, test to have one each (got 2). "
        "Give it 3 or more, or leave the class out.",
        "data: class 'c2' has too few images for train, validation, test to have one each (got 1). "
        "Give it 3 or more, or leave the class out.",
    )


def test_three_images_a_class_are_enough_and_two_where_the_test_split_is_given():
    assert {len(split) for split in divide(source_of([3, 3]), SplitSettings(), 0).values()} == {2}
    assert len(divide(source_of([2, 2], test=[1, 1]), SplitSettings(), 0)["train"]) == 2


def test_a_test_share_beside_a_given_test_split_is_refused():
    with pytest.raises(Mistake) as mistake:
        divide(source_of([9, 9], test=[3, 3]), SplitSettings(test=0.2), 0)
    assert str(mistake.value) == (
        "data.test: this data set has a test split of its own (got 0.2). Set `test: null`, and `test_limit` for fewer images."
    )


def test_a_validation_split_of_its_own_is_taken_whole_and_no_share_beside_it():
    source = Source(split_of([9, 9]), None, ("c0", "c1"), split_of([4, 3], seed=2))
    splits = divide(source, SplitSettings(), 0)
    assert {name: len(split) for name, split in splits.items()} == {"train": 14, "validation": 7, "test": 4}
    assert sorted(splits["validation"].index.tolist()) == list(range(7))
    with pytest.raises(Mistake) as mistake:
        divide(source, SplitSettings(validation=0.1), 0)
    assert str(mistake.value) == "data.validation: this data set has a validation split of its own (got 0.1). Set `validation: null`."


def test_a_limit_below_the_number_of_classes_is_refused():
    with pytest.raises(Mistake) as mistake:
        divide(source_of([9, 9, 9]), SplitSettings(test_limit=2), 0)
    assert str(mistake.value) == "data.test_limit: fewer images than the 3 classes (got 2). Set it to 3 or more, or null."


def test_a_test_split_without_a_class_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        divide(Source(split_of([5, 5, 5]), split_of([4, 0, 4]), CLASSES), SplitSettings(), 0)
    assert caplog.messages == ["data: the test split has no image of square"]


@pytest.mark.parametrize("table", [{"validation": 0}, {"validation": 1.0}, {"test": 0}, {"validation": 0.6, "test": 0.4}, {"tset": 0.1}])
def test_settings_that_cannot_be_are_refused(table):
    with pytest.raises(ValidationError):
        SplitSettings(**table)


def test_shares_read_as_fractions():
    assert SplitSettings(validation="1/8").validation == 0.125


# A source that contradicts itself ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: Source(split_of([4]), None, ("only",)),
            "data: a classifier needs at least two classes (got ['only']). Check where the data is read from.",
        ),
        (lambda: Source(split_of([4, 4]), None, ("twin", "twin")), "data: two classes have the same name (got 'twin'). Rename one."),
        (
            lambda: Source(split_of([4, 4]), None, ("a", "b\udcff")),
            r"data: the name of a class is no text that UTF-8 can hold (got 'b\udcff'). Rename it.",
        ),
        (
            lambda: Source(split_of([4, 4, 4]), None, ("a", "b")),
            "data: training labels must be in 0..1 (got 2). Name every class, and count from 0.",
        ),
        (
            lambda: Source(split_of([4, 4]), split_of([4, 4], channels=3), ("a", "b")),
            "data: test images have another shape than training images (got [3, 2, 2] and [1, 2, 2], channels, height, width). "
            "Bring them to one shape.",
        ),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(make, message):
    with pytest.raises(Mistake) as mistake:
        make()
    assert str(mistake.value) == message


# Writing and reading ----------------------------------------------------------------------------------------------------------------------


def prepared(folder: Path, seed: int = 0, source: Source | None = None):
    return prepare(source or source_of([40, 30, 20]), SplitSettings(), "shapes", "npz", seed, folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_reads_back(tmp_path):
    source = source_of([40, 30, 20])
    about = prepared(tmp_path, source=source)
    assert load_about(tmp_path) == about
    for name, split in divide(source, SplitSettings(), 0).items():
        read = load_split(tmp_path, name)
        assert torch.equal(read.images, split.images) and torch.equal(read.labels, split.labels) and torch.equal(read.index, split.index)
        assert about.counts[name] == len(read)
    assert set(content(tmp_path)) == {"train.safetensors", "validation.safetensors", "test.safetensors", "about.json"}
    assert (about.shape, about.classes, about.name, about.kind) == ((1, 2, 2), ("c0", "c1", "c2"), "shapes", "npz")


def test_a_file_written_in_pieces_is_that_of_safetensors(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PIECE", 30)  # two images at once, or three
    source = source_of([9, 8, 7], test=[3, 3, 3])
    prepare(source, SplitSettings(), "shapes", "folder", 0, tmp_path)
    for name, split in divide(source, SplitSettings(), 0).items():
        whole = save({"images": split.images, "labels": split.labels, "index": split.index})
        assert (tmp_path / f"{name}.safetensors").read_bytes() == whole


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA does not count what is mapped there alone")
def test_a_folder_beyond_memory_is_prepared(tmp_path):
    """156 MiB of images, of which no more than 128 MiB may be held at once, beside the libraries."""
    for kind in ("cat", "dog"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for i in range(26):
            Image.new("RGB", (1024, 1024), (i, 0, 0)).save(tmp_path / "images" / kind / f"{i}.png")
    code = (
        "import resource; from pathlib import Path; from basin.config.splits import SplitSettings\n"
        "from basin.data.splits import prepare; from basin.methods.sources import folder\n"
        "held = 1024 * int(next(line for line in open('/proc/self/status') if line.startswith('VmData')).split()[1])\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (held + 2**27,) * 2)\n"
        "prepare(folder.read(folder.Params(folder='images')), SplitSettings(), 'own', 'folder', 0, Path('prepared'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(stored.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    about = load_about(tmp_path / "prepared")
    assert sum(about.counts.values()) == 52 and len(load_split(tmp_path / "prepared", "train")) == about.counts["train"]


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path):
    prepared(tmp_path / "here", seed=5)
    code = "import sys, pathlib, tests.data.test_data as t; t.prepared(pathlib.Path(sys.argv[1]), seed=5)"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, tmp_path / "there"], check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert content(tmp_path / "here") == content(tmp_path / "there")
    prepared(tmp_path / "here", seed=6)
    assert content(tmp_path / "here")["train.safetensors"] != content(tmp_path / "there")["train.safetensors"]


def test_the_digest_follows_pixels_labels_and_names(tmp_path):
    plain, pixel = split_of([9, 9]), split_of([9, 9])
    pixel.images[0, 0, 0, 1] += 1
    swapped = Split(plain.images, 1 - plain.labels)
    sources = [
        Source(plain, None, ("a", "b")),
        Source(pixel, None, ("a", "b")),
        Source(swapped, None, ("a", "b")),
        Source(plain, None, ("a", "c")),
    ]
    assert len({prepared(tmp_path, source=source).digest for source in sources}) == 4


@few
@given(st.integers(1, 3), st.integers(0, 2**31))
def test_moments_are_those_of_the_training_split(channels, seed):
    from basin.data.splits import _moments

    images = torch.randint(0, 256, (50, channels, 3, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    scaled = images.numpy().astype(np.float64) / 255
    mean, std = _moments(iter(images.split(20)))
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-12)


def test_a_constant_channel_can_be_divided_by(tmp_path):
    images = torch.full((12, 2, 2, 2), 51, dtype=torch.uint8)
    images[::2, 1] = 255
    about = prepared(tmp_path, source=Source(Split(images, torch.arange(12) % 3), None, CLASSES))
    assert about.mean[0] == 0.2 and about.std[0] == STD_FLOOR and about.std[1] > 0.3


def test_floats_span_zero_to_one():
    split = Split(torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1), torch.tensor([0, 1, 0]))
    assert torch.equal(split.floats().flatten(), torch.tensor([0, 0.2, 1]))
    assert torch.equal(split.floats(torch.tensor([2, 0])).flatten(), torch.tensor([1.0, 0.0]))
    assert split.floats(slice(1, 2)).shape == (1, 1, 1, 1)
    assert split.images.dtype == torch.uint8


def test_preparing_again_replaces_and_leaves_nothing_beside(tmp_path):
    (tmp_path / "about.json").write_text("old")
    about = prepared(tmp_path)
    assert json.loads((tmp_path / "about.json").read_text())["digest"] == about.digest
    assert len(list(tmp_path.iterdir())) == 4


def test_a_write_that_fails_leaves_nothing_beside(tmp_path):
    (tmp_path / "train.safetensors").mkdir()  # cannot be replaced by a file
    with pytest.raises(Mistake, match=r"train.safetensors: cannot be written \(got Is a directory\)"):
        prepared(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train.safetensors"]


def test_other_users_may_read_what_is_written(tmp_path):
    prepared(tmp_path)
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize("name", ["train.safetensors", "about.json"])
def test_absent_files_say_how_to_get_them(tmp_path, name):
    with pytest.raises(Mistake) as mistake:
        load_about(tmp_path) if name == "about.json" else load_split(tmp_path, "train")
    assert str(mistake.value) == f"{tmp_path / name}: no prepared data here. Run `dvc repro prepare`."


@pytest.mark.parametrize("damage", [lambda old: b"", lambda old: old[:-1], lambda old: b"\xff" * len(old), lambda old: b"{}"])
def test_damaged_files_are_named(tmp_path, damage):
    prepared(tmp_path)
    for path in (tmp_path / "train.safetensors", tmp_path / "about.json"):
        path.write_bytes(damage(path.read_bytes().rstrip()))
        with pytest.raises(Mistake) as mistake:
            load_about(tmp_path) if path.suffix == ".json" else load_split(tmp_path, "train")
        assert str(mistake.value).startswith(f"{path}: damaged, or not written by this version (got ")
        assert str(mistake.value).endswith("). Run `dvc repro prepare`.")


def test_tensors_of_another_kind_are_named(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "test.safetensors"
    save_file({"images": torch.zeros(2, 1, 2, 2), "labels": torch.zeros(2).long(), "index": torch.zeros(2).long()}, path)
    with pytest.raises(Mistake) as mistake:
        load_split(tmp_path, "test")
    assert "(got images torch.float32 [2, 1, 2, 2], labels torch.int64 [2])" in str(mistake.value)
    save_file({"pixels": torch.zeros(2)}, path)
    with pytest.raises(Mistake, match="damaged"):
        load_split(tmp_path, "test")
