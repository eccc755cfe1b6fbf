"""Merge recorded calls into the kernels a runtime launches, and find the peak of live activations.

Rule: a pointwise call joins the call that produced its only input, when nobody else reads that value. All five runtimes
do this for batch norm and activations; a residual add stays its own kernel (LiteRT's XNNPACK runs it so; TensorRT,
OpenVINO and ONNX Runtime may merge it, which makes the estimate slightly slow for them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekd.latency.cost import OpCost, OpKind

Storage = tuple[int, int]  # identity, elements


@dataclass(frozen=True)
class Call:
    """One recorded call. reads, writes: storages. fusable: may join its producer; takes_fusion: may be joined."""

    kind: OpKind
    name: str
    macs: int
    reads: tuple[Storage, ...]
    writes: Storage
    weight_elements: int
    fusable: bool
    takes_fusion: bool
    batch_norm: bool = False
    has_bias: bool = False

    def cost(self) -> OpCost:
        """The call as plain data."""
        return OpCost(
            kind=self.kind,
            name=self.name,
            macs=self.macs,
            read_elements=sum(elements for _, elements in self.reads),
            write_elements=self.writes[1],
            weight_elements=self.weight_elements,
        )


def fuse(calls: Sequence[Call]) -> list[Call]:
    """Calls with pointwise followers merged into their producers, in execution order."""
    readers = Counter(key for call in calls for key, _ in call.reads)
    merged: list[Call] = []
    producer: dict[int, int] = {}  # storage -> index in merged of the call that wrote it last
    for call in calls:
        source = call.reads[0][0]
        index = producer.get(source)
        in_place = source == call.writes[0]
        if index is not None and call.fusable and merged[index].takes_fusion and (in_place or readers[source] == 1):
            merged[index] = _join(merged[index], call)
            producer[call.writes[0]] = index
        else:
            merged.append(call)
            producer[call.writes[0]] = len(merged) - 1
    return merged


def _join(first: Call, second: Call) -> Call:
    # A batch norm's bias is free when the convolution already has one; its scale always is.
    extra = 0 if second.batch_norm and first.has_bias else second.weight_elements
    return replace(
        first,
        writes=second.writes,
        weight_elements=first.weight_elements + extra,
        has_bias=first.has_bias or second.batch_norm,
    )


def peak_live_elements(calls: Sequence[Call], image: Storage) -> int:
    """Largest number of activation elements alive at once, each freed after its last reader.

    >>> a = Call("conv", "a", 0, ((1, 10),), (2, 40), 0, False, True)
    >>> b = Call("conv", "b", 0, ((2, 40),), (3, 5), 0, False, True)
    >>> peak_live_elements([a, b], (1, 10))
    50
    """
    last_read = {key: step for step, call in enumerate(calls) for key, _ in call.reads}
    live = dict([image])
    peak = image[1]
    for step, call in enumerate(calls):
        key, elements = call.writes
        live[key] = max(elements, live.get(key, 0))
        peak = max(peak, sum(live.values()))
        live = {k: n for k, n in live.items() if last_read.get(k, step if k != key else len(calls)) > step}
    return peak
