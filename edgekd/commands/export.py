"""`edgekd export`: more targets from a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.commands import console
from edgekd.commands.run_options import TargetList


def export(
    run: Annotated[Path, typer.Argument(help="Run directory of `edgekd distill`.")],
    target: TargetList = None,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="Write the bundle and the report again with what was exported.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Export a trained student to more targets and check each on real images.

    Example: `edgekd export runs/jetson-nano-001 --target tflite,coreml --bundle`
    """
    from edgekd.commands.headline import print_exports
    from edgekd.commands.progress import TerminalEvents
    from edgekd.pipeline import api
    from edgekd.targets import get_target

    names = tuple(dict.fromkeys(get_target(n).name for n in (target or "").split(",") if n.strip()))
    with TerminalEvents() as events:
        result = api.export(run, targets=names, bundle=bundle, events=events)
    if json:
        console.print_json(result.document)
    else:
        print_exports(result)
    if result.failed:
        raise typer.Exit(1)
