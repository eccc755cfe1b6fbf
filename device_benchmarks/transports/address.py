"""What the user writes after `--on`, as a type: `local`, `ssh://user@host:port` or `adb:SERIAL`."""

from __future__ import annotations

import re
from typing import Literal

from edgekd.artifact import Frozen
from edgekd.errors import InputError

Kind = Literal["local", "ssh", "adb"]

# Neither may begin with "-": ssh and adb would take it for an option.
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\\-]*\$?")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:]+(%[A-Za-z0-9_.-]+)?")
_SERIAL = re.compile(r"[A-Za-z0-9_.\[][A-Za-z0-9_.:()\[\]%-]*")
_FORMS = "local, ssh://user@host, ssh://user@host:port, adb:SERIAL, or a name of the devices file"


class Address(Frozen):
    """One device. host, user, port: of ssh, None where ssh's own configuration decides. serial: of adb."""

    kind: Kind
    host: str = ""
    user: str | None = None
    port: int | None = None
    serial: str = ""

    def __str__(self) -> str:
        if self.kind != "ssh":
            return "local" if self.kind == "local" else f"adb:{self.serial}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{f'{self.user}@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"


def parse_device(text: str) -> Address:
    """The address that a text is. `ssh://board` may name a Host of the user's ssh configuration.

    Raises: InputError: no known form, or a host, user or serial that could not be told from an option.

    >>> parse_device("ssh://pi@board.local:2222").port
    2222
    >>> str(parse_device("adb:emulator-5554")), str(parse_device("ssh://pi@[fe80::1%eth0]:22"))
    ('adb:emulator-5554', 'ssh://pi@[fe80::1%eth0]:22')
    """
    if text == "local":
        return Address(kind="local")
    if text.startswith("adb:") and _SERIAL.fullmatch(text[4:]):
        return Address(kind="adb", serial=text[4:])
    if text.startswith("ssh://"):
        return _ssh(text)
    raise InputError(f"no device '{text}'", where="--on", fix=f"name {_FORMS}")


def _ssh(text: str) -> Address:
    user, at, rest = text[6:].rpartition("@")
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::(\d{1,5}))?/?", rest)
    host = (found[1] or found[2] or "") if found else ""
    port = int(found[3]) if found and found[3] else None
    if not _HOST.fullmatch(host) or (at and not _USER.fullmatch(user)) or not (port is None or 0 < port < 65536):
        raise InputError(f"not an ssh address: '{text}'", where="--on", fix="write it as ssh://user@host:port")
    return Address(kind="ssh", host=host, user=user or None, port=port)
