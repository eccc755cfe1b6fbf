"""`edgekd bench loop`: what the training loop costs over a hand-written one."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.commands import console

PAGE = Path("docs/benchmarks/loop.md")


def loop(
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Interleaved rounds of each comparison.")] = 30,
    images: Annotated[int, typer.Option("--images", min=64, help="Images in CRD's memory banks.")] = 50_000,
    student: Annotated[str, typer.Option("--student", help="A network by name.")] = "edgekd:resnet20",
    teacher: Annotated[str, typer.Option("--teacher", help="A network by name.")] = "edgekd:resnet56",
    page: Annotated[
        Path | None, typer.Option("--page", help=f"Markdown page whose results section is rewritten, as {PAGE}.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Time a step against a hand-written loop, without compute, from the cache and with CRD; peak memory. 2-4 minutes.

    Exit 1 where a bar does not hold. Example: `edgekd bench loop --json`
    """
    import torch

    from edgekd.benchmarks.loop import Sizes, measure
    from edgekd.benchmarks.loop_page import table, verdicts, write_page
    from edgekd.distill.precision import choose_device
    from edgekd.errors import InputError

    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"no device '{device}'", where="--device", fix="known: auto, cpu, cuda")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    load = _load()
    found = measure(
        torch.device(choose_device(device)),  # type: ignore[arg-type]
        Sizes(rounds=rounds, images=images, student=student, teacher=teacher),
    )
    found["machine"] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": load,
        "load_after": _load(),
        "date": datetime.date.today().isoformat(),
    }
    if page is not None:
        write_page(page, found, command="edgekd bench loop")
    if json:
        console.print_json({**found, "bars": verdicts(found)})
    else:
        console.data().print(table(found), markup=False)
    if not all(verdict["holds"] for verdict in verdicts(found).values()):
        raise typer.Exit(1)


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def _processor() -> Any:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
