"""OpenVINO: IR, `model.xml` with its weights in `model.bin` beside it. fp32, fp16 weights, or int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.artifact import Artifact, TensorSpec
from edgekd.errors import ConversionError
from edgekd.export.describe import INPUT_NAME, describe, image_spec
from edgekd.export.io_forms import layout_of, pixel_affine
from edgekd.export.program import Source, load, unfolded
from edgekd.export.request import ExportRequest


def lower(request: ExportRequest) -> Artifact:
    """Write `model.xml` and `model.bin`.

    Raises: ConversionError: an int8 program came out without a FakeQuantize, or the file does not compile here.
    """
    import openvino

    source = load(request)
    model = _converted(source)
    _name(model, source)
    if request.precision == "int8" and not _quantisations(model):
        raise ConversionError("the converter dropped every quantisation of the int8 program")
    if request.precision == "w8":
        model = _with_int8_weights(model)
    model, image, form = _in_form(model, request, source)
    path = request.out / "model.xml"
    openvino.save_model(model, str(path), compress_to_fp16=request.precision == "fp16")
    _require_compiles(path)
    return describe(request, path, inputs=[image], outputs=source.outputs, notes=[*_notes(request), *form])


def _converted(source: Source) -> Any:
    import openvino
    import torch

    program = source.program
    if source.scheme is not None:
        # The frontend takes stored int8 weights for float ones; written as quantize(float) they become FakeQuantize.
        program = torch.export.export(unfolded(program), (torch.zeros(source.shape),))
    return openvino.convert_model(program)


def _name(model: Any, source: Source) -> None:
    """Fixed shapes and the names that every other artifact has."""
    model.reshape(list(source.shape))
    model.inputs[0].get_tensor().set_names({INPUT_NAME})
    for output, name in zip(model.outputs, source.output_names, strict=True):
        output.get_tensor().set_names({name})


def _in_form(model: Any, request: ExportRequest, source: Source) -> tuple[Any, TensorSpec, list[str]]:
    """The model with the asked input: NHWC, pixels with the normalisation in the graph, or as it is."""
    layout = layout_of(request)
    batch, channels, height, width = source.shape
    if not request.fold_preprocessing and layout == "NCHW":
        return model, image_spec(source.shape), []
    from openvino import Layout, Type
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    image = steps.input()
    image.tensor().set_layout(Layout(layout))
    image.model().set_layout(Layout("NCHW"))
    dtype = "float32" if request.io_dtype == "float32" or not request.fold_preprocessing else "uint8"
    if request.fold_preprocessing:
        affine = pixel_affine(request, channels)
        image.tensor().set_element_type(Type.f32 if dtype == "float32" else Type.u8)
        image.preprocess().convert_element_type(Type.f32).mean(list(affine.mean)).scale(list(affine.std))
    shape = (batch, height, width, channels) if layout == "NHWC" else source.shape
    holds = "pixels" if request.fold_preprocessing else "normalised"
    form = f"input is {dtype} {layout} {holds}"
    return steps.build(), image_spec(shape, dtype=dtype, layout=layout, holds=holds), [form]


def _quantisations(model: Any) -> int:
    return sum(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops())


def _with_int8_weights(model: Any) -> Any:
    import nncf

    nncf.set_log_level(40)  # errors only: the converter's log is for the runtime's own words
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def _require_compiles(path: Path) -> None:
    """Raises: ConversionError: the file just written does not compile for the CPU."""
    import openvino

    try:
        openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": 1})
    except RuntimeError as error:
        raise ConversionError(f"OpenVINO cannot compile the result ({str(error).splitlines()[0][:200]})") from error


def _notes(request: ExportRequest) -> list[str]:
    return {
        "fp32": ["float32 weights; some CPUs compute in bf16 unless INFERENCE_PRECISION_HINT is f32"],
        "fp16": ["float16 weights; CPUs widen them when the model is loaded"],
        "int8": ["int8 weights and activations"],
        "w8": ["int8 weights, computed in float: smaller, not faster, but for matrix products of large layers"],
    }[request.precision]
