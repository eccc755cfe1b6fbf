"""A whole RunReport with plausible figures (invented, not measured), for the tests of gates, bundle and report."""

from __future__ import annotations

import math
import random
from typing import Any

from edgekd.artifact import TensorSpec
from edgekd.report.document import RunReport

N_TEST = 10_000


def example_report(**changes: Any) -> RunReport:
    """An int8-capable run (Raspberry Pi 5) that went well on the host; `changes` replace top-level fields."""
    document: dict[str, Any] = {
        "title": "fashion-mnist student for Raspberry Pi 5",
        "created": "2026-11-21T20:15:00Z",
        "command": "edgekd distill --profile raspberry-pi-5 --baseline --seed 0",
        "profile": _profile(),
        "teacher": {
            "name": "fashion-mnist-wrn16-2",
            "fingerprint": "9f" * 32,
            "parameters": 691_674,
            "macs": 77_400_000,
        },
        "data": {
            "name": "fashion-mnist",
            "classes": _CLASSES,
            "n_train": 54_000,
            "n_val": 6_000,
            "n_test": N_TEST,
            "fingerprint": "3c" * 32,
        },
        "student": {
            "space": "inverted-residual",
            "summary": "28 px, 3 stages, widths 16-24-40, 61 k parameters",
            "spec": {"space": "inverted-residual", "stem_channels": 16, "stages": [{"channels": 24, "depth": 2}]},
            "macs": 2_480_000,
            "parameters": 61_354,
            "weights_sha256": "ab" * 32,
        },
        "preprocessing": {"image_size": 28, "channels": 1, "mean": [0.2860], "std": [0.3530]},
        "plan": _PLAN,
        "recipe": {"temperature": 4.0, "weights": {"cross_entropy": 0.3, "soft_target": 0.7, "feature": 1.0}},
        "candidates": _candidates(),
        "trainings": [
            _training("distil", 12, 0.932),
            _training("baseline", 12, 0.918),
            _training("quantise", 3, 0.931),
        ],
        "accuracies": _accuracies(),
        "artifacts": _artifacts(),
        "measurements": _measurements(),
        "ratios": _ratios(),
        "predicted": _predicted(),
        "stages": [{"name": n, "state": "done", "seconds": s} for n, s in _SECONDS.items()],
        "host": {
            "cpu": "Intel(R) Xeon(R) Processor @ 2.10GHz",
            "cores": "2",
            "governor": "not readable (virtual machine)",
            "load before / after": "0.31 / 1.02",
            "os": "Linux 6.1, glibc 2.36",
        },
        "versions": {"edgekd": "0.1.0", "python": "3.11.2", "torch": "2.14.0", "onnxruntime": "1.24.1"},
        "warnings": ["no device was attached: every figure for Raspberry Pi 5 is a prediction"],
    }
    return RunReport.model_validate({**document, **changes})


_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_SECONDS = {
    "plan": 21.4,
    "select": 6.2,
    "distil": 231.0,
    "quantise": 84.5,
    "export": 96.0,
    "check": 41.2,
    "measure": 74.9,
}
_PLAN = (
    "precision int8: Cortex-A76 has dot-product instructions; affine activations, per-channel weights",
    "capacity ratio 11x by parameters: direct distillation, because an assistant costs 2 trainings on this budget",
    "student from the inverted-residual space: every op is fused by LiteRT, ONNX Runtime and OpenVINO",
    "tflite, onnxruntime and openvino are executed here; coreml is interpreted; tensorrt builds on the device",
)


def _profile() -> dict[str, Any]:
    return {
        "name": "raspberry-pi-5",
        "title": "Raspberry Pi 5 (8 GB)",
        "unit": "cpu",
        "runtime": "tflite",
        "runtime_version": "2.1",
        "precision": "int8",
        "precision_why": "int8 dot product at 4x the fp32 rate",
        "ram_mib": 8192,
        "budgets": {
            "latency_p90_ms": 4.0,
            "peak_memory_mib": 64.0,
            "artifact_size_mib": 4.0,
            "why": "30 frames per second with four models per frame",
        },
    }


def _candidates() -> list[dict[str, Any]]:
    rng, rows = random.Random(1), []
    for index in range(48):
        macs = int(10 ** rng.uniform(5.7, 7.6))
        p50_ms = 0.06 + macs / 1.9e9 * 1e3 * rng.uniform(0.8, 1.3)
        row = {"macs": macs, "parameters": int(macs / rng.uniform(20, 60)), "latency_p50_ms": p50_ms}
        row.update(
            latency_lo_ms=p50_ms * 0.6, latency_hi_ms=p50_ms * 1.6, fits=p50_ms * 1.2 < 4.0, name=f"c{index:02d}"
        )
        rows.append(row)
    chosen = min((row for row in rows if row["fits"]), key=lambda row: abs(row["macs"] - 2_480_000))
    chosen["chosen"] = True
    return rows


def _training(name: str, epochs: int, final_top1: float) -> dict[str, Any]:
    rng, rows = random.Random(name), []
    for epoch in range(epochs):
        rest = math.exp(-epoch / 3)
        losses = {"cross_entropy": 0.22 + 0.6 * rest, "total": 0.22 + 0.6 * rest}
        if name != "baseline":
            losses.update(soft_target=0.31 + 2.1 * rest, feature=0.11 + 0.3 * rest, total=0.4 + 1.9 * rest)
        top1 = final_top1 - 0.08 * rest + rng.uniform(-0.002, 0.002)
        rows.append({"epoch": epoch, "losses": losses, "val_top1": top1, "images_per_s": rng.uniform(2900, 3100)})
    return {"name": name, "epochs": rows, "seconds": 19.0 * epochs, "steps": 422 * epochs}


def _accuracy(name: str, role: str, top1: float, **more: Any) -> dict[str, Any]:
    half = 1.96 * math.sqrt(top1 * (1 - top1) / N_TEST)
    row = {"name": name, "role": role, "top1": top1, "lo": top1 - half, "hi": top1 + half, "n": N_TEST}
    return {**row, "runtime": "pytorch", **more}


def _accuracies() -> list[dict[str, Any]]:
    return [
        _accuracy("teacher", "teacher", 0.9412),
        _accuracy("student", "student", 0.9318),
        _accuracy("student without teacher", "baseline", 0.9174),
        _accuracy("student int8 (QAT)", "quantised", 0.9309, precision="int8"),
        _accuracy("student int8", "artifact", 0.9307, precision="int8", runtime="tflite", artifact="tflite-int8"),
        _accuracy("student int8", "artifact", 0.9309, precision="int8", runtime="openvino", artifact="openvino-int8"),
        _accuracy("student fp32", "artifact", 0.9318, runtime="onnxruntime", artifact="onnxruntime-fp32"),
    ]


def _artifact(
    target: str, precision: str, *, suffix: str, size: int, snr_db: float | None, **more: Any
) -> dict[str, Any]:
    name = f"{target}-{precision}"
    executed = bool(more.pop("executed", True))
    check = {
        "n_images": 256,
        "snr_db": snr_db,
        "max_abs_error": None if snr_db is None else 0.031,
        "agreement": None if snr_db is None else 1.0,
        "top1": None if snr_db is None else 0.9307,
        "compute_ops": 23 if precision == "int8" else None,
        "int8_ops": more.pop("int8_ops", 23 if precision == "int8" else None),
        "executed": executed,
        "executed_in": more.pop("executed_in", target if executed else ""),
        "min_snr_db": 30.0,
        "min_agreement": 0.99,
    }
    row = {
        "target": target,
        "precision": precision,
        "state": "exported-and-checked",
        "path": f"artifacts/{name}/model{suffix}",
        "size_bytes": size,
        "sha256": "de" * 32,
        "inputs": [TensorSpec(name="image", shape=(1, 1, 28, 28), dtype="float32", layout="NCHW").model_dump()],
        "outputs": [TensorSpec(name="logits", shape=(1, 10), dtype="float32", layout="NC").model_dump()],
        "check": check,
    }
    return {**row, **more}


def _artifacts() -> list[dict[str, Any]]:
    return [
        _artifact("tflite", "int8", suffix=".tflite", size=98_304, snr_db=38.2, primary=True),
        _artifact("openvino", "int8", suffix=".xml", size=164_002, snr_db=37.4),
        _artifact("onnxruntime", "fp32", suffix=".onnx", size=260_112, snr_db=118.9),
        _artifact(
            "coreml",
            "fp16",
            suffix=".mlpackage",
            size=141_120,
            snr_db=61.0,
            executed=False,
            executed_in="MIL interpreter",
        ),
        _artifact(
            "tensorrt", "fp16", suffix="", size=262_144, snr_db=None, executed=False, path="artifacts/tensorrt-fp16"
        ),
        {
            "target": "openvino",
            "precision": "fp16",
            "state": "not-exported",
            "reason": "target 'openvino' needs nncf (not installed): pip install 'edgekd[openvino]'",
        },
    ]


def _samples(p50_ms: float, *, seed: int, n: int = 240) -> list[float]:
    rng = random.Random(seed)
    return [
        round(p50_ms * (1 + abs(rng.gauss(0, 0.02)) + (0.25 * rng.random() if rng.random() < 0.05 else 0)), 5)
        for _ in range(n)
    ]


def _measured(name: str, role: str, p50_ms: float, *, seed: int, **more: Any) -> dict[str, Any]:
    samples = sorted(_samples(p50_ms, seed=seed))
    row: dict[str, Any] = {
        "name": name,
        "role": role,
        "device": "this host",
        "threads": 1,
        "p50_ms": samples[len(samples) // 2],
        "p90_ms": samples[int(0.9 * len(samples))],
        "p50_lo_ms": samples[105],
        "p50_hi_ms": samples[135],
        "n": 1520,
        "processes": 5,
        "cv": 0.031,
        "cpu_p50_ms": p50_ms * 0.99,
        "peak_memory_mib": 61.2,
        "load_ms": 14.0,
        "samples_ms": _samples(p50_ms, seed=seed),
    }
    return {**row, **more}


def _measurements() -> list[dict[str, Any]]:
    return [
        _measured("teacher, fp32 eager", "teacher", 8.42, seed=1, runtime="pytorch", peak_memory_mib=244.0),
        _measured("teacher, best export", "teacher", 3.11, seed=2, runtime="openvino", artifact=""),
        _measured("student, fp32", "student", 0.412, seed=3, runtime="onnxruntime", artifact="onnxruntime-fp32"),
        _measured(
            "student, int8", "student", 0.193, seed=4, runtime="tflite", precision="int8", artifact="tflite-int8"
        ),
        _measured(
            "student, int8", "student", 0.171, seed=5, runtime="openvino", precision="int8", artifact="openvino-int8"
        ),
    ]


def _ratios() -> list[dict[str, Any]]:
    def row(key: str, ratio: float) -> dict[str, Any]:
        span = {"ratio": ratio, "lo": ratio * 0.97, "hi": ratio * 1.03, "n_blocks": 24, "significant": True}
        return {"key": key, **span, "runtime": "tflite", "artifact": "tflite-int8", "device": "this host"}

    return [
        row("teacher-today-to-student", 43.6),
        row("teacher-best-to-student", 16.1),
        {**row("student-float-to-int8", 1.01), "lo": 0.98, "hi": 1.04, "significant": False},
    ]


def _predicted() -> list[dict[str, Any]]:
    def row(quantity: str, value: float, lo: float, hi: float) -> dict[str, Any]:
        provenance = "roofline of the profile, interval from its confidence"
        return {"what": "student", "quantity": quantity, "value": value, "lo": lo, "hi": hi, "provenance": provenance}

    return [
        row("latency_p50_ms", 0.61, 0.32, 1.15),
        row("latency_p90_ms", 0.73, 0.38, 1.38),
        row("peak_memory_mib", 9.8, 6.1, 16.0),
    ]
