"""Several devices at once, one job each; and what is there to be measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from edgekd.artifact import Frozen
from edgekd.device_benchmarks.devices import ALL, Device, device_of
from edgekd.device_benchmarks.host import HostState, host_state
from edgekd.device_benchmarks.measurement import MeasurementSet
from edgekd.device_benchmarks.session import DeviceSession
from edgekd.device_benchmarks.transports.adb import Attached, attached
from edgekd.device_benchmarks.transports.address import Address
from edgekd.errors import EdgekdError, InputError

Job = Callable[[DeviceSession], MeasurementSet]
_AT_ONCE_MAX = 32


class FleetSet(Frozen):
    """What every device measured, by its name; and why the others did not, with what may be left on them."""

    schema_version: Literal[1] = 1
    kind: Literal["fleet"] = "fleet"
    devices: dict[str, MeasurementSet]
    errors: dict[str, str]
    left_behind: dict[str, str]


class Seen(Frozen):
    """One device as it is now. state: ready, or the sentence that says why not. python: None, it has none or is adb."""

    name: str
    address: str
    state: str
    identity: HostState | None = None


def measure_on(devices: Sequence[Device], job: Job) -> FleetSet:
    """Run the job on every device, all at the same time; one that fails does not disturb the others.

    Raises: InputError: two of them are the same device, which would disturb itself.
    """
    addresses = [str(device.address) for device in devices]
    if len(set(addresses)) < len(addresses):
        raise InputError(f"a device is named twice: {', '.join(addresses)}", where="--on")
    with ThreadPoolExecutor(max_workers=min(_AT_ONCE_MAX, max(1, len(devices)))) as pool:
        found = dict(zip([d.name for d in devices], pool.map(lambda device: _one(device, job), devices), strict=True))
    return FleetSet(
        devices={name: row[0] for name, row in found.items() if row[0] is not None},
        errors={name: row[1] for name, row in found.items() if row[1]},
        left_behind={name: row[2] for name, row in found.items() if row[2]},
    )


def _one(device: Device, job: Job) -> tuple[MeasurementSet | None, str, str]:
    session = DeviceSession(device)
    try:
        with session:
            measured = job(session)
        return measured, "", session.left_behind
    except EdgekdError as error:
        return None, str(error), session.left_behind


def chosen(text: str, known: Mapping[str, Device]) -> list[Device]:
    """The devices that `--on` names: one, several with commas, or all of the file and of adb.

    This host is never among `all`: it is busy with the others. Raises: InputError: no such device, or none at all.
    """
    if text != ALL:
        return [device_of(name.strip(), known) for name in text.split(",") if name.strip()]
    found = [device for device in known.values() if device.address.kind != "local"] + _by_adb(attached(), known)
    if not found:
        raise InputError("no device to measure on", where="--on all", fix="`edgekd devices` says what is looked at")
    return found


def _by_adb(rows: Sequence[Attached], known: Mapping[str, Device]) -> list[Device]:
    """Phones that are attached and ready, and in no devices file."""
    listed = {device.address.serial for device in known.values() if device.address.kind == "adb"}
    ready = [row for row in rows if row.state == "device" and row.serial not in listed]
    return [Device(name=f"adb:{r.serial}", address=Address(kind="adb", serial=r.serial)) for r in ready]


def look_around(known: Mapping[str, Device]) -> list[Seen]:
    """This host, every device of the file and every phone that adb knows, with its state; all reached at once."""
    local = Seen(name="local", address="local", state="ready", identity=host_state())
    devices = [device for device in known.values() if device.address.kind != "local"]
    phones = {row.serial: row for row in attached()}
    with ThreadPoolExecutor(max_workers=_AT_ONCE_MAX) as pool:
        reached = list(pool.map(_look, devices + _by_adb(list(phones.values()), known)))
    named = {row.address for row in reached}
    rest = [row for row in phones.values() if f"adb:{row.serial}" not in named]
    return [local, *reached, *(Seen(name=f"adb:{r.serial}", address=f"adb:{r.serial}", state=r.state) for r in rest)]


def _look(device: Device) -> Seen:
    try:
        with DeviceSession(device) as session:
            identity = session.identity()
        return Seen(name=device.name, address=str(device.address), state="ready", identity=identity)
    except EdgekdError as error:
        return Seen(name=device.name, address=str(device.address), state=str(error))
