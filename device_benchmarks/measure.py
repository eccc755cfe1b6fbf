"""Time several contenders side by side: each in its own process, in short blocks, in a random ABBA order.

Interleaving puts the host's moods on all of them alike; fresh processes show what one process's memory layout hides.
"""

from __future__ import annotations

import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from edgekd.device_benchmarks.contender import Contender, Replay
from edgekd.device_benchmarks.host import HostState, host_state, installed_versions
from edgekd.device_benchmarks.measurement import Block, Measurement, MeasurementSet, ProcessFacts, Provenance
from edgekd.device_benchmarks.null import ReplayRunner
from edgekd.device_benchmarks.process import Worker
from edgekd.device_benchmarks.schedule import MODES, BlockPlan, Mode, Schedule, abba, plan_blocks
from edgekd.device_benchmarks.summary import compare, summarise
from edgekd.errors import EdgekdError, InputError, did_you_mean

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of the whole that is done."""
_DISTRIBUTION = {"tflite": "ai-edge-litert", "coreml": "coremltools", "tensorrt": "onnxruntime"}


class Runner(Protocol):
    """One contender in one fresh process. Answers are plain JSON values, in the units their names carry."""

    name: str

    def prepared(self) -> dict[str, Any]:
        """Wait until the runtime is imported."""

    def load(self) -> dict[str, Any]:
        """Load the model and run it once."""

    def warm_up(self, *, min_runs: int, min_s: float, cap_s: float) -> dict[str, Any]:
        """Run until stable."""

    def block(self, *, runs: int, lead_in: int, expected_s: float) -> dict[str, list[int]]:
        """Run `lead_in` times uncounted and `runs` times counted."""

    def finish(self) -> dict[str, Any]:
        """Memory, after all timing."""

    def close(self) -> None:
        """Reap the process."""


Launch = Callable[[Contender, int, int], Runner]
"""(contender, threads, which fresh process) -> its runner; the default is a subprocess on this host."""


def launch(contender: Contender, threads: int, process: int) -> Runner:
    """A worker on this host, or the null device for a replay."""
    if isinstance(contender.source, Replay):
        return ReplayRunner(contender, contender.source, skip=process * len(contender.source.wall_ns) // 5)
    return Worker(contender, threads=threads)


@dataclass
class _Record:
    """What is gathered about one contender while the session runs."""

    contender: Contender
    threads: int
    blocks: list[Block] = field(default_factory=list)
    processes: list[ProcessFacts] = field(default_factory=list)
    loaded: dict[str, Any] = field(default_factory=dict)
    cold: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Session:
    """Settings and records of one call of `measure_all`."""

    schedule: Schedule
    launch: Launch
    rng: random.Random
    keep_going: bool
    on_progress: Progress
    records: dict[str, _Record]
    failures: dict[str, str] = field(default_factory=dict)
    plan: BlockPlan | None = None
    seconds_per_run: dict[str, float] = field(default_factory=dict)

    def attempt(self, name: str, action: Callable[[], None]) -> None:
        """Run the action unless the contender has failed before; record its failure, or let it pass up."""
        if name in self.failures:
            return
        try:
            action()
        except EdgekdError as error:
            if not self.keep_going:
                raise
            self.failures[name] = str(error)

    def living(self) -> list[str]:
        """Names of the contenders that have not failed."""
        return [name for name in self.records if name not in self.failures]


def measure_all(
    contenders: Sequence[Contender],
    *,
    mode: Mode | Schedule = "quick",
    threads: int = 1,
    pairs: Sequence[tuple[str, str]] = (),
    seed: int = 0,
    processes: int | None = None,
    keep_going: bool = False,
    launch: Launch = launch,
    on_progress: Progress | None = None,
    command: str | None = None,
) -> MeasurementSet:
    """Latency, load, first inference and memory of every contender, and the speed ratio of every (baseline, contender).

    mode: quick (2 fresh processes, at least 64 runs, about 10 s each), standard (5, 1,024, 60 s), sustained (1, 600 s),
    or a Schedule of one's own. processes: instead of the mode's. threads: CPU threads of one inference. seed: of order
    and bootstrap.
    keep_going: a contender that fails is recorded in `failures` and the others go on; else its error passes up.
    command: what to put into the provenance; this process's command line by default.
    Raises: InputError: no contenders, names that repeat, or a pair that names none of them; or a model that does not
        load. CheckError: a worker died, hung or answered nonsense; names the contender, with its last lines.
    """
    chosen = mode if isinstance(mode, Schedule) else MODES[mode]
    chosen = chosen.model_copy(update={"processes": processes}) if processes else chosen
    _refuse(contenders, pairs, threads=threads, processes=chosen.processes)
    records = {c.name: _Record(c, c.threads or threads) for c in contenders}
    session = _Session(chosen, launch, random.Random(seed), keep_going, on_progress or (lambda _, __: None), records)
    start, before = time.perf_counter(), host_state()
    for process in range(chosen.processes):
        _one_process_each(session, process)
    ends = (before, host_state())
    line = shlex.join(sys.argv) if command is None else command
    settings = {"mode": chosen.name, "seed": seed, "processes": chosen.processes, "command": line}
    measured = {name: _measurement(records[name], ends, settings) for name in session.living()}
    return MeasurementSet(
        mode=chosen.name,
        seconds=time.perf_counter() - start,
        measurements=tuple(measured.values()),
        ratios=tuple(compare(measured[b], measured[c], seed=seed) for b, c in pairs if {b, c} <= measured.keys()),
        failures=session.failures,
    )


def _refuse(contenders: Sequence[Contender], pairs: Sequence[tuple[str, str]], *, threads: int, processes: int) -> None:
    names = [contender.name for contender in contenders]
    if not names:
        raise InputError("nothing to measure: no contenders")
    if threads < 1 or processes < 1:
        raise InputError(f"threads and processes must be at least 1, got {threads} and {processes}")
    if len(set(names)) < len(names):
        raise InputError(f"two contenders share a name: {', '.join(names)}")
    for name in (name for pair in pairs for name in pair):
        if name not in names:
            raise InputError(f"no contender '{name}' to compare", fix=did_you_mean(name, names))


def _one_process_each(session: _Session, process: int) -> None:
    """Fresh processes for all, loaded and warmed one by one, then the rounds; all are reaped on any way out."""
    runners: dict[str, Runner] = {}
    with ExitStack() as reaped:
        for name in session.living():
            record = session.records[name]
            runners[name] = session.launch(record.contender, record.threads, process)
            reaped.callback(runners[name].close)
        for name, runner in runners.items():
            _tell(session, process, 0.0, f"loading {name}")
            session.attempt(name, partial(_warm, session, name, runner))
        if not session.living():
            return
        if session.plan is None:
            session.plan = plan_blocks(session.schedule, {n: session.seconds_per_run[n] for n in session.living()})
        _rounds(session, session.plan, process, runners)
        for name in session.living():
            session.attempt(name, partial(_finish, session.records[name], runners[name]))


def _warm(session: _Session, name: str, runner: Runner) -> None:
    record, schedule = session.records[name], session.schedule
    imported = runner.prepared()
    record.loaded = runner.load()
    warm = runner.warm_up(min_runs=10, min_s=schedule.warm_up_s, cap_s=schedule.warm_up_cap_s)
    record.cold = {**imported, "warm": warm}
    session.seconds_per_run.setdefault(name, max(1e-6, warm["recent_ns"] / 1e9))


def _rounds(session: _Session, plan: BlockPlan, process: int, runners: Mapping[str, Runner]) -> None:
    for number in range(plan.rounds):
        _tell(session, process, number / plan.rounds, f"round {number + 1} of {plan.rounds}")
        for name in abba(session.living(), session.rng):
            session.attempt(name, partial(_block, session, plan, runners[name], process, number))


def _block(session: _Session, plan: BlockPlan, runner: Runner, process: int, number: int) -> None:
    runs, lead_in = plan.runs[runner.name], plan.lead_in[runner.name]
    expected_s = (runs + lead_in) * session.seconds_per_run[runner.name]
    answer = runner.block(runs=runs, lead_in=lead_in, expected_s=expected_s)
    block = Block(process=process, round=number, wall_ns=tuple(answer["wall_ns"]), cpu_ns=tuple(answer["cpu_ns"]))
    session.records[runner.name].blocks.append(block)


def _finish(record: _Record, runner: Runner) -> None:
    warm = record.cold["warm"]
    facts = ProcessFacts(
        import_ms=record.cold["import_ms"],
        load_ms=record.loaded["load_ms"],
        first_inference_ms=record.loaded["first_inference_ms"],
        warm_up_ns=tuple(warm["wall_ns"]),
        warm_up_converged=warm["converged"],
        **runner.finish(),
    )
    record.processes.append(facts)


def _tell(session: _Session, process: int, fraction: float, what: str) -> None:
    total = session.schedule.processes
    session.on_progress(f"process {process + 1} of {total}: {what}", (process + fraction) / total)


def _measurement(record: _Record, ends: tuple[HostState, HostState], settings: Mapping[str, Any]) -> Measurement:
    loaded = record.loaded
    runtime = loaded["runtime"]
    package = _DISTRIBUTION.get(runtime, runtime)
    provenance = Provenance(
        device="null" if runtime == "replay" else "local",
        runtime=runtime,
        runtime_version=installed_versions([package]).get(package),
        executed=loaded["executed"],
        threads=record.threads,
        affinity=record.contender.affinity,
        input_shape=tuple(loaded["input_shape"]),
        input_sha256=loaded["input_sha256"],
        artifact_sha256=loaded["artifact_sha256"],
        host_start=ends[0],
        host_end=ends[1],
        **settings,
    )
    return summarise(record.contender.name, record.blocks, record.processes, provenance, note=loaded["note"])
