"""What a transport is made of: a `Link` carries a shell script to a device, `Remote` does the rest with it alike."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgekd.artifact import Frozen
from edgekd.device_benchmarks.transports.errors import DeviceError


class Completed(Frozen):
    """A command that ran to its end on the device, by the device's own word. returncode: 124, its time was up."""

    returncode: int
    stdout: str
    stderr: str


class Link(Protocol):
    """The way to one device: `local`, ssh or adb. It knows nothing of models and of measuring.

    folder: where temporary folders go on that kind of device unless the user says otherwise.
    """

    name: str
    folder: str

    def open(self) -> None:
        """See that the device can be reached, as far as that is known without a script. Raises: DeviceError."""

    def argv(self, script: str, *, keeper: bool = False) -> list[str]:
        """This host's command that runs a POSIX shell script there; stdin, stdout and stderr are the script's.

        keeper: the first and longest one, which the others may share a connection with.
        """

    def push(self, source: Path, target: str, *, timeout_s: float) -> None:
        """Copy a file of this host to an absolute path there. Raises: DeviceError."""

    def pull(self, source: str, target: Path, *, timeout_s: float) -> None:
        """Copy a file from there. Raises: DeviceError: and no partial file is left here."""

    def explain(self, returncode: int | None, stderr: str) -> DeviceError | None:
        """The error that the link's own words stand for; None: it says nothing that is known."""

    def alive(self) -> bool:
        """Whether the device still answers."""

    def close(self) -> None:
        """Free what `open` and `argv` took on this host."""


class Transport(Protocol):
    """A device with a temporary folder of ours on it, as `Remote` implements over any `Link`.

    folder: absolute, on the device; it and every process started in it are gone after `close`, and also when this
    host dies. python: an interpreter there, or None.
    """

    name: str
    folder: str
    machine: str
    python: str | None

    def connect(self) -> None:
        """Reach the device, make the folder, find Python. Raises: DeviceError."""

    def push(self, source: Path, name: str) -> str:
        """Copy a file into the folder under a relative name; gives its path there."""

    def run(self, argv: list[str], *, timeout_s: float, env: dict[str, str] | None = None) -> Completed:
        """Run a program in the folder, ended on the device when its time is up."""

    def pull(self, name: str, target: Path) -> None:
        """Copy a file out of the folder."""

    def close(self) -> None:
        """Kill what runs there, remove the folder, leave. Safe to call twice."""
