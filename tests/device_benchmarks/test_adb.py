"""Claims about devices over adb: Debian's own adb client against an adbd double that shows the faults of real phones.

`benchmark_model` is a shell script here that prints what Google's source prints; the tool itself was never run.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.artifact import Artifact
from edgekd.device_benchmarks import Contender, measure_all, of_artifact
from edgekd.device_benchmarks.android import ThermalGuard
from edgekd.device_benchmarks.devices import Device
from edgekd.device_benchmarks.fleet import chosen, look_around
from edgekd.device_benchmarks.schedule import Schedule
from edgekd.device_benchmarks.session import DeviceSession
from edgekd.device_benchmarks.transports import DeviceError, DeviceLostError
from edgekd.device_benchmarks.transports.adb import attached
from edgekd.errors import InputError

Left = Callable[[Path], bool]
Phones = Callable[..., Any]

BENCHMARK_MODEL = """#!/bin/sh
for a in "$@"; do case $a in --num_runs=*) n=${a#*=} ;; --graph=*) [ -f "${a#*=}" ] || exit 4 ;; esac; done
echo "INFO: Log parameter values verbosely: [0]"
echo "count=1 curr=81350"
echo "INFO: count=$n first=79449 curr=81350 min=77385 max=88213 avg=79732 std=1929 p5=77500 median=79000 p95=84000"
t="Inference timings in us: Init: 5685, First inference: 79449, Warmup (avg): 81350, Inference (avg): 79732"
echo "INFO: $t" >&2
echo "Memory footprint delta from the start of the tool (MB): init=5.1 overall=11.4"
echo "Overall peak memory footprint (MB) via periodic monitoring: 12.25"
"""


@pytest.fixture
def tflite_contender(onnx_artifact: Artifact, tmp_path: Path) -> Contender:
    """Any bytes: the double of `benchmark_model` only looks whether the file is there."""
    path = tmp_path / "a model'$(reboot).tflite"
    path.write_bytes(b"TFL3" * 100)
    return of_artifact(onnx_artifact.model_copy(update={"target": "tflite", "path": path}), name="tiny")


@pytest.fixture
def by_tool(tmp_path: Path) -> Callable[[Device], Device]:
    """The same phone, measured by Google's tool."""
    tool = tmp_path / "benchmark_model"
    tool.write_text(BENCHMARK_MODEL)
    return lambda device: device.model_copy(update={"benchmark_model": tool, "cpus": (0,)})


def put(double: Any, name: str, script: str) -> None:
    """A program on the phone's PATH."""
    path = double.adbd.root / "system/bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def temporary(device: Device) -> Path:
    return Path(device.folder)


def at_round(number: int, action: Callable[[], None]) -> Callable[[str, float], None]:
    done: list[str] = []

    def act(what: str, fraction: float) -> None:
        if what.endswith(f"round {number} of 4") and not done:
            done.append(what)
            action()

    return act


def test_a_phone_with_python_is_measured_like_any_device(
    phones: Phones, onnx_contender: Contender, brief: Schedule, nothing_left: Left
) -> None:
    double, device = phones(props={"ro.product.model": "Pixel Stand-in", "ro.serialno": "S3CR3T"})
    put(double, "dumpsys", "echo 'Thermal Status: 0'")
    with DeviceSession(device) as session:
        found = measure_all([onnx_contender], mode=brief, place=session)
    row = found.measurement("tiny")
    state = row.provenance.host_start
    assert (row.provenance.device, row.n >= 8) == ("phone", True)
    assert row.provenance.parity is not None
    assert row.provenance.parity.holds
    assert (state.device_model, state.soc, state.thermal_status) == ("Pixel Stand-in", "STANDIN-1", 0)
    assert "S3CR3T" not in found.model_dump_json(), "serial numbers only as a hash"
    assert nothing_left(temporary(device))


def test_a_phone_without_python_is_measured_by_benchmark_model(
    phones: Phones,
    tflite_contender: Contender,
    brief: Schedule,
    by_tool: Callable[[Device], Device],
    nothing_left: Left,
) -> None:
    double, device = phones()
    put(double, "dumpsys", "echo 'Thermal Status: 0'")
    with DeviceSession(by_tool(device)) as session:
        row = measure_all([tflite_contender], mode=brief, place=session).measurement("tiny")
    assert row.p50_ms == pytest.approx(79.0), "the median that the tool prints, not its mean or its warm-up"
    assert (row.load_ms, row.first_inference_ms) == (pytest.approx(5.685), pytest.approx(79.449))
    assert row.peak_rss_mib == 12.25
    assert row.p90_ms is None
    assert not row.provenance.cpu_clock
    assert "no single samples" in row.note
    assert any("taskset 1" in line and "benchmark_model" in line for line in double.adbd.log)
    assert nothing_left(temporary(device))


def test_a_hot_phone_is_waited_for_before_each_block(
    phones: Phones, tflite_contender: Contender, by_tool: Callable[[Device], Device]
) -> None:
    double, device = phones()
    heat = double.adbd.root / "heat"
    put(double, "dumpsys", f"echo 'Thermal Status: '$(cat '{heat}')")
    slept: list[float] = []

    def cool(seconds: float) -> None:
        slept.append(seconds)
        heat.write_text("0" if len(slept) == 2 else "1")

    with DeviceSession(by_tool(device)) as session:
        heat.write_text("2")
        ThermalGuard(session.remote, sleep=cool).settle()
        assert len(slept) == 2
        heat.write_text("3")
        with pytest.raises(DeviceError, match=r"phone: still throttles after 10 s \(thermal status 3\); let it cool"):
            ThermalGuard(session.remote, cap_s=10, sleep=lambda _: None).settle()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"faults": {"auth": "reject"}},
            "phone: it has not allowed this host to debug it; unlock it and accept the dialog",
        ),
        ({"state": "recovery"}, "phone: in state 'recovery', not booted into Android; adb reboot"),
        (
            {"features": ("cmd",)},
            "phone: its adb shell tells no exit status .Android 6 or older.; measure on Android 7",
        ),
        (
            {"faults": {"disk_bytes": 1000}},
            r"phone: device_\w+.py did not arrive: no space left on the device; free some",
        ),
        (
            {"faults": {"drop_after_sync_bytes": 2000}},
            r"phone: device_\w+.py did not arrive: (the connection broke|offline|not)",
        ),
        ({"faults": {"refuse_services": ("sync:",)}}, r"phone: device_\w+.py did not arrive"),
    ],
)
def test_a_phone_that_cannot_be_used_is_one_line_with_the_cure(
    phones: Phones, options: dict[str, Any], match: str, nothing_left: Left
) -> None:
    _, device = phones(**options)
    with pytest.raises(DeviceError, match=match) as caught, DeviceSession(device) as session:
        session.state()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert nothing_left(temporary(device))


def test_a_phone_that_answers_nothing_is_given_up(phones: Phones) -> None:
    _, device = phones(faults={"silent": True})
    with pytest.raises(DeviceError, match=r"phone: (offline: attached, and not answering|not attached|stalled)"):
        DeviceSession(device).__enter__()


def test_a_phone_that_is_not_there_is_named(adb_server: None) -> None:
    from edgekd.device_benchmarks.devices import device_of

    with pytest.raises(DeviceLostError, match="adb:R58M123: not attached; check the cable and USB debugging"):
        DeviceSession(device_of("adb:R58M123", {})).__enter__()


def test_a_stall_in_a_copy_ends_in_time(phones: Phones, tmp_path: Path, nothing_left: Left) -> None:
    _, device = phones(faults={"stall_after_sync_bytes": 1000})
    big = tmp_path / "big"
    big.write_bytes(bytes(200_000))
    with DeviceSession(device) as session:
        start = time.monotonic()
        with pytest.raises(DeviceLostError, match="phone: stalled: adb gave no answer within 2 s; replug it"):
            session.remote._link.push(big, f"{session.remote.folder}/big", timeout_s=2)
        assert time.monotonic() - start < 10
    assert nothing_left(temporary(device))


def test_a_program_for_another_processor_is_named(
    phones: Phones, tflite_contender: Contender, brief: Schedule, tmp_path: Path, nothing_left: Left
) -> None:
    _, device = phones()
    tool = tmp_path / "benchmark_model"
    tool.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x00" + bytes(100))  # RISC-V
    wrong = device.model_copy(update={"benchmark_model": tool})
    with (
        pytest.raises(DeviceError, match="phone: the program is made for another processor; use one for "),
        DeviceSession(wrong) as session,
    ):
        measure_all([tflite_contender], mode=brief, place=session)
    assert nothing_left(temporary(device))


def test_a_truncated_result_is_never_taken_for_one(
    phones: Phones, tflite_contender: Contender, brief: Schedule, tmp_path: Path, nothing_left: Left
) -> None:
    _, device = phones()
    tool = tmp_path / "benchmark_model"
    tool.write_text("\n".join(BENCHMARK_MODEL.splitlines()[:4]))
    with (
        pytest.raises(
            DeviceError, match=r"phone: benchmark_model printed no result, but ended with: count=1 curr=81350"
        ),
        DeviceSession(device.model_copy(update={"benchmark_model": tool})) as session,
    ):
        measure_all([tflite_contender], mode=brief, place=session)
    assert nothing_left(temporary(device))


def test_a_cable_that_is_pulled_in_a_run_loses_the_round_and_no_more(
    phones: Phones, onnx_contender: Contender, brief: Schedule, nothing_left: Left
) -> None:
    double, device = phones()
    with DeviceSession(device, reconnect_s=20) as session:
        found = measure_all([onnx_contender], mode=brief, place=session, on_progress=at_round(3, double.drop))
    assert [(b.process, b.round) for b in found.measurement("tiny").blocks] == [
        (p, r) for p, r in ((0, 0), (0, 1), (1, 2), (1, 3)) for _ in "AA"
    ]
    assert len(found.interruptions) == 1
    assert found.interruptions[0].startswith("phone: ")
    assert nothing_left(temporary(device))


def test_a_command_cut_by_the_cable_is_lost_although_adb_exits_with_0(phones: Phones, nothing_left: Left) -> None:
    double, device = phones()
    with DeviceSession(device) as session:
        threading.Timer(0.7, double.drop).start()
        with pytest.raises(DeviceLostError, match="phone: "):
            session.remote.run(["sh", "-c", "echo start; sleep 4; echo end"], timeout_s=10)
    assert nothing_left(temporary(device))


def test_two_phones_are_told_apart_and_listed(phones: Phones) -> None:
    _, first = phones("first", props={"ro.product.model": "One"})
    _, second = phones("second", props={"ro.product.model": "Two"})
    _, locked = phones("locked", faults={"auth": "reject"})
    for device in (first, second, locked):
        subprocess.run(["adb", "connect", device.address.serial], capture_output=True, check=True, timeout=20)
    assert {row.state for row in attached()} >= {"device", "unauthorized"}
    known = {"first": first, "second": second}
    states = {row.name: row for row in look_around(known)}
    assert states["first"].identity is not None
    assert states["first"].identity.device_model == "One"
    assert states["second"].identity is not None
    assert states["second"].identity.device_model == "Two"
    assert states[f"adb:{locked.address.serial}"].state == "unauthorized"
    assert states["local"].state == "ready"
    assert [d.name for d in chosen("all", known)] == ["first", "second"], "a locked phone is not measured"


def test_no_adb_is_a_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekd.device_benchmarks.devices import device_of

    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(InputError, match="adb:X: no program 'adb' on this host; install android-sdk-platform-tools"):
        DeviceSession(device_of("adb:X", {})).__enter__()
