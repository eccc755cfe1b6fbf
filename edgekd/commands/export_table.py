"""What `edgekd export MODEL` shows at its end: one table that fits 100 columns, then what needs saying."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd.commands import console

if TYPE_CHECKING:
    from edgekd.pipeline.model_export import ExportDocument, ExportRow, ModelExportResult

_STATE = {
    "exported-and-checked": "[green]checked[/]",
    "check-failed": "[red]check failed[/]",
    "not-exported": "[red]not exported[/]",
}
_COLUMNS = ("artifact", "state", "parity dB", "agree", "top-1", "points", "int8", "KiB", "load ms", "ms", "x fp32")


def print_result(result: ModelExportResult) -> None:
    """The table, reasons, diagnoses, choices, and where the files lie."""
    from rich.markup import escape

    document, out = result.document, console.data()
    out.print(table_of(document))
    for line in lines_of(document):
        out.print(escape(line), soft_wrap=True)
    out.print(f"export  {escape(str(result.folder / 'export.json'))}", soft_wrap=True)


def table_of(document: ExportDocument) -> Any:
    """One row per target and precision."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shape = "x".join(str(size) for size in document.model.image_shape)
    title = escape(f"{document.model.name} ({shape}) on {document.data.name}")
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, name in enumerate(_COLUMNS):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True, overflow="fold")
    for row in document.rows:
        table.add_row(*cells(row))
    return table


def cells(row: ExportRow) -> list[str]:
    """A row's cells; the reason of what is missing stands below the table."""
    mark = "* " if row.chosen else ""
    state = "[yellow]refused[/]" if row.refused else _STATE[row.state]
    check, latency = row.check, row.latency
    if row.artifact is None or check is None:
        return [mark + row.label, state, *[""] * (len(_COLUMNS) - 2)]
    speedup = next((r for r in (latency.ratios if latency else ()) if r.baseline.endswith("-fp32")), None)
    return [
        mark + row.label,
        state,
        _number(check.snr_db, ".1f"),
        _number(check.top1_agreement, ".1%"),
        _number(check.accuracy_top1, ".2%"),
        _number(0 - check.paired.loss_points if check.paired is not None else None, "+.2f"),
        _number(check.int8_macs_share, ".0%") if row.precision == "int8" else "",
        f"{row.artifact.size_bytes / 1024:.0f}",
        _number(check.load_ms, ".1f"),
        _number(latency.p50_ms if latency is not None else None, ".3f"),
        _number(speedup.ratio if speedup is not None else None, ".2f"),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def lines_of(document: ExportDocument) -> list[str]:
    """Everything that the table cannot hold, a line each."""
    lines = [f"note: {note}" for note in document.notes]
    for row in document.rows:
        if row.state != "exported-and-checked":
            lines.append(f"{row.label}: {row.reason}")
        lines += [f"{row.label}: warning: {text}" for text in (row.check.warnings if row.check is not None else ())]
        lines += _bf16(row)
    for diagnosis in document.diagnoses:
        lines += [f"{diagnosis.label}: {text}" for text in diagnosis.text]
    for choice in document.choices:
        lines.append(f"{choice.target}: {choice.label or 'no choice'}: {choice.why}")
        lines += [f"  not {c.label}: {c.why_not}" for c in choice.considered if c.why_not]
    return lines


def _bf16(row: ExportRow) -> list[str]:
    found = [r for r in (row.latency.ratios if row.latency is not None else ()) if r.baseline == "openvino-default"]
    return [
        f"{row.label}: {r.ratio:.2f}x [{r.lo:.2f}, {r.hi:.2f}] as fast as fp32 with OpenVINO's own default precision"
        for r in found
    ]
