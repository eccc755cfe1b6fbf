"""A device over any `Link`: a folder of ours that cannot outlive us, programs that end in time, files in and out.

One process there, the keeper, makes the folder and waits for the end of its input. This host's death, a kill -9 or a
pulled cable ends that input, and the keeper then kills what runs in the folder and removes it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from edgekd.device_benchmarks.transports import faults, scripts
from edgekd.device_benchmarks.transports.errors import DeviceError, DeviceLostError
from edgekd.device_benchmarks.transports.link import Completed, Link
from edgekd.errors import InputError

CONNECT_TIMEOUT_S = 40.0
REMOVE_TIMEOUT_S = 15.0
LINK_MARGIN_S = 20.0
_SLOWEST_LINK_BYTES_PER_S = 250_000  # an old board on WLAN
_MARKER_LIMIT_BYTES = 1 << 16


class Remote:
    """A `Transport`. folder: where the temporary folder goes; pythons: interpreters to try, in this order."""

    def __init__(self, link: Link, *, parent: str = "", pythons: Sequence[str] = scripts.PYTHONS) -> None:
        self.name, self._link, self._parent, self._pythons = link.name, link, parent or link.folder, tuple(pythons)
        self.folder, self.machine, self.python, self.has_timeout = "", "", None, False  # type: str, str, str | None, bool
        self._keeper: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def __enter__(self) -> Remote:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Reach the device, make the folder there, find its Python.

        Raises: DeviceError: unreachable, refused, no space, no shell that works; with what to do about it.
        """
        self._link.open()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (close() closes it)
        try:
            self._keeper = subprocess.Popen(
                self._link.argv(scripts.keeper(self._parent, self._pythons), keeper=True),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                start_new_session=True,
            )
            self._read_facts()
        except BaseException:
            self.close()
            raise

    def require_python(self) -> str:
        """Raises: DeviceError: there is none."""
        if self.python is None:
            fix = 'install Python 3.6 or newer there, or name it: python = "/path" in the devices file'
            raise DeviceError(f"no Python ({', '.join(self._pythons)}) on the device", where=self.name, fix=fix)
        return self.python

    def push(self, source: Path, name: str) -> str:
        """Copy a file into the folder; `name` may not leave it. Gives its path there.

        Raises: DeviceError: no space, the link failed, or it came too slowly.
        """
        target = f"{self.folder}/{_inside(name)}"
        self._link.push(source, target, timeout_s=_transfer_s(source.stat().st_size))
        return target

    def push_bytes(self, data: bytes, name: str) -> str:
        """As `push`, of something that is no file here."""
        with tempfile.NamedTemporaryFile(prefix="edgekd-") as stream:
            stream.write(data)
            stream.flush()
            return self.push(Path(stream.name), name)

    def remove_other(self, folder: str) -> None:
        """Remove the folder of an earlier connection that was lost, if its keeper has not done it."""
        if folder:
            self._remove(folder)

    def pull(self, name: str, target: Path) -> None:
        """Copy a file out of the folder. Raises: DeviceError: as `push`; no partial file is left here."""
        self._link.pull(f"{self.folder}/{_inside(name)}", target, timeout_s=_transfer_s(64 << 20))

    def run(self, argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Completed:
        """Run a program in the folder to its end; after `timeout_s` it is ended there (returncode 124).

        Raises: DeviceLostError: the link went, or nothing more came. DeviceError: the link said what is wrong.
        """
        try:
            done = subprocess.run(
                self.command(argv, timeout_s=timeout_s, env=env),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s + LINK_MARGIN_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise self.lost(f"stalled: no answer from `{Path(argv[0]).name}` within {timeout_s:.0f} s") from error
        status, said = scripts.ended(done.stderr.decode(errors="replace"))
        if status is None:
            raise self.explain(done.returncode, said) or self.lost("the connection broke in the middle of an answer")
        return Completed(returncode=status, stdout=done.stdout.decode(errors="replace"), stderr=said)

    def command(self, argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> list[str]:
        """This host's command whose stdin and stdout are those of a program in the folder.

        Its stderr ends with the program's own status, which `scripts.ended` reads.
        """
        script = scripts.command(self.folder, argv, env or {}, timeout_s=timeout_s, has_timeout=self.has_timeout)
        return self._link.argv(script)

    def explain(self, returncode: int | None, stderr: str) -> DeviceError | None:
        """What a failed program's or link's last words mean; None: nothing known."""
        status, said = scripts.ended(stderr)
        if status is None:  # only words of the link itself count when the program did not end
            return self._link.explain(returncode, said) or (self.lost("the connection broke") if self.gone() else None)
        return faults.explained(faults.DEVICE, said, device=self.name, machine=self.machine)

    def lost(self, what: str) -> DeviceLostError:
        """An error for a link that went without a word."""
        fix = "is it still on and connected? the same command starts over"
        return DeviceLostError(what, where=self.name, fix=fix)

    def gone(self) -> bool:
        """Whether the keeper's link is down or the device does not answer any more."""
        return self._keeper is None or self._keeper.poll() is not None or not self._link.alive()

    def close(self) -> bool:
        """End what runs there and remove the folder. Whether the device said that it did; safe to call twice."""
        removed = self._end_keeper() or not self.folder or self._remove(self.folder)
        if self._said is not None:
            self._said.close()
            self._said = None
        self._link.close()
        self.folder = ""
        return removed

    def _read_facts(self) -> None:
        lines = self._lines_until(scripts.READY)
        facts = dict(line.split(" ", 1) for line in lines if line.startswith("edgekd-") and " " in line)
        self.folder = facts[scripts.FOLDER]
        self.python, self.has_timeout = facts.get(scripts.PYTHON), scripts.TIMEOUT in facts
        self.machine = facts.get(scripts.MACHINE, "")

    def _lines_until(self, marker: str) -> list[str]:
        """The keeper's lines up to the marker; what a login script prints before them is passed over."""
        keeper, deadline, heard = self._keeper, time.monotonic() + CONNECT_TIMEOUT_S, b""
        assert keeper is not None
        assert keeper.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(keeper.stdout, selectors.EVENT_READ)
            while f"\n{marker}\n".encode() not in heard.replace(b"\r", b""):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self.lost(f"no answer within {CONNECT_TIMEOUT_S:.0f} s")
                chunk = os.read(keeper.stdout.fileno(), 1 << 14)
                heard += chunk
                if not chunk or len(heard) > _MARKER_LIMIT_BYTES:
                    raise self._no_keeper(heard.decode(errors="replace"), ended=not chunk)
        return heard.decode(errors="replace").replace("\r", "").split("\n")

    def _no_keeper(self, heard: str, *, ended: bool) -> DeviceError:
        keeper = self._keeper
        assert keeper is not None
        code = keeper.wait(timeout=10) if ended else None
        said = self._keeper_said()
        known = self._link.explain(code, said) or faults.explained(faults.DEVICE, said, device=self.name)
        if known is not None:
            return known
        words = faults.last_words(said) or faults.last_words(heard) or f"exit code {code}"
        fix = "its login shell must be able to run `sh`, and print little"
        return DeviceError(f"answered a shell script with something else ({words})", where=self.name, fix=fix)

    def _keeper_said(self) -> str:
        if self._said is None:
            return ""
        return os.pread(self._said.fileno(), 1 << 14, 0).decode(errors="replace")

    def _end_keeper(self) -> bool:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return False
        with contextlib.suppress(OSError):
            if keeper.stdin is not None:
                keeper.stdin.close()
        rest = b""
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            keeper.wait(timeout=REMOVE_TIMEOUT_S if self.folder else 2)
        if keeper.poll() is None:
            keeper.kill()
            keeper.wait()
        elif keeper.stdout is not None:
            rest = keeper.stdout.read()
        if keeper.stdout is not None:
            keeper.stdout.close()
        return scripts.REMOVED.encode() in rest

    def _remove(self, folder: str) -> bool:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired, DeviceError):
            done = subprocess.run(
                self._link.argv(scripts.remove(folder)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=REMOVE_TIMEOUT_S,
                check=False,
            )
            return scripts.REMOVED.encode() in done.stdout
        return False


def _inside(name: str) -> str:
    """Raises: InputError: the name would leave the folder."""
    parts = PurePosixPath(name).parts
    if not name or name.startswith("/") or ".." in parts:
        raise InputError(f"'{name}' is not a name inside a folder")
    return name


def _transfer_s(size_bytes: int) -> float:
    return 30 + size_bytes / _SLOWEST_LINK_BYTES_PER_S
