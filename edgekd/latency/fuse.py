"""Merge steps into the kernels a runtime launches, and find the peak of live activations.

Rule of the deployment runtimes: a pointwise call joins the call that produced its only input, when nobody else reads
that value. All five do this for batch norm and activations; a residual add stays its own kernel (LiteRT's XNNPACK runs
it so; TensorRT, OpenVINO and ONNX Runtime may merge it, which makes the estimate slightly slow for them). An activation
written as x * f(x) joins as well.

Rule of a compiler like torch.compile: contractions stay alone, and every chain of the rest is one loop nest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgekd.latency.steps import Step, Value, readers

_APART = ("contraction", "convolution", "pool")  # a compiler merges nothing into these


def _takes(step: Step) -> bool:
    return step.contracts or step.pointwise or step.role == "norm"


def fuse(steps: Sequence[Step]) -> list[Step]:
    """Steps with pointwise followers merged into their producers, in execution order."""
    count = readers(steps)
    merged: list[Step] = []
    producer: dict[int, int] = {}  # value -> index in merged of the step that made it
    gates: dict[int, int] = {}  # value f(x) -> value x, where f is pointwise and x is read by f and one more
    for step in steps:
        index = _host(step, merged, producer, count, gates)
        if index is None:
            merged.append(step)
            index = len(merged) - 1
        else:
            merged[index] = _join(merged[index], step)
        producer[step.write[0]] = index
        if merged[index].pointwise and len(merged[index].reads) == 1:
            gates[step.write[0]] = merged[index].reads[0][0]
    return [step for step in merged if step.op]


def _host(
    step: Step, merged: list[Step], producer: dict[int, int], count: dict[int, int], gates: dict[int, int]
) -> int | None:
    """Index of the step that this one joins."""
    if not step.pointwise or not step.reads:
        return None
    if len(step.reads) == 2 and step.op == "mul":
        return _self_gated(step, merged, producer, count, gates)
    source = step.reads[0][0]
    index = producer.get(source)
    if len(step.reads) > 1 or index is None or not _takes(merged[index]):
        return None
    return index if count[source] == 1 else None


def _self_gated(
    step: Step, merged: list[Step], producer: dict[int, int], count: dict[int, int], gates: dict[int, int]
) -> int | None:
    """x * f(x): the activation f dissolves into the producer of x."""
    for gate, x in ((step.reads[0][0], step.reads[1][0]), (step.reads[1][0], step.reads[0][0])):
        host, middle = producer.get(x), producer.get(gate)
        if gates.get(gate) == x and count[gate] == 1 and count[x] == 2 and host is not None and middle is not None:
            if not _takes(merged[host]) or merged[middle].reads[0][0] != x:
                return None
            merged[middle] = replace(merged[middle], op="", reads=())
            return host
    return None


def _join(first: Step, second: Step) -> Step:
    # A batch norm's bias is free when the convolution already has one; its scale always is.
    batch_norm = second.role == "batch_norm"
    extra = 0 if batch_norm and first.has_bias else second.weights
    return replace(
        first,
        write=second.write,
        weights=first.weights + extra,
        has_bias=first.has_bias or batch_norm,
        costly=first.costly + second.costly,
        joined=first.joined + 1,
    )


def loops(steps: Sequence[Step]) -> list[Step]:
    """Loop nests that a compiler makes of everything but contractions, in the order of their first step.

    A step joins a nest whose value it reads, if it walks over as many elements and waits for no later contraction.
    """
    level: dict[int, int] = {}  # value -> contractions on the longest way to it
    home: dict[int, int] = {}  # value -> index of the nest that makes it
    nests: list[list[Step]] = []
    for step in steps:
        depth = max((level.get(key, 0) for key, _ in step.reads), default=0)
        level[step.write[0]] = depth + (step.role in _APART)
        if step.contracts:
            continue
        index = _nest_of(step, depth, nests, home, level)
        if index is None:
            nests.append([])
            index = len(nests) - 1
        nests[index].append(step)
        home[step.write[0]] = index
    return [_nest(nest, outside) for nest, outside in zip(nests, _read_outside(steps, nests, home), strict=True)]


def _nest_of(
    step: Step, depth: int, nests: list[list[Step]], home: dict[int, int], level: dict[int, int]
) -> int | None:
    if step.role in _APART:
        return None
    for key, _ in reversed(step.reads):
        index = home.get(key)
        if index is None or nests[index][0].role in _APART or level[nests[index][-1].write[0]] != depth:
            continue
        elements = nests[index][-1].write[1]
        if elements in (step.write[1], step.reads[0][1]):
            return index
    return None


def _read_outside(steps: Sequence[Step], nests: list[list[Step]], home: dict[int, int]) -> list[set[int]]:
    """Per nest, its values that a step elsewhere reads."""
    found: list[set[int]] = [{nest[-1].write[0]} for nest in nests]
    for step in steps:
        here = home.get(step.write[0], -1)
        for key, _ in step.reads:
            if key in home and home[key] != here:
                found[home[key]].add(key)
    return found


def _nest(nest: list[Step], outside: set[int]) -> Step:
    inside = {step.write[0] for step in nest}
    reads = {key: elements for step in nest for key, elements in step.reads if key not in inside}
    written = sum(step.write[1] for step in nest if step.write[0] in outside)
    return replace(
        nest[-1],
        op=_lead(nest),
        reads=tuple(reads.items()),
        write=(nest[-1].write[0], written),
        weights=sum(step.weights for step in nest),
        costly=sum(step.costly for step in nest),
        joined=len(nest) - 1,
    )


def _lead(nest: list[Step]) -> str:
    for role in ("softmax", "norm", "reduce", "pool", "copy"):
        for step in nest:
            if step.role == role:
                return step.op
    return nest[0].op


def peak_live_elements(steps: Sequence[Step], inputs: Sequence[Value]) -> int:
    """Largest number of activation elements alive at once, each freed after its last reader."""
    last_read = {key: index for index, step in enumerate(steps) for key, _ in step.reads}
    live = dict(inputs)
    total = peak = sum(live.values())
    for index, step in enumerate(steps):
        key, elements = step.write
        # A call in place takes over its operand's memory.
        if step.in_place and step.reads and step.reads[0][0] in live:
            total -= live.pop(step.reads[0][0])
        live[key] = elements
        total += elements
        peak = max(peak, total)
        for dead in [k for k, _ in step.reads if k in live and last_read.get(k, -1) <= index]:
            total -= live.pop(dead)
        if key not in last_read and index < len(steps) - 1:
            total -= live.pop(key)
    return peak
