"""From a device's measured figures to a profile's TOML. Pure: no clock, no device."""

from __future__ import annotations

import json
from typing import Any

from edgekd.device_benchmarks.microbenchmark import DeviceFigures, Heat, RuntimeFigures
from edgekd.profile import HardwareProfile, Transport, parse_profile

INT8_PAYS_FROM = 1.3
# What tells processors apart that the same files run on at very different int8 speeds.
TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
FRAME_MS = 33.0


def profile_toml(
    name: str, figures: DeviceFigures, *, transport: Transport, flags: frozenset[str], date: str
) -> tuple[HardwareProfile, str]:
    """The profile and its text, which `edgekd profiles check` accepts. flags: the processor's, empty where unknown.

    date: of the measurement, ISO.
    Raises: InputError: the figures make no valid profile.
    """
    best, known = figures.runtimes[0], [flag for flag in TELLING_FLAGS if flag in flags]
    source = f"edgekd profiles new, {date}, {figures.threads} threads, {figures.host.cpu_model}"
    document = {
        "name": name,
        "title": f"{figures.host.device_model or name} ({figures.host.cpu_model}, {figures.threads} threads)",
        "ram_mib": int(figures.host.memory_mib or 1024),
        "p90_over_p50": round(best.p90_over_p50, 3),
        "transport": transport,
        "cpu_flags": known,
        "cpu_flags_absent": [
            flag for flag in TELLING_FLAGS if known and _same_family(flag, known) and flag not in known
        ],
        "notes": _notes(figures),
        "evidence": _evidence(figures, source),
        "units": [_unit(figures, source)],
        "runtimes": [_runtime(runtime, source) for runtime in figures.runtimes],
        "quantisation": _quantisation(best, flags, source),
        "budgets": {
            "latency_p90_ms": FRAME_MS,
            "peak_memory_mib": max(64.0, (figures.host.memory_mib or 1024) // 16),
            "artifact_size_mib": 16.0,
            "why": "assumed, not measured: a 30 Hz frame, a sixteenth of the memory; change them to what you need",
            **_heat(figures.heat, source),
        },
    }
    text = f"# Written by `edgekd profiles new` from a measurement; the budgets are assumptions.\n{toml(document)}"
    return parse_profile(text, where=name), text


def _evidence(figures: DeviceFigures, source: str) -> dict[str, dict[str, str]]:
    known = figures.host.memory_mib is not None
    memory = f"{source}: what its kernel reports" if known else "the device does not tell: a cautious 1 GiB"
    return {
        "ram_mib": {"source": memory, "confidence": "measured" if known else "assumed"},
        "p90_over_p50": {"source": f"{source}; of ordinary convolutions", "confidence": "measured"},
    }


def _heat(heat: Heat | None, source: str) -> dict[str, Any]:
    """The share of the latency budget that heat takes, where that was measured."""
    if heat is None or heat.headroom is None:
        return {}
    said = f"{heat.burst_p50_ms:.3g} ms cool, {heat.sustained_p50_ms:.3g} ms at the end of {heat.seconds:.0f} s"
    evidence = {"source": f"{source}; {said}, in {heat.target}", "confidence": "measured"}
    return {"thermal_headroom": round(heat.headroom, 3), "evidence": {"thermal_headroom": evidence}}


def _same_family(flag: str, known: list[str]) -> bool:
    x86 = any(other.startswith(("avx", "amx")) for other in known)
    return x86 == flag.startswith(("avx", "amx"))


def _unit(figures: DeviceFigures, source: str) -> dict[str, Any]:
    """The best of every runtime: a peak is what the silicon gave anyone."""
    runtimes, best = figures.runtimes, figures.runtimes[0]
    peak = max(runtime.fp32_gflops for runtime in runtimes)
    int8 = [runtime.int8_gops for runtime in runtimes if runtime.int8_gops]
    return {
        "kind": "cpu",
        "name": f"{figures.host.cpu_model}, {figures.threads} threads",
        "peak_fp32_gflops": round(peak, 2),
        **({"peak_int8_gops": round(max(int8), 2)} if int8 else {}),
        "dram_gb_per_s": round(max(runtime.gb_per_s for runtime in runtimes), 2),
        "kernel_overhead_us": round(best.kernel_overhead_us, 3),
        "efficiency": _share(best.ordinary_gflops, peak),
        "depthwise_efficiency": _share(best.depthwise_gflops, peak),
        "source": f"{source}; the best rate of dense convolutions stands for the peak",
        "confidence": "measured",
    }


def _share(part: float, whole: float) -> float:
    return round(min(1.0, max(0.001, part / whole)), 4)


def _runtime(figures: RuntimeFigures, source: str) -> dict[str, Any]:
    int8 = "" if figures.int8_gops is None else f", int8 {figures.int8_gops:.1f} Gop/s"
    return {
        "target": figures.target,
        "version": figures.version or "unknown",
        "unit": "cpu",
        "precisions": ["fp32", *(["int8"] if figures.int8_gops else [])],
        "why": f"measured: ordinary convolutions {figures.ordinary_gflops:.1f} GFLOP/s{int8}",
        "source": source,
    }


def _quantisation(best: RuntimeFigures, flags: frozenset[str], source: str) -> dict[str, Any]:
    gain = (best.int8_gops or 0.0) / best.fp32_gflops
    if gain < INT8_PAYS_FROM:
        why = f"int8 runs dense convolutions at {gain:.2f}x the fp32 rate in {best.target}: it does not pay"
        return {"preferred_precision": "fp32", "why": why, "source": source}
    saturates = "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni"}
    return {
        "preferred_precision": "int8",
        "scheme": "affine",
        "weight_bits": 7 if saturates else 8,
        "why": f"int8 runs dense convolutions at {gain:.2f}x the fp32 rate in {best.target}",
        "source": f"{source}; weight_bits from the processor's flags",
        "confidence": "derived",
    }


def _notes(figures: DeviceFigures) -> list[str]:
    notes = [f"failed there: {what}: {why}" for what, why in figures.failures.items()]
    if figures.cautions:
        notes.append(f"measured while the device was busy or changing: {'; '.join(figures.cautions)}")
    if figures.heat is not None and figures.heat.headroom is None:
        notes.append("what heat does is not known: other programs had the cores during the long run.")
    return [*notes, "fp16 and other units than the CPU were not measured."]


def toml(document: dict[str, Any], prefix: str = "") -> str:
    """Plain values, tables and lists of tables, in the order given; JSON's strings and lists are TOML's too.

    prefix: of the tables' names.

    >>> print(toml({"a": 1, "t": {"b": "x"}, "l": [{"c": [1.5]}]}))
    a = 1
    <BLANKLINE>
    [t]
    b = "x"
    <BLANKLINE>
    [[l]]
    c = [1.5]
    <BLANKLINE>
    """
    plain = {key: value for key, value in document.items() if not _is_table(value)}
    text = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in plain.items())
    for key, value in document.items():
        if _is_table(value):
            tables = value if isinstance(value, list) else [value]
            head = f"[[{prefix}{key}]]" if isinstance(value, list) else f"[{prefix}{key}]"
            text += "".join(f"\n{head}\n{toml(table, f'{prefix}{key}.')}" for table in tables)
    return text


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
