"""Cost of a network without running it: record one forward pass on fake tensors, fuse, count."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from edgekd.errors import EdgekdError, InputError
from edgekd.latency.cost import GraphCost
from edgekd.latency.fuse import fuse, loops, peak_live_elements
from edgekd.latency.read_onnx import record_onnx
from edgekd.latency.read_tflite import record_tflite
from edgekd.latency.record import Call, Recording, no_static_shape, record_module
from edgekd.latency.steps import Step, folded_work, steps_of
from edgekd.latency.vocabulary import DEPTHWISE, TRANSPOSED, role_of
from edgekd.profile.operators import DILATED

_NOWHERE = frozenset({"detach", "alias", "lift_fresh", "lift_fresh_copy", "dropout", "native_dropout", "expand"})


def trace_cost(module: nn.Module, input_shape: tuple[int, ...]) -> GraphCost:
    """Ops, multiply-adds, parameters and peak live activations of one forward pass in eval mode.

    input_shape: (batch, channels, height, width); budgets are about batch 1.
    Raises: InputError: the module does not run on an input of that shape.

    >>> cost = trace_cost(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 4, 4))
    >>> cost.macs == 8 * 3 * 9 * 16, cost.parameters, cost.peak_activation_elements == (3 + 8) * 16
    (True, 224, True)
    """
    return cost_of(record_module(module, input_shape))


def cost_of_file(path: Path) -> GraphCost:
    """Cost of an ONNX (.onnx), TFLite (.tflite) or torch.export (.pt2) file at the input shape it was made for.

    Raises: InputError: no such file, another kind of file, a damaged one, or one without static shapes.
    """
    if not path.is_file():
        raise InputError("no such file", where=path)
    readers = {".onnx": record_onnx, ".tflite": record_tflite, ".pt2": _record_program}
    if path.suffix not in readers:
        raise InputError("not a network that can be read", where=path, fix="give a .onnx, .tflite or .pt2 file")
    try:
        return cost_of(readers[path.suffix](path))
    except EdgekdError:
        raise
    except Exception as error:  # a file may say anything: operands that are missing, places that are none
        raise InputError(f"no network that can be made sense of ({type(error).__name__})", where=path) from error


def _record_program(path: Path) -> Recording:
    import torch

    try:
        program = torch.export.load(path)
        module = program.module()
        (image,) = [s for s in program.graph_signature.user_inputs if isinstance(s, str)]
        shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == image)
    except Exception as error:
        raise InputError(f"not a torch.export program of one image ({type(error).__name__})", where=path) from error
    if not all(isinstance(size, int) for size in shape):  # int() of a symbol would be the size it was exported with
        raise no_static_shape(image, path)
    return record_module(module, tuple(shape))


def cost_of(recording: Recording) -> GraphCost:
    """Kernels, parameters and peak live activations of a recorded pass."""
    steps, inputs = steps_of(recording)
    kernels = fuse(steps)
    folded_macs, folded_elements = folded_work(recording)
    return GraphCost(
        ops=tuple(kernel.cost() for kernel in kernels),
        parameters=recording.parameters,
        peak_activation_elements=peak_live_elements(kernels, inputs),
        loops=tuple(nest.cost() for nest in loops(steps)),
        folded_macs=folded_macs,
        folded_elements=folded_elements,
        operators=tuple(sorted(recording.operators or operators_of(recording, kernels))),
        vocabulary=recording.vocabulary,
    )


def operators_of(recording: Recording, kernels: Iterable[Step]) -> set[str]:
    """The operators of a module's pass, as exporters see them, in ATen's names.

    Convolutions are told apart as files do (depthwise, transposed, dilated). A batch norm counts where it is a kernel
    of its own: exporters fold the others.
    """
    found = {kernel.op for kernel in kernels if kernel.role == "batch_norm"}
    for call in recording.calls:
        role = role_of(call.op)
        if call.folded or role in ("free", "batch_norm") or call.op in _NOWHERE:
            continue
        whole = call.within if call.op == "mean" else ""
        found |= _convolutions(call) if role == "convolution" else {whole or call.op}
    return found


def _convolutions(call: Call) -> set[str]:
    weight, groups = call.reads[1].shape, int(call.attributes.get("groups", 1))
    transposed = bool(call.attributes.get("transposed", False))
    depthwise = not transposed and weight[1] == 1 and weight[0] > 1 and groups > 1
    kind = TRANSPOSED if transposed else DEPTHWISE if depthwise else "convolution"
    gaps = call.attributes.get("dilation") or [1]
    return {kind, *([kind + DILATED] if max(gaps) > 1 else [])}
