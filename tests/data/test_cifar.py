"""Claims about CIFAR archives, folders, and pickles that are not CIFAR."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.data import cifar, load_data
from edgekd.data.cifar import CIFAR10, CIFAR100, Cifar, restricted_unpickle
from edgekd.errors import InputError


def _batches(kind: Cifar) -> dict[str, bytes]:
    count = 100 if kind is CIFAR100 else 10
    labels = [i % count for i in range(2 * count)]
    rows = np.random.default_rng(0).integers(0, 256, (len(labels), 3072)).astype(np.uint8)
    documents: dict[str, Any] = {name: {"data": rows, kind.labels: labels} for name in (*kind.train, kind.test)}
    documents[kind.meta] = {kind.class_names: [f"class {i}" for i in range(count)]}
    return {name: pickle.dumps(document, protocol=2) for name, document in documents.items()}


def make_folder(root: Path, kind: Cifar) -> Path:
    root.mkdir()
    for name, data in _batches(kind).items():
        (root / name).write_bytes(data)
    return root


def make_archive(path: Path, kind: Cifar) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in _batches(kind).items():
            info = tarfile.TarInfo(f"{kind.folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_an_extracted_folder_is_read(tmp_path: Path, kind: Cifar) -> None:
    data = load_data(str(make_folder(tmp_path / kind.folder, kind)))
    count = 100 if kind is CIFAR100 else 10
    assert (data.name, len(data.classes), data.horizontal_flip) == (kind.name, count, True)
    assert len(data.test) == 2 * count
    assert len(data.train) + len(data.val) == 2 * count * len(kind.train)
    first = np.random.default_rng(0).integers(0, 256, (2 * count, 3072)).astype(np.uint8)[0]
    assert np.array_equal(data.test.images([0]).numpy().ravel(), first)


def test_the_published_archive_is_known_by_its_md5(tmp_path: Path) -> None:
    assert CIFAR100.md5 == "eb9058c3a382ffc7106e4002c42a8d85"
    archive = make_archive(tmp_path / CIFAR100.archive, CIFAR100)
    with pytest.raises(InputError, match=r"cifar-100-python\.tar\.gz: MD5 is .*, expected eb9058c3"):
        load_data(str(archive))


def test_an_archive_with_the_right_md5_is_read_by_path_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path / CIFAR100.archive, CIFAR100)
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    known = dataclasses.replace(CIFAR100, md5=md5)
    monkeypatch.setattr(cifar, "CIFAR100", known)
    monkeypatch.setattr("edgekd.data.load.CIFAR100", known)
    data = load_data(str(archive))
    assert (data.name, len(data.classes)) == ("cifar100", 100)
    monkeypatch.setenv("EDGEKD_DATA", str(tmp_path))
    assert load_data("cifar100").fingerprint == data.fingerprint


def test_by_name_offline_says_where_to_put_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKD_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cifar, "BASE_URL", "http://127.0.0.1:9/")
    with pytest.raises(InputError, match=r"not on this machine and .* cannot be reached; pass --data .*put that file"):
        load_data("cifar100")


def test_a_pickle_that_would_run_code_is_refused_without_running_it(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    folder = make_folder(tmp_path / CIFAR10.folder, CIFAR10)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(InputError, match=r"test_batch: not a CIFAR batch \(it asks for pathlib"):
        load_data(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("data", [b"", b"hello", pickle.dumps([1, 2]), pickle.dumps({"data": 1})[:-3]])
def test_damaged_batches_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="not a CIFAR batch"):
        restricted_unpickle(data, where="x")


def test_a_missing_batch_or_wrong_contents_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / CIFAR10.folder, CIFAR10)
    (folder / "data_batch_3").unlink()
    with pytest.raises(InputError, match="'data_batch_3' is missing"):
        load_data(str(folder))
    (folder / "data_batch_3").write_bytes(
        pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}, protocol=2)
    )
    with pytest.raises(InputError, match=r"data_batch_3: no 'data' \(N, 3072\)"):
        load_data(str(folder))
