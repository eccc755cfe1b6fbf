"""`edgekd estimate`: what a network would cost on a device, predicted from shapes and the profile's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edgekd.commands import console
from edgekd.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from edgekd.artifact import Precision
    from edgekd.latency import GraphCost
    from edgekd.profile import HardwareProfile

_PRECISIONS = ("fp32", "fp16", "int8")


def estimate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="torchvision:NAME, timm:NAME, or a run directory.")],
    profile: Annotated[str, typer.Option("--profile", "-p", help="A shipped profile, or a TOML file.")],
    unit: Annotated[str | None, typer.Option(help="cpu, gpu or npu; the profile's first runtime's by default.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8; the profile's own by default.")] = None,
    image_size: Annotated[int, typer.Option(min=8, help="Pixels a side; a run directory brings its own.")] = 224,
    num_classes: Annotated[int, typer.Option(min=2, help="Classes; a run directory brings its own.")] = 1000,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Predict latency, memory and size of a network on a device. A prediction, never a measurement.

    Example: `edgekd estimate torchvision:mobilenet_v2 --profile jetson-nano`
    """
    from edgekd.latency import trace_cost
    from edgekd.profile import load_profile

    device = load_profile(profile)
    chosen_precision = _precision(precision, device)
    module, shape = _network(model, image_size, num_classes)
    cost = trace_cost(module, shape)
    facts = _facts(cost, device, unit or _unit_for(device, chosen_precision), chosen_precision)
    document = {"model": model, "input_shape": list(shape), **facts}
    if json:
        console.print_json(document)
    else:
        _print(document)


def _precision(name: str | None, device: HardwareProfile) -> Precision:
    if name is None:
        return device.quantisation.preferred_precision
    if name not in _PRECISIONS:
        raise InputError(f"no precision '{name}'", fix=did_you_mean(name, _PRECISIONS))
    return cast("Precision", name)


def _unit_for(device: HardwareProfile, precision: Precision) -> str:
    """The unit of the first runtime that takes the precision."""
    return next((r.unit for r in device.runtimes if precision in r.precisions), device.primary.unit)


def _network(model: str, image_size: int, num_classes: int) -> tuple[nn.Module, tuple[int, ...]]:
    folder = Path(model)
    if folder.is_dir():
        return _student_of(folder)
    if folder.suffix or folder.is_file():
        raise InputError(
            "not a network that can be traced", where=model, fix="give torchvision:NAME, timm:NAME or a run"
        )
    from edgekd.latency.networks import build_named

    return build_named(model, image_size=image_size, num_classes=num_classes), (1, 3, image_size, image_size)


def _student_of(folder: Path) -> tuple[nn.Module, tuple[int, ...]]:
    from pydantic import ValidationError

    from edgekd.files import read_json
    from edgekd.students import build, parse_spec

    file = folder / "student.json"
    if not file.is_file():
        raise InputError(
            "no student.json in this directory", where=folder, fix="give a directory that distill has made"
        )
    try:
        spec = parse_spec(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"not a student ({key}: {first['msg']})", where=file) from error
    return build(spec), (1, spec.in_channels, spec.image_size, spec.image_size)


def _facts(cost: GraphCost, device: HardwareProfile, unit: str, precision: Precision) -> dict[str, Any]:
    from edgekd.latency import estimate_latency, estimate_memory_mib, estimate_size_mib

    latency = estimate_latency(cost, device, unit=unit, precision=precision)
    runtime = next((r.target for r in device.runtimes if r.unit == unit), device.primary.target)
    return {
        "profile": device.name,
        "unit": unit,
        "runtime": runtime,
        "precision": precision,
        "latency": latency.model_dump(),
        "latency_p90_ms": latency.p50_ms * device.p90_over_p50,
        "peak_memory_mib": estimate_memory_mib(cost, precision, runtime),
        "artifact_size_mib": estimate_size_mib(cost, precision),
        "macs": cost.macs,
        "parameters": cost.parameters,
        "kernels": len(cost.ops),
        "peak_activation_elements": cost.peak_activation_elements,
        "budgets": device.budgets.model_dump(include={"latency_p90_ms", "peak_memory_mib", "artifact_size_mib"}),
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    latency, budgets = facts["latency"], facts["budgets"]
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for column in ("predicted", "value", "interval", "budget"):
        table.add_column(column)
    interval = f"{latency['lo_ms']:.3g} to {latency['hi_ms']:.3g}"
    table.add_row("latency p50, ms", f"{latency['p50_ms']:.3g}", interval, "")
    for name, key in (
        ("latency p90, ms", "latency_p90_ms"),
        ("peak memory, MiB", "peak_memory_mib"),
        ("artifact, MiB", "artifact_size_mib"),
    ):
        over = " over" if facts[key] > budgets[key] else ""
        table.add_row(name, f"{facts[key]:.3g}", "", f"{budgets[key]:g}{over}")
    table.add_row("multiply-adds, 1e6", f"{facts['macs'] / 1e6:.4g}", "", "")
    table.add_row("parameters, 1e6", f"{facts['parameters'] / 1e6:.4g}", "", "")
    table.add_row("fused kernels", str(facts["kernels"]), "", "")
    out = console.data()
    shape = "x".join(map(str, facts["input_shape"]))
    out.print(
        f"{facts['model']} ({shape}) on {facts['profile']}, {facts['unit']}, {facts['precision']}", soft_wrap=True
    )
    out.print(table)
    console.talk().print(f"{latency['provenance']}: predicted, not measured; measure before you decide", soft_wrap=True)
