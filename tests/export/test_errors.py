"""What a converter says of a graph it cannot take, in one line that names the operator."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekd.export import ExportRequest, export_all, torch_tensorrt
from edgekd.export.program import load
from edgekd.export.tensorrt import _opset
from edgekd.export.worker import _one_line
from edgekd.profile import HardwareProfile, load_profile
from edgekd.quant import export_float, save_program


class Bessel(nn.Module):
    """An operator that torch exports and no converter knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        return torch.special.bessel_j0(self.conv(image)).mean((2, 3))


@pytest.mark.runtime
def test_an_operator_that_a_converter_lacks_is_named_and_the_other_targets_go_on(tmp_path: Path) -> None:
    program = save_program(export_float(Bessel(), (3, 16, 16)), tmp_path / "bessel.pt2")
    requests = [
        ExportRequest(target=target, precision="fp32", program=program, out=tmp_path / target)
        for target in ("openvino", "tensorrt", "null")
    ]
    first, second, last = export_all(requests, tmp_path / "logs")
    assert (first.state, second.state, last.state) == ("failed", "failed", "exported")
    assert "No conversion rule found for operations: aten.special_bessel_j0.default; see export-" in first.reason
    assert "Exporting the operator 'aten::special_bessel_j0'" in second.reason


def test_the_line_that_names_what_is_missing_is_found_in_an_errors_causes() -> None:
    error = RuntimeError("Failed to convert.\nNext steps: ...")
    error.__cause__ = KeyError("step 3")
    error.__cause__.__cause__ = ValueError("\x1b[96mNo ONNX function found for <aten.erfinv>\x1b[0m")
    assert _one_line(error) == "RuntimeError: No ONNX function found for <aten.erfinv>"
    assert _one_line(RuntimeError("\n  bad shape  \nmore")) == "RuntimeError: bad shape"
    assert _one_line(RuntimeError()) == "RuntimeError"


def trt(version: str) -> HardwareProfile:
    nano = load_profile("jetson-nano")
    changed = nano.primary.model_copy(update={"version": version, "compute_capability": "8.7", "onnx_opset_max": 17})
    return nano.model_copy(update={"runtimes": (changed,)})


@pytest.mark.parametrize(("version", "opset"), [("8.5.2", 16), ("8.6.2", 17), ("10.3", 17)])
def test_layer_norms_are_decomposed_for_a_tensorrt_that_has_none(tmp_path: Path, version: str, opset: int) -> None:
    net = nn.Sequential(nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, 3))
    program = save_program(export_float(net, (3, 4, 4)), tmp_path / "norm.pt2")
    request = ExportRequest(
        target="tensorrt", precision="fp16", program=program, out=tmp_path / "o", profile=trt(version)
    )
    assert _opset(request, load(request)) == opset


def test_torch_tensorrt_gives_evidence_or_the_reason_why_not(tmp_path: Path) -> None:
    def said(source: str) -> str:
        (tmp_path / "trial.py").write_text(source)
        return torch_tensorrt.evidence(Path("p.pt2"), "fp16", command=(sys.executable, str(tmp_path / "trial.py")))

    assert torch_tensorrt.evidence(Path("p.pt2"), "int8").endswith("it reads no quantised programs of torch.export")
    assert "crashed with SIGABRT" in said("import os; os.abort()")
    assert "exited with status 1; RuntimeError: no driver" in said("raise RuntimeError('no driver')")
    wrote = 'import pathlib, sys\npathlib.Path(sys.argv[3]).write_text(\'{"line": "3 TensorRT engines"}\')'
    assert said(wrote) == "torch-tensorrt: 3 TensorRT engines"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the trial would run")
def test_without_a_gpu_the_trial_says_so(tmp_path: Path) -> None:
    assert torch_tensorrt.trial(tmp_path / "p.pt2", "fp16") == "installed, but there is no CUDA device"
