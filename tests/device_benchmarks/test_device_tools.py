"""Claims about what vendors' tools print. The texts follow their documentation and source; none was recorded here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd.artifact import Artifact
from edgekd.device_benchmarks import Contender, android, benchmark_model, jetson, measure_all, of_artifact
from edgekd.device_benchmarks.devices import Device
from edgekd.device_benchmarks.schedule import Schedule
from edgekd.device_benchmarks.session import DeviceSession
from edgekd.device_benchmarks.transports import DeviceError, parse_device
from edgekd.device_benchmarks.transports.adb import parse_devices
from edgekd.errors import CheckError, InputError

# tensorflow/lite/tools/benchmark: an older build (no percentiles) and a newer one.
OLD = """STARTING!
Log parameter values verbosely: [0]
Loaded model /data/local/tmp/m.tflite
count=1 curr=81350

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=79449 curr=81350 min=77385 max=88213 avg=79732 std=1929

Inference timings in us: Init: 5685, First inference: 81350, Warmup (avg): 81350, Inference (avg): 79732
Memory footprint delta from the start of the tool (MB): init=5.0625 overall=11.4
"""
NEW = OLD.replace("std=1929", "std=1929 p5=77500 median=79100 p95=84000").replace("\n", "\nINFO: ")
OPS = """============================== Run Order ==============================
node type, first, avg_ms, %, cdf%, mem KB, times called, name
CONV_2D, 4.269, 4.269, 0.107%, 0.107%, 0, 1, [MobilenetV1/Conv2d_0/Relu6]:0
DEPTHWISE_CONV_2D, 2.136, 2.150, 0.054%, 0.161%, 0, 1, [MobilenetV1/Conv2d_1, depthwise]:1

============================== Summary by node type ==============================
Node type, count, avg_ms, avg %, cdf %, mem KB, times called
CONV_2D, 15, 52.1, 89.3%, 89.3%, 0, 15
"""
TEGRASTATS = {
    "JetPack 4": (
        "RAM 2448/3964MB (lfb 2x1MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
        "CPU [10%@1479,off,5%@1479,2%@1479] EMC_FREQ 3%@1600 GR3D_FREQ 76%@921 APE 25 PLL@38C CPU@41.5C "
        "PMIC@100C GPU@39C AO@45.5C thermal@40.25C POM_5V_IN 4420/3215 POM_5V_GPU 1234/600 POM_5V_CPU 807/700"
    ),
    "JetPack 6": (
        "11-21-2026 10:00:00 RAM 3000/7620MB (lfb 10x4MB) SWAP 0/3810MB (cached 0MB) "
        "CPU [0%@729,0%@729,11%@729,0%@729,off,off] GR3D_FREQ 5% cpu@45.156C soc2@44.4C tj@46C gpu@43.9C "
        "VDD_IN 4800mW/4800mW VDD_CPU_GPU_CV 480mW/500mW VDD_SOC 1400mW/1400mW"
    ),
}
TRTEXEC = """#!/bin/sh
# A stand-in for trtexec: it builds an empty engine and writes the times that it is told.
[ -f "$EDGEKD_BROKEN" ] && { echo "[E] Error[1]: no kernel"; echo "&&&& FAILED TensorRT.trtexec"; exit 1; }
for a in "$@"; do
  case $a in
    --saveEngine=*) : > "${a#*=}" ;;
    --loadEngine=*) [ -f "${a#*=}" ] || exit 9 ;;
    --iterations=*) n=${a#*=} ;;
    --exportTimes=*) times=${a#*=} ;;
  esac
done
echo "[11/21/2026-10:00:00] [I] TensorRT version: 8.2.1"
if [ -n "$times" ]; then
  { printf '['
    printf '{"startComputeMs": 1.5, "computeMs": 9.0, "latencyMs": 9.9},'
    i=0; while [ $i -lt "$n" ]; do
      printf '%s{"startComputeMs": %s, "computeMs": 1.5, "latencyMs": 1.75}' "$c" $((200 + i)); c=,; i=$((i + 1))
    done; printf ']'; } > "$times"
fi
echo "[I] GPU compute time is unstable, with coefficient of variance = 12%."
echo "&&&& PASSED TensorRT.trtexec [TensorRT v8201]"
"""


def test_benchmark_models_measured_line_is_read_and_its_warm_up_line_is_not() -> None:
    old, new = benchmark_model.parse_text(OLD), benchmark_model.parse_text(NEW)
    assert (old.runs, old.average_us, old.median_us, old.peak_mib) == (50, 79732, None, 11.4)
    assert (new.runs, new.median_us, new.p95_us) == (50, 79100, 84000)
    assert (new.init_us, new.first_us, new.warm_up_us) == (5685, 81350, 81350)


@pytest.mark.parametrize("text", ["", OLD.partition("Inference timings")[0], "ERROR: failed to load m.tflite"])
def test_a_result_of_benchmark_model_without_its_end_is_refused(text: str) -> None:
    with pytest.raises(
        CheckError, match=r"benchmark_model printed no result, but ended with: (nothing|count=50|ERROR: f)"
    ):
        benchmark_model.parse_text(text)


def test_the_op_profile_is_read_in_run_order_and_its_summaries_are_not() -> None:
    rows = benchmark_model.parse_profile_csv(OPS)
    assert [(row.kind, row.average_ms, row.calls) for row in rows] == [
        ("CONV_2D", 4.269, 1),
        ("DEPTHWISE_CONV_2D", 2.15, 1),
    ]
    with pytest.raises(CheckError, match="holds no operators; benchmark_model needs --enable_op_profiling=true"):
        benchmark_model.parse_profile_csv("nothing of the kind")


def test_benchmark_model_is_told_exactly_how_often_to_run() -> None:
    words = benchmark_model.arguments("./b", "m.tflite", threads=2, runs=7, warm_up_runs=1, mask="f0")
    assert words[:3] == ["taskset", "f0", "./b"]
    assert {"--num_runs=7", "--warmup_runs=1", "--min_secs=0", "--num_threads=2", "--graph=m.tflite"} <= set(words)


@pytest.mark.parametrize("version", TEGRASTATS)
def test_tegrastats_is_read_across_jetpacks(version: str) -> None:
    found = jetson.parse_tegrastats(TEGRASTATS[version])
    assert found.ram_mib in (2448, 3000)
    assert len(found.cpu_percent) == (4 if version == "JetPack 4" else 6)
    assert found.gpu_percent in (76, 5)
    assert {name.lower() for name in found.temperatures_c} >= {"cpu", "gpu"}
    assert found.rails_mw["POM_5V_IN" if version == "JetPack 4" else "VDD_IN"] in (4420, 4800)
    with pytest.raises(CheckError, match="not a line of tegrastats"):
        jetson.parse_tegrastats("tegrastats: command not found")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[]", "0 times are all of its warm-up"),
        ('[{"startComputeMs": 3, "latencyMs": 1}]', "1 times are all"),
        ("[{}]", "cannot be read .KeyError"),
        ("[", "cannot be read .JSONDecodeError"),
    ],
)
def test_trtexecs_times_without_a_measured_row_are_refused(text: str, match: str) -> None:
    with pytest.raises(CheckError, match=match):
        jetson.parse_times(text, warm_up_ms=200)


def test_trtexec_that_did_not_pass_is_quoted() -> None:
    log = "[I] Building\n[E] Error[4]: (Unnamed Layer* 3) unsupported\n&&&& FAILED TensorRT.trtexec"
    with pytest.raises(CheckError, match="trtexec did not pass: &&&& FAILED"):
        jetson.check_log(log)
    assert jetson.check_log("&&&& PASSED\n[W] * Throughput may be bound by Enqueue Time rather") == (
        "Throughput may be bound by Enqueue Time",
    )


def test_a_phones_state_is_read_from_its_shell() -> None:
    text = """prop ro.product.model Pixel 8
prop ro.soc.model Tensor G3
prop ro.build.fingerprint google/shiba/shiba:14/UD1A/1:user/release-keys
prop ro.serialno ABC
kernel Linux 5.15.110 aarch64
boot 1-2
load 1.5 1.2 1.0 2/900 3
memory MemTotal:        7731072 kB
cpu 0 160 300000 sched_pixel
cpu 4 498 402000 sched_pixel
cpu 8 1024 500000 sched_pixel
zone thermal_zone0 BIG 41000
  Thermal Status: 1
"""
    state = android.parse_state(text, machine="aarch64")
    assert (state.device_model, state.soc, state.thread_mask) == ("Pixel 8", "Tensor G3", (8,))
    assert (state.governor, state.frequencies_mhz["cpu4"]) == ("sched_pixel", 402.0)
    assert (state.temperatures_c, state.thermal_status) == ({"BIG/thermal_zone0": 41.0}, 1)
    assert state.serial_sha256 is not None
    assert "ABC" not in state.model_dump_json()
    assert android.parse_state("", machine="aarch64").cpu_model == "aarch64"
    assert android.parse_state("prop ro.kernel.qemu 1").emulated


def test_the_states_of_adb_are_read_with_their_models() -> None:
    text = (
        "* daemon started successfully\nList of devices attached\n"
        "R58M\tdevice usb:1-1 product:o1s model:SM_G991B device:o1s transport_id:1\n"
        "0123\tno permissions (missing udev rules? user is in the plugdev group); see [http://developer.android.com]\n"
        "127.0.0.1:5555\toffline transport_id:9\n\n"
    )
    rows = parse_devices(text)
    assert [(r.serial, r.state, r.model) for r in rows] == [
        ("R58M", "device", "SM G991B"),
        ("0123", "no permissions", ""),
        ("127.0.0.1:5555", "offline", ""),
    ]


@pytest.fixture
def kit(onnx_artifact: Artifact, tmp_path: Path) -> Contender:
    """A build kit as the exporter writes it, its build script shortened."""
    folder = tmp_path / "model.trtkit"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(onnx_artifact.path.read_bytes())
    (folder / "build.sh").write_text('#!/bin/sh\ncd "$(dirname "$0")"\nexec "$TRTEXEC" --saveEngine=model.plan\n')
    return of_artifact(onnx_artifact.model_copy(update={"target": "tensorrt", "path": folder}), name="kit")


def nano(tmp_path: Path) -> Device:
    """This host in a Jetson's place, with the stand-in for trtexec."""
    trtexec = tmp_path / "trtexec"
    trtexec.write_text(TRTEXEC)
    trtexec.chmod(0o755)
    parent = tmp_path / "nano"
    parent.mkdir()
    broken = {"EDGEKD_BROKEN": str(tmp_path / "broken")}
    address = parse_device("local")
    return Device(name="nano", address=address, trtexec=str(trtexec), folder=str(parent), env=broken)


def test_a_build_kit_is_built_and_timed_by_the_boards_own_trtexec(
    kit: Contender, tmp_path: Path, brief: Schedule
) -> None:
    with DeviceSession(nano(tmp_path)) as session:
        row = measure_all([kit], mode=brief, place=session).measurement("kit")
    assert row.p50_ms == pytest.approx(1.75), "latency of the measured rows, the warm-up's left out"
    assert row.provenance.runtime == "tensorrt"
    assert row.provenance.runtime_version == "8.2.1"
    assert not row.provenance.cpu_clock
    assert "GPU compute time is unstable" in row.note
    assert list((tmp_path / "nano").iterdir()) == []


def test_a_kit_that_does_not_build_names_the_reason(kit: Contender, tmp_path: Path, brief: Schedule) -> None:
    device = nano(tmp_path)
    (tmp_path / "broken").touch()
    with (
        pytest.raises(DeviceError, match=r"trtexec did not build the engine .*&&&& FAILED"),
        DeviceSession(device) as session,
    ):
        measure_all([kit], mode=brief, place=session)


def test_only_a_build_kit_goes_to_trtexec(onnx_artifact: Artifact, tmp_path: Path, brief: Schedule) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"")
    contender = of_artifact(onnx_artifact.model_copy(update={"target": "tensorrt", "path": engine}))
    with (
        pytest.raises(InputError, match=r"only a Jetson build kit .* can be measured by trtexec"),
        DeviceSession(nano(tmp_path)) as session,
    ):
        measure_all([contender], mode=brief, place=session)


def test_the_times_that_the_tests_write_are_trtexecs_json() -> None:
    rows = [{"startComputeMs": 500.0, "h2dMs": 0.1, "computeMs": 1.0, "d2hMs": 0.1, "latencyMs": 1.2}]
    assert jetson.parse_times(json.dumps(rows), warm_up_ms=500) == [1_200_000]
