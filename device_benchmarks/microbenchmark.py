"""A device's own numbers, measured through its runtimes with the probes: peaks, bandwidth, overhead, efficiencies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from edgekd.artifact import Artifact, Frozen
from edgekd.device_benchmarks.contender import Contender, of_artifact
from edgekd.device_benchmarks.host import HostState
from edgekd.device_benchmarks.measure import Place, ThisHost, measure_all
from edgekd.device_benchmarks.measurement import MeasurementSet
from edgekd.device_benchmarks.probe_nets import (
    DENSE,
    DEPTHWISE,
    FLOAT,
    INT8,
    LONG_CHAIN,
    ORDINARY,
    SHORT_CHAIN,
    Probe,
    write_bandwidth,
    write_probe,
)
from edgekd.device_benchmarks.schedule import Schedule
from edgekd.errors import CheckError

BRIEF = Schedule(
    name="quick",
    processes=1,
    rounds=6,
    block_s=0.05,
    runs_min=64,
    block_runs_max=200,
    contender_cap_s=6,
    warm_up_s=0.2,
    warm_up_cap_s=1.5,
)
BANDWIDTH_MIB = 128
RUNTIMES = ("onnxruntime", "openvino")


class RuntimeFigures(Frozen):
    """One runtime on the device. Rates in 1e9 operations (a multiply-add is two) or bytes per second, overhead in us.

    int8_gops: None where its int8 networks failed there. p90_over_p50: of the ordinary convolutions.
    """

    target: str
    version: str | None
    fp32_gflops: float
    int8_gops: float | None
    ordinary_gflops: float
    depthwise_gflops: float
    gb_per_s: float
    kernel_overhead_us: float
    p90_over_p50: float


class DeviceFigures(Frozen):
    """The device, and every runtime that ran there, the fastest on ordinary convolutions first.

    cautions: verdicts of probes that were not measured well.
    """

    host: HostState
    threads: int
    runtimes: tuple[RuntimeFigures, ...]
    failures: dict[str, str]
    cautions: tuple[str, ...] = ()


def measure_device(
    folder: Path,
    *,
    threads: int,
    place: Place | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    schedule: Schedule = BRIEF,
    bandwidth_mib: int = BANDWIDTH_MIB,
    on_progress: Callable[[str, float], None] | None = None,
) -> DeviceFigures:
    """Every probe in each of the runtimes (OpenVINO only where this host can write its files).

    folder: for the probes' files. bandwidth_mib: more than the device's caches hold.
    Raises: CheckError: an emulator, or no runtime that runs them. MissingExtraError: no onnx package here.
    """
    where: Place = place or ThisHost()
    found: list[RuntimeFigures] = []
    failures: dict[str, str] = {}
    state = where.state()
    cautions: list[str] = []
    if state.emulated:
        raise CheckError("an emulator says nothing about any device", where=where.name, fix="run it on the device")
    targets, bytes_read = _files(folder, bandwidth_mib, runtimes)
    for target, contenders in targets.items():
        measured = measure_all(
            contenders, mode=schedule, threads=threads, keep_going=True, place=where, on_progress=on_progress
        )
        failures |= {f"{target}, {name}": reason for name, reason in measured.failures.items()}
        cautions += [f"{target}, {r.name}: {r.verdict}" for r in measured.measurements if r.verdict != "valid"]
        found += list(_figures(target, measured, bytes_read))
    if not found:
        reason = next(iter(failures.values()), "no runtime")
        raise CheckError(f"no runtime ran the probes ({reason})", where=where.name, fix="install onnxruntime there")
    found.sort(key=lambda figures: -figures.ordinary_gflops)
    return DeviceFigures(
        host=state, threads=threads, runtimes=tuple(found), failures=failures, cautions=tuple(cautions)
    )


def _files(folder: Path, bandwidth_mib: int, runtimes: Sequence[str]) -> tuple[dict[str, list[Contender]], int]:
    """Contenders by runtime, and the bytes that the bandwidth probe reads."""
    named = {probe.name: write_probe(probe, folder / f"{_stem(probe)}.onnx") for probe in (*FLOAT, *INT8)}
    named["bandwidth"], bytes_read = write_bandwidth(folder / "bandwidth.onnx", mib=bandwidth_mib)
    made: dict[str, list[Contender]] = {}
    if "onnxruntime" in runtimes:
        made["onnxruntime"] = [_contender(name, path) for name, path in named.items()]
    if "openvino" in runtimes and find_spec("openvino") is not None:
        made["openvino"] = [_contender(name, _as_openvino(path)) for name, path in named.items()]
    return made, bytes_read


def _stem(probe: Probe) -> str:
    return probe.name.replace(" ", "-")


def _as_openvino(path: Path) -> Path:
    import openvino

    xml = path.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(path), xml, compress_to_fp16=False)
    return xml


def _contender(name: str, path: Path) -> Contender:
    from edgekd.runtimes import open_model_file

    artifact: Artifact = open_model_file(path)
    return of_artifact(artifact, name=name)


def _figures(target: str, measured: MeasurementSet, bytes_read: int) -> Iterator[RuntimeFigures]:
    """None where a float probe failed."""
    rows = {row.name: row for row in measured.measurements}
    if not {"bandwidth", *(probe.name for probe in FLOAT)} <= rows.keys():
        return
    ordinary = rows[ORDINARY.name]

    def gops(probe: Probe) -> float:
        return 2 * probe.work / rows[probe.name].p50_ms / 1e6

    chains = rows[LONG_CHAIN.name].p50_ms - rows[SHORT_CHAIN.name].p50_ms
    int8 = [gops(probe) for probe in INT8 if probe.name in rows]
    yield RuntimeFigures(
        target=target,
        version=ordinary.provenance.runtime_version,
        fp32_gflops=max(gops(probe) for probe in (*DENSE, ORDINARY)),
        int8_gops=max(int8) if int8 else None,
        ordinary_gflops=gops(ORDINARY),
        depthwise_gflops=gops(DEPTHWISE),
        gb_per_s=bytes_read / rows["bandwidth"].p50_ms / 1e6,
        kernel_overhead_us=max(0.0, 1e3 * chains / (LONG_CHAIN.layers - SHORT_CHAIN.layers)),
        p90_over_p50=max(1.0, (ordinary.p90_ms or ordinary.p50_ms) / ordinary.p50_ms),
    )
