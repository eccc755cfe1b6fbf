"""Claims about whole sessions: replayed ones for their logic, and one real A/A on this host."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgekd.artifact import Artifact
from edgekd.device_benchmarks import Contender, Replay, StudentModule, measure_all, of_artifact
from edgekd.device_benchmarks.host import HostState, host_state
from edgekd.device_benchmarks.measure import Runner, ThisHost, launch
from edgekd.device_benchmarks.measurement import MeasurementSet
from edgekd.device_benchmarks.process import Worker
from edgekd.device_benchmarks.schedule import Schedule
from edgekd.device_benchmarks.transports import DeviceLostError
from edgekd.errors import CheckError, InputError
from edgekd.pipeline.rows import measurements

BRIEF = Schedule(
    processes=2,
    rounds=3,
    block_s=0.01,
    runs_min=64,
    block_runs_max=50,
    contender_cap_s=2,
    warm_up_s=0.02,
    warm_up_cap_s=0.2,
)


def replayed(name: str, level_ms: float, *, seed: int = 0) -> Contender:
    samples = np.random.default_rng(seed).normal(level_ms * 1e6, level_ms * 2e4, 500).astype(int)
    return Contender(name=name, source=Replay(wall_ns=tuple(samples.tolist())))


class Recorder:
    """Launches replays and keeps the order in which blocks ran and who was closed."""

    def __init__(self, *, fail: str = "") -> None:
        self.blocks: list[str] = []
        self.closed: list[str] = []
        self._fail = fail

    def __call__(self, contender: Contender, threads: int, process: int) -> Runner:
        runner = launch(contender, threads, process)
        block, close = runner.block, runner.close

        def recorded_block(*, runs: int, lead_in: int, expected_s: float) -> dict[str, list[int]]:
            self.blocks.append(runner.name)
            if runner.name == self._fail and len(self.blocks) > 5:
                raise CheckError("its process died", where=f"contender '{runner.name}'")
            return block(runs=runs, lead_in=lead_in, expected_s=expected_s)

        def recorded_close() -> None:
            self.closed.append(runner.name)
            close()

        runner.block, runner.close = recorded_block, recorded_close  # type: ignore[method-assign]
        return runner


def test_a_replayed_session_gives_the_recorded_latency_and_ratio() -> None:
    found = measure_all([replayed("teacher", 6.0), replayed("student", 2.0, seed=1)], pairs=[("teacher", "student")])
    row, ratio = found.measurement("student"), found.ratio("teacher", "student")
    assert row.p50_ms == pytest.approx(2.0, rel=0.01)
    assert row.provenance.device == "null"
    assert row.verdict == "fallback", "a replay is not a measurement of this host"
    assert ratio is not None
    assert ratio.significant
    assert ratio.ratio == pytest.approx(3.0, rel=0.02)


def test_the_same_seed_gives_the_same_session() -> None:
    def session(seed: int) -> tuple[list[str], MeasurementSet]:
        recorder = Recorder()
        contenders = [replayed("a", 1.0), replayed("b", 1.1), replayed("c", 1.2)]
        return recorder.blocks, measure_all(contenders, pairs=[("a", "b")], seed=seed, place=ThisHost(recorder))

    (order, first), (again, second), (other, _) = session(1), session(1), session(2)
    assert order == again != other
    assert first.ratios == second.ratios


def test_blocks_of_all_contenders_interleave_in_every_round() -> None:
    recorder = Recorder()
    measure_all([replayed("a", 1.0), replayed("b", 1.0)], mode=BRIEF, place=ThisHost(recorder))
    timed, apart = recorder.blocks[:-2], recorder.blocks[-2:]
    assert apart == ["a", "b"], "memory is read in a run of its own, after all timing"
    rounds = [timed[i : i + 4] for i in range(0, len(timed), 4)]
    assert len(rounds) == 6
    assert all(r in (["a", "b", "b", "a"], ["b", "a", "a", "b"]) for r in rounds)


def test_each_of_several_processes_is_fresh_and_closed() -> None:
    recorder = Recorder()
    found = measure_all([replayed("a", 1.0)], processes=3, place=ThisHost(recorder))
    assert recorder.closed == ["a"] * 4, "three that time, and one for memory"
    assert found.measurement("a").cold_starts == 4
    assert len(found.measurement("a").processes) == 3
    assert {block.process for block in found.measurement("a").blocks} == {0, 1, 2}


def test_a_failing_contender_passes_its_error_up_and_all_are_closed() -> None:
    recorder = Recorder(fail="b")
    with pytest.raises(CheckError, match="contender 'b'"):
        measure_all([replayed("a", 1.0), replayed("b", 1.0)], place=ThisHost(recorder))
    assert sorted(recorder.closed) == ["a", "b"]


def test_with_keep_going_the_others_finish_and_the_failure_is_recorded() -> None:
    recorder = Recorder(fail="b")
    contenders = [replayed("a", 1.0), replayed("b", 1.0), replayed("c", 1.0)]
    found = measure_all(contenders, pairs=[("a", "b"), ("a", "c")], keep_going=True, place=ThisHost(recorder))
    assert [row.name for row in found.measurements] == ["a", "c"]
    assert found.failures == {"b": "contender 'b': its process died"}
    assert found.ratio("a", "b") is None
    assert found.ratio("a", "c") is not None
    with pytest.raises(InputError, match="its process died"):
        found.measurement("b")


def test_an_interrupt_reaps_every_process(onnx_contender: Contender) -> None:
    workers: list[Worker] = []

    def watched(contender: Contender, threads: int, process: int) -> Runner:
        workers.append(Worker(contender, threads=threads))
        return workers[-1]

    def interrupt(what: str, fraction: float) -> None:
        if "round" in what:
            raise KeyboardInterrupt

    other = onnx_contender.model_copy(update={"name": "other"})
    with pytest.raises(KeyboardInterrupt):
        measure_all([onnx_contender, other], mode=BRIEF, place=ThisHost(watched), on_progress=interrupt)
    assert len(workers) == 2
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker.pid, 0)


@pytest.mark.parametrize(
    ("names", "pairs", "match"),
    [
        ([], [], "no contenders"),
        (["a", "a"], [], "share a name: a, a"),
        (["teacher", "student"], [("teecher", "student")], "no contender 'teecher'.*did you mean 'teacher'"),
    ],
)
def test_a_session_that_makes_no_sense_is_refused(names: list[str], pairs: list[tuple[str, str]], match: str) -> None:
    with pytest.raises(InputError, match=match):
        measure_all([replayed(name, 1.0) for name in names], pairs=pairs)


def test_progress_only_goes_forward() -> None:
    fractions: list[float] = []
    measure_all([replayed("a", 1.0)], on_progress=lambda _, fraction: fractions.append(fraction))
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= 1 for fraction in fractions)


def test_a_real_session_tells_where_its_figures_come_from(onnx_artifact: Artifact) -> None:
    contenders = [of_artifact(onnx_artifact, name="a"), of_artifact(onnx_artifact, name="b")]
    found = measure_all(contenders, mode=BRIEF, pairs=[("a", "b")], command="edgekd profile tiny.onnx")
    row, ratio = found.measurement("a"), found.ratio("a", "b")
    assert row.n >= 64
    assert row.p90_ms is not None
    assert 0 < row.min_ms <= row.ci_lo_ms <= row.p50_ms <= row.ci_hi_ms
    assert row.load_ms > 0
    assert (row.peak_rss_mib or 0) > 1
    assert row.separate_run is not None
    assert row.peak_rss_mib == row.separate_run.peak_rss_mib
    assert row.cold_starts == 3
    assert row.compile_ms is None, "ONNX Runtime does not tell it apart"
    assert (row.energy_mj is None) == ("RAPL, " not in row.energy_note)
    assert row.provenance.artifact_sha256 == onnx_artifact.sha256
    assert row.provenance.command == "edgekd profile tiny.onnx"
    assert ratio is not None
    assert ratio.n_blocks == 6
    assert 0.2 < ratio.ratio < 5, "the same model against itself"
    assert MeasurementSet.model_validate_json(found.model_dump_json()) == found


@pytest.mark.slow
def test_an_eager_torch_student_against_itself(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from edgekd.students import StudentSpec, build
    from edgekd.students.spec import StageSpec

    stage = StageSpec(channels=16, depth=1, stride=2)
    spec = StudentSpec(
        image_size=28, in_channels=1, num_classes=10, stem_channels=16, stages=(stage,), head_channels=64
    )
    (tmp_path / "student.json").write_text(spec.model_dump_json())
    save_file(build(spec).state_dict(), tmp_path / "student.safetensors")
    source = StudentModule(spec_file=tmp_path / "student.json", weights=tmp_path / "student.safetensors")
    names = ["student", "itself"]
    found = measure_all(
        [Contender(name=name, source=source) for name in names],
        mode=BRIEF.model_copy(update={"processes": 1}),
        pairs=[("student", "itself")],
    )
    ratio = found.ratio("student", "itself")
    assert ratio is not None
    assert ratio.lo < ratio.ratio < ratio.hi
    assert 0.2 < ratio.ratio < 5
    assert found.measurement("student").provenance.runtime == "torch"


@dataclass
class Flaky:
    """A device made of recordings whose link breaks before the n-th blocks and comes back `returns` times."""

    breaks_at: tuple[int, ...]
    returns: int = 9
    emulated: bool = False
    blocks: int = 0
    name: str = "flaky"

    def launch(self, contender: Contender, threads: int, process: int, /) -> Runner:
        runner = launch(contender, threads, process)
        answer = runner.block

        def block(*, runs: int, lead_in: int, expected_s: float) -> dict[str, list[int]]:
            self.blocks += 1
            if self.blocks in self.breaks_at:
                raise DeviceLostError("the connection broke", where=self.name)
            return answer(runs=runs, lead_in=lead_in, expected_s=expected_s)

        runner.block = block  # type: ignore[method-assign]
        return runner

    def state(self) -> HostState:
        return host_state().model_copy(update={"emulated": self.emulated})

    def recover(self, error: DeviceLostError, /) -> None:
        self.returns -= 1
        if self.returns < 0:
            raise error


def test_a_lost_round_is_measured_again_in_fresh_processes_and_the_others_are_kept() -> None:
    place, contenders = Flaky(breaks_at=(7, 8, 11)), [replayed("a", 2.0), replayed("b", 1.0)]
    found = measure_all(contenders, mode=BRIEF, processes=1, pairs=[("a", "b")], place=place)
    assert len(found.interruptions) == 3
    assert found.partial is None
    for name in ("a", "b"):
        blocks = found.measurement(name).blocks
        assert [b.round for b in blocks] == [r for r in range(blocks[-1].round + 1) for _ in "AA"]
        assert len({b.process for b in blocks}) == len(found.measurement(name).processes)
    ratio = found.ratio("a", "b")
    assert ratio is not None
    assert ratio.ratio == pytest.approx(2.0, rel=0.05)


def test_a_device_that_stays_away_leaves_whole_rounds_and_says_so() -> None:
    found = measure_all([replayed("a", 1.0)], mode=BRIEF, place=Flaky(breaks_at=(6,), returns=0))
    assert found.partial == "flaky: the connection broke"
    assert [b.round for b in found.measurement("a").blocks] == [0, 0, 1, 1]
    with pytest.raises(DeviceLostError, match="flaky: the connection broke"):
        measure_all([replayed("a", 1.0)], mode=BRIEF, place=Flaky(breaks_at=(2,), returns=0))


def test_emulated_times_are_labelled_compared_with_nothing_and_refused_as_a_latency() -> None:
    contenders = [replayed("a", 1.0), replayed("b", 1.0)]
    found = measure_all(contenders, mode=BRIEF, pairs=[("a", "b")], place=Flaky(breaks_at=(), emulated=True))
    row = found.measurement("a")
    assert (found.kind, row.kind, row.verdict) == ("emulated", "emulated", "emulated")
    assert found.ratios == ()
    with pytest.raises(CheckError, match="a: emulated times are no latency; measure on the device itself"):
        found.latency("a")
    document = {"set": found.model_dump(mode="json")}
    with pytest.raises(CheckError, match="emulated times are no latency"):
        list(measurements(document, {"artifacts": []}, on_device=True))


@dataclass
class FailsApart:
    """A place that is lost once the timing is done."""

    processes: int
    launched: int = 0
    name: str = "far"

    def launch(self, contender: Contender, threads: int, process: int, /) -> Runner:
        self.launched += 1
        if self.launched > self.processes:
            raise DeviceLostError("the connection broke", where=self.name)
        return launch(contender, threads, process)

    def state(self) -> HostState:
        return host_state()

    def recover(self, error: DeviceLostError, /) -> None:
        raise error


def test_a_device_lost_before_the_separate_run_costs_that_run_alone() -> None:
    found = measure_all([replayed("a", 1.0)], mode=BRIEF, place=FailsApart(processes=2))
    row = found.measurement("a")
    assert (row.separate_run, row.peak_rss_mib, row.cold_starts) == (None, 1.0, 2)
    assert found.partial is None
    assert "memory is that of the timed processes" in found.interruptions[0]
    assert row.energy_note.startswith("not measured")
