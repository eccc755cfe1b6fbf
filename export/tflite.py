"""LiteRT: one `.tflite` with an NHWC input. fp32, fp16 weights, or int8 throughout with int8 input and output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Artifact, TensorSpec
from edgekd.errors import ConversionError
from edgekd.export.describe import INPUT_NAME, OUTPUT_NAME, describe, image_spec, logits_spec
from edgekd.export.program import Source, load, runnable, unfolded
from edgekd.export.request import ExportRequest

if TYPE_CHECKING:
    from torch import nn


def lower(request: ExportRequest) -> Artifact:
    """Write `model.tflite`.

    Raises: ConversionError: the file does not load, is of another precision, or has not one input and one output.
    """
    source = load(request)
    path = request.out / "model.tflite"
    _convert(source, path, int8=request.precision == "int8")
    if request.precision == "fp16":
        path = _to_half(path)
    image, logits = _read_io(path)
    _require_precision(request, path, image)
    transposes = _operators(path).count("TRANSPOSE")
    notes = ["NHWC input"]
    if transposes:
        notes.append(f"{transposes} TRANSPOSE operators are left in the graph")
    return describe(request, path, inputs=[image], outputs=[logits], notes=notes)


def _convert(source: Source, path: Path, *, int8: bool) -> None:
    import litert_torch
    import torch

    module = unfolded(source.program) if int8 else runnable(source.program)
    batch, channels, height, width = source.shape
    options: dict[str, Any] = {"quant_config": _quant_config()} if int8 else {}
    channel_last: nn.Module = litert_torch.to_channel_last_io(module, args=[0])
    converted = litert_torch.convert(channel_last, (torch.zeros(batch, height, width, channels),), **options)
    converted.export(str(path))


def _quant_config() -> Any:
    """Tells the converter that the graph is quantised; without it the conversion succeeds and the file is float."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    settings = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(settings))


def _to_half(path: Path) -> Path:
    """Store the weights as float16; the runtime computes in fp16 where the device has it, else it widens them once."""
    from ai_edge_quantizer import qtyping, quantizer

    widened = path.rename(path.with_name("float32.tflite"))
    recipe = quantizer.Quantizer(str(widened))
    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    recipe.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        algorithm_key="float_casting",
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=weights,
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
    )
    recipe.quantize().export_model(str(path))
    widened.unlink()
    return path


def _interpreter(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        # The reference kernels: a delegate would rewrite the operator list that is inspected here.
        resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = Interpreter(model_path=str(path), num_threads=1, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ConversionError(f"LiteRT cannot load the result ({str(error).splitlines()[0][:200]})") from error
    return interpreter


def _operators(path: Path) -> list[str]:
    return [operator["op_name"] for operator in _interpreter(path)._get_ops_details()]


def _read_io(path: Path) -> tuple[TensorSpec, TensorSpec]:
    """Input and output as the file itself declares them."""
    interpreter = _interpreter(path)
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ConversionError(f"the result has {len(inputs)} inputs and {len(outputs)} outputs, not one of each")
    image = image_spec(inputs[0]["shape"].tolist(), layout="NHWC", **_tensor(inputs[0], INPUT_NAME))
    return image, logits_spec(outputs[0]["shape"].tolist(), **_tensor(outputs[0], OUTPUT_NAME))


def _tensor(details: dict[str, Any], name: str) -> dict[str, Any]:
    import numpy as np

    scale, zero_point = details["quantization"]
    grid = {"scale": float(scale), "zero_point": int(zero_point)} if scale else {}
    return {"dtype": np.dtype(details["dtype"]).name, "name": str(details["name"]) or name, **grid}


def _require_precision(request: ExportRequest, path: Path, image: TensorSpec) -> None:
    """Raises: ConversionError: the converter succeeded and wrote another precision (both kinds have been observed)."""
    import numpy as np

    stored = {np.dtype(tensor["dtype"]).name for tensor in _interpreter(path).get_tensor_details()}
    if request.precision == "int8" and (image.dtype != "int8" or "int32" not in stored):
        raise ConversionError("the converter wrote a float file for an int8 program")
    if request.precision == "fp16" and "float16" not in stored:
        raise ConversionError("the converter left the weights in float32")
