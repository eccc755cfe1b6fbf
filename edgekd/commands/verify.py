"""`edgekd verify`: is this bundle whole, unchanged, and does it still compute what it should?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd.commands import console

if TYPE_CHECKING:
    from edgekd.bundle import VerifyReport


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle.zip of a run.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Re-check a deployment bundle: safe names, every sha256, and the parity vectors in each installed runtime.

    Example: `edgekd verify runs/jetson-nano-001/bundle.zip`
    """
    from edgekd.bundle import verify as verify_bundle

    report = verify_bundle(bundle)
    if json:
        console.print_json({**report.model_dump(mode="json"), "ok": report.ok})
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


def _print(report: VerifyReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    colours = {"pass": "green", "fail": "bold red", "skipped": "yellow"}
    table = Table("check", "state", "detail", title=escape(report.title) or None, title_justify="left")
    for check in report.checks:
        table.add_row(escape(check.name), f"[{colours[check.state]}]{check.state}[/]", escape(check.detail))
    out = console.data()
    out.print(table)
    failed = sum(check.state == "fail" for check in report.checks)
    skipped = sum(check.state == "skipped" for check in report.checks)
    tail = f", {skipped} skipped" if skipped else ""
    out.print(f"[bold red]{failed} failed[/]{tail}" if failed else f"[green]the bundle is intact[/]{tail}")
