"""The system's adb, one device by its serial. Nothing is believed of adb's exit status: states and ends are read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from edgekd.artifact import Frozen
from edgekd.device_benchmarks.transports import faults
from edgekd.device_benchmarks.transports.errors import DeviceError, DeviceLostError
from edgekd.errors import InputError

ANSWER_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 15.0


class Attached(Frozen):
    """One line of `adb devices -l`. state: device, unauthorized, offline, recovery, sideload, no permissions, ..."""

    serial: str
    state: str
    model: str = ""


class AdbLink:
    """A `Link` over adb. Raises: InputError: there is no adb on this host."""

    folder = "/data/local/tmp"

    def __init__(self, serial: str, *, name: str = "") -> None:
        self.name, self._serial = name or f"adb:{serial}", serial
        require_adb(self.name)

    def open(self) -> None:
        """See that the device is there, authorised, online and new enough; a network device is connected first.

        Raises: DeviceError: with the cure.
        """
        state = self._state()
        if ":" in self._serial and state in ("", "offline"):  # adb 29 never comes back from offline by itself
            self._said("disconnect", self._serial)
            self._said("connect", self._serial, timeout_s=CONNECT_TIMEOUT_S)  # exits 0 whatever happens
            state = self._state()
        if state != "device":
            raise self._not_ready(state)
        if "shell_v2" not in self._said("-s", self._serial, "features").split():
            what = "its adb shell tells no exit status (Android 6 or older)"
            raise DeviceError(what, where=self.name, fix="measure on Android 7 or newer")

    def argv(self, script: str, *, keeper: bool = False) -> list[str]:
        """adb shell without a terminal, which would change the bytes."""
        return ["adb", "-s", self._serial, "shell", "-T", script]

    def push(self, source: Path, target: str, *, timeout_s: float) -> None:
        """adb push."""
        self._copy(["push", str(source.resolve()), target], f"{source.name} did not arrive", timeout_s)

    def pull(self, source: str, target: Path, *, timeout_s: float) -> None:
        """adb pull."""
        partial = target.with_name(f".{target.name}.partial").absolute()
        try:
            self._copy(["pull", source, str(partial)], f"{Path(source).name} could not be fetched", timeout_s)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def explain(self, returncode: int | None, stderr: str) -> DeviceError | None:
        """By adb's own words."""
        return faults.explained(faults.ADB, stderr, device=self.name)

    def alive(self) -> bool:
        """Whether it is attached and its shell answers."""
        try:
            return self._state() == "device" and "edgekd" in self._said("-s", self._serial, "shell", "echo edgekd")
        except DeviceError:
            return False

    def close(self) -> None:
        """The adb server and its connections are the user's; they stay."""

    def _state(self) -> str:
        return next((row.state for row in attached() if row.serial == self._serial), "")

    def _not_ready(self, state: str) -> DeviceError:
        words = {"": "device not found", "unauthorized": "device unauthorized", "offline": "device offline"}
        known = faults.explained(faults.ADB, words.get(state, state), device=self.name)
        return known or DeviceError(f"in state '{state}', not booted into Android", where=self.name, fix="adb reboot")

    def _said(self, *words: str, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        return _run(["adb", *words], timeout_s=timeout_s, device=self.name).stdout

    def _copy(self, words: list[str], what: str, timeout_s: float) -> None:
        done = _run(["adb", "-s", self._serial, *words], timeout_s=timeout_s, device=self.name)
        if done.returncode == 0:
            return
        said = f"{done.stderr}\n{done.stdout}"
        known = faults.explained(faults.DEVICE, said, device=self.name) or self.explain(done.returncode, said)
        if known is None:
            raise DeviceError(f"{what} ({faults.last_words(said)})", where=self.name)
        raise type(known)(f"{what}: {known.what}", where=self.name, fix=known.fix)


def require_adb(device: str) -> None:
    """Raises: InputError: there is no adb."""
    if shutil.which("adb") is None:
        fix = "install android-sdk-platform-tools (Debian: apt install adb)"
        raise InputError("no program 'adb' on this host", where=device, fix=fix)


def attached() -> list[Attached]:
    """Every device that adb knows, in any state; none where there is no adb.

    Raises: DeviceError: its server does not start.
    """
    if shutil.which("adb") is None:
        return []
    done = _run(["adb", "devices", "-l"], timeout_s=ANSWER_TIMEOUT_S, device="adb")
    if done.returncode != 0:
        known = faults.explained(faults.ADB, done.stderr, device="adb")
        raise known or DeviceError(f"adb devices failed ({faults.last_words(done.stderr)})", where="adb")
    return parse_devices(done.stdout)


def parse_devices(text: str) -> list[Attached]:
    """`adb devices -l`.

    >>> parse_devices("List of devices attached\\nR58M  unauthorized usb:1-1 transport_id:3\\n")[0].state
    'unauthorized'
    """
    rows = []
    for line in text.partition("List of devices attached")[2].splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        state = "no permissions" if words[1:3] == ["no", "permissions"] else words[1]
        model = next((word[6:].replace("_", " ") for word in words if word.startswith("model:")), "")
        rows.append(Attached(serial=words[0], state=state, model=model))
    return rows


def _run(argv: list[str], *, timeout_s: float, device: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        what, fix = f"stalled: adb gave no answer within {timeout_s:.0f} s", "replug it, or adb kill-server"
        raise DeviceLostError(what, where=device, fix=fix) from error
