"""ONNX Runtime: one `.onnx` file, fp32, fp16 or QDQ int8, at the newest opset that both the profile and edgekd know."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Artifact
from edgekd.errors import ConversionError
from edgekd.export.describe import describe, image_spec
from edgekd.export.io_forms import pixel_affine
from edgekd.export.onnx_file import (
    QDQ_OPSET_MIN,
    export_program,
    export_traced,
    fold_pixels,
    require_ir,
    save,
    to_half,
)
from edgekd.export.onnx_forms import channels_repeated, fine_softmaxes_in_float, gelus_of_codes, gelus_to_fuse
from edgekd.export.onnx_pool import pool_globally
from edgekd.export.onnx_weights import with_int8_weights
from edgekd.export.program import Source, load, rewritten, runnable
from edgekd.export.request import ExportRequest, RefusedError
from edgekd.targets.legality import PROGRAM_EXPORTER_OPSET
from edgekd.targets.onnxruntime import opset_for as opset_of_target

if TYPE_CHECKING:
    import onnx

TRACED_OPSET_MAX = 17
# Operators that pass int8 codes through unchanged, so that an unsigned code stays an unsigned code.
CODE_KEEPING = frozenset({"Reshape", "Transpose", "Flatten", "MaxPool", "Squeeze", "Unsqueeze", "Gather"})


def lower(request: ExportRequest) -> Artifact:
    """Write `model.onnx`.

    Raises: RefusedError: int8 for a device below opset 13. ConversionError: the opset or IR version missed.
    """
    source = load(request)
    opset = opset_for(request)
    model = _float_or_qdq(source, opset)
    notes = [f"opset {opset}"]
    if request.precision == "fp16":
        model = to_half(model, opset, keep_io=True)
        notes.append("fp16 weights and compute, float32 input and output")
    if request.precision == "int8":
        pool_globally(model)
        if gelus_of_codes(model):
            notes.append("GELU is ONNX Runtime's own operator")
        signed_to_unsigned(model)
        notes.append("uint8 activations: the program's grid, zero points + 128")
    if request.precision == "w8":
        model = with_int8_weights(model)
        notes.append("int8 weights in matrix products, which quantise their activations on the fly; the rest is float")
    image = image_spec(source.shape)
    if request.fold_preprocessing:
        fold_pixels(model, pixel_affine(request, source.shape[1]))
        image = image_spec(source.shape, dtype="uint8", holds="pixels")
        notes.append("input is uint8 pixels 0..255: Cast, Mul, Add")
    require_ir(model, request.runtime.onnx_ir_version_max if request.runtime else None)
    path = save(model, request.out / "model.onnx")
    _require_loadable(path.read_bytes())
    return describe(request, path, inputs=[image], outputs=source.outputs, notes=notes)


def opset_for(request: ExportRequest) -> int:
    """The default opset, or the profile's own where that is lower.

    Raises: RefusedError: int8 needs opset 13.
    """
    opset = opset_of_target(request.runtime)
    if request.precision in ("int8", "w8") and opset < QDQ_OPSET_MIN:
        raise RefusedError(f"{request.precision} needs ONNX opset {QDQ_OPSET_MIN}, the profile allows {opset}")
    return opset


def _float_or_qdq(source: Source, opset: int) -> onnx.ModelProto:
    from edgekd.quant.gates import hard_sigmoids_as_codes

    forms = (hard_sigmoids_as_codes, gelus_to_fuse, channels_repeated, fine_softmaxes_in_float)
    if opset < PROGRAM_EXPORTER_OPSET:
        return export_traced(runnable(source.program, *forms), source.shape, opset, outputs=source.output_names)
    return export_program(rewritten(source, *forms), opset, outputs=source.output_names)


def signed_to_unsigned(model: onnx.ModelProto) -> None:
    """Rewrite int8 activations to uint8 with zero point + 128: the same real numbers, lossless. In place.

    On x86 ONNX Runtime leaves part of an s8 graph in float (11 of 17 convolutions became int8, against 17 of 17 in u8;
    1.0 against 0.45 ms). Arm kernels take u8 x s8 as well, so there is one file for both, and what is checked on the
    development host is what the device gets. Weights (DequantizeLinear of a stored tensor) stay int8.
    Raises: ConversionError: the rewritten graph does not pass onnx's checker.
    """
    import onnx

    stored = {tensor.name for tensor in model.graph.initializer}
    codes: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored:
            codes.add(node.output[0])
            node.input[2] = _unsigned_zero_point(model, node.input[2])
            for attribute in [a for a in node.attribute if a.name == "output_dtype"]:
                node.attribute.remove(attribute)
        elif node.op_type in CODE_KEEPING and node.input[0] in codes:
            codes.update(node.output)
        elif node.op_type == "DequantizeLinear" and node.input[0] in codes:
            node.input[2] = _unsigned_zero_point(model, node.input[2])
    _drop_stale(model, codes)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"the uint8 rewrite broke the graph ({str(error).splitlines()[0][:200]})") from error


def _unsigned_zero_point(model: onnx.ModelProto, name: str) -> str:
    """Name of the initializer that holds `name`'s value + 128 as uint8, added on first use."""
    import numpy as np
    from onnx import numpy_helper

    renamed = f"{name}_u8"
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    if name not in tensors:
        raise ConversionError(f"zero point '{name}' is not stored in the graph")
    if renamed not in tensors:
        shifted = numpy_helper.to_array(tensors[name]).astype(np.int32) + 128
        model.graph.initializer.append(numpy_helper.from_array(shifted.astype(np.uint8), renamed))
    return renamed


def _drop_stale(model: onnx.ModelProto, codes: set[str]) -> None:
    """Initializers that nothing reads any more, and type annotations that still say int8."""
    used = {name for node in model.graph.node for name in node.input}
    _keep(model.graph.initializer, [tensor.name in used for tensor in model.graph.initializer])
    _keep(model.graph.value_info, [value.name not in codes for value in model.graph.value_info])


def _keep(entries: MutableSequence[Any], wanted: list[bool]) -> None:
    """Delete by position: protobuf's `remove` compares whole tensors."""
    for index in reversed(range(len(wanted))):
        if not wanted[index]:
            del entries[index]


def _require_loadable(model: bytes) -> None:
    """Raises: ConversionError: ONNX Runtime on this host cannot make a session of it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # pybind raises a dozen classes of its own
        raise ConversionError(f"ONNX Runtime cannot load the result ({str(error).splitlines()[0][:200]})") from error
