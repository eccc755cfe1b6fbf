"""Which tensors of a graph become int8: one table of operators, one small function per kind.

The rules that all five runtimes share: a convolution or linear layer reads int8 inputs and weights, and its batch norm
and ReLU stay inside it; element-wise operators read and write int8; operators that move or pool values share one grid.
An operator in no kind stays float between a dequantise and a quantise, and so does what the specification keeps float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import fx
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from edgekd.quant.fake_quantize import activation_spec, weight_spec
from edgekd.quant.gates import FIXED_RANGES
from edgekd.quant.layers import layer_of, require_layers, under
from edgekd.quant.nodes import divides_tensors
from edgekd.quant.rewrites import STAYS_FLOAT
from edgekd.targets.spec import OpKind, QuantSpec

aten = torch.ops.aten
ANNOTATION = "quantization_annotation"

CONVOLUTION = {aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding}
COMPUTE = CONVOLUTION | {aten.linear.default}
ADDITION = {aten.add.Tensor, aten.add_.Tensor}
PRODUCT = {aten.matmul.default, aten.bmm.default}
BATCH_NORM = {aten.batch_norm.default}
# Runtimes fuse these into the operator before them as a clamp of its int8 output.
CLAMP = {aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default}
ELEMENTWISE = {
    *(aten.hardswish.default, aten.hardswish_.default, aten.hardsigmoid.default, aten.hardsigmoid_.default),
    *(aten.silu.default, aten.silu_.default, aten.sigmoid.default, aten.sigmoid_.default, aten.tanh.default),
    *(aten.gelu.default, aten.elu.default, aten.leaky_relu.default, aten.leaky_relu_.default, aten.prelu.default),
    *(*ADDITION, aten.sub.Tensor, aten.mul.Tensor, aten.mul_.Tensor, aten.div.Tensor),
    *(aten.clamp.default, aten.maximum.default, aten.minimum.default, aten.softmax.int, aten.layer_norm.default),
}
# Averages over a whole image span a fraction of its range: their own grid is worth 2 to 3 dB at the logits (measured).
GLOBAL_POOL = {aten.mean.dim, aten.adaptive_avg_pool2d.default}
# What a runtime may compute inside the convolution or linear layer before it (`activation_in_convolution`).
ACTIVATION = {
    *(aten.hardswish.default, aten.hardswish_.default, aten.hardsigmoid.default, aten.hardsigmoid_.default),
    *(aten.silu.default, aten.silu_.default, aten.sigmoid.default, aten.sigmoid_.default, aten.gelu.default),
}
CONCATENATION = {aten.cat.default, aten.stack.default}
RESIZE = {aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec}
SHARED = {
    *(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_max_pool2d.default, aten.amax.default),
    *(aten.pixel_shuffle.default, aten.channel_shuffle.default),
    *(aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.contiguous.default),
    *(aten.dropout.default, aten.dropout_.default, aten.clone.default, aten.slice.Tensor, aten.select.int),
    *(aten.pad.default, aten.constant_pad_nd.default, aten.expand.default, aten.unflatten.int, aten.roll.default),
}
# What QuantSpec.float_kinds can name.
KINDS: dict[OpKind, set[Any]] = {
    "softmax": {aten.softmax.int},
    "layer_norm": {aten.layer_norm.default},
    "gelu": {aten.gelu.default},
    "silu": {aten.silu.default, aten.silu_.default},
    "sigmoid": {aten.sigmoid.default, aten.sigmoid_.default},
    "hardswish": {aten.hardswish.default, aten.hardswish_.default},
    "tanh": {aten.tanh.default},
    "matmul": PRODUCT,
    "resize": RESIZE,
    "pool": GLOBAL_POOL,
}


class EdgeQuantizer(Quantizer):  # type: ignore[misc]  # torchao ships no types
    """Annotates the part of a graph that computes the logits; what only feeds a tap is left alone and is cut later.

    quantise_output: whether the logits are int8 too; LiteRT runs the last layer in float where they are not.
    every_output: whether all outputs are deployed, and not the first alone with taps beside it.
    """

    def __init__(
        self, spec: QuantSpec, *, training: bool, quantise_output: bool = True, every_output: bool = False
    ) -> None:
        super().__init__()
        self.activation: QuantizationSpec = activation_spec(spec, training=training)
        self.result: QuantizationSpec = activation_spec(spec, training=training, whole_range=True)
        self.fixed = {
            target: activation_spec(spec, training=training, fixed=ends) for target, ends in FIXED_RANGES.items()
        }
        self.weight: QuantizationSpec = weight_spec(spec, training=training)
        self.float_layers = spec.float_layers
        self.float_targets = {target for kind in spec.float_kinds for target in KINDS[kind]}
        self.fused_residual, self.fused_activation = spec.residual_in_convolution, spec.activation_in_convolution
        self.quantise_output, self.every_output = quantise_output, every_output
        self.deployed: set[fx.Node] = set()
        self.kept_float: set[fx.Node] = set()

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Attach to every node that becomes int8 which of its inputs and whether its output are quantised.

        Raises: InputError: a path in the specification's `float_layers` is not in the model.
        """
        require_layers(model, self.float_layers)
        self.deployed = ancestors_of_outputs(model, every=self.every_output)
        self.kept_float = set(self._float_chains(model))
        wanted = self.deployed - self.kept_float - constants_of(model)
        kinds = self._kinds()
        for node in model.graph.nodes:
            if node in wanted and ANNOTATION not in node.meta and is_float(node):
                kinds.get(node.target, _leave_float)(node)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to refuse: what is not annotated stays float, and `int8_coverage` counts it."""

    def _float_chains(self, model: fx.GraphModule) -> Iterator[fx.Node]:
        """What stays float: named layers with the batch norm and clamp that belong to them, and whole kinds."""
        for node in model.graph.nodes:
            if node.op != "call_function":
                continue
            if node.target in self.float_targets or node.meta.get(STAYS_FLOAT) or divides_tensors(node):
                yield node
            elif self.float_layers and under(layer_of(node), self.float_layers):
                yield from self._fused(node) if node.target in COMPUTE else [node]

    def _kinds(self) -> dict[object, Callable[[fx.Node], None]]:
        table = (
            (COMPUTE, self._compute),
            (BATCH_NORM | ELEMENTWISE | CLAMP | PRODUCT, self._elementwise),
            (GLOBAL_POOL, self._global_pool),
            (CONCATENATION, self._concatenation),
            (SHARED | RESIZE, self._shared),
        )
        return {target: rule for targets, rule in table for target in targets}

    def _compute(self, node: fx.Node) -> None:
        source, weight = node.args[:2]
        self._chain(node, {source: self.activation, weight: self.weight})

    def _elementwise(self, node: fx.Node) -> None:
        one = node.target in BATCH_NORM or node.target is aten.layer_norm.default  # their weights stay float
        sources = node.args[: 1 if one else 2]
        unrounded = self._unrounded(node)
        tensors = [a for a in sources if isinstance(a, fx.Node) and is_float(a) and a is not unrounded]
        self._chain(node, dict.fromkeys(tensors, self.activation))

    def _unrounded(self, node: fx.Node) -> fx.Node | None:
        """The input that is not rounded, for its layer computes the node as well: of an activation or residual sum."""
        if node in self.kept_float:
            return None
        if self.fused_activation and node.target in ACTIVATION:
            source = node.args[0]
            alone = isinstance(source, fx.Node) and self._users(source) == [node]
            return cast(fx.Node, source) if alone and self._is_result(source, COMPUTE) else None
        return self._residual(node) if self.fused_residual and node.target in ADDITION else None

    def _residual(self, node: fx.Node) -> fx.Node | None:
        """Of an addition, the output of the convolution that computes the sum as well; the first of two."""
        parts = [part for part in node.args[:2] if isinstance(part, fx.Node) and is_float(part)]
        if len(parts) < 2 or parts[0] is parts[1] or shape_of(parts[0]) != shape_of(parts[1]):
            return None
        return next(
            (part for part in parts if self._is_result(part, CONVOLUTION) and self._users(part) == [node]), None
        )

    def _is_result(self, node: object, kinds: set[Any]) -> bool:
        """Of an int8 layer of these kinds: itself, or the batch norm that belongs to it."""
        head = node.args[0] if isinstance(node, fx.Node) and node.target in BATCH_NORM else node
        if not isinstance(head, fx.Node) or head.target not in kinds or head in self.kept_float:
            return False
        return node in self._fused(head)

    def _global_pool(self, node: fx.Node) -> None:
        """Its own grid, except for a pool to more than one pixel: LiteRT's average pool cannot change grids."""
        several = node.target is aten.adaptive_avg_pool2d.default and math.prod(node.meta["val"].shape[-2:]) > 1
        (self._shared if several else self._elementwise)(node)

    def _chain(self, head: fx.Node, inputs: dict[object, object]) -> None:
        """One int8 operator: the head, at most one batch norm, at most one clamp; only the last output is rounded."""
        chain = self._fused(head)
        _annotate(head, inputs)
        for node in chain[1:]:
            _annotate(node, {})
        users = self._users(chain[-1])
        if len(users) == 1 and self._unrounded(users[0]) is chain[-1]:
            return
        is_result = not users or self._only_reshaped(chain[-1])
        if self.quantise_output or users:
            usual = self.result if is_result else self.activation
            chain[-1].meta[ANNOTATION].output_qspec = self.fixed.get(chain[-1].target, usual)

    def _fused(self, head: fx.Node) -> list[fx.Node]:
        """The head, the batch norm and the clamp that become part of it."""
        chain = [head]
        norms = BATCH_NORM if head.target in COMPUTE - {aten.linear.default} else set()
        for fusable in (norms, CLAMP if head.target not in CLAMP else set()):
            users = self._users(chain[-1])
            if len(users) == 1 and users[0].target in fusable and users[0] not in self.kept_float:
                chain.append(users[0])
        return chain

    def _only_reshaped(self, node: fx.Node) -> bool:
        """Whether the output is all that a value becomes, by operators that move values."""
        users = self._users(node)
        return all(user.target in SHARED | RESIZE and self._only_reshaped(user) for user in users)

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


def has_residuals(program: ExportedProgram) -> bool:
    """Whether there is an addition that a convolution could compute as well (`residual_in_convolution`)."""
    nodes = program.graph_module.graph.nodes
    return any(n.target in ADDITION and any(part.target in CONVOLUTION for part in n.all_input_nodes) for n in nodes)


def has_activations(program: ExportedProgram) -> bool:
    """Whether a layer is read by an activation that it could compute as well (`activation_in_convolution`)."""
    nodes = program.graph_module.graph.nodes
    return any(n.target in ACTIVATION and n.all_input_nodes[0].target in COMPUTE for n in nodes)


def shape_of(node: fx.Node) -> tuple[object, ...]:
    """Its dimensions, symbols where they are free."""
    return tuple(node.meta["val"].shape)


def constants_of(model: fx.GraphModule) -> set[fx.Node]:
    """What is computed from stored tensors alone, as a weight times its channels' scale: rounded by its reader."""
    found: set[fx.Node] = set()
    for node in model.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and inputs and found.issuperset(inputs)):
            found.add(node)
    return found


def ancestors_of_outputs(model: fx.GraphModule, *, every: bool = False) -> set[fx.Node]:
    """The first output, or every one, and the nodes it depends on; not the output node, which reads the taps too."""
    leaves = [leaf for leaf in model.graph.output_node().args[0] if isinstance(leaf, fx.Node)]  # type: ignore[union-attr]
    found: set[fx.Node] = set()
    waiting = leaves if every else leaves[:1]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found
