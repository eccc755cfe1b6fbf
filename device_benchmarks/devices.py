"""The devices that a user names: from a devices file, or an address alone. Reads a file, reaches nothing."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from edgekd.artifact import Frozen
from edgekd.device_benchmarks.transports.address import Address, parse_device
from edgekd.errors import InputError, did_you_mean

FILE_VARIABLE = "EDGEKD_DEVICES"
ALL = "all"


class Device(Frozen):
    """One device and how it is used.

    python: an interpreter there, instead of the first `python3`. env: environment of what runs there. cpus: logical
    CPUs to pin to (the big cores). folder: where the temporary folder goes. ssh_options: more words for ssh.
    benchmark_model: Google's tool on *this* host, built for the device; it is pushed and runs the models there.
    wheels: a folder on *this* host, of a runtime's wheels for the device, which has no pip; unpacked beside the runner.
    trtexec: on the device. emulated: its times are no latency, whatever the device itself says.
    """

    name: str
    address: Address
    python: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    cpus: tuple[int, ...] = ()
    folder: str = ""
    ssh_options: tuple[str, ...] = ()
    benchmark_model: Path | None = None
    wheels: Path | None = None
    trtexec: str = "/usr/src/tensorrt/bin/trtexec"
    emulated: bool = False


def default_file() -> Path:
    """EDGEKD_DEVICES, or devices.toml in the user's configuration folder."""
    named = os.environ.get(FILE_VARIABLE)
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(named) if named else config / "edgekd" / "devices.toml"


def load_devices(path: Path | None = None) -> dict[str, Device]:
    """The devices of a file by name; none where the default file does not exist.

    Raises: InputError: a file that was named and is not there, is no TOML, or has an entry that is none.
    """
    file = path or default_file()
    if not file.is_file():
        if path is None and FILE_VARIABLE not in os.environ:
            return {}
        raise InputError("no such devices file", where=file)
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not a TOML file ({error})", where=file) from error
    return {name: _device(name, table, file) for name, table in tables.items()}


def device_of(text: str, known: Mapping[str, Device]) -> Device:
    """A device by its name in the file, or by its address (with the file's settings, if one has that address).

    Raises: InputError: neither.
    """
    if text in known:
        return known[text]
    if text == "local" or ":" in text:
        address = parse_device(text)
        same = [device for device in known.values() if device.address == address]
        return same[0] if same else Device(name=text, address=address)
    fix = did_you_mean(text, [*known, "local"]) if known else "local, ssh://user@host, adb:SERIAL"
    raise InputError(f"no device '{text}'", where="--on", fix=fix)


def _device(name: str, table: Any, file: Path) -> Device:
    where = f"{file}: [{name}]"
    if not isinstance(table, dict) or not isinstance(table.get("address"), str):
        raise InputError("a device needs an address", where=where, fix='address = "ssh://user@host"')
    if name in (ALL, "local"):
        raise InputError("that name means something else", where=where, fix="choose another")
    for key in table:
        if key not in Device.model_fields or key == "name":
            raise InputError(f"unknown key '{key}'", where=where, fix=did_you_mean(key, Device.model_fields))
    try:
        address = parse_device(table["address"])
        found = Device.model_validate({**table, "name": name, "address": address})
    except InputError as error:
        raise InputError(error.what, where=where, fix=error.fix) from error
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}", where=where) from error
    paths = {key: getattr(found, key) for key in ("benchmark_model", "wheels")}
    beside = {key: file.parent / path.expanduser() for key, path in paths.items() if path is not None}
    return found.model_copy(update=beside)
