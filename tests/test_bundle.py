"""The bundle: what is packed comes back whole, and whatever is wrong with it is named."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from example_report import example_report
from onnx import TensorProto, helper, numpy_helper

from edgekd.bundle import VerifyReport, device_run, verify, write_bundle, write_parity
from edgekd.bundle.manifest import MANIFEST_NAME, parse_manifest
from edgekd.errors import CheckError, InputError
from edgekd.export.describe import content_sha256
from edgekd.report.document import RunReport

CLASSES, SIDE, N = 10, 28, 12
PREPROCESSING = {"image_size": SIDE, "channels": 1, "mean": [0.286], "std": [0.353]}


def linear_onnx(path: Path, weights: np.ndarray) -> None:
    """A real model small enough to read: logits = flatten(image) @ weights."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    graph = helper.make_graph(nodes, "linear", [image], [logits], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one artifact that ONNX Runtime executes, its parity vectors, and a folder of Jetson scripts."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(SIDE * SIDE, CLASSES)).astype(np.float32)
    linear_onnx(folder / "artifacts/onnxruntime-fp32/model.onnx", weights)
    kit = folder / "artifacts/tensorrt-fp16"
    kit.mkdir()
    shutil.copy(folder / "artifacts/onnxruntime-fp32/model.onnx", kit / "model.onnx")
    (kit / "build.sh").write_text("#!/bin/sh\ntrtexec --onnx=model.onnx\n")
    images = rng.integers(0, 256, size=(N, 1, SIDE, SIDE), dtype=np.uint8)
    write_parity(folder / "parity", images=images, preprocessing=PREPROCESSING, programs={})
    inputs = np.load(folder / "parity/inputs.npy")
    golden = (inputs.reshape(N, -1) @ weights).astype(np.float32)
    np.save(folder / "parity/golden-float.npy", golden)
    (folder / "parity/golden-float.bin").write_bytes(golden.tobytes())
    return folder


@pytest.fixture(scope="module")
def report(run: Path) -> RunReport:
    """The example report with this run's artifacts: two that ship, one that failed its check, one never exported."""
    by_name = {row.name: row.model_dump() for row in example_report().artifacts}
    onnxruntime, tensorrt = by_name["onnxruntime-fp32"], by_name["tensorrt-fp16"]
    onnxruntime.update(primary=True, sha256=content_sha256(run / "artifacts/onnxruntime-fp32/model.onnx"))
    tensorrt.update(sha256=content_sha256(run / "artifacts/tensorrt-fp16"), path="artifacts/tensorrt-fp16")
    failed = {**by_name["tflite-int8"], "primary": False, "state": "exported-check-failed", "reason": "12 dB"}
    return example_report(
        artifacts=[onnxruntime, tensorrt, failed, by_name["openvino-fp16"]], preprocessing=PREPROCESSING
    )


@pytest.fixture(scope="module")
def bundle(run: Path, report: RunReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "bundle.zip", report=report, run=run)


Edit = Callable[[dict[str, bytes]], None]


def edited(bundle: Path, out: Path, edit: Edit) -> Path:
    """A copy of the bundle after `edit` changed its {name: bytes}."""
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    edit(files)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out


def edited_manifest(bundle: Path, out: Path, **fields: Any) -> Path:
    def edit(files: dict[str, bytes]) -> None:
        files[MANIFEST_NAME] = json.dumps({**json.loads(files[MANIFEST_NAME]), **fields}).encode()

    return edited(bundle, out, edit)


def failures(report: VerifyReport) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks if check.state == "fail"}


def test_a_fresh_bundle_verifies_and_reruns_its_parity_vectors(bundle: Path) -> None:
    found = verify(bundle)
    states = {check.name: check.state for check in found.checks}
    assert found.ok, failures(found)
    assert states["parity: onnxruntime-fp32"] == "pass"
    assert states["parity inputs are normalised images"] == "pass"
    assert "not TensorRT" in str(found) or "stands in" in str(found)


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


# What is wrong with a bundle's content: a failed check that names it.


def test_a_changed_file_is_named(bundle: Path, tmp_path: Path) -> None:
    def edit(files: dict[str, bytes]) -> None:
        weights = bytearray(files["artifacts/onnxruntime-fp32/model.onnx"])
        weights[100] ^= 1
        files["artifacts/onnxruntime-fp32/model.onnx"] = bytes(weights)

    found = verify(edited(bundle, tmp_path / "b.zip", edit))
    assert "'artifacts/onnxruntime-fp32/model.onnx' was changed" in failures(found)["sha256 and size of every file"]
    assert not found.ok


def test_nothing_of_a_changed_bundle_is_executed(bundle: Path, tmp_path: Path) -> None:
    found = verify(edited(bundle, tmp_path / "b.zip", lambda files: files.update({"run.py": b"print(1)"})))
    assert [check.state for check in found.checks if check.name.startswith("parity")] == ["skipped"]


def test_a_missing_file_is_named(bundle: Path, tmp_path: Path) -> None:
    found = verify(edited(bundle, tmp_path / "b.zip", lambda files: files.pop("labels.txt") and None))
    assert failures(found) == {"no file missing": "'labels.txt' is missing"}


def test_an_added_file_is_named(bundle: Path, tmp_path: Path) -> None:
    found = verify(edited(bundle, tmp_path / "b.zip", lambda files: files.update({"extra.sh": b"rm"})))
    assert failures(found) == {"no file added": "'extra.sh' is not in the manifest"}


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/etc/x", "a/../../x", "C:\\x", "a\\b", "./x", "folder/", "a//b", "nul\x01"]
)
def test_a_name_that_leaves_its_folder_is_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    found = verify(edited(bundle, tmp_path / "b.zip", lambda files: files.update({name: b"x"})))
    assert list(failures(found)) == ["safe names"]
    assert not (tmp_path.parent / "outside.txt").exists()


def test_a_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(bundle, tmp_path / "b.zip"))
    entry = zipfile.ZipInfo("link")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    assert failures(verify(path)) == {"safe names": "'link': a link or a special file"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["labels.txt", "LABELS.TXT"])
def test_two_entries_for_one_file_are_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(bundle, tmp_path / "b.zip"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "other")
    assert "appears twice" in failures(verify(path))["safe names"]


def test_a_zip_bomb_is_refused_before_it_is_inflated(bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(bundle, tmp_path / "b.zip"))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.bin", bytes(40 * 2**20))
    assert "'zeros.bin' inflates" in failures(verify(path))["bounded size"]


def test_a_damaged_entry_is_named(bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    with zipfile.ZipFile(bundle) as archive:
        entry = archive.getinfo("parity/images.bin")
    start = entry.header_offset + 30 + len(entry.filename)
    data[start + 50 : start + 60] = bytes(10)
    path = tmp_path / "b.zip"
    path.write_bytes(bytes(data))
    assert "'parity/images.bin' is damaged" in failures(verify(path))["sha256 and size of every file"]


def test_an_unknown_schema_version_is_said(bundle: Path, tmp_path: Path) -> None:
    found = verify(edited_manifest(bundle, tmp_path / "b.zip", schema_version=2))
    assert failures(found) == {"manifest": "manifest.json: schema version 2 is not known; this edgekd reads version 1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "format"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 99999, "not valid JSON"),
    ],
)
def test_a_manifest_that_is_no_manifest_is_said(text: bytes, said: str, bundle: Path, tmp_path: Path) -> None:
    found = verify(edited(bundle, tmp_path / "b.zip", lambda files: files.update({MANIFEST_NAME: text})))
    assert said in failures(found)["manifest"]


def test_a_wrong_field_of_the_manifest_is_named(bundle: Path, tmp_path: Path) -> None:
    found = verify(edited_manifest(bundle, tmp_path / "b.zip", seed="x"))
    assert "'seed'" in failures(found)["manifest"]


def rewritten(bundle: Path, out: Path, name: str, data: bytes) -> Path:
    """A bundle whose file was changed and whose manifest was made to agree: only the content check can notice."""
    import hashlib

    def edit(files: dict[str, bytes]) -> None:
        files[name] = data
        manifest = json.loads(files[MANIFEST_NAME])
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        files[MANIFEST_NAME] = json.dumps(manifest).encode()

    return edited(bundle, out, edit)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


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


# Writing refuses what must not ship.


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


# The script that goes to the device.


def test_the_device_script_is_python_3_6_and_imports_only_numpy_and_the_runtimes() -> None:
    tree = ast.parse(Path(device_run.__file__).read_text(encoding="utf-8"), feature_version=(3, 6))
    imported = {
        (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    runtimes = {"ai_edge_litert", "tflite_runtime", "onnxruntime", "openvino", "PIL"}
    assert imported - set(sys.stdlib_module_names) == {"numpy"} | runtimes


def run_on_device(bundle: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(folder / "run.py"), *arguments]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=120, check=False)


def test_the_device_script_checks_parity_and_times(bundle: Path, tmp_path: Path) -> None:
    done = run_on_device(bundle, tmp_path, "--seconds", "0.1", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["artifacts"]
    assert rows["onnxruntime-fp32"]["holds"] is True
    assert rows["onnxruntime-fp32"]["latency"]["n"] >= 64
    assert "README" in rows["tensorrt-fp16"]["error"]


def test_the_device_script_exits_1_when_parity_fails(run: Path, bundle: Path, tmp_path: Path) -> None:
    wrong = npy(-np.load(run / "parity/golden-float.npy"))
    path = rewritten(bundle, tmp_path / "b.zip", "parity/golden-float.npy", wrong)
    done = run_on_device(path, tmp_path / "device", "onnxruntime-fp32", "--seconds", "0")
    assert done.returncode == 1
    assert "parity FAILS" in done.stdout


def test_the_device_script_names_an_unknown_artifact(bundle: Path, tmp_path: Path) -> None:
    done = run_on_device(bundle, tmp_path, "tflite-fp32")
    assert done.returncode == 2
    assert "no artifact 'tflite-fp32'; this bundle has: onnxruntime-fp32, tensorrt-fp16" in done.stderr


@pytest.mark.parametrize("code", [("NHWC", "int8"), ("NCHW", "uint8")])
def test_the_device_script_feeds_integer_inputs_like_the_runtimes_do(code: tuple[str, str]) -> None:
    from edgekd.artifact import TensorSpec
    from edgekd.runtimes.session import arranged

    layout, dtype = code
    image = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    shape = (1, 4, 5, 3) if layout == "NHWC" else (1, 3, 4, 5)
    grid = {"dtype": dtype, "scale": 0.03, "zero_point": 7}
    spec = TensorSpec.model_validate({"name": "image", "shape": shape, "layout": layout, **grid})
    assert np.array_equal(device_run.prepared(image, layout, grid), arranged(image, spec, Path("x")))


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


# The command.


def test_edgekd_verify_exits_0_and_1_and_prints_json(bundle: Path, tmp_path: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from edgekd.commands.verify import verify as command

    app = typer.Typer()
    app.command()(command)
    good = CliRunner().invoke(app, [str(bundle), "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)["ok"] is True
    broken = edited(bundle, tmp_path / "b.zip", lambda files: files.update({"extra.sh": b"rm"}))
    bad = CliRunner().invoke(app, [str(broken)])
    assert bad.exit_code == 1
    assert "'extra.sh' is not in the manifest" in bad.stdout
