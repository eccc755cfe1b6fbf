"""Write a program as one `.onnx` file at an opset the device accepts, and prove that it is at that opset.

Two ways lead there. From opset 18 on: torch's exporter of programs. Below 18 that exporter silently stays at 18 (torch
2.14, measured) and onnx.version_converter fails on every net tried, so the TorchScript exporter is used, with symbolics
for the q/dq operators: it writes opset 13 (IR 7) int8 graphs of exactly the program's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import ConversionError
from edgekd.export.describe import INPUT_NAME
from edgekd.export.io_forms import PixelAffine

if TYPE_CHECKING:
    import onnx
    from torch import nn
    from torch.export import ExportedProgram

QDQ_OPSET_MIN = 13  # first opset whose DequantizeLinear has a channel axis


def export_program(program: ExportedProgram, opset: int, *, outputs: Sequence[str]) -> onnx.ModelProto:
    """The program at `opset` (18 or later) through torch's program exporter; outputs: their names.

    Raises: ConversionError: the exporter chose another opset.
    """
    import torch

    exported = torch.onnx.export(
        program,
        args=(),
        dynamo=True,
        opset_version=opset,
        input_names=[INPUT_NAME],
        output_names=list(outputs),
        optimize=True,
        verbose=False,
    )
    if exported is None:
        raise ConversionError("torch.onnx.export gave no program")
    return finished(exported.model_proto, opset)


def export_traced(module: nn.Module, shape: Sequence[int], opset: int, *, outputs: Sequence[str]) -> onnx.ModelProto:
    """A module at `opset` (9 to 17) through the TorchScript exporter, constants folded, shapes fixed.

    outputs: their names.

    Raises: ConversionError: the exporter chose another opset.
    """
    import io

    import onnx
    import torch

    if opset >= QDQ_OPSET_MIN:
        _register_qdq_symbolics()
    stream: Any = io.BytesIO()  # torch takes a stream here, though its annotation knows paths only
    torch.onnx.export(
        module,
        (torch.zeros(tuple(shape)),),
        stream,
        dynamo=False,
        opset_version=opset,
        input_names=[INPUT_NAME],
        output_names=list(outputs),
        do_constant_folding=True,
    )
    model = onnx.load_model_from_string(stream.getvalue())
    _constants_to_initializers(model)
    return finished(model, opset)


def finished(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model with unused opset domains dropped, its IR version as low as its opset allows, and checked.

    Raises: ConversionError: its opset is not `opset`, or onnx's checker refuses it.
    """
    import onnx

    used = {node.domain for node in model.graph.node} | {""}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)
    require_opset(model, opset)
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"onnx's checker refuses the graph ({str(error).splitlines()[0][:200]})") from error
    return model


def require_opset(model: onnx.ModelProto, opset: int) -> None:
    """Raises: ConversionError: the model is not at `opset`; exporters change it without a word."""
    got = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if got != opset:
        raise ConversionError(f"the exporter wrote opset {got} where {opset} was asked for")


def require_ir(model: onnx.ModelProto, ir_version_max: int | None) -> None:
    """Raises: ConversionError: the model's IR version is above what the device reads."""
    if ir_version_max is not None and model.ir_version > ir_version_max:
        raise ConversionError(
            f"the graph has ONNX IR version {model.ir_version}, the device reads at most {ir_version_max}",
            fix="lower onnx_opset_max in the profile",
        )


def save(model: onnx.ModelProto, path: Path) -> Path:
    """One self-contained file."""
    import onnx

    onnx.save_model(model, str(path), save_as_external_data=False)
    return path


def to_half(model: onnx.ModelProto, opset: int, *, keep_io: bool) -> onnx.ModelProto:
    """Weights and compute in fp16; the input and output stay float32 where `keep_io`."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    halved = OnnxModel(convert_float_to_float16(model, keep_io_types=keep_io))
    # The converter appends its casts at the end; onnx's checker and TensorRT want every node after its inputs.
    halved.topological_sort(is_deterministic=True)
    return finished(halved.model, opset)


def fold_pixels(model: onnx.ModelProto, affine: PixelAffine) -> None:
    """Let the graph take uint8 pixels and normalise them: Cast, Mul, Add before whatever read the input. In place."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    normalised = f"{INPUT_NAME}_normalised"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == INPUT_NAME:
                node.input[index] = normalised
    names = {"scale": f"{INPUT_NAME}_scale", "offset": f"{INPUT_NAME}_offset"}
    for key, values in (("scale", affine.scale), ("offset", affine.offset)):
        column = np.array(values, dtype=np.float32).reshape(1, -1, 1, 1)
        model.graph.initializer.append(numpy_helper.from_array(column, names[key]))
    steps = [
        helper.make_node("Cast", [INPUT_NAME], [f"{INPUT_NAME}_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{INPUT_NAME}_float", names["scale"]], [f"{INPUT_NAME}_scaled"]),
        helper.make_node("Add", [f"{INPUT_NAME}_scaled", names["offset"]], [normalised]),
    ]
    for step in reversed(steps):
        model.graph.node.insert(0, step)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def _constants_to_initializers(model: onnx.ModelProto) -> None:
    """TensorRT 8 wants Clip bounds, scales and zero points as initializers, not as Constant nodes."""
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)


def _register_qdq_symbolics() -> None:
    """Teach the TorchScript exporter the operators of an int8 program (opset 13 and later)."""
    import torch

    register: Any = torch.onnx.register_custom_op_symbolic  # type: ignore[attr-defined]  # public, not in __all__
    symbolics = {
        "quantize_per_tensor": _quantize_per_tensor,
        "dequantize_per_tensor": _dequantize_per_tensor,
        "quantize_per_channel": _quantize_per_channel,
        "dequantize_per_channel": _dequantize_per_channel,
    }
    for name, symbolic in symbolics.items():
        register(f"quantized_decomposed::{name}", symbolic, QDQ_OPSET_MIN)


def _grid(g: Any, scale: Any, zero_point: Any) -> tuple[Any, Any]:
    """Scale and zero point as the constants that ONNX wants; torch traces them as Python numbers."""
    import torch

    return (
        g.op("Constant", value_t=torch.tensor(_number(scale, "f"), dtype=torch.float32)),
        g.op("Constant", value_t=torch.tensor(_number(zero_point, "i"), dtype=torch.int8)),
    )


def _number(value: Any, kind: str) -> Any:
    """A traced constant as a Python number; kind: "f" or "i"."""
    from torch.onnx import symbolic_helper

    read: Any = symbolic_helper._get_const
    return read(value, kind, "q/dq parameter")


def _quantize_per_tensor(g: Any, x: Any, scale: Any, zero_point: Any, *_: Any) -> Any:
    return g.op("QuantizeLinear", x, *_grid(g, scale, zero_point))


def _dequantize_per_tensor(g: Any, x: Any, scale: Any, zero_point: Any, *_: Any) -> Any:
    return g.op("DequantizeLinear", x, *_grid(g, scale, zero_point))


def _quantize_per_channel(g: Any, x: Any, scale: Any, zero_point: Any, axis: Any, *_: Any) -> Any:
    return g.op("QuantizeLinear", x, *_channel_grid(g, scale, zero_point), axis_i=_number(axis, "i"))


def _dequantize_per_channel(g: Any, x: Any, scale: Any, zero_point: Any, axis: Any, *_: Any) -> Any:
    return g.op("DequantizeLinear", x, *_channel_grid(g, scale, zero_point), axis_i=_number(axis, "i"))


def _channel_grid(g: Any, scale: Any, zero_point: Any) -> tuple[Any, Any]:
    from onnx import TensorProto

    return g.op("Cast", scale, to_i=TensorProto.FLOAT), g.op("Cast", zero_point, to_i=TensorProto.INT8)
