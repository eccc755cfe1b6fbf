"""A bare model file of a user's, as an Artifact: target from its suffix, tensors from the file itself."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from edgekd.artifact import Artifact, Precision, TensorSpec
from edgekd.errors import InputError, MissingExtraError
from edgekd.files import sha256_of, size_bytes_of

# suffix -> (target, what must be importable to read it, extra that brings it)
_SUFFIXES = {
    ".tflite": ("tflite", "ai_edge_litert", "tflite"),
    ".onnx": ("onnxruntime", "onnxruntime", "onnxruntime"),
    ".xml": ("openvino", "openvino", "openvino"),
    ".mlpackage": ("coreml", "coremltools", "coreml"),
    ".pt2": ("null", "torch", ""),
}


def open_model_file(path: Path) -> Artifact:
    """The artifact that a file (or .mlpackage folder) is; its precision is read from what the weights are stored as.

    A free batch dimension is taken as 1.
    Raises: InputError: no such file, unknown suffix, corrupt, not one image input [1, C, H, W] or [1, H, W, C], or
        free height or width. MissingExtraError: the runtime that reads it is not installed.
    """
    if path.suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise InputError(f"unknown kind of model '{path.suffix or path.name}'", where=path, fix=f"known: {known}")
    if not path.exists():
        raise InputError("no such model", where=path)
    target, package, extra = _SUFFIXES[path.suffix]
    if find_spec(package) is None:
        raise MissingExtraError(target, package, extra)
    inputs, outputs = _tensors(path, target)
    draft = Artifact(
        target=target,
        precision="fp32",
        path=path,
        inputs=(_image(inputs, path),),
        outputs=tuple(_output(spec) for spec in outputs),
        size_bytes=_size_bytes(path),
        sha256=sha256_of(path),
        notes=("a user's file",),
    )
    return draft.model_copy(update={"precision": _precision(draft)})


def _tensors(path: Path, target: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
    if target == "null":
        from edgekd.quant.program import load_program
        from edgekd.runtimes.torch_program import file_tensors

        return file_tensors(load_program(path))
    module = importlib.import_module(f"edgekd.runtimes.{target}")
    inputs, outputs = module.file_tensors(path)
    if target == "tflite":
        return [_litert(item) for item in inputs], [_litert(item) for item in outputs]
    return inputs, outputs


def _litert(details: Mapping[str, Any]) -> TensorSpec:
    from edgekd.runtimes.tflite import tensor_spec

    return tensor_spec(details, "NCHW")


def _image(inputs: Sequence[TensorSpec], path: Path) -> TensorSpec:
    """The only input, batch 1, its layout guessed: channels are the axis that is 1, 3 or 4 long."""
    if len(inputs) != 1:
        raise InputError(f"expected one image input, it has {len(inputs)} inputs", where=path)
    shape = _fixed(inputs[0].shape)
    if len(shape) != 4 or -1 in shape:
        listed = ", ".join("?" if size == -1 else str(size) for size in inputs[0].shape)
        fix = "export it with a fixed shape such as [1, 3, 224, 224]"
        raise InputError(f"input '{inputs[0].name}' is [{listed}], not an image of fixed size", where=path, fix=fix)
    return inputs[0].model_copy(update={"shape": shape, "layout": _layout(shape)})


def _layout(shape: Sequence[int]) -> Literal["NCHW", "NHWC"]:
    """
    >>> _layout((1, 28, 28, 1)), _layout((1, 3, 224, 224))
    ('NHWC', 'NCHW')
    """
    return "NHWC" if shape[1] not in (1, 3, 4) and shape[3] in (1, 3, 4) else "NCHW"


def _fixed(shape: Sequence[int]) -> tuple[int, ...]:
    return (1, *shape[1:]) if shape and shape[0] in (-1, 1) else tuple(shape)


def _output(spec: TensorSpec) -> TensorSpec:
    shape = _fixed(spec.shape)
    return spec.model_copy(update={"shape": shape, "layout": "NC" if len(shape) == 2 else "ANY"})


def _size_bytes(path: Path) -> int:
    weights = path.with_suffix(".bin")
    beside = size_bytes_of(weights) if path.suffix == ".xml" and weights.is_file() else 0
    return size_bytes_of(path) + beside


def _precision(draft: Artifact) -> Precision:
    from edgekd.runtimes.opening import op_report

    report = op_report(draft)
    if report.int8_compute_ops:
        return "int8"
    return "fp16" if report.fp16_weights else "fp32"
