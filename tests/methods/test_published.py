"""Data sets are read in the formats in which they were published, from wherever tools put them, and nothing else is taken for them."""

import gzip
import importlib
import pickle
import struct

import numpy as np
import pytest
import torch
from published import pack, python2, write_cifar, write_idx, write_svhn

from basin.data import cifar, idx
from basin.errors import Mistake
from basin.methods.sources import cifar10, cifar100, fashion_mnist, svhn

IDX = {"mnist": "MNIST", "kmnist": "KMNIST", "fashion_mnist": "FashionMNIST"}


@pytest.fixture
def small(monkeypatch):
    """Files that are smaller than the published ones have other checksums."""
    monkeypatch.setattr(idx, "checksums", lambda name: {})
    monkeypatch.setattr(cifar, "checksums", lambda name: {})
    monkeypatch.setattr(svhn, "checksums", dict)


def message(call, *arguments) -> str:
    with pytest.raises(Mistake) as mistake:
        call(*arguments)
    return str(mistake.value)


def read(kind, folder, **keys):
    module = importlib.import_module(f"basin.methods.sources.{kind}")
    return module.read(module.Params(folder=str(folder), **keys))


# IDX --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("place", [".", "usr/share/datasets/fashion-mnist", "FashionMNIST/raw"])
def test_idx_files_are_read_plain_or_gzipped_from_where_tools_put_them(tmp_path, gzipped, place, small):
    arrays = write_idx(tmp_path / place, gzipped)
    source = read("fashion_mnist", tmp_path)
    train_images, train_labels, test_images, test_labels = (torch.from_numpy(arrays[name]) for name in idx.FILES)
    assert torch.equal(source.train.images[:, 0], train_images) and torch.equal(source.train.labels, train_labels.long())
    assert torch.equal(source.test.images[:, 0], test_images) and torch.equal(source.test.labels, test_labels.long())
    assert len(source.classes) == 10 and source.classes[9] == "Ankle boot"


@pytest.mark.parametrize("kind", IDX)
def test_idx_files_are_read_as_torchvision_reads_them(tmp_path, kind):
    from torchvision import datasets

    write_idx(tmp_path / IDX[kind] / "raw", gzipped=False)
    ours, theirs = read(kind, tmp_path), getattr(datasets, IDX[kind])(str(tmp_path), train=True)
    assert torch.equal(ours.train.images[:, 0], theirs.data) and torch.equal(ours.train.labels, theirs.targets)
    assert list(ours.classes) == [name.split(" - ")[0] for name in theirs.classes]


@pytest.mark.parametrize("kind", IDX)
def test_a_compressed_file_that_is_not_the_published_one_is_refused(tmp_path, kind):
    write_idx(tmp_path)
    text = message(read, kind, tmp_path)
    assert text.startswith(f"{tmp_path}/train-images-idx3-ubyte.gz: not the published file (got MD5 ") and text.endswith("Fetch it again.")
    assert idx.checksums(IDX[kind])["train-images-idx3-ubyte.gz"] in text


def test_an_idx_file_is_not_unpacked_beyond_what_it_can_be(tmp_path, small):
    write_idx(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(3 << 26), 1))
    assert f"{path}: not a whole IDX file of 3 axes (got magic 0x0, axes [0, 0, 0], {1 << 26} bytes)" in message(read, "mnist", tmp_path)


def test_absent_files_are_named_with_where_they_were_looked_for_and_how_to_get_them(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    text = message(read, "fashion_mnist", tmp_path)
    assert text.startswith(
        f"data.folder: FashionMNIST not found (looked in {tmp_path}, {tmp_path}/usr/share/datasets/fashion-mnist, "
        f"{tmp_path}/FashionMNIST/raw; got no t10k-labels-idx1-ubyte). "
    )
    package = fashion_mnist.PACKAGE
    assert f"`mkdir -p {tmp_path} && apt-get download {package} && dpkg -x {package}_*.deb {tmp_path}`" in text
    assert 'Set `download: true`, or run `python -c "from torchvision.datasets import FashionMNIST; FashionMNIST(' in text


@pytest.mark.parametrize(
    "name, content, why",
    [
        ("train-images-idx3", b"", "not a whole IDX file of 3 axes (got magic 0x0, axes [0, 0, 0], 0 bytes)"),
        (
            "train-images-idx3",
            struct.pack(">4I", 0x803, 2, 2, 2) + b"1234567",
            "not a whole IDX file of 3 axes (got magic 0x803, axes [2, 2, 2], 23 bytes)",
        ),
        ("train-labels-idx1", struct.pack(">2I", 0x803, 1) + b"1", "not a whole IDX file of 1 axes (got magic 0x803, axes [1], 9 bytes)"),
        ("t10k-labels-idx1", struct.pack(">2I", 0x801, 20) + bytes(19) + b"\x0a", "labels must be in 0..9 (got 10)"),
        ("t10k-labels-idx1", struct.pack(">2I", 0x801, 19) + bytes(19), "one label an image is needed (got 19 for 20)"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, name, content, why):
    write_idx(tmp_path, gzipped=False, **{name.replace("-", "_"): content})
    assert message(read, "fashion_mnist", tmp_path).startswith(f"{tmp_path}/{name}-ubyte: {why}. Fetch ")


@pytest.mark.parametrize("damage", [lambda old: old[:-20], lambda old: b"\x00" + old, lambda old: old[:40] + b"\xff" * 40 + old[80:]])
def test_damaged_compression_is_named(tmp_path, damage, small):
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert message(read, "mnist", tmp_path).startswith(f"{path}: damaged (got ")


# CIFAR ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_cifar_10_is_read_as_python_2_wrote_it(tmp_path, place, small):
    arrays = write_cifar(tmp_path / place, 10)
    source = read("cifar10", tmp_path)
    whole = np.concatenate([arrays[f"data_batch_{k}"] for k in range(1, 6)]).reshape(-1, 3, 32, 32)
    assert torch.equal(source.train.images, torch.from_numpy(whole)) and source.train.labels.tolist() == [k % 10 for k in range(30)] * 5
    assert torch.equal(source.test.images.flatten(1), torch.from_numpy(arrays["test_batch"])) and source.classes[9] == "class 9"


def test_cifar_100_is_read_by_its_fine_labels(tmp_path, small):
    arrays = write_cifar(tmp_path, 100, n=1200)
    source = read("cifar100", tmp_path)
    assert torch.equal(source.train.images.flatten(1), torch.from_numpy(arrays["train"])) and len(source.classes) == 100
    assert source.train.labels.tolist() == [k % 100 for k in range(1200)]


def test_cifar_is_read_as_torchvision_reads_it(tmp_path, small, monkeypatch):
    from torchvision.datasets import CIFAR10

    write_cifar(tmp_path / "cifar-10-batches-py", 10)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    ours, theirs = read("cifar10", tmp_path), CIFAR10(str(tmp_path), train=False)
    assert np.array_equal(ours.test.images.permute(0, 2, 3, 1).numpy(), theirs.data) and ours.test.labels.tolist() == theirs.targets


def test_cifar_is_read_out_of_its_archive_and_nothing_is_unpacked(tmp_path, small):
    write_cifar(tmp_path / "made/cifar-10-batches-py", 10)
    (tmp_path / "as").mkdir()
    pack(tmp_path / "made/cifar-10-batches-py", tmp_path / "as" / cifar10.DATA.archive)
    ours, theirs = read("cifar10", tmp_path / "as"), read("cifar10", tmp_path / "made")
    assert torch.equal(ours.train.images, theirs.train.images) and [path.name for path in (tmp_path / "as").iterdir()] == [
        cifar10.DATA.archive
    ]


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_cifar_is_read_whichever_python_wrote_it(tmp_path, small, protocol):
    arrays = write_cifar(tmp_path, 10)
    for name, pixels in arrays.items():
        table = {"labels": [k % 10 for k in range(30)], "data": pixels}
        (tmp_path / name).write_bytes(pickle.dumps(table, protocol=protocol))
    assert torch.equal(read("cifar10", tmp_path).test.images.flatten(1), torch.from_numpy(arrays["test_batch"]))


class Planted:
    def __reduce__(self):
        return (open, ("planted", "w"))


@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta"])
def test_nothing_in_a_planted_file_is_executed(tmp_path, small, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path, 10)
    (tmp_path / name).write_bytes(pickle.dumps({"labels": Planted(), "label_names": Planted()}))
    key = "labels" if name == "data_batch_1" else "label_names"
    assert message(read, "cifar10", tmp_path) == f"{tmp_path}/{name}: not the published file (got no list {key!r} in it). Fetch it again."
    assert not (tmp_path / "planted").exists()


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path):
    write_cifar(tmp_path, 10)
    known = cifar.checksums("CIFAR10")["data_batch_1"]
    text = message(read, "cifar10", tmp_path)
    assert text.startswith(f"{tmp_path}/data_batch_1: not the published file (got MD5 ") and text.endswith(
        f", not {known}). Fetch it again."
    )
    pack(tmp_path, tmp_path / cifar10.DATA.archive)
    (tmp_path / "data_batch_1").unlink()
    assert message(read, "cifar10", tmp_path).startswith(f"{tmp_path}/{cifar10.DATA.archive}/data_batch_1: not the published file")


@pytest.mark.parametrize(
    "content, why",
    [
        (b"", "damaged (got pickle exhausted before seeing STOP)"),
        (b"no pickle", "damaged (got "),
        (python2({"labels": [0, 1], "data": np.zeros((1, 3072), np.uint8)}), "not the published file (got 3072 bytes of pixels, 2 labels)"),
        (python2({"labels": [99], "data": np.zeros((1, 3072), np.uint8)}), "not the published file (got 3072 bytes of pixels, 1 labels)"),
        (python2({"data": np.zeros((1, 3072), np.uint8)}), "not the published file (got no list 'labels' in it)"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path, small, content, why):
    write_cifar(tmp_path, 10)
    (tmp_path / "test_batch").write_bytes(content)
    assert message(read, "cifar10", tmp_path).startswith(f"{tmp_path}/test_batch: {why}")


def test_a_damaged_archive_is_named(tmp_path, small):
    archive = tmp_path / cifar100.DATA.archive
    archive.write_bytes(b"no archive")
    assert message(read, "cifar100", tmp_path).startswith(f"{archive}: damaged (got ")
    write_cifar(tmp_path / "made", 10)
    pack(tmp_path / "made", archive)
    assert message(read, "cifar100", tmp_path) == f"{archive}: not whole (got no train in it). Fetch it again."


# SVHN -------------------------------------------------------------------------------------------------------------------------------------


def test_svhn_is_read_and_its_ten_is_a_zero(tmp_path, small):
    arrays = write_svhn(tmp_path)
    source = read("svhn", tmp_path)
    assert torch.equal(source.train.images, torch.from_numpy(arrays["train"]).permute(3, 2, 0, 1))
    assert source.test.labels.tolist() == [(k + 1) % 10 for k in range(10)] * 4


def test_an_svhn_that_is_not_the_published_one_or_damaged_is_refused(tmp_path, monkeypatch):
    write_svhn(tmp_path)
    assert message(read, "svhn", tmp_path).startswith(f"{tmp_path}/train_32x32.mat: not the published file (got MD5 ")
    monkeypatch.setattr(svhn, "checksums", dict)
    (tmp_path / "train_32x32.mat").write_bytes(b"no matrix")
    assert message(read, "svhn", tmp_path).startswith(f"{tmp_path}/train_32x32.mat: damaged (got ")


# The network ------------------------------------------------------------------------------------------------------------------------------


def test_a_download_is_torchvisions_and_its_failure_one_sentence(tmp_path, monkeypatch):
    from torchvision import datasets

    def refused(root, download, **_):
        assert download and root == str(tmp_path)
        raise RuntimeError("Error downloading\n train-images")

    monkeypatch.setattr(datasets, "MNIST", refused)
    text = message(lambda: read("mnist", tmp_path, download=True))
    assert "data.download: torchvision could not fetch MNIST (got Error downloading train-images)." in text
    assert f"data.folder: MNIST not found (looked in {tmp_path}, {tmp_path}/MNIST/raw; got no train-images-idx3-ubyte, " in text


def test_what_was_downloaded_is_read(tmp_path, small, monkeypatch):
    from torchvision import datasets

    calls = []

    def fetch(root, download, split):
        calls.append(split)
        write_svhn(tmp_path)

    monkeypatch.setattr(datasets, "SVHN", fetch)
    assert len(read("svhn", tmp_path, download=True).train) == 40 and calls == ["train", "test"]
