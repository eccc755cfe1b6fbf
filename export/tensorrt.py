"""TensorRT: an engine built ahead of time for RTX GPUs; for everything else (Jetson) a kit that builds on the device.

An engine loads only with the TensorRT and the GPU it was built for, and TensorRT-RTX has no Jetson among its targets:
a Jetson never gets an engine from here: it gets ONNX at an opset its TensorRT reads, and the trtexec commands.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgekd.artifact import Artifact
from edgekd.errors import MissingExtraError
from edgekd.export import tensorrt_kit, torch_tensorrt
from edgekd.export.describe import describe, image_spec
from edgekd.export.onnx_file import export_traced, require_ir, save, to_half
from edgekd.export.program import Source, load, runnable, unfolded
from edgekd.export.request import ExportRequest, RefusedError
from edgekd.export.tensorrt_probe import PACKAGE, build, report
from edgekd.files import write_json
from edgekd.targets import get_target
from edgekd.targets.tensorrt import RTX_ARCHITECTURES, opset_for, version_of

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

CAPABILITIES_WITHOUT_INT8 = frozenset({"5.3", "6.0", "6.2"})  # Jetson Nano, P100, TX2: no DP4A
FP16_ONLY_ARCHITECTURES = frozenset({"SM75"})  # TensorRT-RTX refuses fp32 GEMM and Q/DQ there (measured, 1.7)


def lower(request: ExportRequest) -> Artifact:
    """Write `model.engine` (RTX class) or the folder `model.trtkit` (Jetson class, or no profile).

    Raises:
        RefusedError: int8 for a GPU without int8, or affine activations.
        MissingExtraError: an RTX engine without TensorRT-RTX.
        ConversionError: opset or IR version missed, or the builder refused the graph.
    """
    source = load(request)
    _require_int8(request)
    architecture = rtx_architecture(request)
    if architecture in FP16_ONLY_ARCHITECTURES and request.precision != "fp16":
        raise RefusedError(f"TensorRT-RTX builds only fp16 for {architecture}", fix="use fp16")
    return _kit(request, source) if architecture is None else _engine(request, source, architecture)


def rtx_architecture(request: ExportRequest) -> str | None:
    """TensorRT-RTX's name of the profile's GPU, or None where it cannot build for it.

    >>> from pathlib import Path
    >>> rtx_architecture(ExportRequest(target="tensorrt", precision="fp16", program=Path("p"), out=Path("o"))) is None
    True
    """
    capability = request.runtime.compute_capability if request.runtime else None
    return RTX_ARCHITECTURES.get(capability or "")


def onnx_model(request: ExportRequest, source: Source, *, typed_half: bool, float_weights: bool) -> onnx.ModelProto:
    """The graph at the highest opset that device and TorchScript exporter share; shapes fixed, constants folded.

    typed_half: fp16 in the graph itself, for strongly typed builders. float_weights: int8 weights as quantize(float),
    the only form TensorRT 8 documents; newer ones read stored int8 weights, a quarter of the size.
    """
    opset = _opset(request, source)
    module = unfolded(source.program) if float_weights else runnable(source.program)
    model = export_traced(module, source.shape, opset, outputs=source.output_names)
    if typed_half:
        model = to_half(model, opset, keep_io=True)
    require_ir(model, request.runtime.onnx_ir_version_max if request.runtime else None)
    return model


def _opset(request: ExportRequest, source: Source) -> int:
    names = {str(node.target) for node in source.program.graph.nodes if node.op == "call_function"}
    return opset_for(request.runtime, layer_norm=any("layer_norm" in name for name in names))


def _require_int8(request: ExportRequest) -> None:
    capability = request.runtime.compute_capability if request.runtime else None
    if request.precision == "int8" and capability in CAPABILITIES_WITHOUT_INT8:
        raise RefusedError(f"compute capability {capability} has no int8 arithmetic", fix="use fp16")


def _kit(request: ExportRequest, source: Source) -> Artifact:
    version = version_of(request.runtime)
    typed = version >= tensorrt_kit.STRONGLY_TYPED_ONLY
    int8 = request.precision == "int8"
    model = onnx_model(
        request,
        source,
        typed_half=typed and request.precision == "fp16",
        float_weights=int8 and version < tensorrt_kit.STORED_INT8_WEIGHTS,
    )
    folder = request.out / "model.trtkit"
    folder.mkdir()
    save(model, folder / "model.onnx")
    tensorrt_kit.write_scripts(folder, request, version)
    findings = report(folder / "model.onnx")
    write_json(folder / "op_report.json", findings)
    notes = [
        f"opset {model.opset_import[0].version}, ONNX IR {model.ir_version}",
        "build.sh makes the engine on the device",
    ]
    notes += [findings["summary"], torch_tensorrt.evidence(request.program, request.precision)]
    return _described(request, source, folder, notes)


def _engine(request: ExportRequest, source: Source, architecture: str) -> Artifact:
    if find_spec(PACKAGE) is None:
        raise MissingExtraError(request.target, PACKAGE, get_target(request.target).extra)
    typed_half = request.precision == "fp16"
    model = onnx_model(request, source, typed_half=typed_half, float_weights=False)
    graph = save(model, request.out / "model.onnx")
    evidence = build(graph, request.out / "model.engine", architecture)
    write_json(request.out / "evidence.json", evidence)
    notes = [f"engine for {architecture}, built by {evidence['built_with']}, not run here"]
    if request.precision == "int8":
        notes.append(f"{evidence['int8_layers']} of {evidence['layer_count']} layers read int8")
    return _described(request, source, request.out / "model.engine", notes)


def _described(request: ExportRequest, source: Source, path: Path, notes: list[str]) -> Artifact:
    return describe(request, path, inputs=[image_spec(source.shape)], outputs=source.outputs, notes=notes)
