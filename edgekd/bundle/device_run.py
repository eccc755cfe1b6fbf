#!/usr/bin/env python3
"""Run the artifacts of this bundle where you are: check the parity vectors, then time one inference.

    python3 run.py                          every artifact whose runtime is installed
    python3 run.py tflite-int8 --threads 4  one of them
    python3 run.py tflite-int8 --image photo.png    classify an image (needs Pillow)

Needs numpy and the artifact's own runtime, nothing else; works with Python 3.6 (JetPack 4). Exit: 0 parity holds,
1 it does not, 2 nothing could run. This file is copied into bundles as `run.py`, so it imports nothing of edgekd.
"""
# ruff: noqa: UP006, UP035, UP045

import argparse
import json
import math
import os
import platform
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

ROOT = os.path.dirname(os.path.abspath(__file__))
WARM_UP_S, WARM_UP_RUNS = 1.0, 10
P90_SAMPLES_MIN = 64
RUNTIMES = {
    "tflite": "LiteRT: pip install ai-edge-litert (or tflite-runtime)",
    "onnxruntime": "ONNX Runtime: pip install onnxruntime",
    "openvino": "OpenVINO: pip install openvino",
}
Invoke = Callable[[Any], Any]
Opened = Tuple[Invoke, Dict[str, Any], Dict[str, Any]]


class NotHere(Exception):
    """The artifact's runtime is not on this machine."""


def load_json(name: str) -> Any:
    with open(os.path.join(ROOT, name), encoding="utf-8") as stream:
        return json.load(stream)


def opened(artifact: Dict[str, Any], threads: int) -> Opened:
    """A function from a prepared input to the raw output, and the input's and output's dtype, scale and zero point."""
    path = os.path.join(ROOT, *artifact["path"].split("/"))
    openers = {"tflite": open_tflite, "onnxruntime": open_onnx, "openvino": open_openvino}
    if artifact["target"] not in openers:
        raise NotHere("runs through its own tools; see README.md")
    try:
        return openers[artifact["target"]](path, artifact, threads)
    except ImportError as error:
        raise NotHere(f"not installed ({error}); {RUNTIMES[artifact['target']]}") from error


def open_tflite(path: str, artifact: Dict[str, Any], threads: int) -> Opened:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter  # type: ignore
    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    entry, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def invoke(fed: Any) -> Any:
        interpreter.set_tensor(entry["index"], fed)
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])

    return invoke, _grid(entry), _grid(result)


def _grid(details: Dict[str, Any]) -> Dict[str, Any]:
    scale, zero_point = details["quantization"]
    integer = np.dtype(details["dtype"]).kind in "iu" and bool(scale)
    return {"dtype": np.dtype(details["dtype"]).name, "scale": scale if integer else None, "zero_point": zero_point}


def open_onnx(path: str, artifact: Dict[str, Any], threads: int) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return (lambda fed: session.run(None, {name: fed})[0]), artifact["inputs"][0], artifact["outputs"][0]


def open_openvino(path: str, artifact: Dict[str, Any], threads: int) -> Opened:
    import openvino

    # Without the last hint a float model runs in bf16 where the CPU has it, and parity is lost.
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    request, port = compiled.create_infer_request(), compiled.outputs[0]
    return (lambda fed: request.infer([fed])[port]), artifact["inputs"][0], artifact["outputs"][0]


def prepared(image: Any, layout: str, grid: Dict[str, Any]) -> Any:
    """Normalised float32 [1, C, H, W] -> the artifact's layout, dtype and integer grid."""
    ordered = image.transpose(0, 2, 3, 1) if layout == "NHWC" else image
    dtype = np.dtype(grid["dtype"])
    if dtype.kind in "iu" and grid.get("scale"):
        limits = np.iinfo(dtype)
        ordered = np.round(ordered / np.float32(grid["scale"])) + (grid.get("zero_point") or 0)
        ordered = np.clip(ordered, limits.min, limits.max)
    return np.ascontiguousarray(ordered.astype(dtype))


def real(raw: Any, grid: Dict[str, Any]) -> Any:
    """Raw output -> float32 logits [1, classes]."""
    values = np.asarray(raw).astype(np.float32)
    if np.dtype(grid["dtype"]).kind in "iu" and grid.get("scale"):
        values = (values - np.float32(grid.get("zero_point") or 0)) * np.float32(grid["scale"])
    return values.reshape(1, -1)


def parity(artifact: Dict[str, Any], run_one: Callable[[Any], Any]) -> Dict[str, Any]:
    """Compare with the golden logits on every shipped image."""
    inputs = np.load(os.path.join(ROOT, "parity", "inputs.npy"), allow_pickle=False)
    golden = np.load(os.path.join(ROOT, *artifact["golden"].split("/")), allow_pickle=False).astype(np.float64)
    got = np.concatenate([run_one(inputs[i : i + 1]) for i in range(len(inputs))]).astype(np.float64)
    noise, signal = float(((golden - got) ** 2).sum()), float((golden**2).sum())
    snr_db = min(200.0, 10 * math.log10(signal / noise)) if signal and noise else (0.0 if noise else 200.0)
    differ = int((golden.argmax(axis=1) != got.argmax(axis=1)).sum())
    allowed = math.ceil(round((1 - artifact["min_agreement"]) * len(inputs), 9))
    holds = bool(np.isfinite(got).all()) and snr_db >= artifact["min_snr_db"] and differ <= allowed
    return {"holds": holds, "snr_db": snr_db, "differ": differ, "n_images": len(inputs)}


def timed(invoke: Invoke, fed: Any, seconds: float) -> Dict[str, Any]:
    """Warm up, then time single inferences for `seconds` (at least 64); no sample is dropped."""
    started, runs = time.perf_counter(), 0
    while runs < WARM_UP_RUNS or time.perf_counter() - started < WARM_UP_S:
        invoke(fed)
        runs += 1
    samples: List[float] = []
    started = time.perf_counter()
    while len(samples) < P90_SAMPLES_MIN or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        invoke(fed)
        samples.append(1000 * (time.perf_counter() - before))
    samples.sort()
    n = len(samples)
    return {"kind": "measured", "n": n, "p50_ms": samples[n // 2], "p90_ms": samples[math.ceil(0.9 * n) - 1]}


def image_input(path: str, preprocessing: Dict[str, Any]) -> Any:
    """A picture file -> normalised float32 [1, C, H, W], as `preprocessing.json` says."""
    from PIL import Image

    side = preprocessing["image_size"]
    picture = Image.open(path).convert("L" if preprocessing["channels"] == 1 else "RGB").resize((side, side))
    pixels = np.asarray(picture, dtype=np.float32).reshape(side, side, -1).transpose(2, 0, 1)[None]
    mean, std = (np.array(preprocessing[key], dtype=np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    return (pixels / 255 - mean) / std


def run_artifact(artifact: Dict[str, Any], options: argparse.Namespace) -> Dict[str, Any]:
    invoke, grid_in, grid_out = opened(artifact, options.threads)
    layout = artifact["inputs"][0]["layout"]

    def run_one(image: Any) -> Any:
        return real(invoke(prepared(image, layout, grid_in)), grid_out)

    if options.image:
        with open(os.path.join(ROOT, "labels.txt"), encoding="utf-8") as stream:
            labels = stream.read().splitlines()
        logits = run_one(image_input(options.image, load_json("preprocessing.json")))[0]
        best = int(logits.argmax())
        odds = float(1 / np.exp(logits.astype(np.float64) - logits[best]).sum())
        return {"holds": True, "label": labels[best], "probability": odds}
    row = parity(artifact, run_one)
    if options.seconds > 0:
        first = np.load(os.path.join(ROOT, "parity", "inputs.npy"), allow_pickle=False)[:1]
        row["latency"] = timed(invoke, prepared(first, layout, grid_in), options.seconds)
    return row


def line(row: Dict[str, Any]) -> str:
    if "error" in row:
        return f"skipped: {row['error']}"
    if "label" in row:
        return f"{row['label']} ({row['probability']:.1%})"
    verdict = "holds" if row["holds"] else "FAILS"
    text = f"parity {verdict}: {row['snr_db']:.1f} dB, {row['differ']} of {row['n_images']} images differ"
    if "latency" in row:
        latency = row["latency"]
        text += f"; p50 {latency['p50_ms']:.3f} ms, p90 {latency['p90_ms']:.3f} ms, n = {latency['n']}"
    return text


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", nargs="*", help="TARGET-PRECISION; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to time; 0 checks parity only")
    parser.add_argument("--image", help="classify this picture instead")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    known = {row["name"]: row for row in load_json("manifest.json")["artifacts"] if row["path"]}
    wrong = [name for name in options.artifact if name not in known]
    if wrong:
        sys.stderr.write(f"error: no artifact '{wrong[0]}'; this bundle has: {', '.join(sorted(known))}\n")
        return 2
    rows: Dict[str, Any] = {}
    for name in options.artifact or sorted(known):
        try:
            rows[name] = run_artifact(known[name], options)
        except NotHere as error:
            rows[name] = {"error": str(error)}
        if not options.json:
            sys.stdout.write(f"{name:20s} {line(rows[name])}\n")
            sys.stdout.flush()
    if options.json:
        host = {"machine": platform.machine(), "system": platform.platform(), "python": platform.python_version()}
        sys.stdout.write(json.dumps({"schema_version": 1, "host": host, "artifacts": rows}, indent=1) + "\n")
    ran = [row for row in rows.values() if "error" not in row]
    return 2 if not ran else 0 if all(row["holds"] for row in ran) else 1


if __name__ == "__main__":
    sys.exit(main())
