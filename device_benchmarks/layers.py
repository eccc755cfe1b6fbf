"""What single layers cost and where they run, as the runtime's own profiler tells it: data and pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.artifact import Frozen


class LayerTime(Frozen):
    """One layer as the runtime executes it (fused ones count once). time_ms: mean per inference; None: not told.

    unit: the processor or delegate it ran on. kernel: the runtime's own word for how. macs: 0 where it multiplies
    nothing, or where `LayerProfile.note` says that they are not known.
    """

    name: str
    op_type: str
    unit: str
    kernel: str = ""
    time_ms: float | None = None
    macs: int = 0


class Placement(Frozen):
    """What one unit or delegate got: operators, multiply-adds and time, each with its share of the whole, 0 to 1.

    None: not told.
    """

    unit: str
    ops: int
    ops_share: float
    macs: int
    macs_share: float | None
    time_share: float | None


class LayerProfile(Frozen):
    """Layers in execution order, and the units they ran on, most multiply-adds first.

    source: which profiler. A profiler slows what it watches: the sum of its times is not the latency.
    """

    source: str
    runs: int
    layers: tuple[LayerTime, ...]
    placement: tuple[Placement, ...]
    note: str = ""


def layer_profile(layers: Sequence[LayerTime], *, source: str, runs: int, note: str = "") -> LayerProfile:
    """With the placement summed up.

    >>> conv = LayerTime(name="a", op_type="Conv", unit="XNNPACK", macs=3)
    >>> found = layer_profile([conv, LayerTime(name="b", op_type="Mul", unit="CPU")], source="LiteRT graph", runs=0)
    >>> [(part.unit, part.ops_share, part.macs_share) for part in found.placement]
    [('XNNPACK', 0.5, 1.0), ('CPU', 0.5, 0.0)]
    """
    units = dict.fromkeys(layer.unit for layer in layers)
    parts = [_placement(unit, layers) for unit in units]
    parts.sort(key=lambda part: (-part.macs, -part.ops))
    return LayerProfile(source=source, runs=runs, layers=tuple(layers), placement=tuple(parts), note=note)


def _placement(unit: str, layers: Sequence[LayerTime]) -> Placement:
    mine = [layer for layer in layers if layer.unit == unit]
    own, whole = (sum(layer.macs for layer in group) for group in (mine, layers))
    time_ms = _time_ms(layers)
    return Placement(
        unit=unit,
        ops=len(mine),
        ops_share=len(mine) / len(layers),
        macs=own,
        macs_share=own / whole if whole else None,
        time_share=(_time_ms(mine) or 0.0) / time_ms if time_ms else None,
    )


def _time_ms(layers: Sequence[LayerTime]) -> float | None:
    told = [layer.time_ms for layer in layers if layer.time_ms is not None]
    return sum(told) if told else None
