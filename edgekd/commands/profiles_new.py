"""`edgekd profiles new`: a hardware profile from a measurement of the device itself."""

from __future__ import annotations

import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd.commands import console

if TYPE_CHECKING:
    from edgekd.device_benchmarks.devices import Device
    from edgekd.device_benchmarks.microbenchmark import DeviceFigures


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the profile.")],
    on: Annotated[str, typer.Option("--on", help="local, ssh://user@host, or one name of the devices file.")] = "local",
    out: Annotated[Path | None, typer.Option("--out", help="Default: NAME.toml here.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Default: all usable CPUs.")] = None,
    runtime: Annotated[
        str, typer.Option("--runtime", help="Runtimes to measure with, comma-separated.")
    ] = "onnxruntime,openvino",
    sustained_s: Annotated[
        float | None,
        typer.Option("--sustained-s", min=60, max=3600, help="Also run for so long, for thermal_headroom: e.g. 300."),
    ] = None,
    devices_file: Annotated[
        Path | None, typer.Option("--devices", help="Devices file. Default: ~/.config/edgekd/devices.toml.")
    ] = None,
) -> None:
    """Measure peaks, bandwidth and overhead of a device's CPU through its runtimes; write a profile (about a minute).

    Example: `edgekd profiles new my-board --on ssh://pi@raspberrypi.local`
    """
    from edgekd.device_benchmarks.host import cpu_flags
    from edgekd.device_benchmarks.new_profile import profile_toml
    from edgekd.files import write_text

    file = out or Path(f"{name}.toml")
    _refuse(name, file)
    figures = _figures(_device(on, devices_file), threads, _runtimes(runtime), sustained_s)
    flags = cpu_flags() if on == "local" else frozenset[str]()
    date = datetime.date.today().isoformat()
    profile, text = profile_toml(name, figures, transport="local" if on == "local" else "ssh", flags=flags, date=date)
    write_text(file, text)
    unit = profile.units[0]
    int8 = "" if unit.peak_int8_gops is None else f", int8 {unit.peak_int8_gops:g} Gop/s"
    console.talk().print(
        f"fp32 {unit.peak_fp32_gflops:g} GFLOP/s{int8}, {unit.dram_gb_per_s:g} GB/s, "
        f"{unit.kernel_overhead_us:g} us a kernel",
        soft_wrap=True,
    )
    typer.echo(str(file))


def _refuse(name: str, file: Path) -> None:
    """Raises: InputError: a name that is none, or a file that is there."""
    from edgekd.errors import InputError

    if not name.replace("-", "").replace("_", "").isalnum():
        raise InputError("letters, digits, - and _ only", where=f"NAME '{name}'")
    if file.exists():
        raise InputError("is there already", where=file, fix="choose another --out")


def _device(on: str, devices_file: Path | None) -> Device | None:
    from edgekd.device_benchmarks.devices import device_of, load_devices
    from edgekd.errors import InputError

    if on == "local":
        return None
    device = device_of(on, load_devices(devices_file))
    if device.address.kind != "ssh":
        raise InputError("a new profile is measured here or over ssh", where="--on")
    return device


def _runtimes(text: str) -> tuple[str, ...]:
    """Raises: InputError: one that has no probes."""
    from edgekd.device_benchmarks.microbenchmark import RUNTIMES
    from edgekd.errors import InputError, did_you_mean

    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in RUNTIMES:
            raise InputError(f"no probes for '{name}'", where="--runtime", fix=did_you_mean(name, RUNTIMES))
    return names or RUNTIMES


def _figures(
    device: Device | None, threads: int | None, runtimes: tuple[str, ...], sustained_s: float | None
) -> DeviceFigures:
    from edgekd.device_benchmarks.host import host_state
    from edgekd.device_benchmarks.microbenchmark import measure_device
    from edgekd.device_benchmarks.session import DeviceSession

    with TemporaryDirectory(prefix="edgekd-") as folder:
        if device is None:
            usable = host_state().usable_cpus
            return measure_device(Path(folder), threads=threads or usable, runtimes=runtimes, sustained_s=sustained_s)
        with DeviceSession(device) as session:
            usable = session.state().usable_cpus
            return measure_device(
                Path(folder), threads=threads or usable, place=session, runtimes=runtimes, sustained_s=sustained_s
            )
