"""What a graph costs, counted in multiply-adds and elements: independent of device, precision and runtime."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.artifact import Frozen

OpKind = Literal["conv", "depthwise", "linear", "pool", "add", "other"]


class OpCost(Frozen):
    """One kernel as a runtime would launch it: batch norm and activation are part of the convolution before them.

    kind: `linear` includes matrix products of two activations (attention), whose weight_elements is 0; `other` is
    whatever moves data or is not a contraction (softmax, layer norm, concatenation, channel shuffle, gating).
    macs: multiply-adds, batch included. *_elements: tensor elements, not bytes; weights are counted apart from reads.
    """

    kind: OpKind
    name: str
    macs: int = Field(default=0, ge=0)
    read_elements: int = Field(default=0, ge=0)
    write_elements: int = Field(default=0, ge=0)
    weight_elements: int = Field(default=0, ge=0)

    @property
    def moved_elements(self) -> int:
        """Elements that cross the memory bus once each."""
        return self.read_elements + self.write_elements + self.weight_elements


class GraphCost(Frozen):
    """Ops in execution order, with the parameters of the module and the peak of live activations.

    parameters: as the module counts them (published figures). weight_elements: after batch-norm folding (what ships).

    >>> op = OpCost(kind="linear", name="fc", macs=640, read_elements=64, write_elements=10, weight_elements=650)
    >>> GraphCost(ops=(op, op), parameters=650, peak_activation_elements=74).macs
    1280
    """

    ops: tuple[OpCost, ...]
    parameters: int = Field(ge=0)
    peak_activation_elements: int = Field(ge=0)

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass."""
        return sum(op.macs for op in self.ops)

    @property
    def weight_elements(self) -> int:
        """Stored weights and biases once batch norms are folded."""
        return sum(op.weight_elements for op in self.ops)

    @property
    def moved_elements(self) -> int:
        """Elements read and written over all ops."""
        return sum(op.moved_elements for op in self.ops)
