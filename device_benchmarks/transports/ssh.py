"""The system's ssh, with the user's configuration, agent and jump hosts; one connection carries everything.

Files go through `cat` and not through scp: scp needs an sftp server on the device from OpenSSH 9 on, which dropbear
boards have not, and `cat` reports a full disk the same way everywhere.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgekd.device_benchmarks.transports import faults
from edgekd.device_benchmarks.transports.address import Address
from edgekd.device_benchmarks.transports.errors import DeviceError, DeviceLostError
from edgekd.errors import InputError

SSH_VARIABLE = "EDGEKD_SSH"
CONNECT_TIMEOUT_S = 10
# A dead link is noticed after 15 s of silence.
ALIVE_INTERVAL_S, ALIVE_COUNT = 5, 3


class SshLink:
    """A `Link` over ssh. options: more words for ssh, before the host ("-F", "lab.conf").

    The environment variable EDGEKD_SSH may name another ssh, with options.
    Raises: InputError: there is no ssh on this host.
    """

    folder = "/tmp"

    def __init__(self, address: Address, *, name: str = "", options: tuple[str, ...] = ()) -> None:
        self.name = name or str(address)
        words = shlex.split(os.environ.get(SSH_VARIABLE, "")) or ["ssh"]
        if shutil.which(words[0]) is None:
            raise InputError(f"no program '{words[0]}' on this host", where=self.name, fix="install the OpenSSH client")
        self._address, self._program = address, [*words, *options]
        self._private: str | None = None

    def open(self) -> None:
        """A private folder for the shared connection's socket; the path of a socket may have 107 characters."""
        self._private = self._private or tempfile.mkdtemp(prefix="edgekd-ssh-", dir=_short_folder())

    def argv(self, script: str, *, keeper: bool = False) -> list[str]:
        """ssh with the script as the remote command; the keeper is the master of the shared connection."""
        if self._private is None:
            raise DeviceError("not connected", where=self.name)
        settings = {
            "BatchMode": "yes",
            "ConnectTimeout": CONNECT_TIMEOUT_S,
            "ServerAliveInterval": ALIVE_INTERVAL_S,
            "ServerAliveCountMax": ALIVE_COUNT,
            "ControlPath": f"{self._private}/c",
            "ControlMaster": "yes" if keeper else "no",
            "ControlPersist": "no",
            "RequestTTY": "no",
            "ClearAllForwardings": "yes",
            "EscapeChar": "none",
            "LogLevel": "ERROR",
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        where = self._address
        named = (["-l", where.user] if where.user else []) + (["-p", str(where.port)] if where.port else [])
        return [*self._program, *options, *named, "--", where.host, script]

    def push(self, source: Path, target: str, *, timeout_s: float) -> None:
        """Stream it into `cat` and compare sizes."""
        quoted = shlex.quote(target)
        script = f"sh -c {shlex.quote(f'cat > {quoted} && wc -c < {quoted}')}"
        with source.open("rb") as stream:
            done = self._run(script, stdin=stream, stdout=subprocess.PIPE, timeout_s=timeout_s)
        if done.returncode != 0 or done.stdout.split()[-1:] != [str(source.stat().st_size).encode()]:
            raise self._failed(f"{source.name} did not arrive", done)

    def pull(self, source: str, target: Path, *, timeout_s: float) -> None:
        """Stream it out of `cat`."""
        script = f"sh -c {shlex.quote(f'cat < {shlex.quote(source)}')}"
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as stream:
                done = self._run(script, stdin=subprocess.DEVNULL, stdout=stream, timeout_s=timeout_s)
            if done.returncode != 0:
                raise self._failed(f"{Path(source).name} could not be fetched", done)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def explain(self, returncode: int | None, stderr: str) -> DeviceError | None:
        """By ssh's own messages; its exit status 255 alone says only that ssh, not the command, failed."""
        return faults.explained(faults.SSH, stderr, device=self.name, host=self._address.host)

    def alive(self) -> bool:
        """Whether the shared connection's master still runs here and its server answers."""
        check = [*self.argv("true")[:-3], "-O", "check", "--", self._address.host]
        return subprocess.run(check, capture_output=True, check=False).returncode == 0 and self._answers()

    def close(self) -> None:
        """Remove the socket's folder; the connection ends with its keeper."""
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)
            self._private = None

    def _answers(self) -> bool:
        try:
            return self._run("true", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout_s=10).returncode == 0
        except DeviceError:
            return False

    def _run(self, script: str, *, timeout_s: float, **streams: object) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(  # type: ignore[call-overload,no-any-return]
                self.argv(script), stderr=subprocess.PIPE, timeout=timeout_s, check=False, **streams
            )
        except subprocess.TimeoutExpired as error:
            fix = "is it still on and connected? the same command starts over"
            raise DeviceLostError(
                f"stalled: nothing came within {timeout_s:.0f} s", where=self.name, fix=fix
            ) from error

    def _failed(self, what: str, done: subprocess.CompletedProcess[bytes]) -> DeviceError:
        said = done.stderr.decode(errors="replace")
        known = self.explain(done.returncode, said) or faults.explained(faults.DEVICE, said, device=self.name)
        if known is not None:
            return type(known)(f"{what}: {known.what}", where=self.name, fix=known.fix)
        if done.returncode == 255:
            return DeviceLostError(f"{what}: the connection broke ({faults.last_words(said)})", where=self.name)
        return DeviceError(f"{what} ({faults.last_words(said) or f'exit code {done.returncode}'})", where=self.name)


def _short_folder() -> str | None:
    """None: the usual place for temporary files, unless a socket's path there would be too long."""
    return None if len(tempfile.gettempdir()) < 60 else "/tmp"
