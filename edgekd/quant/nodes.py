"""Small steps on fx graphs that every pass needs: find calls, read and replace stored tensors, add a call."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten


def nodes_of(graph: fx.GraphModule, *targets: object) -> list[fx.Node]:
    """Calls of any of the given operators, in order."""
    return [node for node in graph.graph.nodes if node.op == "call_function" and node.target in targets]


def divides_tensors(node: fx.Node) -> bool:
    """Whether it divides by what is computed: a grid rounds small divisors to zero (attention that normalises)."""
    return node.target is aten.div.Tensor and isinstance(node.args[1], fx.Node)


def set_argument(node: fx.Node, position: int, value: Any) -> bool:
    """Rewrite one positional argument; True where that changed it."""
    if node.args[position] == value:
        return False
    node.args = (*node.args[:position], value, *node.args[position + 1 :])
    return True


def tensor_of(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    """The parameter or buffer that a get_attr node names, detached."""
    value: Any = graph
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return cast(Tensor, value).detach()


def store(graph: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    """Give a stored tensor another value; the tensor it had, which a model may share, keeps its own."""
    path, _, name = str(node.target).rpartition(".")
    owner = graph.get_submodule(path)
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[name] = value


def add_tensor(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """A new stored tensor, read where the graph inserts; its name gets a number where it is taken."""
    free, count = name, 0
    while hasattr(graph, free):
        count += 1
        free = f"{name}_{count}"
    graph.register_buffer(free, value)
    node = graph.graph.get_attr(free)
    node.meta["val"] = value
    return node


def add_call(graph: fx.GraphModule, like: fx.Node, target: Any, *arguments: Any) -> fx.Node:
    """A call where the graph inserts, in the module of `like`; shape and type come from running it on the `val`s."""
    made = graph.graph.call_function(target, arguments)
    made.meta["nn_module_stack"] = like.meta.get("nn_module_stack")
    made.meta["val"] = target(*fx.map_arg(arguments, lambda node: node.meta["val"]))
    return made


def replace_by(graph: fx.GraphModule, node: fx.Node, other: fx.Node) -> None:
    """Let every reader of `node` read `other`, and erase `node`."""
    node.replace_all_uses_with(other, delete_user_cb=lambda user: user is not other)
    graph.graph.erase_node(node)
