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
from edgekd.device_benchmarks.statistics import CLOCK_DISAGREEMENT, median
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
BURST_SHARE, SUSTAINED_SHARE = 20, 5  # its first twentieth, while the device is cool; its last fifth


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


class Heat(Frozen):
    """A long run of the ordinary convolutions: medians of its beginning, while the device was cool, and of its end.

    contended: it waited for cores that other programs had, which says nothing about heat.
    """

    target: str
    seconds: float
    burst_p50_ms: float
    sustained_p50_ms: float
    contended: bool

    @property
    def headroom(self) -> float | None:
        """1 less the hot device's speed over the cool one's; None where other work was in the way."""
        if self.contended:
            return None
        return max(0.0, 1 - self.burst_p50_ms / self.sustained_p50_ms)


class DeviceFigures(Frozen):
    """The device, and every runtime that ran there, the fastest on ordinary convolutions first.

    cautions: verdicts of probes that were not measured well. heat: None where no long run was asked for.
    """

    host: HostState
    threads: int
    runtimes: tuple[RuntimeFigures, ...]
    failures: dict[str, str]
    cautions: tuple[str, ...] = ()
    heat: Heat | None = None


def measure_device(
    folder: Path,
    *,
    threads: int,
    place: Place | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    schedule: Schedule = BRIEF,
    bandwidth_mib: int = BANDWIDTH_MIB,
    sustained_s: float | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> DeviceFigures:
    """Every probe in each of the runtimes (OpenVINO only where this host can write its files).

    folder: for the probes' files. bandwidth_mib: more than the device's caches hold. sustained_s: length of a last run
    that shows what heat does.
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
    ordinary = next(one for one in targets[found[0].target] if one.name == ORDINARY.name)
    heat = None if sustained_s is None else measure_heat(ordinary, seconds=sustained_s, threads=threads, place=where)
    return DeviceFigures(
        host=state, threads=threads, runtimes=tuple(found), failures=failures, cautions=tuple(cautions), heat=heat
    )


def measure_heat(contender: Contender, *, seconds: float, threads: int, place: Place) -> Heat:
    """One process that keeps the device busy for so long. Raises: CheckError: it fails there."""
    schedule = Schedule(
        name="sustained",
        processes=1,
        rounds=max(10, round(seconds / 2)),
        block_s=1,
        runs_min=64,
        block_runs_max=100_000,
        contender_cap_s=seconds,
        warm_up_s=0.1,
        warm_up_cap_s=1,
        separate_run=False,
    )
    (row,) = measure_all([contender], mode=schedule, threads=threads, place=place).measurements
    times_ms = [ns / 1e6 for block in row.blocks for ns in block.wall_ns]
    return Heat(
        target=row.provenance.runtime,
        seconds=sum(times_ms) / 1e3,
        burst_p50_ms=median(times_ms[: 1 + len(times_ms) // BURST_SHARE]),
        sustained_p50_ms=median(times_ms[-1 - len(times_ms) // SUSTAINED_SHARE :]),
        contended=row.wall_over_cpu > 1 + CLOCK_DISAGREEMENT,
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
