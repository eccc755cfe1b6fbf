"""The table of `edgekd profile`: figures, ratios, layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.commands import console

if TYPE_CHECKING:
    from edgekd.device_benchmarks import Measurement, MeasurementSet
    from edgekd.device_benchmarks.layers import LayerProfile

SHOWN_LAYERS = 15
_KINDS = {"measured": "measured", "emulated": "EMULATED, no latency,"}


def show(measured: MeasurementSet, where: str) -> None:
    """The table and the ratios to stdout."""
    from rich.markup import escape
    from rich.table import Table

    columns = (
        "model",
        "p50 ms",
        "95% CI",
        "p90 ms",
        "n",
        "CV",
        "CPU p50 ms",
        "load ms",
        "first ms",
        "peak MiB",
        "verdict",
    )
    table = Table(*columns, title=escape(f"{_KINDS[measured.kind]} on {where}, batch 1, {measured.mode}"))
    for row in measured.measurements:
        table.add_row(*map(escape, _cells(row)))
    out = console.data()
    out.print(table)
    for row in measured.measurements:
        for text in filter(None, (*row.warnings, row.note, _parity(row))):
            out.print(f"{row.name}: {text}", markup=False)
    for ratio in measured.ratios:
        out.print(ratio.text, markup=False)
    for row in measured.measurements:
        if row.layers:
            _show_layers(row.name, row.layers)


def _show_layers(name: str, found: LayerProfile) -> None:
    """The slowest layers, and each unit's share."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("layer", "type", "unit", "kernel", "ms", "1e6 macs", title=escape(f"{name}: {found.source}"))
    slowest = sorted(found.layers, key=lambda layer: (-(layer.time_ms or 0), -layer.macs))[:SHOWN_LAYERS]
    for layer in slowest:
        time_ms = "n/a" if layer.time_ms is None else f"{layer.time_ms:.4f}"
        cells = (layer.name[-60:], layer.op_type[:30], layer.unit, layer.kernel, time_ms, f"{layer.macs / 1e6:.2f}")
        table.add_row(*map(escape, cells))
    out = console.data()
    out.print(table)
    for part in found.placement:
        time = "" if part.time_share is None else f", {part.time_share:.0%} of the time"
        macs = "" if part.macs_share is None else f", {part.macs_share:.0%} of multiply-adds"
        shares = f"{part.ops_share:.0%} of {len(found.layers)} layers{macs}{time}"
        out.print(f"{name}: on {part.unit}: {shares}", markup=False)
    if len(slowest) < len(found.layers):
        out.print(f"{len(found.layers) - len(slowest)} more layers; --json has all", markup=False)
    if found.note:
        out.print(f"{name}: {found.note}", markup=False)


def _parity(row: Measurement) -> str:
    found = row.provenance.parity
    return f"outputs equal this host's within {found.max_relative_error:.1e} (relative)" if found else ""


def _cells(row: Measurement) -> tuple[str, ...]:
    p90 = f"{row.p90_ms:.3f}" if row.p90_ms is not None else f"n/a (n {row.n} < 64)"
    peak = f"{row.peak_rss_mib:.0f}" if row.peak_rss_mib is not None else "n/a"
    return (
        row.name,
        f"{row.p50_ms:.3f}",
        f"{row.ci_lo_ms:.3f} to {row.ci_hi_ms:.3f}",
        p90,
        str(row.n),
        f"{row.cv:.0%}",
        f"{row.cpu_p50_ms:.3f}",
        f"{row.load_ms:.1f}",
        f"{row.first_inference_ms:.1f}",
        peak,
        row.verdict,
    )
