"""Time several contenders side by side: each in its own process, in short blocks, in a random ABBA order.

Interleaving puts the host's moods on all of them alike; fresh processes show what one process's memory layout hides.
"""

from __future__ import annotations

import contextlib
import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from edgekd.device_benchmarks.contender import Contender, Replay, precision_of
from edgekd.device_benchmarks.host import HostState, host_state, installed_versions
from edgekd.device_benchmarks.measurement import (
    Block,
    Measurement,
    MeasurementSet,
    ProcessFacts,
    Provenance,
    SeparateRun,
)
from edgekd.device_benchmarks.null import ReplayRunner
from edgekd.device_benchmarks.process import Worker
from edgekd.device_benchmarks.schedule import MODES, BlockPlan, Mode, Schedule, abba, plan_blocks
from edgekd.device_benchmarks.separate_run import separate_run
from edgekd.device_benchmarks.summary import compare, summarise
from edgekd.device_benchmarks.transports.errors import DeviceLostError
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

    def block(self, *, runs: int, lead_in: int, expected_s: float) -> dict[str, Any]:
        """Run `lead_in` times uncounted and `runs` times counted."""

    def finish(self) -> dict[str, Any]:
        """Memory, after all timing."""

    def close(self) -> None:
        """Reap the process."""


Launch = Callable[[Contender, int, int], Runner]
"""(contender, threads, which fresh process) -> its runner; the default is a subprocess on this host."""


class Place(Protocol):
    """Where contenders run: this host, or a device that a session holds."""

    @property
    def name(self) -> str:
        """For the provenance."""

    def launch(self, contender: Contender, threads: int, process: int, /) -> Runner:
        """Start one contender in a fresh process there."""

    def state(self) -> HostState:
        """Its state now."""

    def recover(self, error: DeviceLostError, /) -> None:
        """Reach it again after its link was lost. Raises: DeviceLostError: it cannot be reached."""


def launch(contender: Contender, threads: int, process: int) -> Runner:
    """A worker on this host, or the null device for a replay."""
    if isinstance(contender.source, Replay):
        return ReplayRunner(contender, contender.source, skip=process * len(contender.source.wall_ns) // 5)
    return Worker(contender, threads=threads)


@dataclass
class ThisHost:
    """The `Place` that is here. launch: a test's own runners."""

    launch: Launch = launch
    name: str = "local"

    def state(self) -> HostState:
        """Of this host."""
        return host_state()

    def recover(self, error: DeviceLostError, /) -> None:
        """There is no link to lose."""
        raise error


@dataclass
class _Record:
    """What is gathered about one contender while the session runs."""

    contender: Contender
    threads: int
    blocks: list[Block] = field(default_factory=list)
    processes: list[ProcessFacts] = field(default_factory=list)
    loaded: dict[str, Any] = field(default_factory=dict)
    cold: dict[str, Any] = field(default_factory=dict)
    apart: SeparateRun | None = None


@dataclass
class _Session:
    """Settings and records of one call of `measure_all`."""

    schedule: Schedule
    place: Place
    rng: random.Random
    keep_going: bool
    on_progress: Progress
    records: dict[str, _Record]
    failures: dict[str, str] = field(default_factory=dict)
    plan: BlockPlan | None = None
    seconds_per_run: dict[str, float] = field(default_factory=dict)
    launched: int = 0
    interruptions: list[str] = field(default_factory=list)

    def attempt(self, name: str, action: Callable[[], None]) -> None:
        """Run the action unless the contender has failed before; record its failure, or let it pass up."""
        if name in self.failures:
            return
        try:
            action()
        except DeviceLostError:  # that concerns all of them
            raise
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
    place: Place | None = None,
    on_progress: Progress | None = None,
    command: str | None = None,
) -> MeasurementSet:
    """Latency, load, first inference and memory of every contender, and the speed ratio of every (baseline, contender).

    mode: quick (2 fresh processes, at least 64 runs, about 10 s each), standard (5, 1,024, 60 s), sustained (1, 600 s),
    or a Schedule of one's own. processes: instead of the mode's. threads: CPU threads of one inference. seed: of order
    and bootstrap.
    keep_going: a contender that fails is recorded in `failures` and the others go on; else its error passes up.
    place: where; this host by default. A place whose link is lost and comes back goes on with the rounds that are left,
    in fresh processes; one that does not come back leaves a set with `partial`, if there is a whole round to keep.
    command: what to put into the provenance; this process's command line by default.
    Raises: InputError: no contenders, names that repeat, or a pair that names none of them; or a model that does not
        load. CheckError: a worker died, hung or answered nonsense; names the contender, with its last lines.
        DeviceLostError: the device went before there was anything to keep.
    """
    chosen = mode if isinstance(mode, Schedule) else MODES[mode]
    chosen = chosen.model_copy(update={"processes": processes}) if processes else chosen
    _refuse(contenders, pairs, threads=threads, processes=chosen.processes)
    records = {c.name: _Record(c, c.threads or threads) for c in contenders}
    where = place or ThisHost()
    session = _Session(chosen, where, random.Random(seed), keep_going, on_progress or (lambda _, __: None), records)
    start, before = time.perf_counter(), where.state()
    stopped = _all_processes(session)
    if not stopped and chosen.separate_run:
        _separate_runs(session)
    ends = (before, before if stopped else where.state())
    line = shlex.join(sys.argv) if command is None else command
    settings = {"mode": chosen.name, "seed": seed, "processes": chosen.processes, "command": line}
    return _gathered(session, ends, settings, pairs, stopped).model_copy(
        update={"seconds": time.perf_counter() - start}
    )


def _gathered(
    session: _Session,
    ends: tuple[HostState, HostState],
    settings: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    stopped: str | None,
) -> MeasurementSet:
    records = session.records
    measured = {n: _measurement(records[n], session.place.name, ends, settings) for n in session.living()}
    emulated = ends[0].emulated  # a ratio of emulated times would be as wrong as they are, and read like a speedup
    wanted = [] if emulated else [pair for pair in pairs if set(pair) <= measured.keys()]
    return MeasurementSet(
        kind="emulated" if emulated else "measured",
        mode=settings["mode"],
        seconds=0,
        measurements=tuple(measured.values()),
        ratios=tuple(compare(measured[b], measured[c], seed=settings["seed"]) for b, c in wanted),
        failures=session.failures,
        interruptions=tuple(session.interruptions),
        partial=stopped,
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


def _all_processes(session: _Session) -> str | None:
    """Every round of every process; why it stopped before, when the link went for good.

    Raises: DeviceLostError: that happened before the first whole round.
    """
    for process in range(session.schedule.processes):
        first_round = 0
        while True:
            try:
                _one_process_each(session, process, first_round)
                session.launched += 1
                break
            except DeviceLostError as error:
                first_round = _whole_rounds(session, first_round)
                session.launched += 1
                try:
                    session.place.recover(error)
                except DeviceLostError as gone:
                    if not any(record.blocks for record in session.records.values()):
                        raise gone from error
                    return str(gone)
                session.interruptions.append(str(error))
    return None


def _whole_rounds(session: _Session, first_round: int) -> int:
    """Drop the round that was cut, since its pairs are not whole, and keep the process's facts; the next round."""
    living = [session.records[name] for name in session.living()]
    blocks = [b for record in living for b in record.blocks if b.process == session.launched]
    counts = Counter(block.round for block in blocks)
    next_round = max((n + 1 for n, count in counts.items() if count == 2 * len(living)), default=first_round)
    for record in living:
        kept = [b for b in record.blocks if b.process != session.launched or b.round < next_round]
        if any(b.process == session.launched for b in kept):
            record.processes.append(_facts(record, {"peak_rss_mib": None, "model_rss_mib": None, "pss_mib": None}))
        record.blocks = kept
    return next_round


def _one_process_each(session: _Session, process: int, first_round: int) -> None:
    """Fresh processes for all, loaded and warmed one by one, then the rounds; all are reaped on any way out."""
    runners: dict[str, Runner] = {}
    with ExitStack() as reaped:
        for name in session.living():
            record = session.records[name]
            runners[name] = session.place.launch(record.contender, record.threads, session.launched)
            reaped.callback(runners[name].close)
        for name, runner in runners.items():
            _tell(session, process, 0.0, f"loading {name}")
            session.attempt(name, partial(_warm, session, name, runner))
        if not session.living():
            return
        if session.plan is None:
            session.plan = plan_blocks(session.schedule, {n: session.seconds_per_run[n] for n in session.living()})
        _rounds(session, session.plan, process, first_round, runners)
        for name in session.living():
            session.attempt(name, partial(_finish, session.records[name], runners[name]))


def _warm(session: _Session, name: str, runner: Runner) -> None:
    record, schedule = session.records[name], session.schedule
    imported = runner.prepared()
    record.loaded = runner.load()
    warm = runner.warm_up(min_runs=10, min_s=schedule.warm_up_s, cap_s=schedule.warm_up_cap_s)
    record.cold = {**imported, "warm": warm}
    session.seconds_per_run.setdefault(name, max(1e-6, warm["recent_ns"] / 1e9))


def _rounds(session: _Session, plan: BlockPlan, process: int, first_round: int, runners: Mapping[str, Runner]) -> None:
    for number in range(first_round, plan.rounds):
        _tell(session, process, number / plan.rounds, f"round {number + 1} of {plan.rounds}")
        for name in abba(session.living(), session.rng):
            session.attempt(name, partial(_block, session, plan, runners[name], number))


def _block(session: _Session, plan: BlockPlan, runner: Runner, number: int) -> None:
    runs, lead_in = plan.runs[runner.name], plan.lead_in[runner.name]
    expected_s = (runs + lead_in) * session.seconds_per_run[runner.name]
    answer = runner.block(runs=runs, lead_in=lead_in, expected_s=expected_s)
    block = Block(
        process=session.launched,
        round=number,
        wall_ns=tuple(answer["wall_ns"]),
        cpu_ns=tuple(answer["cpu_ns"]),
        clock_mhz=answer.get("clock_mhz"),
    )
    session.records[runner.name].blocks.append(block)


def _separate_runs(session: _Session) -> None:
    """Memory and energy, one contender after the other; what a device lost now would have told is left out."""
    for name in session.living():
        record = session.records[name]
        if record.processes[-1].peak_rss_mib is None:  # the device tells no memory
            continue
        session.on_progress(f"memory of {name}", 1.0)
        try:
            session.attempt(name, partial(_apart, session, record, name))
        except DeviceLostError as error:
            session.interruptions.append(f"{error}; memory is that of the timed processes")
            return


def _apart(session: _Session, record: _Record, name: str) -> None:
    with contextlib.closing(session.place.launch(record.contender, record.threads, session.launched)) as runner:
        record.apart = separate_run(runner, seconds_per_run=session.seconds_per_run[name])


def _finish(record: _Record, runner: Runner) -> None:
    record.processes.append(_facts(record, runner.finish()))


def _facts(record: _Record, memory: Mapping[str, Any]) -> ProcessFacts:
    warm = record.cold["warm"]
    return ProcessFacts(
        import_ms=record.cold["import_ms"],
        load_ms=record.loaded["load_ms"],
        compile_ms=record.loaded.get("compile_ms"),
        first_inference_ms=record.loaded["first_inference_ms"],
        warm_up_ns=tuple(warm["wall_ns"]),
        warm_up_converged=warm["converged"],
        **memory,
    )


def _tell(session: _Session, process: int, fraction: float, what: str) -> None:
    total = session.schedule.processes
    session.on_progress(f"process {process + 1} of {total}: {what}", (process + fraction) / total)


def _measurement(
    record: _Record, place: str, ends: tuple[HostState, HostState], settings: Mapping[str, Any]
) -> Measurement:
    loaded = record.loaded
    runtime = loaded["runtime"]
    provenance = Provenance(
        device="null" if runtime == "replay" else place,
        runtime=runtime,
        runtime_version=_runtime_version(loaded),
        executed=loaded["executed"],
        threads=record.threads,
        affinity=record.contender.affinity,
        input_shape=tuple(loaded["input_shape"]),
        input_sha256=loaded["input_sha256"],
        artifact_sha256=loaded["artifact_sha256"],
        host_start=ends[0],
        host_end=ends[1],
        parity=loaded.get("parity"),
        cpu_clock=loaded.get("cpu_clock", True),
        precision=precision_of(record.contender.source),
        **settings,
    )
    return summarise(
        record.contender.name, record.blocks, record.processes, provenance, note=loaded["note"], apart=record.apart
    )


def _runtime_version(loaded: Mapping[str, Any]) -> str | None:
    """As the device said it; a worker of this host leaves it to the installed packages."""
    if "runtime_version" in loaded:
        return str(loaded["runtime_version"]) if loaded["runtime_version"] else None
    package = _DISTRIBUTION.get(loaded["runtime"], loaded["runtime"])
    return installed_versions([package]).get(package)
