"""Core ML: an `.mlpackage` (ML program). fp32, fp16, or int8 weights with quantise and dequantise around activations.

It converts anywhere and runs on Apple devices only; what can be shown on Linux is the program's operators and numbers.
"""

from __future__ import annotations

import sys
from typing import Any

from edgekd.artifact import Artifact
from edgekd.errors import ConversionError
from edgekd.export.describe import INPUT_NAME, describe, image_spec
from edgekd.export.folded import replaced, with_channel_affine, with_probabilities
from edgekd.export.io_forms import pixel_affine
from edgekd.export.program import Source, load
from edgekd.export.request import ExportRequest, RefusedError

DEFAULT_DEPLOYMENT_TARGET = "iOS17"
PROBABILITIES = "probabilities"
# Dimensions that a tensor of a Core ML program may have.
RANK_MAX = 5
# Values under which a weight is not worth a scale per channel.
SMALLEST_WEIGHT = 512


def lower(request: ExportRequest) -> Artifact:
    """Write `model.mlpackage`.

    Raises: RefusedError: the profile's deployment target is unknown to coremltools, or it cannot take such images.
        ConversionError: int8 was lost.
    """
    source = load(request)
    outputs = source.outputs
    deployment_target = deployment_target_of(request)
    notes = [f"minimum deployment target {deployment_target}", "runs on Apple devices only"]
    image = image_spec(source.shape)
    options: dict[str, Any] = {}
    if request.fold_preprocessing:
        source, options, more = _image_form(source, request)
        image = image_spec(source.shape, dtype="uint8", holds="pixels")
        notes.extend(more)
    model = _converted(source, request.precision, deployment_target, options)
    if request.precision == "w8":
        model = _with_int8_weights(model)
    _require_precision(model, request)
    model = _renamed(model, source.output_names)
    _write_metadata(model, request)
    path = request.out / "model.mlpackage"
    model.save(str(path))
    return describe(request, path, inputs=[image], outputs=outputs, notes=notes)


def _image_form(source: Source, request: ExportRequest) -> tuple[Source, dict[str, Any], list[str]]:
    """An image input (CVPixelBuffer) normalised inside, and class labels where the request has them.

    Core ML scales an image by one number for all channels; what the channels' own stds differ by is in the graph.
    Raises: RefusedError: neither 1 nor 3 channels.
    """
    tools = _coremltools()
    channels = source.shape[1]
    layouts = {1: tools.colorlayout.GRAYSCALE, 3: tools.colorlayout.RGB}
    if channels not in layouts:
        raise RefusedError(f"Core ML images have 1 or 3 channels, the model takes {channels}", fix="do not fold")
    affine = pixel_affine(request, channels)
    bias: Any = [0.0] * channels
    if len(set(affine.scale)) == 1:
        bias = list(affine.offset)
    else:
        ratios = [scale / affine.scale[0] for scale in affine.scale]
        source = replaced(source, with_channel_affine(source, ratios, affine.offset))
    picture = tools.ImageType(
        name=INPUT_NAME,
        shape=source.shape,
        scale=affine.scale[0],
        bias=bias[0] if channels == 1 else bias,
        color_layout=layouts[channels],
    )
    options, notes = {"inputs": [picture]}, ["input is an image (pixels 0..255)"]
    if len(source.outputs) == 1 and source.outputs[0].shape == (1, len(request.labels)):
        source = replaced(source, with_probabilities(source, PROBABILITIES))
        options["classifier_config"] = tools.ClassifierConfig(
            list(request.labels), predicted_feature_name="classLabel", predicted_probabilities_output=PROBABILITIES
        )
        options["pass_pipeline"] = _pipeline_for_labels()
        notes.append("classifier: classLabel and its probabilities beside the logits")
    return source, options, notes


def _pipeline_for_labels() -> Any:
    """The default passes and one that makes room for the label among the output types.

    coremltools (9.0) looks up the type of each output by position after adding the label, one past the end.
    """
    tools = _coremltools()
    from coremltools.converters.mil.mil.passes import graph_pass, pass_registry

    name = "edgekd::room_for_label"
    if name not in pass_registry.PASS_REGISTRY:

        @pass_registry.register_pass(namespace="edgekd", name="room_for_label")
        class RoomForLabel(graph_pass.AbstractGraphPass):  # type: ignore[misc]  # the vendor ships no types
            def apply(self, program: Any) -> None:
                main = program.functions["main"]
                main.output_types = [*main.output_types, None] if main.output_types else main.output_types

    pipeline = tools.PassPipeline.DEFAULT
    pipeline.append_pass(name)
    return pipeline


def deployment_target_of(request: ExportRequest) -> str:
    """The profile's deployment target, or iOS17, the first whose programs hold int8 activations."""
    named = request.runtime.deployment_target if request.runtime else None
    return named or DEFAULT_DEPLOYMENT_TARGET


def _coremltools() -> Any:
    """coremltools, without TensorFlow beside it: importing both takes 30 s longer and can crash in triton."""
    sys.modules["tensorflow"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    import coremltools

    return coremltools


def _converted(source: Source, precision: str, deployment_target: str, options: dict[str, Any]) -> Any:
    tools = _coremltools()
    target = getattr(tools.target, deployment_target, None)
    if target is None:
        known = ", ".join(name for name in dir(tools.target) if name.startswith(("iOS", "macOS")))
        raise RefusedError(f"coremltools knows no deployment target '{deployment_target}'", fix=f"known: {known}")
    compute = tools.precision.FLOAT32 if precision == "fp32" else tools.precision.FLOAT16
    from edgekd.quant.program import name_outputs

    decomposed = _within_rank(_without_aliases(source.program.run_decompositions({})))
    return tools.convert(
        name_outputs(decomposed, source.output_names),  # decomposing loses the names
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=compute,
        skip_model_load=True,
        **options,
    )


def _with_int8_weights(model: Any) -> Any:
    from coremltools.optimize import coreml as optimise

    weights = optimise.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=SMALLEST_WEIGHT)
    return optimise.linear_quantize_weights(model, config=optimise.OptimizationConfig(global_config=weights))


def _without_aliases(program: Any) -> Any:
    """The program without `aten.alias`, which says that two names are one tensor; coremltools (9.0) has no such op."""
    from edgekd.quant.nodes import aten

    for node in list(program.graph.nodes):
        if node.target is aten.alias.default and not any(user.op == "output" for user in node.users):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    return program


def _within_rank(program: Any) -> Any:
    """The program without roundings of tensors that Core ML has no rank for, where their values are codes already.

    coremltools merges reshape, permute and reshape (windows and patches of a transformer) if nothing is between them.
    """
    import torch

    decomposed = torch.ops.quantized_decomposed
    for quantise in list(program.graph.nodes):
        if quantise.target is not decomposed.quantize_per_tensor.default:
            continue
        values, grid = quantise.args[0], quantise.args[1:]
        if values.meta["val"].ndim <= RANK_MAX or _grid_of(values) != grid:
            continue
        for dequantise in list(quantise.users):  # nothing else reads codes
            dequantise.replace_all_uses_with(values)
            program.graph.erase_node(dequantise)
        program.graph.erase_node(quantise)
    return program


def _grid_of(values: Any) -> Any:
    """The grid that moved values are codes of, as a dequantisation names it; None where they are computed."""
    import torch

    from edgekd.quant.nodes import aten

    moving = (aten.view.default, aten.permute.default, aten.transpose.int, aten.clone.default, aten.unsqueeze.default)
    while values.target in moving:
        values = values.args[0]
    return values.args[1:] if values.target is torch.ops.quantized_decomposed.dequantize_per_tensor.default else None


def _renamed(model: Any, outputs: list[str]) -> Any:
    """The model with the input and output names that every other artifact has."""
    tools = _coremltools()
    spec = model.get_spec()
    features = [(spec.description.input[0].name, INPUT_NAME)]
    if not spec.description.predictedFeatureName:  # a classifier's outputs were named when its labels were attached
        features += [(found.name, name) for found, name in zip(spec.description.output, outputs, strict=True)]
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
    if request.precision == "w8" and not any(kind.startswith("constexpr_") for kind in kinds):
        raise ConversionError("the converter left every weight in float")
