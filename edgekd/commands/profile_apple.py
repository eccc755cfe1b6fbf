"""`edgekd profile --on apple-package` and `--import`: measured on a device that is not attached, shown here."""

from __future__ import annotations

from pathlib import Path

import typer

from edgekd.commands import console, profile_table

APPLE = "apple-package"


def profile(model: str | None, *, on: str, out: Path | None, import_file: Path | None, json: bool) -> None:
    """Write the Swift package, or show a result. Raises: InputError: options that do not go together, or none."""
    from edgekd.errors import InputError

    if import_file is not None:
        if model is not None or on != "local":
            raise InputError("shows a file and measures nothing", where="--import", fix="leave MODEL and --on out")
        _show(import_file, json=json)
    elif model is None:
        raise InputError("no MODEL to measure", fix="edgekd profile --help names the kinds")
    elif out is None:
        raise InputError("the package needs a folder", where=f"--on {APPLE}", fix="add --out DIR")
    else:
        _write(Path(model), out)


def _show(file: Path, *, json: bool) -> None:
    from edgekd.device_benchmarks.apple_package import import_result

    measured = import_result(file)
    if json:
        console.print_json(measured.model_dump(mode="json"))
        return
    host = measured.measurements[0].provenance.host_start if measured.measurements else None
    profile_table.show(measured, (host.device_model or host.cpu_model) if host else str(file))


def _write(model: Path, out: Path) -> None:
    from edgekd.device_benchmarks.apple_package import write_package
    from edgekd.runtimes import open_model_file

    folder = write_package(open_model_file(model.resolve()), out)
    typer.echo(str(folder))
    console.talk().print("README.md in it says how to run it; then: edgekd profile --import LOG", soft_wrap=True)
