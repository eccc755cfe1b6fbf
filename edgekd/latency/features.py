"""What a graph asks of a device, as a vector: multiply-adds, elements, weights and launches by kind of kernel.

The predicted time is a sum of positive costs, one per feature, so a feature of a network is the sum of its kernels'.
Groups: D dense multiply-adds, W multiply-adds with one input channel each, E elements, M weights, N launches. The base
is the natural logarithm of milliseconds per unit on a nominal device, where no measurement says better: 10**9
multiply-adds take 1 ms, 10**6 elements 0.02 ms, 10**6 weights 0.03 ms, 1,000 launches 1 ms.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgekd.latency.vocabulary import role_of

Vector = npt.NDArray[np.float64]
Style = Literal["deployed", "compiled"]
_GROUP_BASE = {"D": 0.0, "W": 0.0, "E": -4.0, "M": -3.5, "N": 0.0}
_GROUP_UNIT = {"D": 1e-9, "W": 1e-9, "E": 1e-6, "M": 1e-6, "N": 1e-3}
_LARGE_ELEMENTS = 2**21
CACHED_WEIGHTS = 8e6


class Feature(NamedTuple):
    """offset: added to the group's base. style: the runtimes that see it; '' is all of them."""

    name: str
    group: str
    offset: float
    style: str = ""


FEATURES: tuple[Feature, ...] = (
    Feature("conv1x1", "D", 0.0),
    Feature("conv3x3", "D", -0.3),  # stride 1: Winograd where the runtime has it
    Feature("conv_other", "D", 0.0),
    Feature("conv_stem", "D", 0.5),  # up to 4 input channels fill no vector
    Feature("conv_grouped", "D", 0.3),
    Feature("conv_small", "D", -1.5),  # what at most 8 x 8 positions cost on top
    Feature("conv_narrow", "D", -1.5),  # what at most 32 channels cost on top
    Feature("linear", "D", 0.0),
    Feature("attention", "D", 1.0),
    Feature("attention_small", "D", -0.5),  # what windows of at most 64 tokens cost on top
    Feature("depthwise", "W", 1.5),
    Feature("depthwise_large", "W", 0.8),  # windows over 3x3
    Feature("conv_elements", "E", 0.0),
    Feature("depthwise_elements", "E", 0.0),
    Feature("linear_elements", "E", 0.0),
    Feature("softmax_elements", "E", 1.5),
    Feature("add_elements", "E", 0.0, "deployed"),
    Feature("gate_elements", "E", 0.0, "deployed"),
    Feature("pool_elements", "E", 0.0),
    Feature("norm_elements", "E", 1.5, "deployed"),
    Feature("copy_elements", "E", 0.8, "deployed"),
    Feature("costly_elements", "E", 0.0, "deployed"),
    Feature("large_elements", "E", -1.5),  # what kernels over 2**21 elements (no cache holds them) cost on top
    Feature("weights", "M", -0.5),  # of convolutions
    Feature("linear_weights", "M", -0.5),  # of products that use them more than twice
    Feature("weights_beyond", "M", -1.5),  # what weights over 8 * 10**6 (no cache holds them) cost on top
    Feature("vector_weights", "M", 0.0),  # each weight is used once: bandwidth, not arithmetic
    Feature("conv_launches", "N", 0.0),
    Feature("conv1x1_launches", "N", 0.0),
    Feature("depthwise_launches", "N", 0.0),
    Feature("linear_launches", "N", 0.0),
    Feature("vector_launches", "N", 0.0),
    Feature("other_launches", "N", 0.0, "deployed"),
    Feature("loop_elements", "E", 0.0, "compiled"),
    Feature("loop_costly", "E", 0.0, "compiled"),
    Feature("loop_norm", "E", 0.5, "compiled"),
    Feature("loop_group_norm", "E", 0.5, "compiled"),
    Feature("loop_reduce", "E", 0.0, "compiled"),
    Feature("loop_copy", "E", 0.3, "compiled"),
    Feature("loop_launches", "N", 0.0, "compiled"),
    Feature("folded_elements", "E", 0.0, "compiled"),
    Feature("folded", "D", 0.0, "compiled"),
    Feature("pass", "N", 0.0),  # one per inference
)
NAMES = tuple(feature.name for feature in FEATURES)
UNITS: Vector = np.array([_GROUP_UNIT[feature.group] for feature in FEATURES])
BASE: Vector = np.array([_GROUP_BASE[feature.group] + feature.offset for feature in FEATURES])


class Kernel(Protocol):
    """The part of `edgekd.latency.cost.OpCost` that features ask for."""

    @property
    def kind(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def macs(self) -> int: ...
    @property
    def read_elements(self) -> int: ...
    @property
    def write_elements(self) -> int: ...
    @property
    def weight_elements(self) -> int: ...
    @property
    def taps(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def costly_elements(self) -> int: ...


class Graph(Protocol):
    """The part of `edgekd.latency.cost.GraphCost` that features ask for."""

    @property
    def ops(self) -> Iterable[Kernel]: ...
    @property
    def loops(self) -> Iterable[Kernel]: ...
    @property
    def folded_macs(self) -> int: ...
    @property
    def folded_elements(self) -> int: ...


def mask(style: Style) -> npt.NDArray[np.bool_]:
    """Which features a style of runtime sees."""
    return np.array([feature.style in ("", style) for feature in FEATURES])


def features(graph: Graph) -> Vector:
    """Features of a network in the units of their groups, shape (features,).

    >>> from edgekd.latency.cost import GraphCost, OpCost
    >>> sizes = {"write_elements": 10**6, "weight_elements": 10**6, "out_channels": 1000}
    >>> op = OpCost(kind="linear", name="fc", op="addmm", macs=2 * 10**9, **sizes)
    >>> found = features(GraphCost(ops=(op,), parameters=0, peak_activation_elements=0))
    >>> float(found[NAMES.index("linear")]), float(found[NAMES.index("linear_elements")])
    (2.0, 1.0)
    """
    found = dict.fromkeys(NAMES, 0.0)
    for kernel in graph.ops:
        _count(kernel, found)
    for nest in graph.loops:
        _count_loop(nest, found)
    found["weights_beyond"] = max(0.0, sum(kernel.weight_elements for kernel in graph.ops) - CACHED_WEIGHTS)
    found["folded"], found["folded_elements"], found["pass"] = graph.folded_macs, graph.folded_elements, 1.0
    return np.array([found[name] for name in NAMES]) * UNITS


def _count(kernel: Kernel, found: dict[str, float]) -> None:
    moved = kernel.read_elements + kernel.write_elements
    positions = kernel.write_elements // kernel.out_channels if kernel.out_channels else 0
    found["weights"] += kernel.weight_elements if kernel.kind != "linear" else 0
    found["large_elements"] += moved if moved > _LARGE_ELEMENTS else 0
    found["costly_elements"] += kernel.costly_elements
    if kernel.macs and kernel.weight_elements and positions <= 2 and kernel.kind != "depthwise":
        found["vector_weights"] += kernel.weight_elements
        found["vector_launches"] += 1
    elif kernel.kind == "depthwise" or (kernel.kind == "conv" and kernel.in_channels <= 8 * kernel.groups > 8):
        found["depthwise" if kernel.taps <= 9 else "depthwise_large"] += kernel.macs
        found["depthwise_elements"] += moved
        found["depthwise_launches"] += 1
    elif kernel.kind == "conv":
        _count_conv(kernel, positions, found)
        found["conv_elements"] += moved
        found["conv1x1_launches" if kernel.taps == 1 else "conv_launches"] += 1
    elif kernel.kind == "linear":
        found["linear" if kernel.weight_elements else "attention"] += kernel.macs
        found["linear_weights"] += kernel.weight_elements
        if not kernel.weight_elements and max(kernel.in_channels, kernel.out_channels) <= 64:
            found["attention_small"] += kernel.macs
        found["linear_elements"] += moved
        found["linear_launches"] += 1
        if "scaled_dot_product" in kernel.op:  # the scores never reach memory, but each is exponentiated
            found["softmax_elements"] += kernel.macs // max(1, kernel.in_channels + kernel.out_channels)
    else:
        _count_other(kernel, moved, found)


def _count_conv(kernel: Kernel, positions: int, found: dict[str, float]) -> None:
    if kernel.groups > 1:
        name = "conv_grouped"
    elif kernel.taps == 1:
        name = "conv1x1"
    elif kernel.in_channels <= 4:
        name = "conv_stem"
    else:
        name = "conv3x3" if kernel.taps == 9 and kernel.stride == 1 else "conv_other"
    found[name] += kernel.macs
    if positions <= 64:
        found["conv_small"] += kernel.macs
    if min(kernel.in_channels, kernel.out_channels) <= 32 and name != "conv_stem":
        found["conv_narrow"] += kernel.macs


def _count_other(kernel: Kernel, moved: int, found: dict[str, float]) -> None:
    role = role_of(kernel.op)
    found["other_launches"] += 1
    if kernel.kind == "pool":
        found["pool_elements"] += moved
    elif kernel.kind == "add":
        found["add_elements"] += moved
    elif role == "softmax":
        found["softmax_elements"] += moved
    elif role == "norm":
        found["norm_elements"] += moved
    elif role == "copy":
        found["copy_elements"] += moved
    else:
        found["gate_elements"] += moved


def _count_loop(nest: Kernel, found: dict[str, float]) -> None:
    moved, role = nest.read_elements + nest.write_elements, role_of(nest.op)
    if role == "pool":
        return
    found["loop_launches"] += 1
    found["loop_costly"] += nest.costly_elements
    if role == "softmax":
        found["softmax_elements"] += 0.0  # counted with the kernels
    elif role == "norm":
        found["loop_group_norm" if "group" in nest.op else "loop_norm"] += moved
    elif role == "reduce":
        found["loop_reduce"] += moved
    elif role == "copy":
        found["loop_copy"] += moved
    else:
        found["loop_elements"] += moved
