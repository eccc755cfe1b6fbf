"""The script that goes to the device."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bundles import npy, rewritten

from edgekd.bundle import device_run


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
