"""Claims about `edgekd profiles new`: what a measured profile says, that it is a valid one, and how it is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edgekd.benchmarks.streams import STATE
from edgekd.commands.profiles import app
from edgekd.device_benchmarks.devices import Device
from edgekd.device_benchmarks.microbenchmark import DeviceFigures, Heat, RuntimeFigures, measure_device
from edgekd.device_benchmarks.new_profile import profile_toml
from edgekd.device_benchmarks.probe_nets import DENSE, DEPTHWISE, INT8, Probe, write_bandwidth, write_probe
from edgekd.device_benchmarks.schedule import Schedule
from edgekd.device_benchmarks.session import DeviceSession
from edgekd.errors import CheckError, InputError
from edgekd.profile import load_profile
from edgekd.runtimes import op_report, open_model_file

from .test_measure import Flaky

TINY = Schedule(
    name="quick",
    processes=1,
    rounds=2,
    block_s=0.005,
    runs_min=4,
    block_runs_max=5,
    contender_cap_s=1,
    warm_up_s=0.01,
    warm_up_cap_s=0.1,
)


def runtime(**changes: Any) -> RuntimeFigures:
    figures = {
        "target": "onnxruntime",
        "version": "1.23",
        "fp32_gflops": 50.0,
        "int8_gops": 200.0,
        "ordinary_gflops": 40.0,
        "depthwise_gflops": 10.0,
        "gb_per_s": 12.0,
        "kernel_overhead_us": 1.5,
        "p90_over_p50": 1.05,
    }
    return RuntimeFigures.model_validate({**figures, **changes})


def figures(*runtimes: RuntimeFigures, **changes: Any) -> DeviceFigures:
    host = STATE.model_copy(update={"cpu_model": 'Cortex "A76"', "memory_mib": 8064.0, "device_model": None})
    made = DeviceFigures(host=host, threads=4, runtimes=runtimes or (runtime(),), failures={})
    return made.model_copy(update=changes)


def profile_of(found: DeviceFigures, flags: frozenset[str] = frozenset()) -> tuple[Any, str]:
    return profile_toml("board", found, transport="ssh", flags=flags, date="2026-01-02")


def test_a_measured_profile_is_one_that_check_accepts_whatever_the_names_hold(tmp_path: Path) -> None:
    profile, text = profile_of(figures())
    (tmp_path / "board.toml").write_text(text)
    assert load_profile(str(tmp_path / "board.toml")) == profile
    assert CliRunner().invoke(app, ["check", str(tmp_path / "board.toml")]).exit_code == 0
    (unit,) = profile.units
    assert unit.confidence == "measured"
    assert (unit.peak_fp32_gflops, unit.peak_int8_gops, unit.dram_gb_per_s) == (50.0, 200.0, 12.0)
    assert (unit.efficiency, unit.depthwise_efficiency) == (0.8, 0.2)
    assert 'Cortex "A76"' in unit.source
    assert "assumed, not measured" in profile.budgets.why


def test_what_heat_took_becomes_the_headroom_with_its_source_and_contention_is_no_heat() -> None:
    heat = Heat(target="onnxruntime", seconds=300.0, burst_p50_ms=8.0, sustained_p50_ms=10.0, contended=False)
    budgets = profile_of(figures(heat=heat))[0].budgets
    assert budgets.thermal_headroom == pytest.approx(0.2)
    assert "8 ms cool, 10 ms at the end of 300 s" in budgets.evidence["thermal_headroom"].source
    busy, text = profile_of(figures(heat=heat.model_copy(update={"contended": True})))
    assert (busy.budgets.thermal_headroom, busy.budgets.evidence) == (0.0, {})
    assert "other programs had the cores" in text


def test_int8_is_preferred_only_where_it_was_measured_to_pay() -> None:
    slow, _ = profile_of(figures(runtime(int8_gops=55.0)))
    none, _ = profile_of(figures(runtime(int8_gops=None)))
    assert profile_of(figures())[0].quantisation.preferred_precision == "int8"
    assert slow.quantisation.preferred_precision == none.quantisation.preferred_precision == "fp32"
    assert "1.10x the fp32 rate" in slow.quantisation.why


def test_weights_have_seven_bits_on_x86_without_vnni() -> None:
    bits = [
        profile_of(figures(), frozenset(flags))[0].quantisation.weight_bits
        for flags in (["avx2"], ["avx2", "avx512_vnni"], ["asimddp"], [])
    ]
    assert bits == [7, 8, 8, 8]


def test_a_host_with_more_instructions_is_another_device() -> None:
    profile, _ = profile_of(figures(), frozenset(["avx2", "avx512f"]))
    assert profile.cpu_flags == ("avx2", "avx512f")
    assert profile.cpu_flags_absent == ("avx512_vnni", "avx_vnni", "amx_int8")


def test_the_peak_is_the_best_of_all_runtimes_and_failures_are_noted() -> None:
    two = figures(runtime(), runtime(target="openvino", fp32_gflops=80.0), failures={"openvino, dense int8": "no"})
    profile, _ = profile_of(two)
    assert profile.units[0].peak_fp32_gflops == 80.0
    assert [r.target for r in profile.runtimes] == ["onnxruntime", "openvino"]
    assert any("openvino, dense int8: no" in note for note in profile.notes)


@pytest.mark.parametrize("probe", [*DENSE, DEPTHWISE, *INT8], ids=lambda probe: probe.name)
def test_a_probe_does_the_work_that_it_is_rated_by(probe: Probe, tmp_path: Path) -> None:
    report = op_report(open_model_file(write_probe(probe, tmp_path / "probe.onnx")))
    assert report.macs == probe.work
    assert report.int8_macs == (probe.work if probe.int8 else 0)


def test_the_bandwidth_probe_reads_what_it_says(tmp_path: Path) -> None:
    path, bytes_read = write_bandwidth(tmp_path / "b.onnx", mib=2)
    assert bytes_read == 2 * 2**20
    assert path.stat().st_size == pytest.approx(bytes_read, rel=0.01)
    assert op_report(open_model_file(path)).macs == bytes_read // 4


@pytest.mark.slow
@pytest.mark.runtime
def test_every_figure_of_this_host_is_measured_and_makes_a_profile(tmp_path: Path) -> None:
    found = measure_device(tmp_path, threads=1, runtimes=("openvino",), schedule=TINY, bandwidth_mib=2, sustained_s=2)
    assert found.heat is not None
    assert found.heat.seconds > 1
    assert found.heat.sustained_p50_ms > 0
    assert [figure.target for figure in found.runtimes] == ["openvino"]
    assert found.failures == {}
    for figure in found.runtimes:
        rates = (figure.fp32_gflops, figure.int8_gops, figure.depthwise_gflops, figure.gb_per_s)
        assert all(rate and np.isfinite(rate) and rate > 0 for rate in rates)
    assert profile_of(found)[0].units[0].confidence == "measured"


@pytest.mark.slow
@pytest.mark.runtime
def test_a_board_over_ssh_is_measured_by_the_same_probes(board: Device, tmp_path: Path) -> None:
    with DeviceSession(board) as session:
        found = measure_device(
            tmp_path, threads=1, runtimes=("onnxruntime",), schedule=TINY, bandwidth_mib=1, place=session
        )
    assert [figure.target for figure in found.runtimes] == ["onnxruntime"]
    assert session.left_behind == ""


def test_an_emulator_makes_no_profile(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="an emulator says nothing about any device"):
        measure_device(tmp_path, threads=1, bandwidth_mib=1, place=Flaky(breaks_at=(), emulated=True))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["new", "../x"], "letters, digits, - and _ only"),
        (["new", "x", "--on", "adb:SERIAL"], "measured here or over ssh"),
        (["new", "x", "--on", "nowhere"], "no device 'nowhere'"),
    ],
)
def test_a_name_or_device_that_will_not_do_is_refused_before_measuring(
    arguments: list[str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    assert match in str(result.exception)


def test_a_profile_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("mine")
    result = CliRunner().invoke(app, ["new", "x", "--out", str(tmp_path / "x.toml")])
    assert "is there already; choose another --out" in str(result.exception)
    assert (tmp_path / "x.toml").read_text() == "mine"
