"""Build a block table on this machine: choose parts and networks, have them timed, fit whole networks."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from edgekd.device_benchmarks.block_campaign import Answer, Job, Timing
from edgekd.device_benchmarks.block_ops import has_operators
from edgekd.device_benchmarks.block_table import Bench, BlockTable, Fit, Whole, weights_of
from edgekd.errors import CheckError, InputError
from edgekd.students import Part, StageSpace, StudentSpec, parts_of
from edgekd.students.layers import head_part, stage_parts, stem_part

CALIBRATION_NETWORKS = 24
CACHED_WEIGHTS = (0.25e6, 0.5e6, 1e6, 1.5e6, 2e6, 4e6)
DEFAULT_SECONDS = 120.0
NETWORKS_SHARE = 0.25
_ATTEMPTS = 200  # for each network that is drawn
Progress = Callable[[str], None]
Numbers = npt.NDArray[np.float64]


def parts_of_spaces(spaces: Iterable[StageSpace]) -> list[Part]:
    """Every part that a student of the spaces may have, but those that no writer knows."""
    found: dict[Part, None] = {}
    for space in spaces:
        for body_number, body in enumerate(space.bodies):
            spec = space.spec((body_number, (0,) * len(body.choices)))
            inside, size = body.stem_channels, -(-body.image_size // body.stem_stride)
            found[stem_part(spec)] = None
            for number, choices in enumerate(body.choices):
                for choice in choices:
                    stage = space.stage(body, number, choice)
                    found.update(dict.fromkeys(stage_parts(stage, inside, size, body.activation)))
                inside, size = body.channels[number], -(-size // body.strides[number])
            found[head_part(spec, inside, size)] = None
    return [part for part in found if has_operators(part)]


def sample(spaces: Sequence[StageSpace], count: int, *, seed: int) -> list[StudentSpec]:
    """Students drawn from the spaces in turn, each body, choice and depth as likely as any other of its stage.

    Raises: InputError: hardly a student of the spaces is made of parts that can be timed alone (attention cannot).
    """
    found = _drawn(spaces, count, seed)
    if len(found) < count:
        names = ", ".join(dict.fromkeys(space.name for space in spaces))
        raise InputError(
            f"a block table cannot hold the space '{names}': its parts are not timed alone",
            fix="leave it out of --space; it is priced by the predictor",
        )
    return found


def holds(space: StageSpace) -> bool:
    """Whether students of the space are made of parts that a block table can have."""
    return bool(_drawn([space], 1, seed=0))


def _drawn(spaces: Sequence[StageSpace], count: int, seed: int) -> list[StudentSpec]:
    """Up to `count` students whose parts all have operators."""
    rng = random.Random(seed)
    found: list[StudentSpec] = []
    for attempt in range(_ATTEMPTS * count):
        space = spaces[attempt % len(spaces)]
        number = rng.randrange(len(space.bodies))
        choices = space.bodies[number].choices
        spec = space.spec((number, tuple(rng.randrange(len(some)) for some in choices)))
        if all(map(has_operators, parts_of(spec))):
            found.append(spec)
        if len(found) == count:
            break
    return found


def build_table(
    bench: Bench,
    spaces: Sequence[StageSpace],
    *,
    seconds: float = DEFAULT_SECONDS,
    seed: int = 0,
    tell: Progress = lambda what: None,
) -> BlockTable:
    """Time every part of the spaces and some networks, and fit. Raises: CheckError: the runtime failed."""
    started = time.monotonic()
    parts = parts_of_spaces(spaces)
    specs = sample(spaces, CALIBRATION_NETWORKS, seed=seed)
    networks = [tuple(parts_of(spec)) for spec in specs]
    answer = timed(bench, parts, [], seconds=seconds * (1 - NETWORKS_SHARE), seed=seed, tell=tell)
    # In a process of their own: beside the parts' hundreds of sessions OpenVINO's int8 networks ran 20% slower.
    whole = timed(bench, [], networks, seconds=seconds * NETWORKS_SHARE, seed=seed, tell=tell)
    parts_ms = {part.key: ms for part, ms in zip(parts, answer.parts_ms, strict=True)}
    return BlockTable(
        bench=bench,
        parts_ms=parts_ms,
        fit=fit(parts_ms, networks, whole.networks),
        networks=tuple(
            Whole(spec=spec, p50_ms=timing.p50_ms) for spec, timing in zip(specs, whole.networks, strict=True)
        ),
        built=time.strftime("%Y-%m-%d"),
        build_s=round(time.monotonic() - started, 1),
        rounds=answer.rounds,
    )


def timed(
    bench: Bench,
    parts: Sequence[Part],
    networks: Sequence[tuple[Part, ...]],
    *,
    seconds: float,
    seed: int = 0,
    tell: Progress = lambda what: None,
) -> Answer:
    """Run one campaign in a process of its own. Raises: CheckError: it failed or fell silent; the runtime is named."""
    job = Job(
        runtime=bench.runtime,
        precision=bench.precision,
        threads=bench.threads,
        parts=tuple(parts),
        networks=tuple(networks),
        seconds=seconds,
        seed=seed,
    )
    command = [sys.executable, "-P", "-m", "edgekd.device_benchmarks.block_campaign"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(job.model_dump_json())
        process.stdin.close()
        for line in process.stdout:
            said = json.loads(line)
            if "answer" in said:
                return Answer.model_validate(said["answer"])
            if "error" in said:
                raise CheckError(f"timing blocks failed: {said['error']}", where=bench.text)
            tell(said["doing"])
        code = process.wait()
    raise CheckError(f"the process that times blocks died (exit code {code})", where=bench.text)


def fit(parts_ms: dict[str, float], networks: Sequence[tuple[Part, ...]], measured: Sequence[Timing]) -> Fit:
    """Least relative error, no coefficient negative: four from ten networks on, one with fewer.

    How many weights the caches hold is the step of a grid that leaves the least error. low and high come from networks
    that are left out in turn.
    """
    p50 = np.array([timing.p50_ms for timing in measured])
    sums, weights = _columns(parts_ms, networks), np.array([float(sum(map(weights_of, parts))) for parts in networks])
    cached = min(CACHED_WEIGHTS, key=lambda held: _solve(_with_weights(sums, weights, held), p50)[1])
    columns, ratios = _with_weights(sums, weights, cached), []
    for left_out in range(len(networks)):
        kept = np.arange(len(networks)) != left_out
        predicted = columns[left_out] @ _solve(columns[kept], p50[kept])[0]
        ratios.append(float(p50[left_out] / max(predicted, 1e-9)))
    scale, per_part, constant, per_weight = map(float, _solve(columns, p50)[0])
    return Fit(
        scale=scale,
        per_part_ms=per_part,
        constant_ms=constant,
        per_weight_ms=per_weight,
        cached_weights=cached,
        p50_over_least=float(np.median([timing.p50_ms / timing.least_ms for timing in measured])),
        p90_over_p50=float(np.quantile([timing.p90_ms / timing.p50_ms for timing in measured], 0.9)),
        low=float(np.quantile(ratios, 0.05)),
        high=float(np.quantile(ratios, 0.95)),
        networks=len(networks),
    )


def _columns(parts_ms: dict[str, float], networks: Sequence[tuple[Part, ...]]) -> Numbers:
    return np.array([[sum(parts_ms[part.key] for part in parts), -float(len(parts)), 1.0] for parts in networks])


def _with_weights(columns: Numbers, weights: Numbers, held: float) -> Numbers:
    return np.column_stack([columns, np.maximum(0.0, weights - held)])


def _solve(columns: Numbers, p50: Numbers) -> tuple[Numbers, float]:
    """Coefficients, and the norm of the relative errors."""
    from scipy.optimize import nnls

    size = np.abs(columns).max(axis=0)  # milliseconds beside millions of weights
    scaled = columns / np.where(size > 0, size, 1.0)
    used = scaled if len(p50) >= 10 else scaled[:, :1]
    found, error = nnls(used / p50[:, None], np.ones(len(p50)))
    coefficients = np.zeros(columns.shape[1])
    coefficients[: len(found)] = found
    return coefficients / np.where(size > 0, size, 1.0), float(error)
