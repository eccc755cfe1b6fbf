"""The numbers of a profile one by one, each with its unit, its source and how far to trust it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel

from edgekd.profile.model import Evidence, HardwareProfile, numbers_in


class Fact(NamedTuple):
    """One number of a profile with its unit and where it comes from. table: units[gpu], power, or empty."""

    table: str
    key: str
    value: float
    unit: str
    confidence: str
    source: str


_UNITS = {
    "_gflops": "GFLOP/s",
    "_gops": "Gop/s",
    "_gb_per_s": "GB/s",
    "_us": "us",
    "_ms": "ms",
    "_mib": "MiB",
    "_w": "W",
}


def unit_of(key: str) -> str:
    """The unit that a key carries; empty for ratios and counts.

    >>> unit_of("dram_gb_per_s"), unit_of("efficiency")
    ('GB/s', '')
    """
    return next((unit for suffix, unit in _UNITS.items() if key.endswith(suffix)), "")


def facts_of(profile: HardwareProfile) -> tuple[Fact, ...]:
    """Every number of a profile with its source; budgets without one are decisions and carry their `why`."""
    facts = [*_facts_in("", profile, "not stated", "assumed")]
    for unit in profile.units:
        facts += _facts_in(f"units[{unit.kind}]", unit, unit.source, unit.confidence)
    if profile.power is not None:
        facts += _facts_in("power", profile.power, profile.power.source, profile.power.confidence)
    for runtime in profile.runtimes:
        name = f"runtimes[{runtime.target} on {runtime.unit}]"
        facts += _facts_in(name, runtime, runtime.source, runtime.confidence)
    quantisation, budgets = profile.quantisation, profile.budgets
    if "weight_bits" in quantisation.model_fields_set:
        facts += _facts_in("quantisation", quantisation, quantisation.source, quantisation.confidence)
    facts += [f for f in _facts_in("budgets", budgets, budgets.why, "assumed") if f.key in budgets.evidence]
    return tuple(facts)


def _facts_in(name: str, table: BaseModel, source: str, confidence: str) -> Iterator[Fact]:
    evidence: dict[str, Evidence] = getattr(table, "evidence", {})
    for key, value in numbers_in(table).items():
        if key in ("fitted_rows", "cores"):
            continue
        own = evidence.get(key)
        yield Fact(name, key, value, unit_of(key), own.confidence if own else confidence, own.source if own else source)
