"""Claims about the whole way to an aarch64 device, with its real wheels under QEMU: outputs count, times do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgekd.artifact import Artifact
from edgekd.cli import app
from edgekd.device_benchmarks import schedule
from edgekd.device_benchmarks.measurement import MeasurementSet
from edgekd.device_benchmarks.schedule import Schedule
from edgekd.errors import CheckError

pytestmark = [pytest.mark.slow, pytest.mark.runtime]


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch, brief: Schedule) -> None:
    """Two rounds: emulation is a few hundred times slower than a device."""
    shortest = brief.model_copy(update={"rounds": 2, "runs_min": 1, "warm_up_cap_s": 0.05})
    monkeypatch.setitem(schedule.MODES, "quick", shortest)


def devices_file(tmp_path: Path, address: str) -> Path:
    path = tmp_path / "devices.toml"
    path.write_text(f'[arm]\naddress = "{address}"\npython = "python3"\nenv = {{ PYTHONPATH = "/opt/py" }}\n')
    return path


def profiled(model: Path, file: Path) -> MeasurementSet:
    result = CliRunner().invoke(app, ["profile", str(model), "--on", "arm", "--devices", str(file), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["kind"] == "emulated"
    return MeasurementSet.model_validate(document)


def expect_emulated(found: MeasurementSet) -> None:
    (row,) = found.measurements
    state = row.provenance.host_start
    assert state.emulated
    assert state.kernel.endswith("aarch64")
    assert (row.kind, row.verdict) == ("emulated", "emulated")
    assert row.provenance.parity is not None
    assert row.provenance.parity.max_relative_error <= 1e-4
    with pytest.raises(CheckError, match="emulated times are no latency; measure on the device itself"):
        found.latency(row.name)


def test_a_model_runs_on_aarch64_over_ssh_with_the_outputs_of_x86(
    arm64: Path, arm64_sshd: Any, onnx_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKD_SSH", f"ssh -F {arm64_sshd.config}")
    found = profiled(onnx_artifact.path, devices_file(tmp_path, f"ssh://{arm64_sshd.user}@board"))
    expect_emulated(found)
    assert found.measurements[0].provenance.host_start.device_model == "Stand-in Model B Rev 1.0"
    assert list((arm64 / "tmp").glob("edgekd.*")) == []


def test_a_model_runs_on_aarch64_over_adb_with_the_outputs_of_x86(
    arm64: Path, phones: Callable[..., Any], tflite_file: Path, tmp_path: Path
) -> None:
    double, _ = phones(shell=["chroot", str(arm64), "/bin/sh", "-c"], at=arm64)
    expect_emulated(profiled(tflite_file, devices_file(tmp_path, f"adb:{double.serial}")))
    assert list((arm64 / "data/local/tmp").glob("edgekd.*")) == []


@pytest.fixture(scope="module")
def tflite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One convolution and one linear layer as `.tflite`, converted here."""
    import torch
    from torch import nn

    from edgekd.export import ExportRequest, export_one
    from edgekd.quant import export_float
    from edgekd.quant.program import save_program

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    folder = tmp_path_factory.mktemp("tflite")
    program = save_program(export_float(net.eval(), (1, 28, 28)), folder / "float.pt2")
    request = ExportRequest(target="tflite", precision="fp32", program=program, out=folder / "out")
    return export_one(request, log=folder / "log").path
