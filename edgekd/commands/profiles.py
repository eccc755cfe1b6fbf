"""`edgekd profiles`: the devices that edgekd knows, in numbers with units and sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.commands import console, profiles_new

if TYPE_CHECKING:
    from rich.table import Table

    from edgekd.profile import HardwareProfile

app = typer.Typer(
    no_args_is_help=True,
    help="List, show, check and measure hardware profiles.\n\nExample: `edgekd profiles show jetson-nano`",
)
app.command("new")(profiles_new.new)
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command("list")
def list_profiles(json: Json = False) -> None:
    """The profiles that ship with edgekd.

    Example: `edgekd profiles list`
    """
    from edgekd.profile import load_profile, profile_names

    profiles = [load_profile(name) for name in profile_names()]
    if json:
        console.print_json([_line(profile) for profile in profiles])
        return
    table = _table("profile", "device", "runtime", "precision", "p90 budget ms", "why this precision")
    for profile in profiles:
        line = _line(profile)
        precision = " ".join(part for part in (line["precision"], line["scheme"]) if part)
        table.add_row(
            profile.name, profile.title, line["runtime"], precision, f"{line['latency_p90_ms']:g}", line["why"]
        )
    console.data().print(table)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped profile, or a TOML file.")], json: Json = False
) -> None:
    """Everything a profile says: units, runtimes, quantisation, budgets, each with its source.

    Example: `edgekd profiles show raspberry-pi-5`
    """
    from edgekd.profile import load_profile

    profile = load_profile(name)
    if json:
        console.print_json(profile.model_dump(mode="json"))
        return
    out = console.data()
    out.print(f"[bold]{profile.name}[/bold]: {profile.title}", soft_wrap=True)
    out.print(f"memory {profile.ram_mib} MiB; reached over {profile.transport}; p90/p50 {profile.p90_over_p50:g}")
    out.print(_units(profile))
    out.print(_runtimes(profile))
    _print_decisions(profile)


@app.command("check")
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A TOML file, or a shipped profile's name.")],
    json: Json = False,
) -> None:
    """Check a profile file: exit 0 when it is valid, 2 with one line naming the key and the cure when it is not.

    Example: `edgekd profiles check my-board.toml`
    """
    from edgekd.profile import load_profile

    profile = load_profile(file)
    if json:
        console.print_json({"valid": True, **_line(profile)})
        return
    units = ", ".join(unit.kind for unit in profile.units)
    typer.echo(f"{file}: valid profile '{profile.name}' ({units}; {len(profile.runtimes)} runtimes)")


def _line(profile: HardwareProfile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "title": profile.title,
        "runtime": profile.primary.target,
        "unit": profile.primary.unit,
        "precision": profile.quantisation.preferred_precision,
        "scheme": profile.quantisation.scheme if profile.quantisation.preferred_precision == "int8" else None,
        "why": profile.quantisation.why,
        **profile.budgets.model_dump(include={"latency_p90_ms", "peak_memory_mib", "artifact_size_mib"}),
    }


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _units(profile: HardwareProfile) -> Table:
    table = _table(
        "unit", "peak fp32 / fp16 / int8 (1e9 op/s)", "GB/s", "efficiency / depthwise", "us/kernel", "source"
    )
    for unit in profile.units:
        peaks = (unit.peak_fp32_gflops, unit.peak_fp16_gflops, unit.peak_int8_gops)
        table.add_row(
            f"{unit.kind}: {unit.name}",
            " / ".join("-" if peak is None else f"{peak:g}" for peak in peaks),
            f"{unit.dram_gb_per_s:g}",
            f"{unit.efficiency:g} / {unit.depthwise_efficiency:g}",
            f"{unit.kernel_overhead_us:g}",
            f"{unit.confidence}: {unit.source}",
        )
    return table


def _runtimes(profile: HardwareProfile) -> Table:
    table = _table("runtime", "unit", "precisions", "ONNX opset", "why")
    for runtime in profile.runtimes:
        opset = f"<= {runtime.onnx_opset_max}" if runtime.onnx_opset_max else "-"
        name = f"{runtime.target} {runtime.version}"
        table.add_row(name, runtime.unit, ", ".join(runtime.precisions), opset, runtime.why)
    return table


def _print_decisions(profile: HardwareProfile) -> None:
    out = console.data()
    quantisation, budgets = profile.quantisation, profile.budgets
    out.print(f"[bold]precision[/bold] {quantisation.preferred_precision}: {quantisation.why}", soft_wrap=True)
    out.print(
        f"[bold]budgets[/bold] p90 {budgets.latency_p90_ms:g} ms, memory {budgets.peak_memory_mib:g} MiB, artifact "
        f"{budgets.artifact_size_mib:g} MiB, {budgets.teacher_macs_fraction:g} of the teacher's multiply-adds: "
        f"{budgets.why}",
        soft_wrap=True,
    )
    for note in profile.notes:
        out.print(f"[bold]note[/bold] {note}", soft_wrap=True)
