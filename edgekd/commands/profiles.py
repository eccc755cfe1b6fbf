"""`edgekd profiles`: the devices that edgekd knows, in numbers with units and sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.commands import console, profiles_new, profiles_show

if TYPE_CHECKING:
    from edgekd.profile import HardwareProfile

app = typer.Typer(
    no_args_is_help=True,
    help="List, show, check and measure hardware profiles.\n\nExample: `edgekd profiles show jetson-nano`",
)
app.command("new")(profiles_new.new)
app.command("show")(profiles_show.show)
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command("list")
def list_profiles(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="Only devices whose name, title or chip has them all."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="jetson, raspberry-pi, android, iphone, x86, gpu, microcontroller.")
    ] = None,
    json: Json = False,
) -> None:
    """The profiles that ship with edgekd, grouped by kind of device.

    Example: `edgekd profiles list --kind android`
    """
    profiles = _chosen(words or [], kind)
    if json:
        console.print_json([_line(profile) for profile in profiles])
        return
    if not profiles:
        console.talk().print("no profile matches; without words and --kind all are listed")
        return
    _print_groups(profiles)


@app.command("check")
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="TOML files, or names of shipped profiles.")],
    json: Json = False,
) -> None:
    """Check profile files: exit 0 when all are valid, 2 with one line per mistake when one is not.

    Each line names the file, the key, what was got and the cure. A family (`abstract = true`) may be checked too.

    Example: `edgekd profiles check my-board.toml`
    """
    from edgekd.profile import check_profile

    results = [(file, *check_profile(file)) for file in files]
    wrong = any(mistakes for _, _, mistakes in results)
    if json:
        documents = [_checked(file, profile, [str(m) for m in mistakes]) for file, profile, mistakes in results]
        console.print_json(documents[0] if len(documents) == 1 else documents)
    else:
        for file, profile, mistakes in results:
            for mistake in mistakes:
                typer.echo(f"error: {mistake}", err=True)
            if not mistakes:
                typer.echo(f"{file}: {_verdict(profile)}")
    if wrong:
        raise typer.Exit(2)


@app.command("schema")
def schema() -> None:
    """The JSON Schema of a profile file, for editors that complete and check TOML.

    Put `#:schema ./edgekd-profile.schema.json` into the first line of a profile (Taplo, Even Better TOML).

    Example: `edgekd profiles schema > edgekd-profile.schema.json`
    """
    from edgekd.profile.schema import profile_schema

    console.print_json(profile_schema())


def _chosen(words: list[str], kind: str | None) -> list[HardwareProfile]:
    """Raises: InputError: no such kind."""
    from typing import get_args

    from edgekd.errors import InputError, did_you_mean
    from edgekd.profile import load_profile, profile_names
    from edgekd.profile.model import DeviceKind

    kinds = get_args(DeviceKind)
    if kind is not None and kind not in kinds:
        raise InputError(f"no kind '{kind}'", where="--kind", fix=did_you_mean(kind, kinds))
    profiles = [load_profile(name) for name in profile_names()]
    texts = {p.name: f"{p.name} {p.title} {p.soc} {p.kind}".lower() for p in profiles}
    return [p for p in profiles if kind in (None, p.kind) and all(word.lower() in texts[p.name] for word in words)]


def _line(profile: HardwareProfile) -> dict[str, Any]:
    quantisation = profile.quantisation
    return {
        "name": profile.name,
        "title": profile.title,
        "kind": profile.kind,
        "experimental": profile.experimental,
        "units": [unit.kind for unit in profile.units],
        "power_mode": profile.power_mode,
        "power_modes": [mode.name for mode in profile.power_modes],
        "runtime": profile.primary.target,
        "unit": profile.primary.unit,
        "precision": quantisation.preferred_precision,
        "scheme": quantisation.scheme if quantisation.preferred_precision == "int8" else None,
        "why": quantisation.why,
        **profile.budgets.model_dump(include={"latency_p90_ms", "peak_memory_mib", "artifact_size_mib"}),
    }


def _print_groups(profiles: list[HardwareProfile]) -> None:
    from typing import get_args

    from edgekd.profile.model import DeviceKind

    table = profiles_show.table("profile", "device", "units", "runtime", "precision", "p90 budget", "power modes")
    for kind in get_args(DeviceKind):
        group = [profile for profile in profiles if profile.kind == kind]
        if not group:
            continue
        table.add_row(f"[bold]{kind}[/bold]")
        for profile in group:
            table.add_row(*_cells(profile))
        table.add_section()
    console.data().print(table)
    modes = next((p.name for p in profiles if len(p.power_modes) > 1), None)
    hint = f"; a power mode is chosen as --profile {modes}@MODE" if modes else ""
    console.talk().print(
        f"{len(profiles)} profiles; `edgekd profiles show NAME` gives every number{hint}", soft_wrap=True
    )


def _cells(profile: HardwareProfile) -> tuple[str, ...]:
    line = _line(profile)
    return (
        f"  {profile.name}",
        f"{profile.title} (experiment)" if profile.experimental else profile.title,
        " ".join(line["units"]),
        line["runtime"],
        " ".join(part for part in (line["precision"], line["scheme"]) if part),
        f"{line['latency_p90_ms']:g} ms",
        " ".join(f"{mode}*" if mode == profile.power_mode else mode for mode in line["power_modes"]),
    )


def _checked(file: str, profile: HardwareProfile | None, mistakes: list[str]) -> dict[str, Any]:
    found = _line(profile) if profile is not None else {"abstract": True} if not mistakes else {}
    return {"valid": not mistakes, "file": file, **found, "mistakes": mistakes}


def _verdict(profile: HardwareProfile | None) -> str:
    if profile is None:
        return "valid family: other profiles may extend it"
    units = ", ".join(unit.kind for unit in profile.units)
    return f"valid profile '{profile.name}' ({units}; {len(profile.runtimes)} runtimes)"
