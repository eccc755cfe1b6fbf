"""`edgekd profile`: time a model on this host or on a device, beside its teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import typer

from edgekd.commands import console, profile_apple, profile_options, profile_table
from edgekd.commands.profile_apple import APPLE

if TYPE_CHECKING:
    from edgekd.device_benchmarks import Contender
    from edgekd.device_benchmarks.devices import Device
    from edgekd.device_benchmarks.resolve import ZooOptions
    from edgekd.device_benchmarks.schedule import Mode

Word = TypeVar("Word", bound=str)


def profile(  # noqa: PLR0913 - a command's options are its parameters
    model: profile_options.Model = None,
    on: profile_options.On = "local",
    against: profile_options.Against = None,
    runtime: profile_options.Runtimes = None,
    torch: profile_options.Torch = "eager",
    layers: profile_options.Layers = False,
    threads: profile_options.Threads = 1,
    mode: profile_options.ModeName = "quick",
    processes: profile_options.Processes = None,
    image_size: profile_options.ImageSize = None,
    weights: profile_options.Weights = None,
    data: profile_options.Data = None,
    seed: profile_options.Seed = 0,
    devices_file: profile_options.DevicesFile = None,
    out: profile_options.Out = None,
    import_file: profile_options.ImportFile = None,
    json: profile_options.Json = False,
) -> None:
    """Latency, cold start and memory at batch 1, interleaved with what it is compared with, and the speed ratio.

    Example: `edgekd profile runs/jetson-nano-001 --against timm:resnet18 --threads 1`
    """
    if import_file is not None or on == APPLE or model is None:
        profile_apple.profile(model, on=on, out=out, import_file=import_file, json=json)
        return
    from edgekd.device_benchmarks.contender import TORCH_MODES, with_torch
    from edgekd.device_benchmarks.devices import load_devices
    from edgekd.device_benchmarks.fleet import chosen
    from edgekd.device_benchmarks.resolve import ZooOptions, contenders_of
    from edgekd.device_benchmarks.schedule import MODES

    how = _choice(torch, TORCH_MODES, "--torch")
    devices = [] if on == "local" else chosen(on, load_devices(devices_file))
    settings = _Settings(_choice(mode, MODES, "--mode"), threads, seed, processes)
    options = ZooOptions(image_size=image_size, weights=weights, data=data)
    names = tuple(n.strip() for n in (runtime or "").split(",") if n.strip())
    contenders = contenders_of(model, options=options, runtimes=names, anywhere=bool(devices))
    baselines = _baselines(model, against, options, anywhere=bool(devices))
    if devices:
        _refuse_here_only(layers=layers, how=how)
    contenders = [one for contender in contenders for one in with_torch(contender, how)]
    baselines = [one for contender in baselines for one in with_torch(contender, how)]
    for line in _remarks(model, [*baselines, *contenders]):
        console.talk().print(line)
    if devices:
        _on_devices(devices, baselines, contenders, names=names, settings=settings, json=json)
    else:
        _here(baselines, contenders, settings=settings, layers=layers, json=json)


class _Settings(NamedTuple):
    mode: Mode
    threads: int
    seed: int
    processes: int | None


def _here(
    baselines: list[Contender], contenders: list[Contender], *, settings: _Settings, layers: bool, json: bool
) -> None:
    from edgekd.device_benchmarks import measure_all
    from edgekd.device_benchmarks.layer_runs import with_layers

    with _progress() as on_progress:
        measured = measure_all(
            [*baselines, *contenders],
            pairs=[(b.name, c.name) for b in baselines for c in contenders],
            keep_going=len(contenders) > 1,
            on_progress=on_progress,
            **settings._asdict(),
        )
        if layers:
            everyone = [*baselines, *contenders]
            measured = with_layers(measured, everyone, threads=settings.threads, on_progress=on_progress)
    if json:
        console.print_json(measured.model_dump(mode="json"))
    else:
        profile_table.show(measured, "this host")
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
            profile_table.show(measured, name)
    if profile_device.tell_problems(found):
        raise typer.Exit(1)


def _choice(text: str, known: Iterable[Word], option: str) -> Word:
    """Raises: InputError: not one of the known words."""
    from edgekd.errors import InputError, did_you_mean

    words = list(known)
    for word in words:
        if text == word:
            return word
    raise InputError(f"no {option.removeprefix('--')} '{text}'", where=option, fix=did_you_mean(text, words))


def _refuse_here_only(*, layers: bool, how: str) -> None:
    """Raises: InputError: an option that only this host knows."""
    from edgekd.errors import InputError

    if layers:
        raise InputError("layers are profiled on this host only", where="--layers", fix="use --on local")
    if how != "eager":
        raise InputError("a device runs exported files, not PyTorch", where="--torch", fix="use --on local")


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
