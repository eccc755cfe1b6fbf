"""`edgekd compare`: two result files of `edgekd profile --json`, if they are alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd.commands import console

if TYPE_CHECKING:
    from edgekd.device_benchmarks.comparison import Comparison, UnpairedRatio


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="A result of `edgekd profile --json`.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another; the ratio says how much faster it is.")],
    force: Annotated[bool, typer.Option("--force", help="Compare unlike things, and say what differs.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Ratio, interval and verdict of two measurements; refuses two devices, runtimes, thread counts or precisions.

    Example: `edgekd compare monday.json tuesday.json`
    """
    from edgekd.device_benchmarks.comparison import compare_files

    found = compare_files(first, second, force=force)
    if json:
        console.print_json(found.model_dump(mode="json"))
    else:
        _print(found)


def _print(found: Comparison) -> None:
    out, talk = console.data(), console.talk()
    for difference in found.unlike:
        talk.print(f"not alike: {difference}", markup=False, soft_wrap=True)
    for caution in found.cautions:
        talk.print(caution, markup=False, soft_wrap=True)
    for ratio in found.ratios:
        out.print(_sentence(ratio), markup=False, soft_wrap=True)
    talk.print(found.note, markup=False, soft_wrap=True)


def _sentence(found: UnpairedRatio) -> str:
    figures = f"{found.first_p50_ms:.3f} -> {found.second_p50_ms:.3f} ms p50"
    wall = f"ratio {found.ratio:.3f}, 99% CI {found.lo:.3f} to {found.hi:.3f}"
    cpu = (
        ""
        if found.cpu_ratio is None
        else f"; by CPU time {found.cpu_ratio:.3f} ({found.cpu_lo:.3f} to {found.cpu_hi:.3f})"
    )
    return f"{found.name}: {found.verdict} ({figures}; {wall}{cpu})"
