"""What is packed: all a device needs, only what passed, the same bytes each time; what must not ship is refused."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bundles import CLASSES, PREPROCESSING, SIDE
from example_report import example_report

from edgekd.bundle import write_bundle, write_parity
from edgekd.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekd.errors import CheckError, InputError
from edgekd.report.document import RunReport


def test_the_same_run_gives_the_same_bytes(run: Path, report: RunReport, bundle: Path, tmp_path: Path) -> None:
    assert write_bundle(tmp_path / "again.zip", report=report, run=run).read_bytes() == bundle.read_bytes()


def test_it_holds_what_a_device_needs_and_only_what_passed(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        names = set(archive.namelist())
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
        labels = archive.read("labels.txt").decode().splitlines()
    assert {"run.py", "README.md", "MODEL_CARD.md", "LICENSES.md", "preprocessing.json", "parity/inputs.bin"} <= names
    assert "artifacts/tensorrt-fp16/build.sh" in names
    assert modes["artifacts/tensorrt-fp16/build.sh"] & stat.S_IXUSR
    assert not [name for name in names if "tflite-int8" in name]
    assert labels == list(example_report().data.classes)


def test_the_manifest_says_what_every_figure_is_and_why_something_is_missing(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        data = archive.read(MANIFEST_NAME)
    manifest = parse_manifest(data)
    assert {row.kind for row in manifest.metrics.predicted} == {"predicted"}
    assert {row.kind for row in manifest.metrics.measurements} == {"measured"}
    assert all(row.n > 0 for row in manifest.metrics.accuracies)
    absent = {row.name: row.reason for row in manifest.artifacts if row.path is None}
    assert absent["tflite-int8"] == "12 dB"
    assert "nncf" in absent["openvino-fp16"]


def test_no_path_of_this_machine_is_in_the_manifest(bundle: Path, run: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        assert str(run).encode() not in b"".join(archive.read(name) for name in archive.namelist())


def test_the_model_card_says_what_never_ran(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        card = archive.read("MODEL_CARD.md").decode()
    limits = card.split("## Limits")[1]
    assert "tensorrt-fp16 never ran" in limits
    assert "Nothing ran on Raspberry Pi 5" in limits


def test_a_hostile_name_is_text_in_the_model_card(run: Path, report: RunReport, tmp_path: Path) -> None:
    hostile = report.model_copy(update={"title": "x](http://a) <script>\n# y | z"})
    path = write_bundle(tmp_path / "b.zip", report=hostile, run=run)
    with zipfile.ZipFile(path) as archive:
        card = archive.read("MODEL_CARD.md").decode()
    assert "<script>" not in card
    assert "\n# y" not in card


def test_an_artifact_changed_after_its_check_is_not_packed(run: Path, report: RunReport, tmp_path: Path) -> None:
    rows = [{**row.model_dump(), "sha256": "0" * 64} for row in report.artifacts]
    changed = report.model_validate({**report.model_dump(), "artifacts": rows})
    with pytest.raises(CheckError, match="was changed after its check; export and check again"):
        write_bundle(tmp_path / "b.zip", report=changed, run=run)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checked_artifact_gives_no_bundle(run: Path, report: RunReport, tmp_path: Path) -> None:
    rows = tuple(row for row in report.artifacts if row.state != "exported-and-checked")
    with pytest.raises(CheckError, match="no artifact passed its check"):
        write_bundle(tmp_path / "b.zip", report=report.model_copy(update={"artifacts": rows}), run=run)


def test_a_link_in_an_artifact_folder_is_not_packed(run: Path, report: RunReport, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "artifacts/onnxruntime-fp32/secret").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="a link cannot be bundled"):
        write_bundle(tmp_path / "b.zip", report=report, run=copy)


def test_missing_parity_vectors_are_named(run: Path, report: RunReport, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "parity/golden-float.npy").unlink()
    with pytest.raises(InputError, match=r"golden-float.npy: no such parity vector"):
        write_bundle(tmp_path / "b.zip", report=report, run=copy)


def test_parity_vectors_hold_the_programs_own_logits(tmp_path: Path) -> None:
    import torch

    from edgekd.quant import export_float, save_program

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, CLASSES)).eval()
    program = save_program(export_float(model, (1, SIDE, SIDE)), tmp_path / "float.pt2")
    images = np.random.default_rng(0).integers(0, 256, size=(4, 1, SIDE, SIDE), dtype=np.uint8)
    write_parity(tmp_path / "parity", images=images, preprocessing=PREPROCESSING, programs={"float": program})
    inputs, golden = (np.load(tmp_path / f"parity/{name}.npy") for name in ("inputs", "golden-float"))
    expected = model(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(golden, expected, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "parity/golden-float.bin").read_bytes() == golden.tobytes()
