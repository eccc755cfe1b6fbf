"""Which module runs which target. Vendor packages load inside the functions that need them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from edgekd.artifact import Artifact
from edgekd.errors import InputError, MissingExtraError, did_you_mean
from edgekd.runtimes.session import OpReport, Session

# target -> (module here, what must be importable, extra that brings it)
_RUNTIMES = {
    "tflite": ("tflite", "ai_edge_litert", "tflite"),
    "onnxruntime": ("onnxruntime", "onnxruntime", "onnxruntime"),
    "openvino": ("openvino", "openvino", "openvino"),
    "coreml": ("coreml", "coremltools", "coreml"),
    "tensorrt": ("tensorrt", "onnxruntime", "onnxruntime"),
    "null": ("torch_program", "torch", ""),
}


def open_session(artifact: Artifact, *, threads: int = 1, options: Mapping[str, Any] | None = None) -> Session:
    """Load an artifact in the runtime that executes it on this host.

    threads: CPU threads for one inference. options, by target:
    openvino: "inference_precision": "f32" (default; a fair baseline), "bf16", "f16" or "default" (the CPU's choice);
    tflite: "delegate": "xnnpack" (default) or "none"; onnxruntime, tensorrt: "optimise": True (default) or False.
    Raises: InputError: the artifact is missing, corrupt, cannot run here, or an option is unknown.
        MissingExtraError: the runtime is not installed.
    """
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    module = _module_for(artifact)
    chosen = dict(options or {})
    _refuse_unknown(chosen, module.OPTIONS, artifact.target)
    session: Session = module.open_session(artifact, threads=threads, options=chosen)
    return session


def op_report(artifact: Artifact) -> OpReport:
    """What the artifact is made of, read from the runtime's own optimised or execution graph (see `OpReport.source`).

    Raises: InputError: the artifact is missing or corrupt. MissingExtraError: the runtime is not installed.
    """
    report: OpReport = _module_for(artifact).op_report(artifact)
    return report


def _module_for(artifact: Artifact) -> ModuleType:
    if artifact.target not in _RUNTIMES:
        raise InputError(f"no runtime for target '{artifact.target}'", fix=did_you_mean(artifact.target, _RUNTIMES))
    name, package, extra = _RUNTIMES[artifact.target]
    if find_spec(package) is None:
        raise MissingExtraError(artifact.target, package, extra)
    if not artifact.path.exists():
        raise InputError("no such artifact", where=artifact.path, fix="export it again")
    return importlib.import_module(f"edgekd.runtimes.{name}")


def _refuse_unknown(options: dict[str, Any], known: tuple[str, ...], target: str) -> None:
    for name in options:
        if name not in known:
            fix = did_you_mean(name, known) if known else "it has no options"
            raise InputError(f"unknown option '{name}'", where=f"target '{target}'", fix=fix)
