"""Memory of a process that runs a network: the constants are those of the measurements that ship beside the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from edgekd.latency.footprint import BYTES_PER_ELEMENT, MEASURED, footprint_mib

ROOT = Path(__file__).resolve().parents[2]
ROWS: list[dict[str, Any]] = json.loads((ROOT / "docs" / "benchmarks" / "memory.json").read_text("utf-8"))["rows"]
PAIRS = sorted(MEASURED)


def grown(row: dict[str, Any]) -> float:
    return float(np.median(row["grown_mib"]))


def predicted(row: dict[str, Any]) -> float:
    return footprint_mib(row["weight_elements"], row["peak_activation_elements"], row["precision"], row["runtime"])


def test_every_runtime_of_a_host_was_measured_at_float_and_int8_on_a_dozen_networks() -> None:
    assert [(runtime, precision) for runtime, precision in PAIRS] == [
        (runtime, precision) for runtime in ("onnxruntime", "openvino", "tflite") for precision in ("fp32", "int8")
    ]
    for pair in PAIRS:
        assert len({row["net"] for row in ROWS if (row["runtime"], row["precision"]) == pair}) >= 12


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_constants_are_the_least_relative_error_fit_of_the_measured_growths(pair: tuple[str, Any]) -> None:
    rows = [row for row in ROWS if (row["runtime"], row["precision"]) == pair]
    mib = BYTES_PER_ELEMENT[pair[1]] / 2**20
    work = np.array([[1, r["weight_elements"] * mib, r["peak_activation_elements"] * mib] for r in rows])
    shares, n = work / np.array([[grown(row)] for row in rows]), len(rows)
    each = np.eye(n)  # of a row's error, which is above what it is and above its opposite
    found = linprog(
        [0, 0, 0] + [1] * n,
        A_ub=np.vstack([np.hstack([shares, -each]), np.hstack([-shares, -each])]),
        b_ub=[1] * n + [-1] * n,
    ).x[:3]
    assert MEASURED[pair] == pytest.approx(found, abs=0.006)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_prediction_is_within_a_quarter_of_most_measurements(pair: tuple[str, Any]) -> None:
    ratios = [grown(row) / predicted(row) for row in ROWS if (row["runtime"], row["precision"]) == pair]
    assert 0.9 < float(np.median(ratios)) < 1.1
    assert np.mean([0.8 <= ratio <= 1.25 for ratio in ratios]) >= 0.75


def test_processes_of_one_file_agree_within_a_few_percent() -> None:
    assert max(np.ptp(row["grown_mib"]) / grown(row) for row in ROWS) < 0.1


def test_fp16_files_on_a_measured_runtime_are_unpacked_and_int8_files_are_smaller() -> None:
    for runtime in ("tflite", "onnxruntime", "openvino"):
        fp32, fp16, int8 = (footprint_mib(10**7, 10**6, p, runtime) for p in ("fp32", "fp16", "int8"))
        assert fp16 == fp32 > int8


def test_runtimes_that_nobody_measured_are_taken_as_onnx_runtime_at_their_own_bytes() -> None:
    assert footprint_mib(10**6, 10**6, "fp32", "tensorrt") == footprint_mib(10**6, 10**6, "fp32", "onnxruntime")
    found = [footprint_mib(10**6, 10**6, precision, "coreml") for precision in ("fp32", "fp16", "int8")]
    assert found == sorted(found, reverse=True)
