"""Is `edgekd profile` to be believed? Against the vendors' tools, against itself, and again and again.

Run: python scripts/bench_timing.py peers model.tflite model.xml model.onnx --rounds 10
     python scripts/bench_timing.py repeat TEACHER STUDENT --times 10
     python scripts/bench_timing.py aa MODEL --times 100

peers   the p50 of `edgekd profile` over that of the runtime's own tool on the same file and threads, the two in turn in
        random ABBA order: litert-benchmark, OpenVINO's benchmark_app; for ONNX Runtime a loop like its perf_test's.
repeat  the speed ratio of a pair, measured again and again, beside that of plain sequential medians in the same time.
aa      a model against itself: how often a difference is found. With --against, how often one is found there.
Wants an idle machine. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from edgekd.device_benchmarks import Contender, MeasurementSet, measure_all
from edgekd.device_benchmarks.resolve import contenders_of
from edgekd.device_benchmarks.schedule import MODES, Schedule
from edgekd.device_benchmarks.statistics import paired_ratio


def main() -> int:
    """One of the three questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    peers = commands.add_parser("peers")
    peers.add_argument("models", nargs="+")
    peers.add_argument("--rounds", type=int, default=10)
    peers.add_argument("--runs", type=int, default=200, help="inferences of each visit to the vendor's tool")
    repeat = commands.add_parser("repeat")
    repeat.add_argument("teacher")
    repeat.add_argument("student")
    same = commands.add_parser("aa")
    same.add_argument("model")
    same.add_argument("--against")
    for command in (repeat, same):
        command.add_argument("--times", type=int, default=10)
    for command in (peers, repeat, same):
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--brief", action="store_true", help="tiny settings: proves that this script works")
    loop = commands.add_parser("ort-loop")
    loop.add_argument("model")
    loop.add_argument("runs", type=int)
    loop.add_argument("threads", type=int)
    arguments = parser.parse_args()
    return _COMMANDS[arguments.command](arguments)


def _schedule(brief: bool) -> Schedule:
    short = {"processes": 1, "rounds": 2, "block_s": 0.005, "warm_up_s": 0.05, "warm_up_cap_s": 0.2}
    return MODES["quick"].model_copy(update=short) if brief else MODES["quick"]


def compare_with_peers(arguments: argparse.Namespace) -> int:
    """A line a file, then JSON."""
    rng, rows = random.Random(arguments.seed), []
    for model in arguments.models:
        visits: dict[str, Callable[[], float]] = {
            "edgekd": partial(_own_p50_ms, model, arguments),
            "peer": partial(PEERS[Path(model).suffix], model, arguments.runs, arguments.threads),
        }
        found: dict[str, list[float]] = {name: [] for name in visits}
        for _ in range(arguments.rounds):
            order = rng.sample(list(visits), 2)
            legs: dict[str, list[float]] = {name: [] for name in visits}
            for name in order + order[::-1]:
                legs[name].append(visits[name]())
            for name, values in legs.items():
                found[name].append(statistics.geometric_mean(values))
        ratio = paired_ratio([found["edgekd"]], [found["peer"]], confidence=0.95, process_log_sd=0.0)
        row = {"model": model, "ratio": ratio.ratio, "lo": ratio.lo, "hi": ratio.hi, "p50_ms": found}
        rows.append(row)
        medians = {name: statistics.median(values) for name, values in found.items()}
        print(
            f"{model}: edgekd {medians['edgekd']:.3f} ms, its own tool {medians['peer']:.3f} ms, "
            f"ratio {ratio.ratio:.3f} (95% CI {ratio.lo:.3f} to {ratio.hi:.3f}), {arguments.rounds} rounds"
        )
    print(json.dumps({"peers": rows, "threads": arguments.threads}))
    return 0


def _own_p50_ms(model: str, arguments: argparse.Namespace) -> float:
    schedule = _schedule(arguments.brief).model_copy(update={"processes": 1})
    (contender,) = contenders_of(model)
    return measure_all([contender], mode=schedule, threads=arguments.threads).measurements[0].p50_ms


def _litert_ms(model: str, runs: int, threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [_tool("litert-benchmark"), f"--model={model}", f"--num_runs={runs}", "--warmup_runs=20"]
        _output([*command, f"--num_threads={threads}", f"--result_json={result}"])
        return float(json.loads(result.read_text())["latency"]["median_ms"])


def _openvino_ms(model: str, runs: int, threads: int) -> float:
    # Without the precision it would run float models in bf16 where the CPU has it; edgekd asks for f32 too.
    command = [_tool("benchmark_app"), "-m", model, "-d", "CPU", "-hint", "latency", "-api", "sync"]
    with tempfile.TemporaryDirectory() as folder:  # it takes no -nthreads beside -hint
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({"CPU": {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}}))
        text = _output([*command, "-niter", str(runs), "-load_config", str(config)])
    found = re.search(r"Median:\s+([\d.]+) (ms|us)", text)
    if found is None:
        raise SystemExit(f"benchmark_app printed no median: {text[-300:]}")
    return float(found[1]) / (1 if found[2] == "ms" else 1000)


def _onnxruntime_ms(model: str, runs: int, threads: int) -> float:
    text = _output([sys.executable, __file__, "ort-loop", model, str(runs), str(threads)])
    return float(text.splitlines()[-1])


def onnxruntime_loop(arguments: argparse.Namespace) -> int:
    """As onnxruntime_perf_test: one session, random input made once, `Run` in a loop; the median in ms."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = arguments.threads, 1
    session = ort.InferenceSession(arguments.model, options, providers=["CPUExecutionProvider"])
    node = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in node.shape]
    fed = {node.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    times = []
    for run in range(20 + arguments.runs):
        start = time.perf_counter_ns()
        session.run(None, fed)
        if run >= 20:
            times.append(time.perf_counter_ns() - start)
    print(statistics.median(times) / 1e6)
    return 0


PEERS: dict[str, Callable[[str, int, int], float]] = {
    ".tflite": _litert_ms,
    ".xml": _openvino_ms,
    ".onnx": _onnxruntime_ms,
}


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise SystemExit(f"no {name} on this host")
    return found


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed: {(done.stderr or done.stdout)[-300:]}")
    return done.stdout


def repeat_ratio(arguments: argparse.Namespace) -> int:
    """CV of the interleaved ratios and of the sequential ones."""
    pair = _pair(arguments.teacher, arguments.student)
    paired, sequential = [], []
    for time_ in range(arguments.times):
        (ratio,) = _together(pair, arguments, seed=arguments.seed + time_).ratios
        paired.append(ratio.cpu_ratio if ratio.clocks_disagree else ratio.ratio)
        alone = [_alone(contender, arguments).p50_ms for contender in pair]
        sequential.append(alone[0] / alone[1])
        print(f"{time_ + 1}: interleaved {paired[-1]:.3f}, sequential {sequential[-1]:.3f}", flush=True)
    variation = {name: _cv(values) for name, values in (("interleaved", paired), ("sequential", sequential))}
    print(", ".join(f"{name} CV {value:.1%}" for name, value in variation.items()))
    print(json.dumps({"interleaved": paired, "sequential": sequential, "cv": variation}))
    return 0


def count_alarms(arguments: argparse.Namespace) -> int:
    """How many of the sessions found a difference."""
    pair = _pair(arguments.against or arguments.model, arguments.model)
    found = [r for i in range(arguments.times) for r in _together(pair, arguments, seed=arguments.seed + i).ratios]
    alarms = sum(ratio.cpu_significant if ratio.clocks_disagree else ratio.significant for ratio in found)
    ratios = [ratio.ratio for ratio in found]
    print(f"a difference in {alarms} of {len(found)} sessions; ratios {min(ratios):.3f} to {max(ratios):.3f}")
    print(json.dumps({"alarms": alarms, "sessions": len(found), "ratios": ratios}))
    return 0


def _pair(first: str, second: str) -> list[Contender]:
    (baseline,), (contender,) = contenders_of(first, label="baseline "), contenders_of(second)
    return [baseline, contender]


def _together(pair: list[Contender], arguments: argparse.Namespace, *, seed: int) -> MeasurementSet:
    names = [(pair[0].name, pair[1].name)]
    return measure_all(pair, pairs=names, mode=_schedule(arguments.brief), threads=arguments.threads, seed=seed)


def _alone(contender: Contender, arguments: argparse.Namespace) -> Any:
    return measure_all([contender], mode=_schedule(arguments.brief), threads=arguments.threads).measurements[0]


def _cv(values: list[float]) -> float:
    return statistics.stdev(values) / statistics.mean(values) if len(values) > 1 else 0.0


_COMMANDS = {
    "peers": compare_with_peers,
    "repeat": repeat_ratio,
    "aa": count_alarms,
    "ort-loop": onnxruntime_loop,
}

if __name__ == "__main__":
    sys.exit(main())
