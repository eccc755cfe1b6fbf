"""The process that times many small networks in one runtime: `python -m edgekd.device_benchmarks.block_campaign`.

A job (JSON) comes on stdin, the answer goes to stdout. All networks are compiled once, then visited in many short
rounds, shuffled; of each the least CPU time (wall time with several threads) of one inference is kept: on a busy host
one round was 78% above the final minimum, 4 rounds 16%, 7 rounds 3%. Whole networks are then run for a while each, as
they would be in use: among hundreds of others their weights have left the caches, and a median there is no p50.
"""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from edgekd.artifact import Artifact, Frozen, TensorSpec
from edgekd.device_benchmarks.block_onnx import onnx_bytes
from edgekd.device_benchmarks.block_ops import Net, sandwich, whole_net
from edgekd.device_benchmarks.block_tflite import tflite_bytes
from edgekd.files import sha256_of
from edgekd.students import Part

RUNS = 6  # of one visit, after one that is not counted
ROUNDS_MIN = 7
STEADY_ROUNDS, STEADY_S = 5, 0.06


class Job(Frozen):
    """parts: to be timed in sandwiches. networks: whole ones, as their parts. seconds: for the rounds."""

    runtime: str
    precision: str
    threads: int
    parts: tuple[Part, ...]
    networks: tuple[tuple[Part, ...], ...]
    seconds: float
    seed: int = 0


class Timing(Frozen):
    """least_ms: least time of one inference. p50_ms, p90_ms: median and 90th percentile, run after run."""

    least_ms: float
    p50_ms: float
    p90_ms: float


class Answer(Frozen):
    """By the job's order. parts_ms: with the part less without it; compile_s: everything before the rounds."""

    parts_ms: tuple[float, ...]
    networks: tuple[Timing, ...]
    rounds: int
    compile_s: float


def run(job: Job, tell: Callable[[str], None]) -> Answer:
    """Compile everything, go round until the time is over."""
    started = time.monotonic()
    pairs = [sandwich(part) for part in job.parts]
    nets: dict[Net, int] = {}
    for net in [*(net for pair in pairs for net in pair), *(whole_net(parts) for parts in job.networks)]:
        nets.setdefault(net, len(nets))
    with tempfile.TemporaryDirectory() as folder:
        calls = [_opened(net, job, Path(folder), tell, number, len(nets)) for net, number in nets.items()]
    compile_s = time.monotonic() - started
    least, rounds = _rounds(calls, job, tell)
    whole = [nets[whole_net(parts)] for parts in job.networks]
    steady = _steady([calls[number] for number in whole], job)
    timings = [
        Timing(least_ms=least[number], p50_ms=p50, p90_ms=p90) for number, (p50, p90) in zip(whole, steady, strict=True)
    ]
    parts_ms = tuple(max(0.0, least[nets[with_it]] - least[nets[without]]) for with_it, without in pairs)
    return Answer(parts_ms=parts_ms, networks=tuple(timings), rounds=rounds, compile_s=compile_s)


def _rounds(calls: list[Callable[[], object]], job: Job, tell: Callable[[str], None]) -> tuple[list[float], int]:
    clock = _clock(job)
    least = [float("inf")] * len(calls)
    rng, order, rounds = random.Random(job.seed), list(range(len(calls))), 0
    gc.collect()
    gc.disable()
    deadline = time.monotonic() + job.seconds
    while rounds < ROUNDS_MIN or time.monotonic() < deadline:
        rng.shuffle(order)
        for number in order:
            call = calls[number]
            call()
            for _ in range(RUNS):
                begin = clock()
                call()
                least[number] = min(least[number], (clock() - begin) / 1e6)
        rounds += 1
        tell(f"round {rounds}")
    return least, rounds


def _clock(job: Job) -> Callable[[], int]:
    """With one thread the process's CPU time: what others take of the machine is no part of it."""
    return time.process_time_ns if job.threads == 1 else time.perf_counter_ns


def _steady(calls: list[Callable[[], object]], job: Job) -> list[tuple[float, float]]:
    """Median and 90th percentile in ms of each call, repeated for a while; of the round of least median."""
    clock = _clock(job)
    rng, order = random.Random(job.seed), list(range(len(calls)))
    best = [(float("inf"), float("inf"))] * len(calls)
    for _ in range(STEADY_ROUNDS):
        rng.shuffle(order)
        for number in order:
            samples: list[int] = []
            end = time.perf_counter() + STEADY_S
            while len(samples) < 8 or time.perf_counter() < end:
                begin = clock()
                calls[number]()
                samples.append(clock() - begin)
            p90 = sorted(samples)[int(0.9 * (len(samples) - 1) + 0.5)]
            best[number] = min(best[number], (statistics.median(samples) / 1e6, p90 / 1e6))
    return best


def _opened(
    net: Net, job: Job, folder: Path, tell: Callable[[str], None], number: int, count: int
) -> Callable[[], object]:
    from edgekd.runtimes import open_session

    if number % 50 == 0:
        tell(f"compiled {number} of {count}")
    file = _written(net, job, folder / str(number))
    session = open_session(_artifact(net, job, file), threads=job.threads)
    shape = (1, net.in_channels, net.image_size, net.image_size)
    fed = session.feed(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    return lambda: session.invoke(fed)


def _written(net: Net, job: Job, stem: Path) -> Path:
    """The network in the runtime's own file format."""
    if job.runtime == "tflite":
        file = stem.with_suffix(".tflite")
        file.write_bytes(tflite_bytes(net, job.precision))
        return file
    content = onnx_bytes(net, job.precision)
    if job.runtime == "openvino":
        import openvino

        file = stem.with_suffix(".xml")
        openvino.save_model(openvino.Core().read_model(content), str(file), compress_to_fp16=False)
        return file
    file = stem.with_suffix(".onnx")
    file.write_bytes(content)
    return file


def _artifact(net: Net, job: Job, file: Path) -> Artifact:
    last, side = net.ops[-1], net.image_size
    tflite = job.runtime == "tflite"
    shape = (1, side, side, net.in_channels) if tflite else (1, net.in_channels, side, side)
    image = TensorSpec(name="image", shape=shape, dtype="float32", layout="NHWC" if tflite else "NCHW")
    out = TensorSpec(name="logits", shape=(1, last.channels), dtype="float32", layout="NC")
    return Artifact(
        target=job.runtime,
        precision="int8" if job.precision == "int8" else "fp32",
        path=file,
        size_bytes=file.stat().st_size,
        sha256=sha256_of(file),
        inputs=(image,),
        outputs=(out,),
    )


def main() -> None:
    """Take stdout for the answer; vendor libraries print to stderr from here on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(what: str) -> None:
        out.write(json.dumps({"doing": what}) + "\n")
        out.flush()

    job = TypeAdapter(Job).validate_json(sys.stdin.read())
    answer: dict[str, Any]
    try:
        answer = {"answer": run(job, tell).model_dump(mode="json")}
    except Exception as error:  # a vendor library may raise anything; the parent names the runtime
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    out.write(json.dumps(answer) + "\n")
    out.flush()
    os._exit(0)  # hundreds of sessions take their time to be torn down, and nothing is left to flush


if __name__ == "__main__":
    main()
