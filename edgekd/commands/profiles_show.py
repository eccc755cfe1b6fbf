"""`edgekd profiles show`: everything a profile says, with the source of every number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekd.commands import console

if TYPE_CHECKING:
    from rich.table import Table

    from edgekd.profile import HardwareProfile


def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A shipped profile or a TOML file; @MODE behind it: a power mode.")
    ],
    numbers: Annotated[bool, typer.Option("--numbers", help="Only the numbers, each with its source.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Everything a profile says: units, runtimes, power modes, precision, budgets, and where each number is from.

    Example: `edgekd profiles show jetson-orin-nano@15w`
    """
    from edgekd.profile import facts_of, load_profile

    profile = load_profile(name)
    if json:
        facts = [fact._asdict() for fact in facts_of(profile)]
        console.print_json(facts if numbers else profile.model_dump(mode="json"))
        return
    out = console.data()
    if not numbers:
        _print_head(profile)
        out.print(_units(profile))
        out.print(_runtimes(profile))
        _print_decisions(profile)
        out.print()
    out.print(_numbers(profile))


def table(*columns: str) -> Table:
    """An open table whose long cells fold."""
    from rich.table import Table

    made = Table(show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def _print_head(profile: HardwareProfile) -> None:
    out = console.data()
    mark = " [bold](experiment)[/bold]" if profile.experimental else ""
    out.print(f"[bold]{profile.name}[/bold]: {profile.title}{mark}", soft_wrap=True)
    chip = f"{profile.soc}; " if profile.soc else ""
    power = f"; up to {profile.power.limit_w:g} W" if profile.power else ""
    reached = "not reached by edgekd" if profile.transport == "none" else f"reached over {profile.transport}"
    out.print(f"{chip}memory {profile.ram_mib} MiB; {reached}; p90/p50 {profile.p90_over_p50:g}{power}", soft_wrap=True)
    for mode in profile.power_modes:
        mark = "in use" if mode.name == profile.power_mode else f"--profile {profile.device_name}@{mode.name}"
        out.print(f"[bold]power mode {mode.name}[/bold] {mode.title} ({mark})", soft_wrap=True)


def _units(profile: HardwareProfile) -> Table:
    made = table(
        "unit", "peak fp32 / fp16 / int8 (1e9 op/s)", "GB/s", "efficiency / depthwise", "us/kernel", "published rows"
    )
    for unit in profile.units:
        peaks = (unit.peak_fp32_gflops, unit.peak_fp16_gflops, unit.peak_int8_gops)
        unknown = f"not published; runs {', '.join(unit.precisions)}" if unit.precisions else ""
        text = " / ".join("-" if peak is None else f"{peak:g}" for peak in peaks)
        text = unknown if not any(peaks) else text
        rows = ", ".join(unit.calibration_devices) or "none: borrows from " + ", ".join(unit.relative_devices[:2])
        made.add_row(
            f"{unit.kind}: {unit.name}",
            f"{text}; fp16 files run as fp32" if unit.fp16_runs_as_fp32 else text,
            "-" if unit.dram_gb_per_s is None else f"{unit.dram_gb_per_s:g}",
            f"{unit.efficiency:g} / {unit.depthwise_efficiency:g}",
            f"{unit.kernel_overhead_us:g}",
            rows if unit.calibration_devices or unit.relative_devices else "none",
        )
    return made


def _runtimes(profile: HardwareProfile) -> Table:
    made = table("runtime", "unit", "precisions", "ONNX opset", "why")
    for runtime in profile.runtimes:
        opset = f"<= {runtime.onnx_opset_max}" if runtime.onnx_opset_max else "-"
        name = f"{runtime.target} {runtime.version}" + (f", {runtime.delegate}" if runtime.delegate else "")
        why = [runtime.why, *(["static shapes only"] if runtime.static_shapes else [])]
        why += [
            f"{', '.join(f.ops)}: {'refused' if f.to == 'refused' else f'to the {f.to}'} ({f.why})"
            for f in runtime.fallbacks
        ]
        made.add_row(name, runtime.unit, ", ".join(runtime.precisions), opset, "; ".join(why))
    return made


def _numbers(profile: HardwareProfile) -> Table:
    from rich.markup import escape

    from edgekd.profile import facts_of

    made = table("number", "value", "confidence", "source")
    for fact in facts_of(profile):
        key = f"{fact.table}.{fact.key}" if fact.table else fact.key
        made.add_row(escape(key), f"{fact.value:g} {fact.unit}".strip(), fact.confidence, escape(fact.source))
    return made


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
