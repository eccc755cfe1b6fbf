"""Simulated sample streams of a whole session, whose truth is known: made, not measured."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from edgekd.device_benchmarks.host import HostState, host_state
from edgekd.device_benchmarks.measurement import Block, Measurement, ProcessFacts, Provenance
from edgekd.device_benchmarks.schedule import abba
from edgekd.device_benchmarks.summary import summarise

FACTS = ProcessFacts(
    import_ms=1,
    load_ms=1,
    first_inference_ms=1,
    warm_up_ns=(),
    warm_up_converged=True,
    peak_rss_mib=None,
    model_rss_mib=None,
    pss_mib=None,
)


@dataclass(frozen=True)
class Mood:
    """What a host does to whatever runs on it. noise: of single samples, as their own. sway: sd of an AR(1) over
    samples with `rho`. spikes: share of samples that take 1.5 to 6 times as long. drift: log change over the session.
    """

    noise: float = 0.02
    sway: float = 0.0
    rho: float = 0.98
    spikes: float = 0.0
    drift: float = 0.0


MOODS = {
    "quiet": Mood(),
    "autocorrelated": Mood(sway=0.10),
    "spiky": Mood(spikes=0.02),
    "drifting": Mood(drift=0.3),
    "all at once": Mood(noise=0.03, sway=0.05, spikes=0.01, drift=0.2),
}


def levels(rng: np.random.Generator, n: int, mood: Mood) -> np.ndarray:
    """The host's factor for each of n samples in time order."""
    steps, sway = rng.normal(size=n), np.zeros(n)
    for i in range(1, n):
        sway[i] = mood.rho * sway[i - 1] + np.sqrt(1 - mood.rho**2) * steps[i]
    spikes = np.where(rng.random(n) < mood.spikes, rng.uniform(1.5, 6, n), 1)
    drift = np.linspace(0, mood.drift, n)
    return np.asarray(np.exp(mood.noise * rng.normal(size=n) + mood.sway * sway + drift) * spikes)


def interleaved(
    rng: np.random.Generator,
    mood: Mood,
    *,
    level_ms: dict[str, float],
    processes: int = 2,
    rounds: int = 12,
    runs: int = 10,
) -> dict[str, list[Block]]:
    """Blocks of contenders interleaved as `measure_all` does it. Processes differ by 0.7% (memory layout)."""
    order = random.Random(int(rng.integers(1 << 30)))
    plan = [
        (process, number, name)
        for process in range(processes)
        for number in range(rounds)
        for name in abba(list(level_ms), order)
    ]
    factors = levels(rng, len(plan) * runs, mood).reshape(len(plan), runs)
    layout = {(process, name): np.exp(rng.normal(0, 0.007)) for process in range(processes) for name in level_ms}
    blocks: dict[str, list[Block]] = {name: [] for name in level_ms}
    for (process, number, name), factor in zip(plan, factors, strict=True):
        times = tuple((1e6 * level_ms[name] * layout[process, name] * factor).astype(int).tolist())
        blocks[name].append(Block(process=process, round=number, wall_ns=times, cpu_ns=times))
    return blocks


def summarised(blocks: dict[str, list[Block]]) -> dict[str, Measurement]:
    """All figures of each."""
    return {
        n: summarise(n, found, [FACTS] * len({b.process for b in found}), provenance()) for n, found in blocks.items()
    }


def raw(blocks: dict[str, list[Block]]) -> dict[str, Measurement]:
    """Names, blocks and provenance alone, which is all that a ratio reads: a summary's bootstrap takes 40 ms."""
    return {
        name: Measurement.model_construct(name=name, blocks=tuple(found), provenance=PROVENANCE, p50_ms=0.0)
        for name, found in blocks.items()
    }


def provenance(**changes: object) -> Provenance:
    """Of a made measurement; the host's state is a fixed one."""
    made = Provenance(
        device="local",
        runtime="onnxruntime",
        runtime_version="1.23",
        executed="runtime",
        threads=1,
        affinity=(),
        input_shape=(1, 3, 32, 32),
        input_sha256="",
        artifact_sha256="a",
        mode="quick",
        seed=0,
        processes=2,
        command="",
        host_start=STATE,
        host_end=STATE,
        precision="fp32",
    )
    return made.model_copy(update=changes)


STATE: HostState = host_state()
PROVENANCE = provenance()
