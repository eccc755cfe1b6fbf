"""`edgekd profile --on` another device, or several at once: the same figures and the same JSON as on this host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekd.commands import console

if TYPE_CHECKING:
    from edgekd.device_benchmarks import Contender, MeasurementSet
    from edgekd.device_benchmarks.devices import Device
    from edgekd.device_benchmarks.fleet import FleetSet
    from edgekd.device_benchmarks.schedule import Mode
    from edgekd.device_benchmarks.session import DeviceSession

PROGRESS_S = 5.0


def measure(
    devices: Sequence[Device],
    baselines: list[Contender],
    contenders: list[Contender],
    *,
    target: str | None,
    mode: Mode,
    threads: int,
    seed: int,
    processes: int | None,
) -> FleetSet:
    """Export what is PyTorch, then measure on every device. Raises: as the device does, when there is only one."""
    from edgekd.device_benchmarks import measure_all
    from edgekd.device_benchmarks.fleet import measure_on
    from edgekd.pipeline.for_device import for_device

    with TemporaryDirectory(prefix="edgekd-") as folder:
        files = for_device([*contenders, *baselines], target, Path(folder))
        ours, theirs = files[: len(contenders)], files[len(contenders) :]

        def job(session: DeviceSession) -> MeasurementSet:
            return measure_all(
                [*theirs, *ours],
                mode=mode,
                threads=threads,
                pairs=[(b.name, c.name) for b in theirs for c in ours],
                seed=seed,
                processes=processes,
                keep_going=len(ours) > 1,
                place=session,
                on_progress=_teller(session.name),
            )

        return _alone(devices[0], job) if len(devices) == 1 else measure_on(devices, job)


def _alone(device: Device, job: Callable[[DeviceSession], MeasurementSet]) -> FleetSet:
    """One device: its error is the command's own."""
    from edgekd.device_benchmarks.fleet import FleetSet
    from edgekd.device_benchmarks.session import DeviceSession

    with DeviceSession(device) as session:
        measured = job(session)
    left = {device.name: session.left_behind} if session.left_behind else {}
    return FleetSet(devices={device.name: measured}, errors={}, left_behind=left)


def _teller(name: str) -> Callable[[str, float], None]:
    """A line for the device now and then: several devices share the terminal."""
    last = [0.0]

    def tell(what: str, fraction: float) -> None:
        if time.monotonic() - last[0] > PROGRESS_S:
            last[0] = time.monotonic()
            with _TALKING:
                console.talk().print(f"{name}: {fraction:.0%}, {what}", markup=False)

    return tell


_TALKING = threading.Lock()


def tell_problems(found: FleetSet) -> bool:
    """What went wrong, to stderr; whether anything did."""
    talk = console.talk()
    for name, reason in found.errors.items():
        talk.print(f"failed: {name}: {reason.removeprefix(f'{name}: ')}", markup=False)
    for name, folder in found.left_behind.items():
        talk.print(f"{name}: could not see that {folder} was removed there; its keeper does it", markup=False)
    for name, measured in found.devices.items():
        for interruption in measured.interruptions:
            talk.print(f"went on after: {interruption}", markup=False)
        if measured.partial:
            talk.print(f"partial: {name}: whole rounds up to here only: {measured.partial}", markup=False)
        for contender, reason in measured.failures.items():
            talk.print(f"failed: {name}: {contender}: {reason}", markup=False)
    sets = found.devices.values()
    return bool(found.errors) or any(measured.partial or measured.failures for measured in sets)
