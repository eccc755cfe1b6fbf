"""From a module to graphs and back: export, folded batch norms, literals that switch modes. No quantiser here."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from edgekd.errors import InputError
from edgekd.quant.admission import require_usable
from edgekd.quant.layers import hand_on_layers, remember_layers
from edgekd.quant.nodes import aten, nodes_of
from edgekd.quant.program import OUTPUT_NAME, name_outputs
from edgekd.quant.reparameterise import reparameterised
from edgekd.quant.rewrites import fold_scales, simplify

Outputs = Literal["first", "all"]

FUNCTIONAL: dict[object, Any] = {
    aten.relu_.default: aten.relu.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardsigmoid_.default: aten.hardsigmoid.default,
    aten.silu_.default: aten.silu.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.dropout_.default: aten.dropout.default,
    aten.add_.Tensor: aten.add.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
}


class LogitsOnly(nn.Module):
    """A model whose input is named `image` and whose outputs are plain: the first tensor, or all of them by name.

    first: forward returns the logits of logits or (logits, anything). all: a tensor where the model returns one, else
    a dict: keys of the model's own dict made identifiers (`out`, `aux`), or `output_0`, `output_1`, ...
    """

    def __init__(self, model: nn.Module, outputs: Outputs = "first") -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """Images (batch, channels, height, width) to logits (batch, classes), or to every output."""
        named = named_outputs(self.model(image))
        if self.outputs == "first" or len(named) == 1:
            return next(iter(named.values()))
        return named


def named_outputs(result: object) -> dict[str, Tensor]:
    """Every tensor a model returned, by name, in order.

    Raises: InputError: there is none.

    >>> list(named_outputs({"out": torch.zeros(1), "aux-2": [torch.zeros(1), None]}))
    ['out', 'aux_2_0']
    >>> list(named_outputs((torch.zeros(1), torch.zeros(1))))
    ['output_0', 'output_1']
    """
    if isinstance(result, Mapping):  # transformers' outputs are dicts that pytree takes for leaves
        result = dict(result)
    named: dict[str, Tensor] = {}
    for path, leaf in pytree.tree_flatten_with_path(result)[0]:
        if isinstance(leaf, Tensor):
            words = [re.sub(r"\W", "_", str(_key(part))) for part in path] or ["logits"]
            name = "_".join(words)
            named[name if name.isidentifier() and name not in named and name != "image" else f"output_{name}"] = leaf
    if not named:
        raise InputError("the model returns no tensor", fix="its forward must return logits, a tuple or a dict")
    return named


def _key(part: Any) -> object:
    return next(getattr(part, name) for name in ("key", "idx", "name") if hasattr(part, name))


def export_float(model: nn.Module, image_shape: Sequence[int], *, outputs: Outputs = "first") -> ExportedProgram:
    """A float program for batch 1: eval mode, on the CPU, batch norms folded into the convolutions before them.

    image_shape: (channels, height, width), or (1, channels, height, width). The model itself is not changed.
    outputs: "first" drops every output but the first (a classifier's logits); "all" keeps them under their names.
    Folding is done here, once, because a runtime that does not fold a batch norm runs it as an extra multiply and add.
    Branches that a network merges for deployment are merged (see `reparameterised`).
    Raises: InputError: the shape is not an image's, a weight is not finite, the model takes several inputs, or
        torch.export cannot trace it.
    """
    example = torch.zeros(batch_one(image_shape))
    require_usable(model)
    frozen = LogitsOnly(copy.deepcopy(reparameterised(model)), outputs).cpu().eval()
    with torch.no_grad():
        graph = trace(frozen, example)
        fold_batch_norms(graph)
        fold_scales(graph)
        return finish(graph, example)


def batch_one(image_shape: Sequence[int]) -> tuple[int, int, int, int]:
    """(1, channels, height, width) from either spelling of an image's shape.

    >>> batch_one((3, 32, 32))
    (1, 3, 32, 32)
    """
    sizes = tuple(int(size) for size in image_shape)
    channels, height, width = sizes[-3:] if len(sizes) >= 3 else (0, 0, 0)
    if min(channels, height, width) < 1 or sizes[:-3] not in ((), (1,)):
        raise InputError(f"image shape {sizes}", fix="expected (channels, height, width)")
    return 1, channels, height, width


def trace(module: nn.Module, example: Tensor, *, dynamic_batch: bool = False) -> fx.GraphModule:
    """The aten graph of a module in the mode it is in, sharing its parameters; plain operators, no guards.

    Raises: InputError: torch.export cannot trace the module.
    """
    shapes = ({0: Dim("batch", min=1)},) if dynamic_batch else None
    try:
        with _quiet():
            program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises a dozen kinds; each means that this model cannot be exported
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"torch.export cannot trace the model ({first})", fix="fixed image size, no data-dependent branch"
        ) from error
    # The guards re-check sizes on every call and are a submodule that train(), deepcopy and re-export trip over.
    graph = program.module(check_guards=False)
    remember_layers(graph)
    graph.graph.eliminate_dead_code()  # a tap's leftover clone would count as a reader
    _make_functional(graph)
    _name_paddings(graph)
    _drop_batch_counters(graph)
    simplify(graph)
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs the traceback of what it also raises: 40 lines on a user's terminal for a batch that is not free."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)


def _make_functional(graph: fx.GraphModule) -> None:
    """Replace in-place operators whose input nobody reads afterwards: observers and converters expect pure ones."""
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    for node in nodes_of(graph, *FUNCTIONAL):
        changed = node.args[0]
        if (
            isinstance(changed, fx.Node)
            and changed.op != "get_attr"
            and order[node] == max(order[u] for u in changed.users)
        ):
            node.target = FUNCTIONAL[node.target]
    graph.recompile()


def _name_paddings(graph: fx.GraphModule) -> None:
    """Write 'same' and 'valid' paddings as numbers: torchao's batch-norm patterns know only those."""
    for node in nodes_of(graph, aten.conv2d.padding):
        image, weight, bias, stride, padding, dilation, groups = _with_defaults(node)
        kernel = cast(fx.Node, weight).meta["val"].shape[2:]
        reach = [d * (k - 1) if padding == "same" else 0 for d, k in zip(_pair(dilation), kernel, strict=True)]
        if all(r % 2 == 0 for r in reach):  # an even kernel pads one side more, which conv2d.default cannot say
            node.target = aten.conv2d.default
            node.args = (image, weight, bias, stride, [r // 2 for r in reach], dilation, groups)
    graph.recompile()


def _with_defaults(node: fx.Node) -> tuple[Any, ...]:
    defaults = (None, None, None, [1, 1], "valid", [1, 1], 1)
    return (*node.args, *defaults[len(node.args) :])


def _pair(value: Any) -> list[int]:
    sizes = list(value) if isinstance(value, (list, tuple)) else [value]
    return sizes * 2 if len(sizes) == 1 else sizes


def _drop_batch_counters(graph: fx.GraphModule) -> None:
    """Erase `num_batches_tracked += 1`: the momentum is a literal here, and the counter would run in eval mode too."""
    for node in nodes_of(graph, aten.add_.Tensor):
        counter = node.args[0]
        if isinstance(counter, fx.Node) and counter.op == "get_attr" and not node.users:
            graph.graph.erase_node(node)
    graph.recompile()


def fold_batch_norms(graph: fx.GraphModule) -> None:
    """Fold each eval-mode batch norm into the convolution or linear layer that only it reads, in place.

    torchao's own pass (0.18, _fuse_conv_bn_) also folds where something else reads the convolution, as the residual of
    a pre-activation network does, and the program is then silently wrong.
    """
    # Imported here: whoever only rewrites a program's weights (an exporter) does without torchao, 2 s of CPU time.
    from torchao.quantization.pt2e.utils import fold_bn_weights_into_conv_node, fold_bn_weights_into_linear_node

    folds: dict[object, Any] = {
        aten.conv1d.default: fold_bn_weights_into_conv_node,
        aten.conv2d.default: fold_bn_weights_into_conv_node,
        aten.linear.default: fold_bn_weights_into_linear_node,
    }
    for norm in nodes_of(graph, aten.batch_norm.default):
        source = cast(fx.Node, norm.args[0])
        fold = folds.get(source.target)
        if fold is None or len(source.users) > 1 or len(cast(fx.Node, source.args[1]).users) > 1:
            continue
        if source.target is aten.linear.default and norm.meta["val"].ndim != 2:
            continue  # the norm's channels are axis 1, the linear layer's are the last axis
        bias = source.args[2] if len(source.args) > 2 else None
        fold(source, source.args[1], bias, norm, graph, False)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def keep_first_output(graph: fx.GraphModule) -> None:
    """Cut every output but the first (the logits) and what only they needed, in place."""
    output = graph.graph.output_node()
    first = next(leaf for leaf in cast(Sequence[object], output.args[0]) if isinstance(leaf, fx.Node))
    output.args = ((first,),)
    code = cast(Any, graph.graph)._codegen
    code.pytree_info = code.pytree_info._replace(out_spec=pytree.tree_structure(0))
    graph.graph.eliminate_dead_code()
    graph.recompile()


class _InOrder(nn.Module):
    """A graph whose outputs are a tensor, or a tuple of them: converters know those best."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph_module = graph

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = tuple(named_outputs(self.graph_module(image)).values())
        return values if len(values) > 1 else values[0]


def finish(graph: fx.GraphModule, example: Tensor) -> ExportedProgram:
    """A program with input `image` for the example's own shape; nothing unused is stored in it.

    Its output is `logits`, or the outputs of the graph under their names where it returns a dict of several.
    """
    for node in nodes_of(graph, aten.dropout.default):
        node.replace_all_uses_with(cast(fx.Node, node.args[0]))
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    _drop_unused_tensors(graph)
    graph.recompile()
    with torch.no_grad():
        names = list(named_outputs(graph(example)))
    program = torch.export.export(_InOrder(graph), (example,))
    hand_on_layers(graph, program.graph)
    return name_outputs(program, names if len(names) > 1 else [OUTPUT_NAME])


def _drop_unused_tensors(graph: fx.GraphModule) -> None:
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for module_name, module in graph.named_modules():
        for table in (module._parameters, module._buffers):
            for name in list(table):
                if f"{module_name}.{name}".lstrip(".") not in used:
                    del table[name]
