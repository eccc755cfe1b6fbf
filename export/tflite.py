"""LiteRT: one `.tflite`. fp32, fp16 weights, or int8 throughout; input NHWC or NCHW, pixels or normalised.

The converter is run in one way only; float or uint8 ends of an int8 graph and folded pixels are a few operators that
are written into its file afterwards (`tflite_file`). Labels and normalisation travel inside (`tflite_metadata`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Artifact, Precision, TensorSpec
from edgekd.errors import ConversionError
from edgekd.export.describe import INPUT_NAME, describe
from edgekd.export.io_forms import layout_of, pixel_affine
from edgekd.export.program import Source, load, runnable, unfolded
from edgekd.export.request import ExportRequest
from edgekd.export.tflite_file import TfliteFile
from edgekd.export.tflite_forms import divisions_as_products, fine_softmaxes_in_float, in_pairs, large_depthwise
from edgekd.export.tflite_layout import drop_idle_transposes
from edgekd.export.tflite_metadata import Description, metadata_buffer, with_labels

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


def lower(request: ExportRequest) -> Artifact:
    """Write `model.tflite`.

    Raises: ConversionError: the file does not load, is of another precision, or its inputs or outputs got lost.
    """
    source = load(request)
    path = request.out / "model.tflite"
    _convert(source, path, request.precision, layout=layout_of(request))
    if request.precision == "fp16":
        path = _to_half(path)
    if request.precision == "w8":
        path = _to_int8_weights(path)
    file = TfliteFile(path)
    _require_precision(request, file)
    drop_idle_transposes(file)
    file.meet_fixed_grids()
    file.name_io(INPUT_NAME, source.output_names)
    _shape_io(file, request, source)
    holds = "pixels" if request.fold_preprocessing else "normalised"
    image, outputs = file.specs(layout=layout_of(request), holds=holds)
    said = _description(request, image, outputs)
    file.add_metadata(metadata_buffer(said))
    file.save(path)
    path.write_bytes(with_labels(path.read_bytes(), said.labels))
    _require_loads(path)
    return describe(request, path, inputs=[image], outputs=outputs, notes=_notes(file, image, said))


def _convert(source: Source, path: Path, precision: Precision, *, layout: str) -> None:
    import litert_torch
    import torch

    module, shape = _module(source.program, precision), source.shape
    batch, channels, height, width = shape
    options: dict[str, Any] = {"quant_config": _quant_config()} if precision == "int8" else {}
    if layout == "NHWC":
        module, shape = litert_torch.to_channel_last_io(module, args=[0]), (batch, height, width, channels)
    litert_torch.convert(module, (torch.zeros(shape),), **options).export(str(path))


def _module(program: ExportedProgram, precision: Precision) -> nn.Module:
    """The program in the forms that the kernels of a precision are fast at."""
    from edgekd.quant.gates import hard_sigmoids_as_sums

    if precision == "int8":
        return unfolded(
            program, hard_sigmoids_as_sums, divisions_as_products, fine_softmaxes_in_float, in_pairs, large_depthwise
        )
    # Weights-only int8 runs in LiteRT's own depthwise kernels, which take any size (convnext_atto: 0.93 ms, not 1.46).
    return runnable(program, in_pairs) if precision == "w8" else runnable(program, in_pairs, large_depthwise)


def _shape_io(file: TfliteFile, request: ExportRequest, source: Source) -> None:
    """The ends of the graph in the asked types. auto: as converted; with folded pixels uint8 in and float32 out."""
    if request.fold_preprocessing:
        dtype = "float32" if request.io_dtype == "float32" else "uint8"
        file.fold_pixels(pixel_affine(request, source.shape[1]), dtype)
        if request.io_dtype == "uint8":
            file.uint8_outputs()
        else:
            file.float_outputs()
    elif request.precision == "int8" and request.io_dtype == "float32":
        file.float_io()
    elif request.precision == "int8" and request.io_dtype == "uint8":
        file.uint8_io()


def _description(request: ExportRequest, image: TensorSpec, outputs: list[TensorSpec]) -> Description:
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    if image.holds == "pixels":
        mean, std = (0.0,), (1.0,)
    elif request.preprocessing:
        affine = pixel_affine(request, image.shape[-1] if image.layout == "NHWC" else image.shape[1])
        mean, std = affine.mean, affine.std
    text = f"Image model, {len(request.labels) or 'unnamed'} classes, {request.precision}, made by edgekd"
    return Description("edgekd", text, image, tuple(outputs), mean, std, request.labels)


def _notes(file: TfliteFile, image: TensorSpec, said: Description) -> list[str]:
    notes = [f"{image.layout} input, {image.dtype} {image.holds}"]
    if transposes := file.operators().count("TRANSPOSE"):
        notes.append(f"{transposes} TRANSPOSE operators are left in the graph")
    if said.labels:
        notes.append(f"metadata with {len(said.labels)} labels; {_mediapipe(said)}")
    return notes


def _mediapipe(said: Description) -> str:
    """Whether MediaPipe Tasks' ImageClassifier reads this form (found out with 1.2.2)."""
    if said.image.layout != "NHWC":
        return "MediaPipe wants NHWC input"
    if said.image.dtype == "int8":
        return "MediaPipe takes no int8 input: use io_dtype float32, or fold the preprocessing"
    if said.image.dtype == "uint8" and said.image.holds != "pixels":
        return "MediaPipe feeds pixels to a uint8 input: fold the preprocessing"
    if len(set(said.mean)) > 1 or len(set(said.std)) > 1:
        return "MediaPipe normalises all channels alike: fold the preprocessing"
    return "MediaPipe's ImageClassifier reads it (scores are logits)"


def _quant_config() -> Any:
    """Tells the converter that the graph is quantised; without it the conversion succeeds and the file is float."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    settings = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(settings))


def _to_int8_weights(path: Path) -> Path:
    """Store the weights as int8; the runtime quantises the activations of each operator on the fly."""
    from ai_edge_quantizer import quantizer, recipe

    widened = path.rename(path.with_name("float32.tflite"))
    tool = quantizer.Quantizer(str(widened))
    tool.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    tool.quantize().export_model(str(path))
    widened.unlink()
    return path


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


def _require_loads(path: Path) -> None:
    """Raises: ConversionError: LiteRT on this host cannot load the file."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        # The reference kernels: XNNPACK would pack every weight, which proves nothing more.
        resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        Interpreter(model_path=str(path), num_threads=1, experimental_op_resolver_type=resolver).allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ConversionError(f"LiteRT cannot load the result ({str(error).splitlines()[0][:200]})") from error


def _require_precision(request: ExportRequest, file: TfliteFile) -> None:
    """Raises: ConversionError: the converter succeeded and wrote another precision (both kinds have been observed)."""
    stored = file.stored_dtypes()
    if request.precision == "int8" and not {"int8", "int32"} <= stored:
        raise ConversionError("the converter wrote a float file for an int8 program")
    if request.precision == "w8" and "int8" not in stored:
        raise ConversionError("the quantiser left every weight in float32")
    if request.precision == "fp16" and "float16" not in stored:
        raise ConversionError("the converter left the weights in float32")
