"""`edgekd profile`: time a model on this host or on a device, beside its teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from edgekd.commands import console

if TYPE_CHECKING:
    from edgekd.device_benchmarks import Contender, Measurement, MeasurementSet
    from edgekd.device_benchmarks.devices import Device
    from edgekd.device_benchmarks.resolve import ZooOptions
    from edgekd.device_benchmarks.schedule import Mode


_KINDS = {"measured": "measured", "emulated": "EMULATED, no latency,"}


def profile(  # noqa: PLR0913 - a command's options are its parameters
    model: Annotated[
        str,
        typer.Argument(
            help="torchvision:NAME, timm:NAME, edgekd:NAME, a run directory, or a .tflite .onnx .xml .pt2 .mlpackage."
        ),
    ],
    on: Annotated[
        str,
        typer.Option("--on", help="local, ssh://user@host, adb:SERIAL, names of the devices file (commas), or all."),
    ] = "local",
    against: Annotated[
        str | None,
        typer.Option("--against", help="What to compare with: as MODEL. Default for a run: its teacher."),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option("--runtime", help="Of a run: only these, comma-separated: openvino,onnxruntime,tflite."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads of one inference.")] = 1,
    mode: Annotated[
        str, typer.Option("--mode", help="quick (about 10 s each), standard (60 s), sustained (600 s).")
    ] = "quick",
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Fresh processes. Default: the mode's.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=8, help="Input side of a zoo model, px.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Checkpoint of a zoo model; without: random.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Data whose classes a zoo model is made for.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the interleaving and of the bootstrap.")] = 0,
    devices_file: Annotated[
        Path | None, typer.Option("--devices", help="Devices file. Default: ~/.config/edgekd/devices.toml.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout, every raw sample included.")
    ] = False,
) -> None:
    """Latency, cold start and memory at batch 1, interleaved with what it is compared with, and the speed ratio.

    Example: `edgekd profile runs/jetson-nano-001 --against timm:resnet18 --threads 1`
    """
    from edgekd.device_benchmarks.devices import load_devices
    from edgekd.device_benchmarks.fleet import chosen
    from edgekd.device_benchmarks.resolve import ZooOptions, contenders_of

    devices = [] if on == "local" else chosen(on, load_devices(devices_file))
    settings = _Settings(_mode(mode), threads, seed, processes)
    options = ZooOptions(image_size=image_size, weights=weights, data=data)
    names = tuple(n.strip() for n in (runtime or "").split(",") if n.strip())
    contenders = contenders_of(model, options=options, runtimes=names, anywhere=bool(devices))
    baselines = _baselines(model, against, options, anywhere=bool(devices))
    for line in _remarks(model, [*baselines, *contenders]):
        console.talk().print(line)
    if devices:
        _on_devices(devices, baselines, contenders, names=names, settings=settings, json=json)
    else:
        _here(baselines, contenders, settings=settings, json=json)


class _Settings(NamedTuple):
    mode: Mode
    threads: int
    seed: int
    processes: int | None


def _here(baselines: list[Contender], contenders: list[Contender], *, settings: _Settings, json: bool) -> None:
    from edgekd.device_benchmarks import measure_all

    with _progress() as on_progress:
        measured = measure_all(
            [*baselines, *contenders],
            pairs=[(b.name, c.name) for b in baselines for c in contenders],
            keep_going=len(contenders) > 1,
            on_progress=on_progress,
            **settings._asdict(),
        )
    if json:
        console.print_json(measured.model_dump(mode="json"))
    else:
        _print(measured, "this host")
        for name, reason in measured.failures.items():
            console.talk().print(f"failed: {name}: {reason}", markup=False)
    if measured.failures:
        raise typer.Exit(1)


def _on_devices(
    devices: list[Device],
    baselines: list[Contender],
    contenders: list[Contender],
    *,
    names: tuple[str, ...],
    settings: _Settings,
    json: bool,
) -> None:
    """One device: its set, as from this host. Several: a document with one set for each."""
    from edgekd.commands import profile_device

    target = names[0] if names else None
    found = profile_device.measure(devices, baselines, contenders, target=target, **settings._asdict())
    if json:
        alone = found.devices[devices[0].name] if len(devices) == 1 else found
        console.print_json(alone.model_dump(mode="json"))
    else:
        for name, measured in found.devices.items():
            _print(measured, name)
    if profile_device.tell_problems(found):
        raise typer.Exit(1)


def _mode(text: str) -> Mode:
    """Raises: InputError: no such mode."""
    from edgekd.device_benchmarks.schedule import MODES
    from edgekd.errors import InputError, did_you_mean

    for mode in MODES:
        if text == mode:
            return mode
    raise InputError(f"no mode '{text}'", where="--mode", fix=did_you_mean(text, MODES))


def _baselines(model: str, against: str | None, options: ZooOptions, *, anywhere: bool) -> list[Contender]:
    from edgekd.device_benchmarks.resolve import contenders_of, is_run, run_baseline

    if against is not None:
        return contenders_of(against, label="baseline ", options=options, anywhere=anywhere)
    return run_baseline(Path(model)) if is_run(model) else []


def _remarks(model: str, contenders: Sequence[Contender]) -> Iterator[str]:
    """What a reader should know before the figures."""
    from edgekd.device_benchmarks.resolve import is_run, skipped_of_run

    if is_run(model) and (skipped := skipped_of_run(Path(model))):
        yield f"not measured, this host cannot run them: {', '.join(skipped)}"
    if any(c.source.kind == "zoo" and c.source.weights is None for c in contenders):
        yield "zoo models get random weights: latency does not depend on them (accuracy would)"


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr while measuring; it redraws seldom, since drawing takes CPU from what is timed."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console.talk(), transient=True, auto_refresh=False) as bar:
        task, drawn = bar.add_task("starting", total=1.0), [0.0]

        def update(what: str, fraction: float) -> None:
            bar.update(task, description=what, completed=fraction)
            if time.monotonic() - drawn[0] > 1:
                drawn[0] = time.monotonic()
                bar.refresh()

        yield update


def _print(measured: MeasurementSet, where: str) -> None:
    """The table and the ratios to stdout."""
    from rich.markup import escape
    from rich.table import Table

    columns = (
        "model",
        "p50 ms",
        "95% CI",
        "p90 ms",
        "n",
        "CV",
        "CPU p50 ms",
        "load ms",
        "first ms",
        "peak MiB",
        "verdict",
    )
    table = Table(*columns, title=escape(f"{_KINDS[measured.kind]} on {where}, batch 1, {measured.mode}"))
    for row in measured.measurements:
        table.add_row(*map(escape, _cells(row)))
    out = console.data()
    out.print(table)
    for row in measured.measurements:
        for text in filter(None, (*row.warnings, row.note, _parity(row))):
            out.print(f"{row.name}: {text}", markup=False)
    for ratio in measured.ratios:
        out.print(ratio.text, markup=False)


def _parity(row: Measurement) -> str:
    found = row.provenance.parity
    return f"outputs equal this host's within {found.max_relative_error:.1e} (relative)" if found else ""


def _cells(row: Measurement) -> tuple[str, ...]:
    p90 = f"{row.p90_ms:.3f}" if row.p90_ms is not None else f"n/a (n {row.n} < 64)"
    peak = f"{row.peak_rss_mib:.0f}" if row.peak_rss_mib is not None else "n/a"
    return (
        row.name,
        f"{row.p50_ms:.3f}",
        f"{row.ci_lo_ms:.3f} to {row.ci_hi_ms:.3f}",
        p90,
        str(row.n),
        f"{row.cv:.0%}",
        f"{row.cpu_p50_ms:.3f}",
        f"{row.load_ms:.1f}",
        f"{row.first_inference_ms:.1f}",
        peak,
        row.verdict,
    )
