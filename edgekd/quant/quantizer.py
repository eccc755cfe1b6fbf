"""Which tensors of a graph become int8: one table of operators, one small function per kind.

The rules that all five runtimes share: a convolution or linear layer reads int8 inputs and weights, and its batch norm
and ReLU stay inside it; element-wise operators read and write int8; operators that move or pool values share one grid.
An operator in no kind stays float between a dequantise and a quantise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import fx
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from edgekd.quant.fake_quantize import activation_spec, weight_spec
from edgekd.targets.spec import QuantSpec

aten = torch.ops.aten
ANNOTATION = "quantization_annotation"

COMPUTE = {aten.conv1d.default, aten.conv2d.default, aten.linear.default}
BATCH_NORM = {aten.batch_norm.default}
# Runtimes fuse these into the operator before them as a clamp of its int8 output.
CLAMP = {aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default}
ELEMENTWISE = {
    *(aten.hardswish.default, aten.hardswish_.default, aten.hardsigmoid.default, aten.hardsigmoid_.default),
    *(aten.silu.default, aten.silu_.default, aten.sigmoid.default, aten.sigmoid_.default, aten.tanh.default),
    *(aten.gelu.default, aten.elu.default, aten.leaky_relu.default, aten.leaky_relu_.default, aten.prelu.default),
    *(aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.mul_.Tensor, aten.div.Tensor),
    *(aten.clamp.default, aten.maximum.default, aten.minimum.default, aten.matmul.default, aten.bmm.default),
}
# Averages over a whole image span a fraction of its range: their own grid is worth 2 to 3 dB at the logits (measured).
GLOBAL_POOL = {aten.mean.dim, aten.adaptive_avg_pool2d.default}
CONCATENATION = {aten.cat.default}
SHARED = {
    *(
        aten.max_pool2d.default,
        aten.avg_pool2d.default,
        aten.adaptive_max_pool2d.default,
        aten.amax.default,
        aten.upsample_nearest2d.vec,
        aten.pixel_shuffle.default,
    ),
    *(aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.contiguous.default),
    *(aten.dropout.default, aten.dropout_.default, aten.clone.default, aten.slice.Tensor, aten.select.int),
    *(aten.channel_shuffle.default, aten.constant_pad_nd.default, aten.pad.default, aten.expand.default),
}


class EdgeQuantizer(Quantizer):  # type: ignore[misc]  # torchao ships no types
    """Annotates the part of a graph that computes the logits; what only feeds a tap is left alone and is cut later.

    quantise_output: whether the logits are int8 too; LiteRT runs the last layer in float where they are not.
    """

    def __init__(self, spec: QuantSpec, *, training: bool, quantise_output: bool = True) -> None:
        super().__init__()
        self.activation: QuantizationSpec = activation_spec(spec, training=training)
        self.weight: QuantizationSpec = weight_spec(spec, training=training)
        self.quantise_output = quantise_output
        self.deployed: set[fx.Node] = set()

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Attach to every node that becomes int8 which of its inputs and whether its output are quantised."""
        self.deployed = ancestors_of_logits(model)
        kinds = self._kinds()
        for node in model.graph.nodes:
            if node in self.deployed and ANNOTATION not in node.meta and is_float(node):
                kinds.get(node.target, _leave_float)(node)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to refuse: what is not annotated stays float, and `int8_coverage` counts it."""

    def _kinds(self) -> dict[object, Callable[[fx.Node], None]]:
        table = (
            (COMPUTE, self._compute),
            (BATCH_NORM | ELEMENTWISE | CLAMP, self._elementwise),
            (GLOBAL_POOL, self._global_pool),
            (CONCATENATION, self._concatenation),
            (SHARED, self._shared),
        )
        return {target: rule for targets, rule in table for target in targets}

    def _compute(self, node: fx.Node) -> None:
        source, weight = node.args[:2]
        norms = BATCH_NORM if node.target is not aten.linear.default else set()
        self._chain(node, {source: self.activation, weight: self.weight}, norms)

    def _elementwise(self, node: fx.Node) -> None:
        sources = node.args[:1] if node.target in BATCH_NORM else node.args[:2]  # a batch norm's weight stays float
        tensors = [a for a in sources if isinstance(a, fx.Node) and is_float(a)]
        self._chain(node, dict.fromkeys(tensors, self.activation), set())

    def _global_pool(self, node: fx.Node) -> None:
        """Its own grid, except for a pool to more than one pixel: LiteRT's average pool cannot change grids."""
        several = node.target is aten.adaptive_avg_pool2d.default and math.prod(node.meta["val"].shape[-2:]) > 1
        (self._shared if several else self._elementwise)(node)

    def _chain(self, head: fx.Node, inputs: dict[object, object], norms: Iterable[object]) -> None:
        """One int8 operator: the head, at most one batch norm, at most one clamp; only the last output is rounded."""
        last = head
        _annotate(head, inputs)
        for fusable in (set(norms), CLAMP if head.target not in CLAMP else set()):
            users = self._users(last)
            if len(users) == 1 and users[0].target in fusable:
                last = users[0]
                _annotate(last, {})
        if self.quantise_output or self._users(last):
            last.meta[ANNOTATION].output_qspec = self.activation

    def _users(self, node: fx.Node) -> list[fx.Node]:
        """Its readers on the way to the logits: a tap must not change what is fused."""
        return [user for user in node.users if user in self.deployed]

    def _concatenation(self, node: fx.Node) -> None:
        parts = [part for part in node.args[0] if isinstance(part, fx.Node)]  # type: ignore[union-attr]
        shared = SharedQuantizationSpec((parts[0], node))
        _annotate(node, {part: shared for part in parts} | {parts[0]: self.activation}, shared)

    def _shared(self, node: fx.Node) -> None:
        source = node.args[0]
        if isinstance(source, fx.Node) and (source.op == "placeholder" or ANNOTATION in source.meta):
            _annotate(node, {source: self.activation}, SharedQuantizationSpec((source, node)))


def _annotate(node: fx.Node, inputs: object, output: object = None) -> None:
    node.meta[ANNOTATION] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)


def _leave_float(node: fx.Node) -> None:
    """An operator of no kind."""


def is_float(node: fx.Node) -> bool:
    """Whether the node is a floating tensor (counters of batch norms are int64 and must not be observed)."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def ancestors_of_logits(model: fx.GraphModule) -> set[fx.Node]:
    """The first output and the nodes that it depends on; not the output node, which reads the taps too."""
    first = next(leaf for leaf in model.graph.output_node().args[0] if isinstance(leaf, fx.Node))  # type: ignore[union-attr]
    found: set[fx.Node] = set()
    waiting = [first]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found
