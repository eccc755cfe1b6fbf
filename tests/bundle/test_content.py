"""A bundle that agrees with its manifest but computes something else, and files that are no bundle at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import edited, failures, npy, rewritten
from example_report import example_report

from edgekd.bundle import verify
from edgekd.bundle.manifest import MANIFEST_NAME
from edgekd.errors import InputError


def test_labels_in_another_order_fail(bundle: Path, tmp_path: Path) -> None:
    names = "".join(f"{name}\n" for name in reversed(example_report().data.classes))
    found = verify(rewritten(bundle, tmp_path / "b.zip", "labels.txt", names.encode()))
    assert "labels.txt" in failures(found)["labels and preprocessing"]


def test_doubly_normalised_inputs_fail(run: Path, bundle: Path, tmp_path: Path) -> None:
    inputs = np.load(run / "parity/inputs.npy")
    twice = ((inputs - 0.286) / 0.353).astype(np.float32)
    found = verify(rewritten(bundle, tmp_path / "b.zip", "parity/inputs.npy", npy(twice)))
    assert "differ by up to" in failures(found)["parity inputs are normalised images"]


def test_an_artifact_that_computes_something_else_fails(run: Path, bundle: Path, tmp_path: Path) -> None:
    golden = np.load(run / "parity/golden-float.npy")
    found = verify(rewritten(bundle, tmp_path / "b.zip", "parity/golden-float.npy", npy(golden[:, ::-1].copy())))
    assert "images differ in top-1" in failures(found)["parity: onnxruntime-fp32"]


def test_a_pickle_in_place_of_a_vector_is_refused(bundle: Path, tmp_path: Path) -> None:
    bad = npy(np.array([{"a": 1}], dtype=object))
    found = verify(rewritten(bundle, tmp_path / "b.zip", "parity/golden-float.npy", bad))
    assert "not a plain .npy array" in failures(found)["parity: onnxruntime-fp32"]


def test_a_model_that_does_not_load_fails_with_the_runtimes_words(bundle: Path, tmp_path: Path) -> None:
    found = verify(rewritten(bundle, tmp_path / "b.zip", "artifacts/onnxruntime-fp32/model.onnx", b"not a model"))
    assert "ONNX" in failures(found)["parity: onnxruntime-fp32"]


# What is not a bundle at all: an InputError, exit 2.


def test_a_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.zip: no such file"):
        verify(tmp_path / "no.zip")


def test_a_folder_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, not a bundle"):
        verify(tmp_path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG" * 100])
def test_a_file_that_is_not_a_zip(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"not a bundle \(not a zip file\)"):
        verify(path)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_a_truncated_zip(fraction: float, bundle: Path, tmp_path: Path) -> None:
    data = bundle.read_bytes()
    path = tmp_path / "x.zip"
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(InputError, match="truncated or damaged zip"):
        verify(path)


def test_some_other_zip(bundle: Path, tmp_path: Path) -> None:
    path = edited(bundle, tmp_path / "x.zip", lambda files: files.pop(MANIFEST_NAME) and None)
    with pytest.raises(InputError, match=r"not a bundle \(a zip without manifest.json\)"):
        verify(path)
