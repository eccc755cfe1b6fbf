"""Read a program the way exporters need it: precision checked, activation scheme known, weights as they want them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekd.artifact import TensorSpec
from edgekd.errors import InputError
from edgekd.export.describe import output_spec
from edgekd.export.request import ExportRequest, RefusedError
from edgekd.targets import get_target
from edgekd.targets.spec import Scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn
    from torch.export import ExportedProgram

    Rewrite = Callable[[Any], None]


@dataclass(frozen=True)
class Source:
    """A loaded program. shape: (1, channels, height, width); outputs: in order; scheme: None if float."""

    program: ExportedProgram
    shape: tuple[int, int, int, int]
    outputs: tuple[TensorSpec, ...]
    scheme: Scheme | None

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [output.name for output in self.outputs]


def load(request: ExportRequest) -> Source:
    """The request's program.

    Raises:
        InputError: not a program, or a float program where int8 was asked for, or the reverse.
        RefusedError: the target does not run the program's activation scheme.
    """
    from edgekd.quant import image_shape, is_quantised, load_program

    program = load_program(request.program)
    quantised = is_quantised(program)
    if quantised != (request.precision == "int8"):
        kind = "int8" if quantised else "float"
        raise InputError(f"a {kind} program cannot become {request.precision}", where=request.program.name)
    scheme = activation_scheme(program) if quantised else None
    if reason := get_target(request.target).why_not(request.precision, scheme):
        raise RefusedError(reason)
    batch, channels, height, width = image_shape(program)
    return Source(program, (batch, channels, height, width), output_specs(program), scheme)


def output_specs(program: ExportedProgram) -> tuple[TensorSpec, ...]:
    """The outputs as the program has them, in order."""
    from edgekd.quant import output_names

    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.name in output_names(program)}
    named = ((name, values[name]) for name in output_names(program))
    return tuple(output_spec(name, tuple(v.shape), str(v.dtype).removeprefix("torch.")) for name, v in named)


def activation_scheme(program: ExportedProgram) -> Scheme:
    """`affine` when any activation has a zero point, else `symmetric`."""
    points = (zero_point for _, zero_point in activation_grids(program))
    return "affine" if any(points) else "symmetric"


def activation_grids(program: ExportedProgram) -> list[tuple[float, int]]:
    """(scale, zero point) of every activation quantisation, in graph order; the first is the input's."""
    import torch

    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    nodes = [node for node in program.graph.nodes if node.target is quantize]
    return [(float(node.args[1]), int(node.args[2])) for node in nodes]


def runnable(program: ExportedProgram, *rewrites: Rewrite) -> nn.Module:
    """The program as a module that takes `image` and whose train() and eval() do nothing.

    The graph has its mode compiled in, and torch refuses train() on it; two converters call it all the same.
    rewrites: what the runtime wants to read differently, each done in place.
    """
    return _rewritten(program.module(check_guards=False), rewrites)


def rewritten(source: Source, *rewrites: Rewrite) -> ExportedProgram:
    """The source's program after the rewrites, for converters that take no module."""
    import torch

    return torch.export.export(runnable(source.program, *rewrites), (torch.zeros(source.shape),))


def unfolded(program: ExportedProgram, *rewrites: Rewrite) -> nn.Module:
    """`runnable`, with each stored int8 weight written as quantize(float weight), which LiteRT and OpenVINO need."""
    from edgekd.quant import unfold_weights

    return _rewritten(unfold_weights(program), rewrites)


def softmaxes_of_codes(graph: Any, step_min: float) -> list[tuple[Any, Any]]:
    """(softmax, quantise) where codes are read and codes with steps under `step_min` written: runtimes fuse these."""
    import torch

    from edgekd.quant.nodes import aten, nodes_of

    decomposed = torch.ops.quantized_decomposed
    found: list[tuple[Any, Any]] = []
    for softmax in nodes_of(graph, aten.softmax.int):
        (source,) = softmax.all_input_nodes
        (reader,) = softmax.users if len(softmax.users) == 1 else (None,)
        reads = source.target is decomposed.dequantize_per_tensor.default
        writes = reader is not None and reader.target is decomposed.quantize_per_tensor.default
        if reads and writes and reader.args[1] < step_min:  # type: ignore[union-attr, operator]
            found.append((softmax, reader))
    return found


def _rewritten(graph: nn.Module, rewrites: Sequence[Rewrite]) -> nn.Module:
    from edgekd.quant.adopt import Adopted

    for rewrite in rewrites:
        rewrite(graph)
    return Adopted(graph)  # type: ignore[arg-type]  # a GraphModule, typed as the module it also is
