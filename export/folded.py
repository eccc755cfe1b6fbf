"""Programs with more in their graph than the trained model: pixels normalised inside, probabilities beside logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekd.export.program import Source, output_specs, runnable

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def with_channel_affine(source: Source, scale: Sequence[float], offset: Sequence[float]) -> ExportedProgram:
    """The program on x where it was on `x * scale + offset`, one value of each per channel."""
    import torch

    columns = [torch.tensor(list(values)).reshape(1, -1, 1, 1) for values in (scale, offset)]

    class Affine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = runnable(source.program)
            self.register_buffer("scale", columns[0])
            self.register_buffer("offset", columns[1])

        def forward(self, image: Any) -> Any:
            return self.inner(image * self.scale + self.offset)

    return _exported(Affine(), source, source.output_names)


def with_probabilities(source: Source, name: str = "probabilities") -> ExportedProgram:
    """The program with one more output: softmax of its logits, its only output so far."""
    import torch

    class Scored(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = runnable(source.program)

        def forward(self, image: Any) -> Any:
            logits = self.inner(image)
            return logits, torch.softmax(logits, 1)

    return _exported(Scored(), source, [*source.output_names, name])


def replaced(source: Source, program: ExportedProgram) -> Source:
    """The source with another program in its place."""
    return Source(program, source.shape, output_specs(program), source.scheme)


def _exported(module: Any, source: Source, names: Sequence[str]) -> ExportedProgram:
    import torch

    from edgekd.quant.program import name_outputs

    with torch.no_grad():
        program = torch.export.export(module, (torch.zeros(source.shape),))
    return name_outputs(program, names)
