"""Core ML: an `.mlpackage` (ML program). fp32, fp16, or int8 weights with quantise and dequantise around activations.

It converts anywhere and runs on Apple devices only; what can be shown on Linux is the program's operators and numbers.
"""

from __future__ import annotations

import sys
from typing import Any

from edgekd.artifact import Artifact
from edgekd.errors import ConversionError
from edgekd.export.describe import INPUT_NAME, OUTPUT_NAME, describe, image_spec, logits_spec
from edgekd.export.program import Source, load
from edgekd.export.request import ExportRequest, RefusedError

DEFAULT_DEPLOYMENT_TARGET = "iOS17"


def lower(request: ExportRequest) -> Artifact:
    """Write `model.mlpackage`.

    Raises: RefusedError: the profile's deployment target is unknown to coremltools. ConversionError: int8 was lost.
    """
    source = load(request)
    deployment_target = deployment_target_of(request)
    model = _converted(source, request.precision, deployment_target)
    _require_precision(model, request)
    model = _renamed(model)
    _write_metadata(model, request)
    path = request.out / "model.mlpackage"
    model.save(str(path))
    return describe(
        request,
        path,
        inputs=[image_spec(source.shape)],
        outputs=[logits_spec(source.logits_shape)],
        notes=[f"minimum deployment target {deployment_target}", "runs on Apple devices only"],
    )


def deployment_target_of(request: ExportRequest) -> str:
    """The profile's deployment target, or iOS17, the first whose programs hold int8 activations."""
    named = request.runtime.deployment_target if request.runtime else None
    return named or DEFAULT_DEPLOYMENT_TARGET


def _coremltools() -> Any:
    """coremltools, without TensorFlow beside it: importing both takes 30 s longer and can crash in triton."""
    sys.modules["tensorflow"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    import coremltools

    return coremltools


def _converted(source: Source, precision: str, deployment_target: str) -> Any:
    tools = _coremltools()
    target = getattr(tools.target, deployment_target, None)
    if target is None:
        known = ", ".join(name for name in dir(tools.target) if name.startswith(("iOS", "macOS")))
        raise RefusedError(f"coremltools knows no deployment target '{deployment_target}'", fix=f"known: {known}")
    compute = tools.precision.FLOAT32 if precision == "fp32" else tools.precision.FLOAT16
    return tools.convert(
        source.program.run_decompositions({}),
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=compute,
        skip_model_load=True,
    )


def _renamed(model: Any) -> Any:
    """The model with the input and output names that every other artifact has."""
    tools = _coremltools()
    spec = model.get_spec()
    features = ((spec.description.input[0].name, INPUT_NAME), (spec.description.output[0].name, OUTPUT_NAME))
    if all(old == new for old, new in features):
        return model
    for old, new in features:
        tools.utils.rename_feature(spec, old, new)
    return tools.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)


def _write_metadata(model: Any, request: ExportRequest) -> None:
    model.author = "edgekd"
    model.short_description = f"Image classifier, {len(request.labels) or 'unnamed'} classes, {request.precision}"
    model.version = "1"
    model.user_defined_metadata["edgekd.labels"] = "\n".join(request.labels)


def _require_precision(model: Any, request: ExportRequest) -> None:
    """Raises: ConversionError: an int8 program whose stored weights are not int8."""
    kinds = {operation.op_type for operation in model._mil_program.functions["main"].operations}
    if request.precision == "int8" and not {"quantize", "dequantize"} <= kinds:
        raise ConversionError("the converter dropped the quantisation of the int8 program")
