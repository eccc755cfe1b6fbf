"""The runtimes' own benchmark tools, each timing one model file on this host in a process of its own.

LiteRT's wheel installs `litert-benchmark` and OpenVINO's `benchmark_app`; ONNX Runtime's wheel has no `perf_test`, so a
loop like that program's stands in for it. Each gives the median of its own times, in ms.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgekd.errors import CheckError, InputError

TIMEOUT_S = 300


class Pace(NamedTuple):
    """How many inferences count, and how many come before them."""

    runs: int
    warm_up: int


@dataclass(frozen=True)
class Peer:
    """median_ms: (model, pace, threads) -> the median as the tool tells it.

    how: the command line of the tool, for the page.
    """

    tool: str
    how: str
    median_ms: Callable[[Path, Pace, int], float]


def peer_of(model: Path) -> Peer:
    """The tool for a file. Raises: InputError: there is none for its kind."""
    found = PEERS.get(model.suffix)
    if found is None:
        fix = f"known: {', '.join(PEERS)}"
        raise InputError("no runtime's own tool times such a file", where=model, fix=fix)
    return found


def _litert_ms(model: Path, pace: Pace, threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [_tool("litert-benchmark"), f"--model={model}", f"--num_runs={pace.runs}"]
        command += [f"--warmup_runs={pace.warm_up}", f"--num_threads={threads}", f"--result_json={result}"]
        _output(command, threads)
        return float(json.loads(result.read_text(encoding="utf-8"))["latency"]["median_ms"])


def _openvino_ms(model: Path, pace: Pace, threads: int) -> float:
    # Without the precision it would run float models in bf16 where the CPU has it; edgekd asks for f32 too.
    settings = {"CPU": {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}}
    command = [_tool("benchmark_app"), "-m", str(model), "-d", "CPU", "-hint", "latency", "-api", "sync"]
    with tempfile.TemporaryDirectory() as folder:  # it takes no -nthreads beside -hint
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(settings), encoding="utf-8")
        return median_of(_output([*command, "-niter", str(pace.runs), "-load_config", str(config)], threads))


def median_of(text: str) -> float:
    """The median, in ms, that benchmark_app printed. Raises: CheckError: it printed none.

    >>> median_of("[ INFO ]    Median:        812.50 us")
    0.8125
    """
    found = re.search(r"Median:\s+([\d.]+) (ms|us)", text)
    if found is None:
        raise CheckError(f"printed no median, but ended with: {' '.join(text.split())[-200:]}", where="benchmark_app")
    return float(found[1]) / (1 if found[2] == "ms" else 1000)


def _onnxruntime_ms(model: Path, pace: Pace, threads: int) -> float:
    command = [sys.executable, "-P", "-c", _PERF_TEST, str(model), str(pace.warm_up), str(pace.runs), str(threads)]
    return float(_output(command, threads).splitlines()[-1])


# As onnxruntime_perf_test does: one session, a value made once, Run in a loop. Free of edgekd.
_PERF_TEST = """
import statistics, sys, time
import numpy as np
import onnxruntime as ort
model, warm_up, runs, threads = sys.argv[1], *map(int, sys.argv[2:])
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
node = session.get_inputs()[0]
shape = [size if isinstance(size, int) else 1 for size in node.shape]
kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16}.get(node.type)
rng = np.random.default_rng(0)
image = rng.standard_normal(shape).astype(kind) if kind else rng.integers(0, 127, shape).astype(node.type[7:-1])
bound, times = session.io_binding(), []
bound.bind_ortvalue_input(node.name, ort.OrtValue.ortvalue_from_numpy(image))
for output in session.get_outputs():
    bound.bind_output(output.name)
for _ in range(warm_up + runs):
    start = time.perf_counter_ns()
    session.run_with_iobinding(bound)
    times.append(time.perf_counter_ns() - start)
print(statistics.median(times[warm_up:]) / 1e6)
"""

PEERS: dict[str, Peer] = {
    ".tflite": Peer("litert-benchmark", "litert-benchmark --num_runs --warmup_runs --num_threads", _litert_ms),
    ".xml": Peer(
        "benchmark_app", "benchmark_app -d CPU -hint latency -api sync -niter -load_config (threads, f32)", _openvino_ms
    ),
    ".onnx": Peer(
        "perf_test loop",
        "one session, input and output bound once, Run in a loop, as onnxruntime_perf_test",
        _onnxruntime_ms,
    ),
}


def _tool(name: str) -> str:
    """Beside this Python, or on the path. Raises: InputError: it is not installed."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise InputError(f"no {name} on this host", fix="install its runtime: pip install 'edgekd[all]'")
    return found


def _output(command: list[str], threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment)
    except subprocess.TimeoutExpired as error:
        raise CheckError(f"gave no result within {TIMEOUT_S} s", where=name) from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise CheckError(f"failed: {said}", where=name)
    return done.stdout
