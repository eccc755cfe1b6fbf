"""Claims about `--layers`, placement and the torch runtimes: what the runtimes' own profilers tell of known graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgekd.artifact import Artifact
from edgekd.device_benchmarks import Contender, measure_all, of_artifact
from edgekd.device_benchmarks.contender import StudentModule, with_torch
from edgekd.device_benchmarks.energy import energy_per_run
from edgekd.device_benchmarks.layer_profilers import profile_layers
from edgekd.device_benchmarks.layer_runs import with_layers
from edgekd.device_benchmarks.layers import LayerTime, layer_profile
from edgekd.device_benchmarks.process import Worker
from edgekd.errors import InputError
from edgekd.runtimes import open_model_file

from .test_measure import BRIEF
from .test_profile_command import app

CONV_MACS, LINEAR_MACS = 28 * 28 * 8 * 9, 80


@pytest.fixture
def student(tmp_path: Path) -> Contender:
    """A student with random weights, as a PyTorch module."""
    from safetensors.torch import save_file

    from edgekd.students import StudentSpec, build
    from edgekd.students.spec import StageSpec

    stage = StageSpec(channels=8, depth=1, stride=2)
    spec = StudentSpec(image_size=28, in_channels=1, num_classes=10, stem_channels=8, stages=(stage,), head_channels=16)
    (tmp_path / "student.json").write_text(spec.model_dump_json())
    save_file(build(spec).state_dict(), tmp_path / "student.safetensors")
    source = StudentModule(spec_file=tmp_path / "student.json", weights=tmp_path / "student.safetensors")
    return Contender(name="student, torch fp32 eager", source=source)


def test_onnx_runtimes_profiler_names_every_kernel_with_its_time_and_macs(onnx_artifact: Artifact) -> None:
    found = profile_layers(of_artifact(onnx_artifact), threads=1, runs=3)
    assert sum(layer.macs for layer in found.layers) == CONV_MACS + LINEAR_MACS
    assert all(layer.time_ms is not None for layer in found.layers)
    assert [layer.macs for layer in found.layers if layer.op_type == "Conv"] == [CONV_MACS]
    (cpu,) = found.placement
    assert (cpu.unit, cpu.ops_share, cpu.macs_share, cpu.time_share) == ("CPU", 1.0, 1.0, 1.0)


@pytest.mark.runtime
def test_openvinos_counters_name_the_kernels_that_ran(onnx_artifact: Artifact, tmp_path: Path) -> None:
    import openvino

    openvino.save_model(openvino.convert_model(onnx_artifact.path), tmp_path / "tiny.xml", compress_to_fp16=False)
    found = profile_layers(of_artifact(open_model_file(tmp_path / "tiny.xml")), threads=1, runs=3)
    assert sum(layer.macs for layer in found.layers) == CONV_MACS + LINEAR_MACS
    (conv,) = (layer for layer in found.layers if layer.op_type == "Convolution")
    assert conv.kernel
    assert (conv.time_ms or 0) >= 0


def test_eager_torch_is_told_by_leaf_module_in_calling_order(student: Contender) -> None:
    found = profile_layers(student, threads=1, runs=2)
    assert "leaf module" in found.source
    assert found.layers[0].op_type == "Conv2d"
    assert found.layers[-1].op_type == "Linear"
    assert found.layers[0].macs == 14 * 14 * 8 * 9 or found.layers[0].macs == 28 * 28 * 8 * 9
    assert all((layer.time_ms or 0) > 0 for layer in found.layers)


def test_what_no_profiler_tells_is_none_and_no_zero() -> None:
    untold = [LayerTime(name=name, op_type="x", unit=unit) for name, unit in (("a", "CPU"), ("b", "GPU"), ("c", "CPU"))]
    found = layer_profile(untold, source="made", runs=0)
    assert [(part.unit, part.ops) for part in found.placement] == [("CPU", 2), ("GPU", 1)]
    assert all((part.macs_share, part.time_share) == (None, None) for part in found.placement)


def test_layers_are_profiled_in_a_process_of_their_own_after_the_timing(onnx_artifact: Artifact) -> None:
    contender = of_artifact(onnx_artifact, name="tiny")
    measured = measure_all([contender], mode=BRIEF)
    (row,) = with_layers(measured, [contender], threads=1).measurements
    assert row.layers is not None
    assert row.layers.runs == 20
    assert row.blocks == measured.measurements[0].blocks


@pytest.mark.slow
def test_torch_compile_is_a_runtime_of_its_own_whose_compiling_is_told_apart(student: Contender) -> None:
    eager, compiled = with_torch(student, "both")
    assert [c.name for c in (eager, compiled)] == ["student, torch fp32 eager", "student, torch fp32 compile"]
    with Worker(compiled, threads=1) as worker:
        worker.prepared()
        loaded = worker.load()
    assert 0 < loaded["compile_ms"] < loaded["load_ms"]
    assert loaded["first_inference_ms"] < loaded["compile_ms"]


def test_a_file_is_no_torch_module_and_stays_as_it_is(onnx_contender: Contender) -> None:
    assert with_torch(onnx_contender, "both") == [onnx_contender]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--torch", "jit"], "--torch: no torch 'jit'; known: both, compile, eager"),
        (["--on", "ssh://a@b", "--torch", "both"], "--torch: a device runs exported files"),
        (["--on", "ssh://a@b", "--layers"], "--layers: layers are profiled on this host only"),
    ],
)
def test_what_only_this_host_can_do_is_refused_elsewhere(arguments: list[str], match: str) -> None:
    result = CliRunner().invoke(app, ["timm:resnet18", *arguments])
    assert isinstance(result.exception, InputError)
    assert match in str(result.exception)


def _package(root: Path, values: list[int], *, name: str = "package-0") -> Path:
    folder = root / "class" / "powercap" / "intel-rapl:0"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
    (folder / "energy_uj").write_text(f"{values[0]}\n")
    return folder / "energy_uj"


def test_energy_is_what_running_adds_to_idling_across_a_wraparound(tmp_path: Path) -> None:
    """Made: idle at 10 mW, 20 mJ above that for each run, and a counter that starts again in between."""
    counter, now = _package(tmp_path, [900_000]), [0.0]

    def spend(seconds: float, extra_uj: int) -> None:
        now[0] += seconds
        spent = int(counter.read_text()) + round(seconds * 1e4) + extra_uj
        counter.write_text(str(spent % 1_000_000))

    found = energy_per_run(
        lambda: spend(0.5, 20_000), sys_root=tmp_path, clock=lambda: now[0], sleep=lambda s: spend(s, 0)
    )
    assert found.mj == pytest.approx(20.0, rel=0.01)
    assert found.note.startswith("RAPL, 1 package(s)")


def test_energy_is_none_with_the_reason_where_there_is_no_counter_or_it_is_not_readable(tmp_path: Path) -> None:
    assert energy_per_run(lambda: None, sys_root=tmp_path).note == "no energy sensor: this host has no RAPL counter"
    _package(tmp_path, [1]).write_text("garbage")
    found = energy_per_run(lambda: None, sys_root=tmp_path, sleep=lambda _: None)
    assert (found.mj, found.note) == (None, "RAPL cannot be read (ValueError)")
