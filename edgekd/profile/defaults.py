"""Constants of the roofline for units that nobody has fitted: filled in, and marked as assumed."""

from __future__ import annotations

from typing import Any

# Medians of the units that were fitted to published rows (docs/latency.md), the GPU's of one board and two judgements.
ROOFLINE_DEFAULTS: dict[str, dict[str, float]] = {
    "cpu": {"kernel_overhead_us": 8.5, "efficiency": 0.43, "depthwise_efficiency": 0.076},
    "gpu": {"kernel_overhead_us": 12.0, "efficiency": 0.25, "depthwise_efficiency": 0.05},
    "npu": {"kernel_overhead_us": 2.1, "efficiency": 0.55, "depthwise_efficiency": 0.1},
}


def with_roofline_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the constants that its units leave out, each with evidence that says so.

    >>> filled = with_roofline_defaults({"units": [{"kind": "npu", "efficiency": 0.3}]})["units"][0]
    >>> filled["efficiency"], filled["kernel_overhead_us"], filled["evidence"]["kernel_overhead_us"]["confidence"]
    (0.3, 2.1, 'assumed')
    """
    units = document.get("units")
    if not isinstance(units, list):
        return document
    return {**document, "units": [_filled(unit) if isinstance(unit, dict) else unit for unit in units]}


def _filled(unit: dict[str, Any]) -> dict[str, Any]:
    kind = unit.get("kind")
    defaults = ROOFLINE_DEFAULTS[kind if isinstance(kind, str) and kind in ROOFLINE_DEFAULTS else "cpu"]
    absent = {key: value for key, value in defaults.items() if key not in unit}
    given = unit.get("evidence", {})
    if not absent or not isinstance(given, dict):
        return {**absent, **unit}
    word = f"not stated: as fitted {kind} units (docs/latency.md)"
    assumed = {key: {"source": word, "confidence": "assumed"} for key in absent}
    return {**unit, **absent, "evidence": {**assumed, **given}}
