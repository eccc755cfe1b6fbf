"""Read a program the way exporters need it: precision checked, activation scheme known, weights as they want them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekd.errors import InputError
from edgekd.export.request import ExportRequest, RefusedError
from edgekd.targets import get_target
from edgekd.targets.spec import Scheme

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Source:
    """A loaded program. shape: (1, channels, height, width); classes: logits per image; scheme: None if float."""

    program: ExportedProgram
    shape: tuple[int, int, int, int]
    classes: int
    scheme: Scheme | None

    @property
    def logits_shape(self) -> tuple[int, int]:
        """Shape of the output."""
        return self.shape[0], self.classes


def load(request: ExportRequest) -> Source:
    """The request's program.

    Raises:
        InputError: not a program, or a float program where int8 was asked for, or the reverse.
        RefusedError: the target does not run the program's activation scheme.
    """
    from edgekd.quant import image_shape, is_quantised, load_program, num_classes

    program = load_program(request.program)
    quantised = is_quantised(program)
    if quantised != (request.precision == "int8"):
        kind = "int8" if quantised else "float"
        raise InputError(f"a {kind} program cannot become {request.precision}", where=request.program.name)
    scheme = activation_scheme(program) if quantised else None
    if reason := get_target(request.target).why_not(request.precision, scheme):
        raise RefusedError(reason)
    batch, channels, height, width = image_shape(program)
    return Source(program, (batch, channels, height, width), num_classes(program), scheme)


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


def runnable(program: ExportedProgram) -> nn.Module:
    """The program as a module that takes `image` and whose train() and eval() do nothing.

    The graph has its mode compiled in, and torch refuses train() on it; two converters call it all the same.
    """
    return _wrapped(program.module(check_guards=False))


def unfolded(program: ExportedProgram) -> nn.Module:
    """`runnable`, with each stored int8 weight written as quantize(float weight), which LiteRT and OpenVINO need."""
    from edgekd.quant import unfold_weights

    return _wrapped(unfold_weights(program))


def _wrapped(graph: nn.Module) -> nn.Module:
    from torch import nn

    class Runnable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = graph  # not `graph`: converters read that name of a module as its fx graph
            self.training = False

        def forward(self, image: Any) -> Any:
            return self.program(image)

        def train(self, mode: bool = True) -> Runnable:
            return self

    return Runnable()
