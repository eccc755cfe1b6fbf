"""The phone: its properties, its shell, its connections; and the same on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

from .sync import Sync
from .wire import MAX_PAYLOAD, Disconnect, Faults, Stream, Transport

SHELL_STDIN, SHELL_STDOUT, SHELL_STDERR, SHELL_EXIT, SHELL_CLOSE_STDIN = range(5)
DEFAULT_PROPS = {
    "ro.product.name": "standin",
    "ro.product.model": "Stand-in Phone",
    "ro.product.device": "standin",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.build.version.sdk": "34",
    "ro.soc.model": "STANDIN-1",
}
BANNER_PROPS = ("ro.product.name", "ro.product.model", "ro.product.device")


class Adbd:
    """The device: an asyncio TCP server.

    shell: the argv to which the command string is appended; None runs ``/bin/sh -c`` here, with
    ``root`` as working directory, ``root/system/bin`` first on PATH, and ANDROID_ROOT/ANDROID_DATA set.
    Absolute device paths in *commands* are only seen under ``root`` when the prefix provides that
    (chroot, bwrap); paths of push and pull always are.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        state: str = "device",  # device | recovery | sideload | rescue | bootloader
        features: Sequence[str] = ("shell_v2", "cmd", "stat_v2", "fixed_push_mkdir"),
        props: dict[str, str] | None = None,
        shell: Sequence[str] | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.root = Path(root).resolve()
        self.host, self.port, self.state, self.features = host, port, state, tuple(features)
        self.props = {**DEFAULT_PROPS, **(props or {})}
        self.shell = list(shell) if shell else None
        self.faults = faults or Faults()
        self.keys: list[tuple[int, int]] = []
        self.offered_keys: list[tuple[int, int]] = []
        self.log: list[str] = []  # services opened, in order
        self.transports: set[Transport] = set()
        self.sync_bytes = 0
        self._server: asyncio.Server | None = None
        for sub in ("data/local/tmp", "sdcard", "system/bin", "system/etc"):
            (self.root / sub).mkdir(parents=True, exist_ok=True)
        self.write_getprop()

    @property
    def serial(self) -> str:
        return f"{self.host}:{self.port}"

    def write_getprop(self) -> None:
        """system/bin/getprop, a POSIX shell script: works under any prefix that has /bin/sh."""

        def quoted(text: str) -> str:
            return "'" + text.replace("'", "'\\''") + "'"

        cases = "".join(f"  {quoted(k)}) echo {quoted(v)} ;;\n" for k, v in self.props.items())
        every = "".join(f"  echo {quoted(f'[{k}]: [{v}]')}\n" for k, v in sorted(self.props.items()))
        path = self.root / "system/bin/getprop"
        path.write_text(
            f'#!/bin/sh\nif [ $# = 0 ]; then\n{every}  exit 0\nfi\ncase "$1" in\n{cases}  *) echo "$2" ;;\nesac\n'
        )
        path.chmod(0o755)

    def banner(self) -> bytes:
        props = "".join(f"{k}={self.props[k]};" for k in BANNER_PROPS if k in self.props)
        return f"{self.state}::{props}features={','.join(self.features)}".encode()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, self.host, self.port, limit=4 * MAX_PAYLOAD)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = [task for transport in self.transports for task in transport.tasks]
        await self.drop()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def drop(self) -> None:
        """Pull the cable: every connection is reset; new ones are still accepted."""
        for transport in list(self.transports):
            await transport.shut(reset=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = Transport(self, reader, writer)
        self.transports.add(transport)
        try:
            await transport.run()
        finally:
            self.transports.discard(transport)

    # -- services

    def service(self, name: str):
        kind, _, rest = name.partition(":")
        words = kind.split(",")
        if words[0] == "shell":
            v2 = "v2" in words and "shell_v2" in self.features
            pty = "pty" in words or ("raw" not in words and not rest)
            return lambda s: self._run_shell(s, rest, v2=v2, merge=pty)
        if kind == "exec":
            return lambda s: self._run_shell(s, rest, v2=False, merge=False)
        if kind == "sync":
            return lambda s: Sync(self, s).run()
        if kind in ("root", "unroot", "remount"):
            return lambda s: s.write(b"adbd cannot run as root in production builds\n")
        if kind == "reboot":
            return self._reboot
        return None

    async def _reboot(self, stream: Stream) -> None:
        raise Disconnect("reboot")

    async def _run_shell(  # noqa: C901 - three pumps around one process
        self, stream: Stream, command: str, *, v2: bool, merge: bool
    ) -> None:
        env = dict(os.environ)
        if self.shell is None:
            env["PATH"] = f"{self.root}/system/bin:{env.get('PATH', '/usr/bin:/bin')}"
            env["ANDROID_ROOT"], env["ANDROID_DATA"] = f"{self.root}/system", f"{self.root}/data"
        argv = [*(self.shell or ["/bin/sh", "-c"]), command or "exec /bin/sh"]
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT if merge or not v2 else asyncio.subprocess.PIPE,
                cwd=self.root,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            text = f"{argv[0]}: {error.strerror}\n".encode()
            await stream.write(_packet(SHELL_STDERR, text) + _packet(SHELL_EXIT, b"\x7f") if v2 else text)
            return
        assert process.stdin
        assert process.stdout

        def hang_up() -> None:
            """The client went: end of input and SIGHUP to the shell, as a phone does; its children may live on."""
            if process.stdin is not None:
                process.stdin.close()
            if stream.closed and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGHUP)

        async def pump(source: asyncio.StreamReader, kind: int) -> None:
            while data := await source.read(32768):
                await stream.write(_packet(kind, data) if v2 else data)

        async def stdin() -> None:
            assert process.stdin
            with contextlib.suppress(EOFError, ConnectionError):
                while True:
                    if v2:
                        kind, length = struct.unpack("<BI", await stream.read_exactly(5))
                        data = await stream.read_exactly(length)
                        if kind == SHELL_CLOSE_STDIN:
                            process.stdin.close()
                        if kind != SHELL_STDIN:
                            continue
                    elif not (data := await stream.read_some()):
                        break
                    process.stdin.write(data)
                    await process.stdin.drain()
            hang_up()

        feeder = asyncio.create_task(stdin())
        try:
            pumps = [pump(process.stdout, SHELL_STDOUT)]
            if process.stderr is not None:
                pumps.append(pump(process.stderr, SHELL_STDERR))
            await asyncio.gather(*pumps)
            code = await process.wait()
            if v2:
                await stream.write(_packet(SHELL_EXIT, bytes([code if code >= 0 else 128 - code])))
        finally:
            feeder.cancel()
            hang_up()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 5)
            process._transport.close()  # else the loop is closed before it is, and says so

    async def count_sync(self, n: int) -> None:
        """Fault injection point: n more bytes went through sync."""
        self.sync_bytes += n
        faults = self.faults
        if faults.drop_after_sync_bytes is not None and self.sync_bytes >= faults.drop_after_sync_bytes:
            faults.drop_after_sync_bytes = None
            raise Disconnect("fault")
        if faults.stall_after_sync_bytes is not None and self.sync_bytes >= faults.stall_after_sync_bytes:
            await asyncio.Event().wait()

    def path(self, device_path: str) -> Path:
        """Where a device path lives; never outside root, symlinks of root itself aside."""
        clean = os.path.normpath("/" + device_path.lstrip("/"))
        if self.shell is None and Path(clean).is_relative_to(self.root):  # a command saw it under this name
            return Path(clean)
        return self.root / clean.lstrip("/")


def _packet(kind: int, data: bytes) -> bytes:
    return struct.pack("<BI", kind, len(data)) + data


class AdbdThread:
    """An Adbd on a thread of its own, for tests."""

    def __init__(self, root: Path | str, **options) -> None:
        self.adbd = Adbd(root, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def serial(self) -> str:
        return self.adbd.serial

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def drop(self) -> None:
        self.call(self.adbd.drop())

    def __enter__(self) -> AdbdThread:
        self._thread.start()
        self.call(self.adbd.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self.adbd.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
