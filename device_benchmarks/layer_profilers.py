"""Inside a worker: the runtime's own profiler run for a while. One function a runtime; vendors load on use."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Artifact
from edgekd.device_benchmarks import loading
from edgekd.device_benchmarks.contender import Contender, ExportedArtifact
from edgekd.device_benchmarks.layers import LayerProfile, LayerTime, layer_profile
from edgekd.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

WARM_UP_RUNS = 5
NO_LITERT_TIMES = (
    "LiteRT's Python package has no profiler, so no times: Google's benchmark_model has one (--enable_op_profiling)"
)


def profile_layers(contender: Contender, *, threads: int, runs: int) -> LayerProfile:
    """Layers of a contender in execution order, mean of `runs` inferences.

    Raises: InputError: its runtime has no profiler here.
    """
    source = contender.source
    if not isinstance(source, ExportedArtifact):
        return _torch(contender, threads=threads, runs=runs)
    if source.artifact.target == "null":
        return _torch(contender, threads=threads, runs=runs)
    if source.artifact.target not in _PROFILERS:
        raise InputError(f"no profile of layers for {source.artifact.target}", fix=f"it has one for {_known()}")
    return _PROFILERS[source.artifact.target](source.artifact, source.options, threads, runs)


def _openvino(artifact: Artifact, options: Mapping[str, Any], threads: int, runs: int) -> LayerProfile:
    """Performance counters of an infer request, which add up to its time within a few per cent."""
    from edgekd.runtimes import openvino

    precision = str(options.get("inference_precision", "f32"))
    compiled, _ = openvino.compile_model(artifact.path, threads=threads, precision=precision, counters=True)
    macs = {op.name: op.macs for op in openvino.compute_ops(artifact.path, compiled)}
    spec = artifact.inputs[0]
    image = loading.example_image(spec.shape, spec.holds).astype(spec.dtype)
    request, times, last = compiled.create_infer_request(), defaultdict(list), {}
    for run in range(WARM_UP_RUNS + runs):
        request.infer([image])
        for layer in request.profiling_info if run >= WARM_UP_RUNS else ():
            if str(layer.status).endswith("EXECUTED"):
                times[layer.node_name].append(layer.real_time.total_seconds() * 1e3)
                last[layer.node_name] = layer
    rows = [
        LayerTime(
            name=name,
            op_type=last[name].node_type,
            unit="CPU",
            kernel=last[name].exec_type,
            time_ms=sum(found) / runs,
            macs=macs.get(name, 0),
        )
        for name, found in times.items()
    ]
    return layer_profile(rows, source="OpenVINO performance counters", runs=runs)


def _onnxruntime(artifact: Artifact, options: Mapping[str, Any], threads: int, runs: int) -> LayerProfile:
    """The session's profiler. Its graph has channels in blocks, so multiply-adds come from the same graph without."""
    from edgekd.runtimes import onnxruntime

    optimise = bool(options.get("optimise", True))
    notes = onnxruntime.kernel_times(artifact, threads=threads, runs=WARM_UP_RUNS + runs, optimise=optimise)
    per_run = len(notes) // (WARM_UP_RUNS + runs)
    counted = notes[WARM_UP_RUNS * per_run :]
    first, compute = counted[:per_run], onnxruntime.compute_ops(artifact)
    multiplying = [note for note in first if onnxruntime.multiplies(note["op_name"])]
    known = len(multiplying) == len(compute)
    macs = {id(note): op.macs for note, op in zip(multiplying, compute, strict=True)} if known else {}
    rows = [
        LayerTime(
            name=note["name"],
            op_type=note["op_name"],
            unit=str(note.get("provider", "CPUExecutionProvider")).removesuffix("ExecutionProvider"),
            time_ms=sum(other["dur"] for other in counted[position::per_run]) / runs / 1e3,
            macs=macs.get(id(note), 0),
        )
        for position, note in enumerate(first)
    ]
    note = "" if known else "multiply-adds not known: the optimised graph has other products than the file"
    return layer_profile(rows, source="ONNX Runtime profiler", runs=runs, note=note)


def _tflite(artifact: Artifact, options: Mapping[str, Any], threads: int, runs: int) -> LayerProfile:
    """Where every operator runs; how long, the Python package does not tell."""
    from edgekd.runtimes import tflite

    delegate = options.get("delegate", "xnnpack") == "xnnpack"
    rows = [
        LayerTime(name=name, op_type=kind, unit="XNNPACK" if taken and delegate else "LiteRT's own", macs=macs)
        for name, kind, macs, taken in tflite.placed_ops(artifact)
    ]
    return layer_profile(rows, source="LiteRT graph", runs=0, note=NO_LITERT_TIMES)


def _coreml(artifact: Artifact, options: Mapping[str, Any], threads: int, runs: int) -> LayerProfile:
    """MLComputePlan's preferred device of every operation, on a Mac. Never run: no Mac was at hand.

    Raises: InputError: this host is none.
    """
    if platform.system() != "Darwin":
        fix = "edgekd profile MODEL --on apple-package --out DIR measures on an Apple device"
        raise InputError("Core ML tells its placement on a Mac only", where=artifact.path, fix=fix)
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(ct.utils.compile_model(str(artifact.path)))
    main = plan.model_structure.program.functions["main"]
    rows = []
    for operation in (op for op in main.block.operations if op.operator_name != "const"):
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        unit = type(usage.preferred_compute_device).__name__ if usage else "unknown"
        rows.append(LayerTime(name=operation.outputs[0].name, op_type=operation.operator_name, unit=unit))
    return layer_profile(rows, source="Core ML's MLComputePlan (preferred devices)", runs=0)


_PROFILERS: dict[str, Callable[[Artifact, Mapping[str, Any], int, int], LayerProfile]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "tflite": _tflite,
    "coreml": _coreml,
}


def _known() -> str:
    return ", ".join((*_PROFILERS, "PyTorch"))


def _torch(contender: Contender, *, threads: int, runs: int) -> LayerProfile:
    """torch.profiler: by leaf module where the modules are called, by operator where a graph is."""
    from torch.profiler import ProfilerActivity, profile

    loaded = loading.load(contender, threads=threads)
    module = getattr(loaded.session, "module", None)
    fed = loaded.session.feed(loading.example_image(loaded.input_shape, loaded.holds))
    macs: dict[str, int] = {}
    with _named(module, macs) as types:
        for _ in range(WARM_UP_RUNS):
            loaded.session.invoke(fed)
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            for _ in range(runs):
                loaded.session.invoke(fed)
    averages = recorded.key_averages()
    if types:
        rows = [_module_row(event, types[event.key], macs, runs) for event in averages if event.key in types]
        order = list(types)
        rows.sort(key=lambda row: order.index(row.name))
        return layer_profile(rows, source="torch.profiler, by leaf module", runs=runs)
    rows = [_operator_row(event, runs) for event in averages if event.self_cpu_time_total > 0]
    rows.sort(key=lambda row: -(row.time_ms or 0))
    note = "by operator, calls of one kind together: multiply-adds not known"
    return layer_profile(rows, source="torch.profiler, by operator", runs=runs, note=note)


def _module_row(event: Any, kind: str, macs: Mapping[str, int], runs: int) -> LayerTime:
    time_ms = event.cpu_time_total / runs / 1e3
    return LayerTime(name=event.key, op_type=kind, unit="CPU", time_ms=time_ms, macs=macs.get(event.key, 0))


def _operator_row(event: Any, runs: int) -> LayerTime:
    time_ms = event.self_cpu_time_total / runs / 1e3
    return LayerTime(name=event.key, op_type=event.key.split("::")[-1], unit="CPU", time_ms=time_ms)


@contextmanager
def _named(module: nn.Module | None, macs: dict[str, int]) -> Iterator[dict[str, str]]:
    """Each leaf module's call shows in the profile under its name meanwhile; gives types by name, fills in macs."""
    leaves = {} if module is None else {name: m for name, m in module.named_modules() if name and not _children(m)}
    types: dict[str, str] = {}
    handles: list[Any] = []
    for name, leaf in leaves.items():
        before, after = _marks(name, leaf, types, macs)
        handles += [leaf.register_forward_pre_hook(before), leaf.register_forward_hook(after)]
    try:
        yield types
    finally:
        for handle in handles:
            handle.remove()


def _children(module: nn.Module) -> Sequence[nn.Module]:
    return list(module.children())


def _marks(
    name: str, leaf: nn.Module, types: dict[str, str], macs: dict[str, int]
) -> tuple[Callable[..., None], Callable[..., None]]:
    from torch.profiler import record_function

    running: list[Any] = []

    def before(_: nn.Module, __: Any) -> None:
        types.setdefault(name, type(leaf).__name__)
        running.append(record_function(name))
        running[-1].__enter__()

    def after(_: nn.Module, inputs: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)
        macs[name] = _macs(leaf, inputs, output)

    return before, after


def _macs(leaf: nn.Module, inputs: Any, output: torch.Tensor) -> int:
    from torch import nn

    from edgekd.runtimes.macs import conv_macs, matmul_macs

    if isinstance(leaf, nn.modules.conv._ConvTransposeNd):
        return conv_macs(inputs[0].shape, leaf.weight.shape)
    if isinstance(leaf, nn.modules.conv._ConvNd):
        return conv_macs(output.shape, leaf.weight.shape)
    return matmul_macs(output.shape, inputs[0].shape) if isinstance(leaf, nn.Linear) else 0
