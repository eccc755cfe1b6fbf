"""Claims about the embedded default, its order of places, and IDX files."""

from __future__ import annotations

import gzip
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.data import fashion_mnist, load_data
from edgekd.data.download import fetch
from edgekd.data.fashion_mnist import CLASSES, DEBIAN_FOLDER, SUBSET_NOTE, read_idx
from edgekd.errors import InputError


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def make_idx_folder(folder: Path, *, n: int = 40, compressed: bool = True) -> Path:
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        images = np.random.default_rng(0).integers(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = (np.arange(n) % 4).astype(np.uint8)
        for stem, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            raw = _idx(array)
            (folder / (stem + ".gz" * compressed)).write_bytes(gzip.compress(raw) if compressed else raw)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """No Debian package, an empty cache, and a network that cannot be reached; the list counts what was asked for."""
    asked: list[str] = []

    def refuse(url: str, files: Mapping[str, str], folder: Path) -> str:
        asked.append(url)
        return f"{url} cannot be reached"

    monkeypatch.delenv("EDGEKD_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
    monkeypatch.setattr(fashion_mnist, "fetch", refuse)
    return asked


def test_offline_without_the_package_the_subset_is_used_and_says_so(offline: list[str]) -> None:
    data = load_data()
    assert data.note == SUBSET_NOTE == "subset: smoke numbers only"
    assert (len(data.train), len(data.val), len(data.test)) == (6300, 700, 1000)
    assert data.train.labels.bincount().tolist() == [630] * 10
    assert data.test.labels.bincount().tolist() == [100] * 10
    assert (data.classes, data.horizontal_flip) == (CLASSES, True)
    assert data.preprocessing.mean[0] == pytest.approx(0.286, abs=0.01)
    assert len(offline) == 1


def test_the_packaged_subset_is_small_enough_to_ship_and_is_what_its_readme_says() -> None:
    folder = Path(str(resources.files("edgekd.data"))) / "assets"
    subset = folder / "fashion-mnist-subset.npz"
    assert subset.stat().st_size <= 4_000_000
    assert fashion_mnist.hashlib.sha256(subset.read_bytes()).hexdigest() in (folder / "README.md").read_text()


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_the_debian_package_gives_the_full_data_and_the_subset_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKD_DATA", raising=False)
    data = load_data()
    assert (data.name, data.note) == ("fashion-mnist", "")
    assert (len(data.train), len(data.val), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.preprocessing.mean == (0.286,)
    assert data.preprocessing.std == (0.353,)
    subset = fashion_mnist.load_subset(image_size=None, seed=0)
    first = data.test.images(range(1200)).flatten(1)
    for i in (0, 500, 999):
        assert (first == subset.test.images([i]).flatten(1)).all(1).any()


def test_edgekd_data_comes_before_everything_else(
    offline: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKD_DATA", str(make_idx_folder(tmp_path / "mine")))
    data = load_data()
    assert (data.name, data.note, len(data.test)) == ("mine", "", 40)
    assert load_data("fashion-mnist").fingerprint == data.fingerprint
    assert offline == []


def test_other_data_in_idx_files_are_not_called_fashion_mnist_and_not_mirrored(tmp_path: Path) -> None:
    data = load_data(str(make_idx_folder(tmp_path / "digits", compressed=False)))
    assert (data.name, data.classes, data.horizontal_flip) == ("digits", ("0", "1", "2", "3"), False)


def test_torchvisions_folder_is_recognised(tmp_path: Path) -> None:
    make_idx_folder(tmp_path / "FashionMNIST" / "raw", compressed=False)
    assert len(load_data(str(tmp_path)).test) == 40


def test_idx_images_can_be_had_at_another_size(tmp_path: Path) -> None:
    data = load_data(str(make_idx_folder(tmp_path / "a")), image_size=32)
    assert data.train.images([0]).shape == (1, 1, 32, 32)
    assert data.train.images([0]).dtype == torch.uint8


def test_a_cut_or_missing_idx_file_is_named(tmp_path: Path) -> None:
    folder = make_idx_folder(tmp_path / "a")
    labels = folder / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz: damaged file .*fetch it again"):
        load_data(str(folder))
    labels.unlink()
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz: no such file"):
        load_data(str(folder))


def test_an_idx_file_shorter_than_its_header_says_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x-idx1-ubyte"
    file.write_bytes(_idx(np.arange(5, dtype=np.uint8))[:-1])
    with pytest.raises(InputError, match="not an IDX file of unsigned bytes, or cut short"):
        read_idx(file)


def test_images_and_labels_of_different_lengths_are_refused(tmp_path: Path) -> None:
    folder = make_idx_folder(tmp_path / "a", compressed=False)
    (folder / "train-labels-idx1-ubyte").write_bytes(_idx(np.zeros(3, np.uint8)))
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte holds \(3,\)"):
        load_data(str(folder))


def test_a_download_without_a_network_gives_up_in_seconds_and_leaves_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    why_not = fetch("http://127.0.0.1:9/", {"a.gz": "0" * 32}, tmp_path / "cache" / "data")
    assert why_not is not None
    assert "cannot be reached" in why_not
    assert time.monotonic() - started < 10
    assert not (tmp_path / "cache").exists()
