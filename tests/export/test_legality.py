"""What a runtime refuses is judged by what exporters write: the table of names against the operators of real files."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.artifact import Artifact
from edgekd.export import ExportRequest, export_one
from edgekd.latency import cost_of_file, trace_cost
from edgekd.profile import RuntimeSupport, load_profile
from edgekd.profile.operators import vocabulary_of
from edgekd.quant import export_float, ptq, save_program
from edgekd.students.network import SqueezeExcite
from edgekd.targets import quant_spec_for
from edgekd.targets.legality import misfits, written

pytestmark = pytest.mark.runtime

# In a file but of no operator of the network's own: types, shapes, grids, and what XNNPACK's layout needs.
GLUE = {
    "onnx": "Cast Constant Identity Shape Reshape QuantizeLinear DequantizeLinear Flatten",
    "tflite": "QUANTIZE DEQUANTIZE TRANSPOSE RESHAPE BROADCAST_TO",
    "openvino": "Parameter Constant Result Convert Reshape",
    "mil": "const cast quantize dequantize constexpr_blockwise_shift_scale constexpr_affine_dequantize",
}
# What the converter has folded into the operator before it.
FOLDED = {"onnx": "", "openvino": "", "tflite": "RELU RELU6 ADD", "mil": "add"}
CASES = [
    ("jetson-nano", "tensorrt", "fp16"),
    ("jetson-xavier-nx", "tensorrt", "fp16"),
    ("raspberry-pi-5", "onnxruntime", "int8"),
    ("raspberry-pi-5", "tflite", "fp32"),
    ("raspberry-pi-5", "tflite", "int8"),
    ("iphone-12", "coreml", "fp16"),
    ("x86-avx2", "openvino", "fp32"),
]


class Everything(nn.Module):
    """The operators whose form depends on opset, precision or runtime, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(), SqueezeExcite(16))
        self.norms = nn.ModuleList([nn.LayerNorm([16, 8, 8]), nn.GroupNorm(4, 16)])
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.depthwise(self.stem(image))
        x = functional.gelu(self.norms[0](x))
        x = functional.mish(self.norms[1](x)) + x
        return self.head(functional.silu(x).mean((2, 3)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Everything().eval()


def exported(module: nn.Module, profile: str, target: str, precision: str, folder: Path) -> Artifact:
    device = load_profile(profile)
    device = device.model_copy(update={"runtimes": (device.runtime(target),)})
    float_program = export_float(module, (3, 8, 8))
    if precision == "int8":
        float_program = ptq(module, [torch.randn(8, 3, 8, 8)], quant_spec_for(target))
    program = save_program(float_program, folder / "program.pt2")
    request = ExportRequest(target=target, precision=precision, program=program, out=folder / "out", profile=device)
    return export_one(request, log=folder / "log")


def operators_in(artifact: Artifact, target: str) -> set[str]:
    path = Path(artifact.path)
    if target == "coreml":
        from coremltools.models.utils import load_spec

        (function,) = load_spec(str(path)).mlProgram.functions.values()
        (block,) = function.block_specializations.values()
        return {operation.type for operation in block.operations}
    if target == "openvino":
        import openvino

        return {op.get_type_name() for op in openvino.Core().read_model(str(path)).get_ops()}
    if target == "tflite":
        return set(cost_of_file(path).operators)
    file = path / "model.onnx" if target == "tensorrt" else path
    return {node.op_type for node in onnx.load(str(file)).graph.node}


@pytest.mark.parametrize(("profile", "target", "precision"), CASES)
def test_files_have_the_operators_that_the_table_says(
    profile: str, target: str, precision: str, tmp_path: Path
) -> None:
    runtime = load_profile(profile).runtime(target)
    found = operators_in(exported(network(), profile, target, precision, tmp_path), target)
    kinds = trace_cost(network(), (1, 3, 8, 8)).operators
    told = {kind: written(kind, runtime, precision) for kind in kinds}  # type: ignore[arg-type]
    vocabulary = vocabulary_of(target)
    assert found - set().union(*told.values()) <= set(GLUE[vocabulary].split())
    alternatives = {kind: names for kind, names in told.items() if kind in ("mean", "hardtanh", "split", "view")}
    assert all(names & found for names in alternatives.values()) or vocabulary != "onnx"
    certain = set().union(*(names for kind, names in told.items() if kind not in alternatives))
    assert certain - found <= set(FOLDED[vocabulary].split())


class Mobile(nn.Module):
    """Hard swish, layer norm and gelu: what the Jetson Nano's parser does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Hardswish())
        self.norm = nn.LayerNorm([16, 8, 8])
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(functional.gelu(self.norm(self.stem(image))).mean((2, 3)))


def nano() -> RuntimeSupport:
    return load_profile("jetson-nano").primary


def test_what_the_nano_refuses_is_written_as_primitives_so_a_network_with_it_is_legal(tmp_path: Path) -> None:
    module = Mobile().eval()
    cost = trace_cost(module, (1, 3, 8, 8))
    assert {"hardswish", "native_layer_norm", "gelu"} <= set(cost.operators)
    assert misfits(cost.operators, nano(), "fp16") == ()
    file = Path(exported(module, "jetson-nano", "tensorrt", "fp16", tmp_path).path) / "model.onnx"
    in_file = cost_of_file(file)
    assert {"HardSigmoid", "Erf"} <= set(in_file.operators)
    assert misfits(in_file.operators, nano(), "fp16", vocabulary=in_file.vocabulary) == ()


def test_a_file_that_has_the_operator_itself_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.onnx"
    torch.onnx.export(Mobile().eval(), (torch.zeros(1, 3, 8, 8),), str(file), opset_version=17, dynamo=False)
    assert any(node.op_type == "HardSwish" for node in onnx.load(str(file)).graph.node)
    cost = cost_of_file(file)
    found = misfits(cost.operators, nano(), "fp16", vocabulary=cost.vocabulary)
    assert [(misfit.operator, misfit.to) for misfit in found] == [
        ("HardSwish", "refused"),
        ("LayerNormalization", "refused"),
    ]
