"""What ssh, adb and a device's shell say when something is wrong, and what it means. Pure: text in, error out.

Sources: messages of OpenSSH 9.2 (ssh.c, sshconnect.c, clientloop.c, mux.c) and adb 29.0.6, provoked by the tests of
this room where a loopback can show them; those of a network that is really down are read from the sources.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.device_benchmarks.transports.errors import DeviceError, DeviceLostError


@dataclass(frozen=True)
class Fault:
    """A pattern in a tool's words. cure: may hold {host}. lost: the link was there and went."""

    pattern: str
    what: str
    cure: str
    lost: bool = False


SSH = (
    Fault(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed",
        "its host key changed since this host first saw it",
        "if the device was installed anew: ssh-keygen -R {host}, and connect once by hand; if not, do not trust it",
    ),
    Fault(
        r"Host key verification failed|No .* host key is known",
        "its host key is not known here",
        "connect once by hand and compare the fingerprint: ssh {host}",
    ),
    Fault(
        r"UNPROTECTED PRIVATE KEY FILE|bad permissions: ignore key",
        "ssh refuses a private key that others can read",
        "chmod 600 the key file",
    ),
    Fault(
        r"Too many authentication failures",
        "it refused after too many keys",
        "name the right one: IdentityFile and IdentitiesOnly yes in ~/.ssh/config",
    ),
    Fault(
        r"Permission denied \(",
        "authentication was refused",
        "no password is ever asked for: ssh-copy-id {host}, or ssh-add the right key, or another user in the address",
    ),
    Fault(r"Could not resolve hostname", "no such host name", "check the name, or use its IP address"),
    Fault(
        r"Connection refused",
        "nothing listens on its ssh port",
        "start sshd there, or give its port",
    ),
    Fault(
        r"No route to host|Network is unreachable|Connection timed out during|connect to .* timed out"
        r"|Operation timed out",
        "unreachable",
        "is it on, and on the same network?",
    ),
    Fault(
        r"Bad configuration option|Bad owner or permissions|terminating, \d+ bad configuration|Can't open user config",
        "ssh does not accept its own configuration",
        "see the file that it names",
    ),
    Fault(
        r"kex_exchange_identification|banner exchange|Protocol mismatch|ssh_exchange_identification",
        "something else than an ssh server answers there, or it takes no more connections",
        "check the port, and MaxStartups of its sshd",
    ),
    Fault(
        r"not responding|Timeout, server|Connection reset|Connection closed|Broken pipe|closed by remote host"
        r"|mux_client|master .* (?:died|failed)|Connection to .* closed|client_loop|Connection timed out",
        "the connection broke",
        "is it still on and connected? the same command starts over",
        lost=True,
    ),
)

ADB = (
    Fault(
        r"device unauthorized|unauthorized",
        "it has not allowed this host to debug it",
        "unlock it and accept the dialog 'Allow USB debugging?'",
    ),
    Fault(
        r"more than one device",
        "more than one device is attached",
        "name one: adb:SERIAL, as `edgekd devices` lists them",
    ),
    Fault(r"no permissions", "adb may not open the USB device", "add a udev rule for it"),
    Fault(
        r"device '[^']*' not found|no devices/emulators found|device not found|no such device",
        "not attached",
        "check the cable and USB debugging; over the network: adb connect SERIAL; `edgekd devices` lists what is there",
        lost=True,
    ),
    Fault(
        r"device offline|error: offline|device still (?:connecting|authorizing)",
        "offline: attached, and not answering",
        "adb disconnect SERIAL and adb connect SERIAL, or replug it; then accept its dialog",
        lost=True,
    ),
    Fault(
        r"cannot connect to daemon|failed to start daemon",
        "the adb server does not start",
        "`adb start-server` says why",
    ),
    Fault(
        r"protocol fault|closed|connect failed|Connection reset|failed to (?:read|write|copy)|device disconnected|EOF",
        "the connection broke",
        "check the cable; adb reconnect; the same command starts over",
        lost=True,
    ),
)

_FOLDER = "set `folder` in the devices file"
DEVICE = (
    Fault(r"No space left on device", "no space left on the device", "free some, or set `folder` in the devices file"),
    Fault(r"Read-only file system", "its temporary folder is read-only", _FOLDER),
    Fault(
        r"Exec format error|cannot execute binary file|not executable: \d+-bit ELF|syntax error: unexpected \"\(\"",
        "the program is made for another processor",
        "use one for {machine}",
    ),
    Fault(
        r"mktemp: .*Permission denied|cannot create|Permission denied",
        "not allowed there",
        _FOLDER,
    ),
    Fault(r"mktemp: .*No such file", "the folder for temporary files does not exist", _FOLDER),
)


def explained(
    faults: Sequence[Fault], text: str, *, device: str, host: str = "", machine: str = ""
) -> DeviceError | None:
    """The first fault whose pattern is in the text, as an error that names the device; None: nothing known.

    >>> print(explained(SSH, "ssh: connect to host b port 22: Connection refused", device="ssh://b"))
    ssh://b: nothing listens on its ssh port; start sshd there, or give its port
    """
    for fault in faults:
        if re.search(fault.pattern, text):
            cure = fault.cure.format(host=host, machine=machine or "its processor")
            return (DeviceLostError if fault.lost else DeviceError)(fault.what, where=device, fix=cure)
    return None


def last_words(text: str, lines: int = 2) -> str:
    """The end of what a tool said, for an error that nothing is known about.

    >>> last_words("a\\n\\nb\\nc\\n")
    'b | c'
    """
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(said[-lines:])[:300]
