"""`edgekd estimate`: what a network would cost on a device, predicted from shapes and the profile's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from edgekd.commands import console
from edgekd.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from edgekd.artifact import Precision
    from edgekd.latency import GraphCost
    from edgekd.pipeline.pricing import Pricing
    from edgekd.profile import HardwareProfile
    from edgekd.students import AnySpec

_PRECISIONS = ("fp32", "fp16", "int8")


def estimate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="torchvision:NAME, timm:NAME, .onnx, .tflite, .pt2, or a run directory."),
    ],
    profile: Annotated[str, typer.Option("--profile", "-p", help="A shipped profile, or a TOML file.")],
    unit: Annotated[str | None, typer.Option(help="cpu, gpu or npu; the profile's first runtime's by default.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="A target of the profile; its first on the unit by default.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8; the profile's own by default.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of a CPU; all of the unit's cores by default.")] = None,
    image_size: Annotated[
        int, typer.Option(min=8, help="Pixels a side; a file or run directory brings its own.")
    ] = 224,
    num_classes: Annotated[int, typer.Option(min=2, help="Classes; a file or run directory brings its own.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Images of one inference; a file brings its own.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Predict latency, memory and size of a network on a device. A prediction, never a measurement.

    Example: `edgekd estimate torchvision:mobilenet_v2 --profile jetson-nano`
    """
    from edgekd.profile import load_profile

    device = load_profile(profile)
    asked = _asked(device, unit, runtime, _precision(precision, device))
    network = _network(model, image_size, num_classes, batch)
    document = {"model": model, "input_shape": network.shape, **_facts(network, device, asked, threads, batch)}
    if json:
        console.print_json(document)
    else:
        _print(document)


class _Asked(NamedTuple):
    unit: str
    runtime: str
    precision: Precision


def _asked(device: HardwareProfile, unit: str | None, runtime: str | None, precision: Precision) -> _Asked:
    """Unit, runtime and precision, with the profile's own for what was left open.

    Raises: InputError: the profile has no such unit, no such runtime, or no such runtime on the unit.
    """
    if unit is not None:
        device.unit(unit)
    if runtime is not None:
        device.runtime(runtime)
    fitting = [r for r in device.runtimes if unit in (None, r.unit) and runtime in (None, r.target)]
    if not fitting:
        pairs = ", ".join(f"{r.target} on {r.unit}" for r in device.runtimes)
        if runtime is not None:
            raise InputError(
                f"{runtime} does not drive '{unit}'", where=f"profile '{device.name}'", fix=f"it has: {pairs}"
            )
        return _Asked(str(unit), device.primary.target, precision)
    chosen = next((r for r in fitting if r.takes(precision)), None)
    if chosen is None:
        listed = "; ".join(f"{r.target} on {r.unit} takes {', '.join(r.precisions)}" for r in fitting)
        raise InputError(f"no runtime there takes {precision}", where=f"profile '{device.name}'", fix=listed)
    return _Asked(chosen.unit, chosen.target, precision)


def _precision(name: str | None, device: HardwareProfile) -> Precision:
    if name is None:
        return device.quantisation.preferred_precision
    if name not in _PRECISIONS:
        raise InputError(f"no precision '{name}'", fix=did_you_mean(name, _PRECISIONS))
    return cast("Precision", name)


class _Network(NamedTuple):
    cost: GraphCost
    shape: list[int]
    spec: AnySpec | None = None


def _network(model: str, image_size: int, num_classes: int, batch: int) -> _Network:
    """Cost, input shape, and the spec of a run's student. Raises: InputError: none such, or unreadable."""
    from edgekd.latency import cost_of_file, trace_cost
    from edgekd.latency.networks import build_named

    path = Path(model)
    if path.is_dir():
        return _student_of(path, batch)
    if path.suffix in (".onnx", ".tflite", ".pt2"):
        if batch > 1:
            raise InputError(f"--batch {batch}, but a file has the batch it was exported with", where=model)
        return _Network(cost_of_file(path), [])
    if path.is_file() or (path.suffix and ":" not in model):
        raise InputError(
            "not a network that can be read", where=model,
            fix="give torchvision:NAME, timm:NAME, a .onnx, .tflite or .pt2 file, or a run",
        )  # fmt: skip
    shape = (batch, 3, image_size, image_size)
    module = build_named(model, image_size=image_size, num_classes=num_classes)
    return _Network(trace_cost(module, shape), list(shape))


def _student_of(folder: Path, batch: int) -> _Network:
    from edgekd.latency import trace_cost
    from edgekd.students import build, read_spec

    file = folder / "student.json"
    if not file.is_file():
        raise InputError(
            "no student.json in this directory", where=folder, fix="give a directory that distill has made"
        )
    spec = read_spec(file)
    shape = (batch, spec.in_channels, spec.image_size, spec.image_size)
    return _Network(trace_cost(build(spec), shape), list(shape), spec)


def _pricing(device: HardwareProfile, asked: _Asked, threads: int | None, batch: int) -> Pricing:
    """Calibrated rows or the roofline; where the device is this host and a block table was built, that table.

    Its blocks were measured at batch 1, so a larger batch is priced by the other two.
    """
    from edgekd.latency import ProfileCost
    from edgekd.pipeline.block_tables import table_for
    from edgekd.pipeline.pricing import Pricing

    unit, runtime, precision = asked
    cost = ProfileCost(device, unit=unit, runtime=runtime, precision=precision, threads=threads)
    if unit != "cpu" or batch > 1:
        return Pricing(cost)
    return Pricing(cost, table_for(device, precision, threads=threads or 1, runtime=runtime))


def _facts(
    network: _Network, device: HardwareProfile, asked: _Asked, threads: int | None, batch: int
) -> dict[str, Any]:
    from edgekd.latency import estimate_memory_mib, estimate_size_mib

    (unit, runtime, precision), cost = asked, network.cost
    pricing = _pricing(device, asked, threads, batch)
    latency = pricing.estimate(network.spec if batch == 1 else None, cost)
    if batch > 1 and pricing.cost.predictor.rest is not None:
        told = f"{latency.provenance}, all at batch 1: {batch} is beyond what the interval knows"
        latency = latency.model_copy(update={"provenance": told})
    watts = device.power.limit_w if device.power is not None else None
    return {
        "profile": device.name,
        "unit": unit,
        "runtime": runtime,
        "precision": precision,
        "batch": batch,
        "latency": latency.model_dump(),
        "latency_per_image_ms": latency.p50_ms / batch,
        "latency_p90_ms": latency.p50_ms * pricing.cost.p90_over_p50,
        "energy_mj_at_most": None if watts is None else latency.p50_ms * watts,
        "peak_memory_mib": estimate_memory_mib(cost, precision, runtime),
        "artifact_size_mib": estimate_size_mib(cost, precision),
        "macs": cost.macs,
        "parameters": cost.parameters,
        "kernels": len(cost.ops),
        "peak_activation_elements": cost.peak_activation_elements,
        "budgets": device.budgets.model_dump(include={"latency_p90_ms", "peak_memory_mib", "artifact_size_mib"}),
        **_elsewhere(cost, device, asked),
    }


def _elsewhere(cost: GraphCost, device: HardwareProfile, asked: _Asked) -> dict[str, Any]:
    """The operators that the runtime refuses or moves to another unit, as data and as sentences."""
    from edgekd.targets.legality import explain, misfits

    support = next((r for r in device.runtimes if (r.unit, r.target) == (asked.unit, asked.runtime)), None)
    found = misfits(cost.operators, support, asked.precision, vocabulary=cost.vocabulary) if support else ()
    return {
        "operators_elsewhere": [misfit.model_dump() for misfit in found],
        "warnings": [explain(misfit, support) for misfit in found if support],
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    latency, budgets = facts["latency"], facts["budgets"]
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for column in ("predicted", "value", "interval", "budget"):
        table.add_column(column)
    interval = f"{latency['lo_ms']:.3g} to {latency['hi_ms']:.3g}"
    table.add_row("latency p50, ms", f"{latency['p50_ms']:.3g}", interval, "")
    if facts["batch"] > 1:
        table.add_row("latency p50 an image, ms", f"{facts['latency_per_image_ms']:.3g}", "", "")
    for name, key in (
        ("latency p90, ms", "latency_p90_ms"),
        ("peak memory, MiB", "peak_memory_mib"),
        ("artifact, MiB", "artifact_size_mib"),
    ):
        over = " over" if facts[key] > budgets[key] else ""
        table.add_row(name, f"{facts[key]:.3g}", "", f"{budgets[key]:g}{over}")
    if facts["energy_mj_at_most"] is not None:
        table.add_row("energy at the power limit, mJ", f"{facts['energy_mj_at_most']:.3g}", "", "")
    table.add_row("multiply-adds, 1e6", f"{facts['macs'] / 1e6:.4g}", "", "")
    table.add_row("parameters, 1e6", f"{facts['parameters'] / 1e6:.4g}", "", "")
    table.add_row("fused kernels", str(facts["kernels"]), "", "")
    out = console.data()
    shape = "x".join(map(str, facts["input_shape"])) or "as in the file"
    out.print(
        f"{facts['model']} ({shape}) on {facts['profile']}, {facts['unit']}, {facts['runtime']}, {facts['precision']}",
        soft_wrap=True,
    )
    out.print(table)
    for warning in facts["warnings"]:
        out.print(f"warning: {escape(warning)}", soft_wrap=True)
    ends = {misfit["to"] for misfit in facts["operators_elsewhere"]}
    if "refused" in ends:
        out.print("as it is the network does not run there: the figures are of one that would", soft_wrap=True)
    elif ends:
        told = f"the figures are as if all of it ran on the {facts['unit']}: nobody states what a switch of units costs"
        out.print(told, soft_wrap=True)
    console.talk().print(f"{latency['provenance']}: predicted, not measured; measure before you decide", soft_wrap=True)
