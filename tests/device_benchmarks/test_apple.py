"""Claims about Core ML away from a Mac: what the generated package holds, and which results are taken back.

Nothing here compiles Swift or runs Core ML: the results are made, after what `Bench.swift` prints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edgekd.artifact import Artifact
from edgekd.device_benchmarks.apple_package import TEMPLATES, AppleRun, _Device, _Process, import_result, write_package
from edgekd.device_benchmarks.comparison import compare_files
from edgekd.errors import CheckError, InputError
from edgekd.runtimes import open_model_file

from .test_profile_command import app


def made_run(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    samples = (2e6 * np.exp(0.01 * rng.normal(size=(24, 60)))).astype(int).tolist()
    return {
        "edgekd_apple_run": 1,
        "manifest": {
            "name": "tiny.mlpackage, coreml fp16",
            "precision": "fp16",
            "artifact_sha256": "ab",
            "input_shape": [1, 3, 32, 32],
            "input_sha256": "cd",
        },
        "compute_units": "all",
        "device": {
            "model": "iPhone16,1",
            "soc": "",
            "os_build": "Version 18.0 (Build 22A1)",
            "simulator": False,
            "active_cpus": 6,
            "memory_mib": 7480.0,
            "low_power_mode": False,
            "thermal_status": 0,
        },
        "process": {
            "compile_ms": 300.0,
            "load_ms": 350.0,
            "first_inference_ms": 9.0,
            "warm_up_ns": [2000000],
            "warm_up_converged": True,
            "footprint_mib": 40.5,
        },
        "blocks": [
            {"process": 0, "round": i // 2, "wall_ns": walls, "cpu_ns": [wall // 10 for wall in walls]}
            for i, walls in enumerate(samples)
        ],
        "parity": 0.001,
        "thermal_status_worst": 1,
        "placement": [
            {"name": "a", "op_type": "conv", "unit": "Neural Engine"},
            {"name": "b", "op_type": "softmax", "unit": "CPU"},
        ],
        **changes,
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def result(file: str = "result.json", **changes: Any) -> Path:
        (tmp_path / file).write_text(json.dumps(made_run(**changes)))
        return tmp_path / file

    return result


def test_a_phones_samples_become_the_same_figures_as_everywhere(write: Callable[..., Path]) -> None:
    found = import_result(write())
    (row,) = found.measurements
    assert (found.kind, row.verdict, row.n) == ("measured", "valid", 24 * 60)
    assert row.p50_ms == pytest.approx(2.0, rel=0.01)
    assert (row.load_ms, row.compile_ms, row.first_inference_ms, row.peak_rss_mib) == (350.0, 300.0, 9.0, 40.5)
    assert row.provenance.host_start.device_model == "iPhone16,1"
    assert row.provenance.host_end.thermal_status == 1


def test_waiting_for_the_neural_engine_is_no_contention_and_waiting_for_a_core_is(write: Callable[..., Path]) -> None:
    (engine,) = import_result(write()).measurements
    (cpu,) = import_result(write(compute_units="cpuOnly")).measurements
    assert (engine.provenance.cpu_clock, engine.verdict) == (False, "valid")
    assert (cpu.provenance.cpu_clock, cpu.verdict) == (True, "contended")


def test_placement_is_core_mls_own_plan(write: Callable[..., Path]) -> None:
    (row,) = import_result(write()).measurements
    assert row.layers is not None
    assert {part.unit: part.ops_share for part in row.layers.placement} == {"Neural Engine": 0.5, "CPU": 0.5}


def test_a_simulators_result_is_emulated(write: Callable[..., Path]) -> None:
    device = {**made_run()["device"], "simulator": True}
    assert import_result(write(device=device)).kind == "emulated"


def test_the_log_of_a_test_run_will_do_and_a_cut_one_will_not(tmp_path: Path) -> None:
    log = f"Test started\nEDGEKD-RESULT-BEGIN\n{json.dumps(made_run())}\nEDGEKD-RESULT-END\nTest passed\n"
    (tmp_path / "log.txt").write_text(log)
    assert import_result(tmp_path / "log.txt").measurements[0].n == 24 * 60
    (tmp_path / "log.txt").write_text(log[: len(log) // 2])
    with pytest.raises(InputError, match="is cut short: no EDGEKD-RESULT-END"):
        import_result(tmp_path / "log.txt")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"edgekd_apple_run": 2}, "edgekd_apple_run is 2, not 1"),
        ({"blocks": []}, "blocks: "),
        ({"blocks": [{"process": 0, "round": 0, "wall_ns": [], "cpu_ns": []}]}, "block 0 has no samples"),
        ({"blocks": [{"process": 0, "round": 0, "wall_ns": [-5], "cpu_ns": [1]}]}, "times that are not positive"),
        ({"surprise": 1}, "surprise: "),
    ],
)
def test_a_result_that_cannot_be_one_is_refused(
    write: Callable[..., Path], changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        import_result(write(**changes))


def test_no_speed_is_taken_from_a_model_that_computed_something_else(write: Callable[..., Path]) -> None:
    with pytest.raises(CheckError, match=r"outputs differ from those of edgekd's host by 0\.5 \(bar 0\.01\)"):
        import_result(write(parity=0.5))


def test_import_prints_the_table_and_its_json_is_what_compare_reads(write: Callable[..., Path], tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["--import", str(write())])
    assert "measured on iPhone16,1" in shown.stdout
    assert "on Neural Engine: 50% of 2 layers" in shown.stdout
    kept = CliRunner().invoke(app, ["--import", str(write()), "--json"])
    (tmp_path / "phone.json").write_text(kept.stdout)
    assert import_result(tmp_path / "phone.json") == import_result(write())
    (ratio,) = compare_files(tmp_path / "phone.json", tmp_path / "phone.json").ratios
    assert ratio.verdict == "no significant difference"


def test_the_package_prints_every_key_that_is_read_back() -> None:
    swift = (TEMPLATES / "Bench.swift").read_text()
    keys = {*AppleRun.model_fields, *_Device.model_fields, *_Process.model_fields, "wall_ns", "cpu_ns", "round"}
    assert {key for key in keys if not re.search(rf'"{key}"(: |\])', swift)} == set()


def test_options_that_do_not_go_together_are_one_line(onnx_artifact: Artifact, tmp_path: Path) -> None:
    onnx = str(onnx_artifact.path)
    for arguments, match in (
        ([onnx, "--on", "apple-package"], "the package needs a folder; add --out DIR"),
        ([onnx, "--on", "apple-package", "--out", str(tmp_path / "p")], "only Core ML models run there"),
        ([onnx, "--import", onnx], "--import: shows a file and measures nothing"),
        ([], "no MODEL to measure"),
        (["--import", str(tmp_path / "absent")], "absent: no such file"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, InputError), arguments
        assert match in str(result.exception)


@pytest.mark.runtime
def test_a_package_holds_the_model_its_input_and_what_this_host_computes(tmp_path: Path) -> None:
    model = _tiny_mlpackage(tmp_path / "tiny.mlpackage")
    out = write_package(open_model_file(model), tmp_path / "package")
    resources = out / "Sources" / "EdgekdBench" / "Resources"
    assert np.fromfile(resources / "input.f32", np.float32).shape == (3 * 8 * 8,)
    assert np.fromfile(resources / "expected.f32", np.float32).shape == (4,)
    assert (resources / "Model.mlpackage" / "Manifest.json").is_file()
    package = (out / "Package.swift").read_text()
    for file in re.findall(r'\.copy\("(.*?)"\)', package):
        assert (out / "Sources" / "EdgekdBench" / file).exists(), file
    assert "expected.f32" in package
    with pytest.raises(InputError, match="exists and is not empty"):
        write_package(open_model_file(model), out)


def _tiny_mlpackage(path: Path) -> Path:
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 8, 8))], opset_version=ct.target.iOS16)
    def program(image: Any) -> Any:
        rng = np.random.default_rng(0)
        conv = mb.conv(x=image, weight=rng.standard_normal((4, 3, 3, 3)).astype(np.float32), pad_type="same")
        return mb.reduce_mean(x=mb.relu(x=conv), axes=[2, 3], keep_dims=False, name="logits")

    ct.convert(program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16).save(str(path))
    return path
