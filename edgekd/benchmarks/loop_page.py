"""Results of `edgekd bench loop` as text: for the terminal and for docs/benchmarks/loop.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.benchmarks.loop import BARS
from edgekd.benchmarks.page import replace_results

Found = Mapping[str, Any]


def _what(found: Found) -> dict[str, str]:
    pair = f"{found['student']} <- {found['teacher']}"
    return {
        "step": f"{pair}, a step over a hand-written loop",
        "added": "networks without compute, added to a step",
        "cache": f"{pair}, cached logits over the live teacher",
        "crd": f"{pair}, CRD with {found['negatives']:,} negatives of {found['images']:,} images over soft targets",
        "memory": f"{pair}, peak memory over a hand-written loop",
    }


def verdicts(found: Found) -> dict[str, dict[str, Any]]:
    """For each bar: the value, its unit, the bar, and whether it holds."""
    result = {}
    for name, (unit, bar) in BARS.items():
        value = found[name]["added_ms" if unit == "ms" else "ratio"]
        result[name] = {"value": value, "unit": unit, "bar": bar, "holds": value <= bar}
    return result


def table(found: Found) -> str:
    """A Markdown table of the bars, then one of the times behind them."""
    lines = ["| what | measured | bar | holds |", "|---|---|---|---|"]
    for name, verdict in verdicts(found).items():
        digits = f"{verdict['value']:.3f} {verdict['unit']}"
        lines.append(
            f"| {_what(found)[name]} | {digits} | {verdict['bar']:g} | {'yes' if verdict['holds'] else 'NO'} |"
        )
    lines += ["", "| times, ms a step | min | p25 | p50 | p75 | rounds x steps |", "|---|---|---|---|---|---|"]
    for name in ("step", "added", "cache", "crd"):
        for way, t in found[name]["times"].items():
            figures = " | ".join(f"{t[key]:.3f}" for key in ("min_ms", "p25_ms", "p50_ms", "p75_ms"))
            lines.append(f"| {name}: {way} | {figures} | {t['rounds']} x {found[name]['steps_per_round']} |")
    control = f"{found['step']['control_ratio']:.3f} x and {found['added']['control_added_ms']:+.3f} ms"
    memory = found["memory"]
    spread = "; ".join(f"{who} {', '.join(f'{v:.0f}' for v in memory[f'{who}_mib'])}" for who in ("hand", "edgekd"))
    lines += [
        "",
        f"A/A control (the hand-written loop against itself in the same rounds): {control}. "
        f"Peak memory of fresh processes, MiB: {spread}.",
    ]
    return "\n".join(lines)


def write_page(path: Path, found: Found, *, command: str) -> Path:
    """Replace the results section of a page. Raises: InputError: it has none."""
    machine = found["machine"]
    head = (
        f"`{command}` on {machine['processor']}, {machine['cores']} cores, load {machine['load_before']:.1f} "
        f"before and {machine['load_after']:.1f} after, torch {found['torch']}, {found['threads']} thread, "
        f"device {found['device']}, "
        f"batch {found['batch']}, float32, {machine['date']}."
    )
    return replace_results(path, f"{head}\n\n{table(found)}")
