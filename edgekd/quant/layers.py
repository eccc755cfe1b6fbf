"""Which module of the user's model a graph node came from: how layers are named in options, reports and errors."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import fx

from edgekd.errors import InputError

aten = torch.ops.aten

# Layers with weights: what a user can name in QuantSpec.float_layers and what a report lists.
WEIGHTED = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv_transpose2d.input,
    aten.linear.default,
)
# Products of two activations: attention.
PRODUCTS = (aten.matmul.default, aten.bmm.default)

# Where a node remembers its layer, in its meta["custom"], which torch.export writes to the file.
LAYER = "edgekd_layer"

# Modules that edgekd puts around a user's model, and the attribute that holds it.
_WRAPPERS = {
    "LogitsOnly": "model",
    "_KeepTaps": "model",
    "WithTaps": "model",
    "_InOrder": "graph_module",
    "Adopted": "program",
    "QatModel": "graph",
}


def layer_of(node: fx.Node) -> str:
    """Path of the innermost module that a node was traced in, as the user's `named_modules()` gives it.

    A program that was traced before has lost its modules: there a layer is named after its weight. "" where neither
    is known.
    """
    remembered = (node.meta.get("custom") or {}).get(LAYER)
    if remembered is not None:
        return str(remembered)
    path = _by_module(node)
    return path if path is not None else _by_weight(node)


def remember_layers(graph: fx.GraphModule) -> None:
    """Write each operator's layer where torch keeps it through rewrites and in the .pt2; module stacks get lost."""
    for node in graph.graph.nodes:
        if node.op == "call_function":
            node.meta["custom"] = {**(node.meta.get("custom") or {}), LAYER: layer_of(node)}


def hand_on_layers(before: fx.GraphModule, after: fx.Graph) -> None:
    """Give a graph that was traced from another the layers of that one: the n-th call of an operator is the n-th."""
    names: dict[object, list[str]] = {}
    for node in before.graph.nodes:
        if node.op == "call_function":
            names.setdefault(node.target, []).append(layer_of(node))
    calls: dict[object, list[fx.Node]] = {}
    for node in after.nodes:
        if node.op == "call_function":
            calls.setdefault(node.target, []).append(node)
    for target, nodes in calls.items():
        for node, name in zip(nodes, names.get(target, ()), strict=False):
            if len(nodes) == len(names[target]):
                node.meta["custom"] = {**(node.meta.get("custom") or {}), LAYER: name}


def _by_module(node: fx.Node) -> str | None:
    """The last entry of the module stack, without what stands around the model; None where no module is known."""
    root, innermost, kind, held = "", "", "", None
    for where, type_name in (node.meta.get("nn_module_stack") or {}).values():
        kind = type_name if isinstance(type_name, str) else type_name.__name__
        innermost = re.sub(r"@\d+", "", str(where)).removeprefix("L['self'].")
        held = _WRAPPERS.get(kind.rpartition(".")[2]) if kind.startswith("edgekd.") else None
        if held is not None:
            root = f"{innermost}.{held}".lstrip(".")
    if not innermost or innermost == root or held is not None or "GraphModule" in kind:
        return None
    return innermost.removeprefix(f"{root}.")


def _by_weight(node: fx.Node) -> str:
    weight = node.args[1] if len(node.args) > 1 else None
    while isinstance(weight, fx.Node) and weight.op == "call_function" and weight.args:
        weight = weight.args[0]  # through the quantisation of the weight
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return ""
    path = str(weight.target).rpartition(".")[0]
    return re.sub(r"^(model\.)?(program\.)?(graph_module\.(model\.)?)*", "", path)


def under(path: str, prefixes: Iterable[str]) -> bool:
    """Whether a layer is one of the named ones or inside one.

    >>> under("features.3.conv", ["features.3"]), under("features.30.conv", ["features.3"])
    (True, False)
    """
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)


def weighted_layers(graph: fx.GraphModule) -> list[str]:
    """Paths of the convolutions and linear layers in execution order, each once."""
    found = (layer_of(node) for node in graph.graph.nodes if node.op == "call_function" and node.target in WEIGHTED)
    return list(dict.fromkeys(path for path in found if path))


def require_layers(graph: fx.GraphModule, wanted: Sequence[str]) -> None:
    """Raises: InputError: a path in `float_layers` stands for nothing in the model; the nearest ones are named."""
    known = {layer_of(node) for node in graph.graph.nodes if node.op == "call_function"} - {""}
    for name in wanted:
        if not any(under(path, [name]) for path in known):
            raise InputError(f"no layer '{name}' in the model", where="float_layers", fix=_nearest(name, graph))


def _nearest(name: str, graph: fx.GraphModule) -> str:
    layers = weighted_layers(graph)
    parents = {path.rsplit(".", depth)[0] for path in layers for depth in range(1, path.count(".") + 1)}
    near = difflib.get_close_matches(name, [*layers, *sorted(parents)], n=3, cutoff=0.6)
    return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?" if near else f"layers: {', '.join(layers[:8])}"


def macs_of(node: fx.Node) -> int:
    """Multiply-adds of a convolution, linear layer or matrix product for one image; 0 for anything else."""
    output = node.meta.get("val")
    if not isinstance(output, torch.Tensor) or node.target not in (*WEIGHTED, *PRODUCTS):
        return 0
    left, right = (shape_behind(cast(fx.Node, argument)) for argument in node.args[:2])
    per_image = math.prod(_fixed(size) for size in output.shape[1:])
    if node.target in PRODUCTS:
        return per_image * _fixed(left[-1])
    if node.target is aten.conv_transpose2d.input:
        return math.prod(_fixed(s) for s in left[1:]) * math.prod(_fixed(s) for s in right[1:])
    return per_image * math.prod(_fixed(size) for size in right[1:])


def shape_behind(node: fx.Node) -> Sequence[Any]:
    """Of the tensor that an observer or a quantiser in between passes on."""
    while "val" not in node.meta:
        node = cast(fx.Node, node.args[0])
    return cast(Sequence[Any], node.meta["val"].shape)


def _fixed(size: Any) -> int:
    """A size that may be written in terms of a free batch; those that are count as 1."""
    try:
        return int(size)
    except (TypeError, ValueError, RuntimeError):
        return 1
