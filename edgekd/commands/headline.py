"""What a command shows at its end: the headline table of a run, a plan, or a list of exports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd.commands import console

if TYPE_CHECKING:
    from rich.table import Table

    from edgekd.pipeline.api_result import RunResult
    from edgekd.report.document import RunReport
    from edgekd.report.rows import ArtifactRow

_COLOUR = {
    "pass": "green",
    "fail": "red",
    "unverified": "yellow",
    "warn": "yellow",
    "measured": "bold",
    "predicted": "italic cyan",
    "missing": "dim",
}
_STATE = {
    "exported-and-checked": "[green]checked[/]",
    "exported-check-failed": "[red]check failed[/]",
    "not-exported": "[yellow]not exported[/]",
}


def print_headline(result: RunResult) -> None:
    """Figures, artifacts, gates that did not pass, and where the files lie."""
    from rich.markup import escape
    from rich.table import Table

    from edgekd.report.document import parse
    from edgekd.report.headline import figures, verdict

    report, out = parse(result.document, where=result.folder), console.data()
    table = Table("", "figure", "kind", "detail", title=escape(report.title + note(report)))
    for figure in figures(report):
        table.add_row(
            escape(figure.label),
            f"[{_COLOUR[figure.kind]}]{escape(figure.value)}[/]",
            figure.kind,
            escape(figure.detail),
        )
    out.print(table)
    out.print(artifact_table(report))
    state, sentence = verdict(report)
    out.print(f"[{_COLOUR[state]}]{state}[/]: {sentence}")
    for gate in report.gates:
        if gate.state != "pass":
            out.print(
                f"  [{_COLOUR[gate.state]}]{gate.state}[/] {escape(f'{gate.name}: {gate.figure}; {gate.why}')}",
                soft_wrap=True,
            )
    for row in report.diagnoses:
        if row.state == "warning":
            text = f"{row.name} ({row.where}): {row.figure}; likely cause: {row.cause}; fix: {row.fix}"
            out.print(f"  [yellow]warning[/] {escape(text)}", soft_wrap=True)
    out.print(f"report  {result.folder / 'report.html'}", soft_wrap=True)
    out.print(f"bundle  {result.folder / 'bundle.zip'}", soft_wrap=True)


def note(report: RunReport) -> str:
    """What must be said beside the numbers."""
    return f" ({report.data.note})" if report.data.note else ""


def artifact_table(report: RunReport) -> Any:
    """One row per planned target."""
    from rich.table import Table

    table = Table("artifact", "state", "size", "parity", "agreement", "top-1", "int8 ops", "executed in")
    for row in report.artifacts:
        table.add_row(*artifact_cells(row))
    return table


def artifact_cells(row: ArtifactRow) -> list[str]:
    """The cells of one artifact; a reason stands where figures are missing."""
    from rich.markup import escape

    from edgekd.report.headline import size_text

    if row.state == "not-exported":
        return [row.target, _STATE[row.state], "", "", "", "", "", escape(row.reason)]
    check = row.check
    size = size_text(row.size_bytes) if row.size_bytes is not None else ""
    if check is None:
        return [row.name, _STATE[row.state], size, "", "", "", "", escape(row.reason)]
    int8 = f"{check.int8_ops}/{check.compute_ops}" if row.precision == "int8" and check.int8_ops is not None else ""
    parity = f"{check.snr_db:.1f} dB" if check.snr_db is not None else ""
    agreement = f"{check.agreement:.2%}" if check.agreement is not None else ""
    top1 = f"{check.top1:.2%}" if check.top1 is not None else ""
    return [row.name, _STATE[row.state], size, parity, agreement, top1, int8, escape(check.executed_in)]


def print_plan(document: dict[str, Any]) -> None:
    """Reasons, targets and the selected student."""
    from rich.markup import escape

    from edgekd.pipeline.planning import lines
    from edgekd.pipeline.selecting import lines as selection_lines

    out = console.data()
    for line in [*lines(document["plan"]), *selection_lines(document["select"])]:
        out.print(escape(line), soft_wrap=True)
    out.print(front_table(document["select"]["front"]))


def front_table(front: list[dict[str, Any]]) -> Table:
    """What a faster student would give up: at most ten points of the Pareto front, fastest first."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="faster for less: no student found is both faster and larger, predicted", title_justify="left")
    for column in ("latency p50, ms", "capacity", "M MACs", "k parameters"):
        table.add_column(column, justify="right")
    table.add_column("student")
    shown = sorted({round(number * (len(front) - 1) / 9) for number in range(10)}) if front else []
    for row in (front[number] for number in shown):
        figures = (f"{row['latency_p50_ms']:.3g}", f"{row['score']:.2f}", f"{row['macs'] / 1e6:.2f}")
        table.add_row(*figures, f"{row['parameters'] / 1e3:.0f}", escape(row["name"]))
    return table


def print_exports(result: RunResult) -> None:
    """The artifact table after `edgekd export`."""
    from edgekd.report.document import parse

    console.data().print(artifact_table(parse(result.document, where=result.folder)))
