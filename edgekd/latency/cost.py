"""What a graph costs, counted in multiply-adds and elements: independent of device, precision and runtime."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.artifact import Frozen
from edgekd.latency.vocabulary import role_of
from edgekd.profile.operators import Vocabulary

OpKind = Literal["conv", "depthwise", "linear", "pool", "add", "other"]


class OpCost(Frozen):
    """One kernel as a runtime would launch it: batch norm and activation are part of the convolution before them.

    kind: `linear` includes matrix products of two activations (attention), whose weight_elements is 0; `other` is
    whatever moves data or is not a contraction (softmax, layer norm, concatenation, channel shuffle, gating).
    op: ATen's name of the call that leads the kernel; '' where only the kind is known.
    macs: multiply-adds, batch included. *_elements: tensor elements, not bytes; weights are counted apart from reads.
    taps: positions of a convolution window (9 for 3x3). stride: of rows. groups, in_channels, out_channels: of the
    whole convolution or matrix; in_channels is the inner dimension of a product. costly_elements: elements that pass
    through an exponential, root or quotient, here or in an activation that has joined. joined: calls that have joined.
    """

    kind: OpKind
    name: str
    macs: int = Field(default=0, ge=0)
    read_elements: int = Field(default=0, ge=0)
    write_elements: int = Field(default=0, ge=0)
    weight_elements: int = Field(default=0, ge=0)
    op: str = ""
    taps: int = Field(default=1, ge=1)
    stride: int = Field(default=1, ge=1)
    groups: int = Field(default=1, ge=1)
    in_channels: int = Field(default=0, ge=0)
    out_channels: int = Field(default=0, ge=0)
    costly_elements: int = Field(default=0, ge=0)
    joined: int = Field(default=0, ge=0)

    @property
    def moved_elements(self) -> int:
        """Elements that cross the memory bus once each."""
        return self.read_elements + self.write_elements + self.weight_elements

    @property
    def positions(self) -> int:
        """Pixels or tokens of the result, batch included."""
        return self.write_elements // self.out_channels if self.out_channels else 0


class GraphCost(Frozen):
    """Ops in execution order, with the parameters of the module and the peak of live activations.

    parameters: as the module counts them (published figures). weight_elements: after batch-norm folding (what ships).
    loops: the kernels that a compiler which does not fold into contractions (torch.compile) makes of all the rest:
    every chain of pointwise calls, norms and reductions is one loop nest. folded_*: work on weights alone (a weight
    standardisation, a position table), which only such a compiler repeats in every pass.
    operators: every operator of the network in the words of `vocabulary`, those included that kernels have absorbed or
    that move nothing: what a runtime may refuse (`edgekd.targets.legality`).

    >>> op = OpCost(kind="linear", name="fc", macs=640, read_elements=64, write_elements=10, weight_elements=650)
    >>> GraphCost(ops=(op, op), parameters=650, peak_activation_elements=74).macs
    1280
    """

    ops: tuple[OpCost, ...]
    parameters: int = Field(ge=0)
    peak_activation_elements: int = Field(ge=0)
    loops: tuple[OpCost, ...] = ()
    folded_macs: int = Field(default=0, ge=0)
    folded_elements: int = Field(default=0, ge=0)
    operators: tuple[str, ...] = ()
    vocabulary: Vocabulary = "aten"

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass."""
        return sum(op.macs for op in self.ops)

    @property
    def weight_elements(self) -> int:
        """Stored weights and biases once batch norms are folded."""
        return sum(op.weight_elements for op in self.ops)

    @property
    def unknown(self) -> tuple[OpCost, ...]:
        """Kernels led by an operator that no vocabulary knows: counted as moved elements, not to be predicted."""
        return tuple(op for op in self.ops if op.op and role_of(op.op) == "unknown")

    @property
    def moved_elements(self) -> int:
        """Elements read and written over all ops."""
        return sum(op.moved_elements for op in self.ops)
