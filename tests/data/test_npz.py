"""Claims about .npz files, and about what --data may say."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgekd.data import load_data
from edgekd.errors import InputError


def _arrays(n: int = 40, shape: tuple[int, ...] = (12, 12, 3), classes: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.integers(0, 256, (n, *shape)).astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(n) % classes
    return arrays


def _save(path: Path, arrays: dict[str, Any]) -> str:
    np.savez(path, **arrays)
    return str(path)


def _jpegs(n: int = 12, *, test: str = "test") -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {"names": np.array(["fork", "spoon"])}
    for p, part in enumerate(("train", test)):
        blobs = []
        for i in range(n):
            stream = io.BytesIO()
            Image.fromarray(np.full((16, 16, 3), 10 * i + p, np.uint8)).save(stream, "JPEG")
            blobs.append(np.frombuffer(stream.getvalue(), np.uint8))
        arrays[f"{part}_jpeg"] = np.concatenate(blobs)
        arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, blobs)])
        arrays[f"{part}_labels"] = (np.arange(n) % 2).astype(np.uint16)
    return arrays


def test_nhwc_nchw_and_nhw_give_the_same_images(tmp_path: Path) -> None:
    last = _arrays()
    first = {k: v.transpose(0, 3, 1, 2) if k[0] == "x" else v for k, v in last.items()}
    a = load_data(_save(tmp_path / "a.npz", last))
    b = load_data(_save(tmp_path / "b.npz", first))
    assert a.fingerprint == b.fingerprint
    assert torch.equal(a.test.images([3]), torch.from_numpy(first["x_test"][[3]]))
    assert (a.name, a.classes, a.horizontal_flip) == ("a", ("0", "1", "2", "3"), False)
    grey = load_data(_save(tmp_path / "c.npz", _arrays(shape=(12, 12))))
    assert grey.train.images([0]).shape == (1, 1, 12, 12)


def test_class_names_are_taken_and_colour_photographs_mirrored(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "cow", "hen"])
    data = load_data(_save(tmp_path / "a.npz", {**_arrays(), "names": names}))
    assert (data.classes, data.horizontal_flip) == (("cat", "dog", "cow", "hen"), True)


def test_images_that_are_not_square_lose_their_ends(tmp_path: Path) -> None:
    data = load_data(_save(tmp_path / "a.npz", _arrays(shape=(12, 20, 3))))
    assert data.train.images([0]).shape == (1, 3, 12, 12)


@pytest.mark.parametrize("test", ["test", "val"])
def test_jpegs_end_to_end_are_decoded(tmp_path: Path, test: str) -> None:
    data = load_data(_save(tmp_path / "a.npz", _jpegs(test=test)))
    assert (data.classes, len(data.test), len(data.train) + len(data.val)) == (("fork", "spoon"), 12, 12)
    assert abs(int(data.test.images([5]).float().mean()) - 51) <= 1


def test_a_damaged_jpeg_is_named_by_its_place_and_skipped_on_request(tmp_path: Path) -> None:
    arrays = _jpegs()
    arrays["test_jpeg"][arrays["test_offsets"][3] : arrays["test_offsets"][4]] = 0
    file = _save(tmp_path / "a.npz", arrays)
    with pytest.raises(InputError, match=r"test_jpeg\[3\]: cannot be decoded"):
        load_data(file)
    data = load_data(file, skip_bad=True)
    assert (len(data.test), data.note) == (11, "1 unreadable images skipped")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x_train": np.zeros((40, 12, 12, 3), np.float32)}, "x_train: holds float32; store pixels as uint8"),
        ({"x_test": np.zeros((40, 12), np.uint8)}, r"x_test: has shape \(40, 12\)"),
        ({"x_test": np.zeros((40, 9, 9, 3), np.uint8)}, "training images are .* but test images are"),
        ({"y_test": np.zeros(39, np.int64)}, "y_test: 39 labels for 40 images"),
        ({"y_test": np.zeros(40)}, "y_test: holds float64"),
        ({"y_test": np.full(40, 4)}, r"test label 4 is out of range: there are 4 classes \(0 to 3\)"),
        ({"y_train": np.arange(40) % 4 - 1}, "training label -1 is out of range"),
        ({"y_train": np.arange(40) % 4 + (np.arange(40) % 4 > 1)}, "too few images: class '2' has 0 for training"),
        ({"y_train": np.zeros(40, int), "y_test": np.zeros(40, int)}, "only 1 class"),
        ({"x_test": np.zeros((0, 12, 12, 3), np.uint8), "y_test": np.zeros(0, int)}, "no test images"),
        ({"x_train": np.array([{}], dtype=object)}, "not a readable .npz archive"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_data(_save(tmp_path / "a.npz", {**_arrays(), **change}))


def test_other_keys_and_offsets_that_overrun_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it holds foo; expected x_train"):
        load_data(_save(tmp_path / "a.npz", {"foo": np.zeros(3)}))
    arrays = _jpegs()
    arrays["train_offsets"][-1] += 100
    with pytest.raises(InputError, match="train_offsets do not cut"):
        load_data(_save(tmp_path / "b.npz", arrays))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 hello")
    with pytest.raises(InputError, match=r"a\.npz: not a readable \.npz archive"):
        load_data(str(tmp_path / "a.npz"))
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(InputError, match="a single array"):
        load_data(str(tmp_path / "b.npz"))


def test_a_name_with_a_slip_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="cifar-10: no such data; did you mean 'cifar10' or 'cifar100'"):
        load_data("cifar-10")


def test_missing_paths_unknown_files_and_tiny_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data; give an existing folder or file"):
        load_data(str(tmp_path / "none" / "x.npz"))
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"a\.csv: not data that edgekd reads; known: fashion-mnist"):
        load_data(str(tmp_path / "a.csv"))
    with pytest.raises(InputError, match="image size 4 px is too small"):
        load_data(image_size=4)


def test_a_bad_edgekd_data_is_an_error_and_not_a_silent_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_DATA", "/nowhere/at/all")
    with pytest.raises(InputError, match="/nowhere/at/all: no such data"):
        load_data()


def test_the_mini_fashion_mnist_file_loads(shared: Path) -> None:
    data = load_data(str(shared / "data" / "images" / "fashionmnist-mini-500-200.npz"))
    assert (len(data.train), len(data.val), len(data.test), len(data.classes)) == (450, 50, 200, 10)
