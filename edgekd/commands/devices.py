"""`edgekd devices`: what can be measured on, and in what state it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd.commands import console

if TYPE_CHECKING:
    from edgekd.device_benchmarks.fleet import Seen


def devices(
    file: Annotated[
        Path | None, typer.Option("--devices", help="Devices file. Default: ~/.config/edgekd/devices.toml.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List this host, the devices of the devices file, and what adb sees; each is reached and asked what it is.

    Example: `edgekd devices`, then `edgekd profile model.tflite --on NAME`
    """
    from edgekd.device_benchmarks.devices import load_devices
    from edgekd.device_benchmarks.fleet import look_around

    seen = look_around(load_devices(file))
    if json:
        console.print_json([row.model_dump(mode="json") for row in seen])
    else:
        _print(seen)


def _print(seen: list[Seen]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("device", "address", "what it is", "runtimes", "state")
    for row in seen:
        table.add_row(*map(escape, (row.name, row.address, _what(row), _runtimes(row), row.state)))
    console.data().print(table)


def _what(row: Seen) -> str:
    """Model, processor, clocks: what tells two devices apart."""
    found = row.identity
    if found is None:
        return ""
    heat = max(found.temperatures_c.values(), default=None)
    parts = [
        found.device_model or found.cpu_model,
        f"{found.logical_cpus} CPUs",
        f"governor {found.governor}" if found.governor else "",
        f"{heat:.0f} °C" if heat is not None else "",
        "EMULATED" if found.emulated else "",
    ]
    return ", ".join(part for part in parts if part)


def _runtimes(row: Seen) -> str:
    return row.identity.runtimes if row.identity else ""
