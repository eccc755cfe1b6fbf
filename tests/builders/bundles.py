"""A small run that a bundle is packed from, and copies of that bundle with something changed."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from example_report import example_report
from onnx import TensorProto, helper, numpy_helper

from edgekd.bundle import VerifyReport, write_parity
from edgekd.bundle.manifest import MANIFEST_NAME
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


def write_run(folder: Path) -> Path:
    """A run folder with one artifact that ONNX Runtime executes, its parity vectors, and a folder of Jetson scripts."""
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


def report_of(run: Path) -> RunReport:
    """The example report with this run's artifacts: two that ship, one that failed its check, one never exported."""
    by_name = {row.name: row.model_dump() for row in example_report().artifacts}
    onnxruntime, tensorrt = by_name["onnxruntime-fp32"], by_name["tensorrt-fp16"]
    onnxruntime.update(primary=True, sha256=content_sha256(run / "artifacts/onnxruntime-fp32/model.onnx"))
    tensorrt.update(sha256=content_sha256(run / "artifacts/tensorrt-fp16"), path="artifacts/tensorrt-fp16")
    failed = {**by_name["tflite-int8"], "primary": False, "state": "exported-check-failed", "reason": "12 dB"}
    return example_report(
        artifacts=[onnxruntime, tensorrt, failed, by_name["openvino-fp16"]], preprocessing=PREPROCESSING
    )


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


def rewritten(bundle: Path, out: Path, name: str, data: bytes) -> Path:
    """A bundle whose file was changed and whose manifest was made to agree: only the content check can notice."""

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
