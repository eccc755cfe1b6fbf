"""Core ML on a device that is not attached: a Swift package that measures there, and its result read back here.

The package was never run: no Apple device was at hand. What it prints is raw samples; the figures are made here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from edgekd.artifact import Artifact, Frozen
from edgekd.device_benchmarks.comparison import parse_result
from edgekd.device_benchmarks.host import HostState
from edgekd.device_benchmarks.layers import LayerProfile, LayerTime, layer_profile
from edgekd.device_benchmarks.loading import example_image, image_shape
from edgekd.device_benchmarks.measurement import Block, MeasurementSet, Parity, ProcessFacts, Provenance
from edgekd.device_benchmarks.summary import summarise
from edgekd.errors import CheckError, InputError
from edgekd.files import sha256_of, write_json, write_text

TEMPLATES = Path(__file__).parent / "apple"
BEGIN, END = "EDGEKD-RESULT-BEGIN", "EDGEKD-RESULT-END"
PARITY_BAR = 1e-2  # fp16 engines, whatever the file's precision


class Manifest(Frozen):
    """What the package is about, written here and carried back by the result."""

    name: str
    precision: str
    artifact_sha256: str
    input_shape: tuple[int, ...]
    input_sha256: str


class _Device(Frozen):
    model: str
    soc: str
    os_build: str
    simulator: bool
    active_cpus: int = Field(ge=1)
    memory_mib: float
    low_power_mode: bool
    thermal_status: int


class _Process(Frozen):
    compile_ms: float = Field(ge=0)
    load_ms: float = Field(ge=0)
    first_inference_ms: float = Field(ge=0)
    warm_up_ns: tuple[int, ...]
    warm_up_converged: bool
    footprint_mib: float | None


class _Placed(Frozen):
    name: str
    op_type: str
    unit: str


class AppleRun(Frozen):
    """What `Bench.swift` prints. placement: of Core ML's own plan, empty on systems that have none."""

    edgekd_apple_run: int
    manifest: Manifest
    compute_units: str
    device: _Device
    process: _Process
    blocks: tuple[Block, ...] = Field(min_length=1)
    parity: float | None
    thermal_status_worst: int
    placement: tuple[_Placed, ...]


def write_package(artifact: Artifact, out: Path) -> Path:
    """A Swift package with the model, one input and, where this host can compute them, the expected outputs.

    Raises: InputError: not a Core ML package, or the folder is there and not empty.
    """
    if artifact.target != "coreml":
        raise InputError("only Core ML models run there", where=artifact.path, fix="give a .mlpackage (edgekd export)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("exists and is not empty", where=out, fix="choose another --out")
    source, tests = out / "Sources" / "EdgekdBench", out / "Tests" / "EdgekdBenchTests"
    resources = source / "Resources"
    for folder in (resources, tests):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(artifact.path, resources / "Model.mlpackage")
    spec = artifact.inputs[0]
    image = example_image(image_shape(spec), spec.holds)
    (resources / "input.f32").write_bytes(image.tobytes())
    manifest = Manifest(
        name=f"{artifact.path.name}, coreml {artifact.precision}",
        precision=artifact.precision,
        artifact_sha256=artifact.sha256,
        input_shape=image.shape,
        input_sha256=sha256_of(resources / "input.f32"),
    )
    write_json(resources / "manifest.json", manifest.model_dump(mode="json"))
    expected = _expected(artifact, image)
    if expected is not None:
        (resources / "expected.f32").write_bytes(expected.tobytes())
    declared = "" if expected is None else '.copy("Resources/expected.f32"),'
    package = (TEMPLATES / "Package.swift").read_text(encoding="utf-8").replace("// EXPECTED", declared)
    write_text(out / "Package.swift", package)
    shutil.copy(TEMPLATES / "Bench.swift", source)
    shutil.copy(TEMPLATES / "BenchTests.swift", tests)
    shutil.copy(TEMPLATES / "README.md", out)
    return out


def _expected(artifact: Artifact, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """The only output as this host computes it (off a Mac the graph is interpreted); None where it cannot."""
    from edgekd.runtimes import open_session

    if len(artifact.outputs) != 1:
        return None
    try:
        session = open_session(artifact)
        return session.read(session.invoke(session.feed(image)))
    except InputError:  # an operator that the interpreter does not know: the speed can still be measured
        return None


def import_result(path: Path) -> MeasurementSet:
    """A result from elsewhere: what the Swift package printed (alone or within its log), or `edgekd profile --json`.

    Raises: InputError: neither; or the samples are not such. CheckError: it computed something else than this host.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError("no such file", where=path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"not a text ({error})", where=path) from error
    if BEGIN in text:
        if END not in text:
            raise InputError(f"is cut short: no {END}", where=path, fix="save the whole log")
        text = text.rpartition(BEGIN)[2].partition(END)[0]
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(f"not a JSON document ({error})", where=path) from error
    if isinstance(document, dict) and "edgekd_apple_run" in document:
        return _of_apple(document, path)
    return parse_result(document, where=path)


def _of_apple(document: dict[str, Any], path: Path) -> MeasurementSet:
    if document["edgekd_apple_run"] != 1:
        version = document["edgekd_apple_run"]
        raise InputError(f"edgekd_apple_run is {version!r}, not 1", where=path, fix="generate the package again")
    try:
        run = AppleRun.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", where=path) from error
    for number, block in enumerate(run.blocks):
        if len(block.wall_ns) != len(block.cpu_ns) or not block.wall_ns or min(block.wall_ns) <= 0:
            raise InputError(f"block {number} has no samples, or times that are not positive", where=path)
    if run.parity is not None and run.parity > PARITY_BAR:
        what = f"its outputs differ from those of edgekd's host by {run.parity:.2g} (bar {PARITY_BAR:g})"
        raise CheckError(what, where=path, fix="no speed is taken from it: export the model again")
    return _measured(run)


def _measured(run: AppleRun) -> MeasurementSet:
    by_cpu = run.compute_units == "cpuOnly"
    # An engine that computes while the CPU waits is no contention: elsewhere than on the CPU its clock says nothing.
    blocks = [block if by_cpu else block.model_copy(update={"cpu_ns": block.wall_ns}) for block in run.blocks]
    facts = ProcessFacts(
        import_ms=0.0,
        **run.process.model_dump(exclude={"footprint_mib"}),
        peak_rss_mib=run.process.footprint_mib,
        model_rss_mib=None,
        pss_mib=None,
    )
    note = f"imported; Core ML, compute units {run.compute_units}; memory is the footprint at the end"
    row = summarise(run.manifest.name, blocks, [facts], _provenance(run, by_cpu=by_cpu), note=note)
    return MeasurementSet(
        kind=row.kind,
        mode="standard",
        seconds=sum(sum(block.wall_ns) for block in blocks) / 1e9,
        measurements=(row.model_copy(update={"layers": _layers(run)}),),
        ratios=(),
        failures={},
    )


def _provenance(run: AppleRun, *, by_cpu: bool) -> Provenance:
    start = _state(run)
    parity = Parity(max_relative_error=run.parity or 0.0, bar=PARITY_BAR, holds=True, against="edgekd's host")
    return Provenance(
        device=run.device.model,
        runtime="coreml",
        runtime_version=run.device.os_build,
        executed="runtime",
        threads=1,
        affinity=(),
        input_shape=run.manifest.input_shape,
        input_sha256=run.manifest.input_sha256,
        artifact_sha256=run.manifest.artifact_sha256,
        mode="standard",
        seed=0,
        processes=1,
        command=f"BenchTests.testMeasure, compute units {run.compute_units}",
        host_start=start,
        host_end=start.model_copy(update={"thermal_status": run.thermal_status_worst}),
        parity=None if run.parity is None else parity,
        cpu_clock=by_cpu,
        precision=f"{run.manifest.precision}, {run.compute_units}",
    )


def _state(run: AppleRun) -> HostState:
    device = run.device
    return HostState(
        cpu_model=device.soc or device.model,
        logical_cpus=device.active_cpus,
        usable_cpus=device.active_cpus,
        governor=None,
        frequency_mhz=None,
        load_average=None,
        temperatures_c={},
        cpu_steal_s=None,
        kernel=f"Darwin {device.os_build}",
        python="",
        versions={},
        memory_mib=device.memory_mib,
        device_model=device.model,
        soc=device.soc or None,
        os_build=device.os_build,
        power_mode="low power" if device.low_power_mode else "normal",
        thermal_status=device.thermal_status,
        emulated=device.simulator,
    )


def _layers(run: AppleRun) -> LayerProfile | None:
    if not run.placement:
        return None
    rows = [LayerTime(name=row.name, op_type=row.op_type, unit=row.unit) for row in run.placement]
    return layer_profile(rows, source="Core ML's MLComputePlan (preferred devices)", runs=0)
