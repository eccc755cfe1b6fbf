"""The `sync:` service: files in and out."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

from .wire import Stream

if TYPE_CHECKING:
    from .device import Adbd

SYNC_CHUNK = 64 * 1024


class Sync:
    """The sync: service."""

    def __init__(self, adbd: Adbd, stream: Stream) -> None:
        self.adbd, self.stream = adbd, stream

    async def run(self) -> None:
        while True:
            command, length = struct.unpack("<4sI", await self.stream.read_exactly(8))
            if command == b"QUIT":
                return
            name = (await self.stream.read_exactly(length)).decode("utf-8", "surrogateescape")
            handler = getattr(self, f"do_{command.decode('latin-1').lower()}", None)
            if length > 1024 or handler is None:
                await self.fail(f"unknown command {command!r}")
                return
            await handler(name)

    async def fail(self, text: str) -> None:
        data = text.encode()
        await self.stream.write(struct.pack("<4sI", b"FAIL", len(data)) + data)

    async def do_stat(self, name: str) -> None:
        try:
            st = self.adbd.path(name).lstat()
            mode, size, mtime = st.st_mode, st.st_size & 0xFFFFFFFF, int(st.st_mtime)
        except OSError:
            mode = size = mtime = 0
        await self.stream.write(struct.pack("<4s3I", b"STAT", mode, size, mtime))

    async def do_sta2(self, name: str) -> None:
        await self._stat2(b"STA2", name, follow=True)

    async def do_lst2(self, name: str) -> None:
        await self._stat2(b"LST2", name, follow=False)

    async def _stat2(self, tag: bytes, name: str, *, follow: bool) -> None:
        fields: tuple[int, ...]
        try:
            st = os.stat(self.adbd.path(name), follow_symlinks=follow)
            fields = (0, st.st_dev, st.st_ino, st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_size)
            fields += (int(st.st_atime), int(st.st_mtime), int(st.st_ctime))
        except OSError as error:
            fields = (error.errno or errno.EIO, *[0] * 10)
        await self.stream.write(struct.pack("<4sI2Q4IQ3q", tag, *fields))

    async def do_list(self, name: str) -> None:
        with contextlib.suppress(OSError):
            for entry in sorted(self.adbd.path(name).iterdir()):
                st, raw = entry.lstat(), os.fsencode(entry.name)
                head = struct.pack("<4s4I", b"DENT", st.st_mode, st.st_size & 0xFFFFFFFF, int(st.st_mtime), len(raw))
                await self.stream.write(head + raw)
        await self.stream.write(struct.pack("<4s4I", b"DONE", 0, 0, 0, 0))

    async def do_send(self, spec: str) -> None:  # noqa: C901 - one protocol exchange
        name, _, mode_text = spec.rpartition(",")
        error, written, out = "", 0, None
        path, mode = self.adbd.path(name), int(mode_text or "0", 0)
        link = b"" if stat.S_ISLNK(mode) else None
        try:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                if path.is_symlink() or link is not None:
                    path.unlink(missing_ok=True)
                out = None if link is not None else path.open("wb")
            except OSError as caught:
                error = f"couldn't create file: {caught.strerror}"
            while True:  # on an error the rest is still read, as adbd does
                tag, n = struct.unpack("<4sI", await self.stream.read_exactly(8))
                if tag == b"DONE":
                    break
                if tag != b"DATA" or n > SYNC_CHUNK:
                    await self.fail("invalid data message" if tag != b"DATA" else "oversize data message")
                    raise EOFError
                data = await self.stream.read_exactly(n)
                written += n
                limit = self.adbd.faults.disk_bytes
                if limit is not None and written > limit and not error:
                    error = f"couldn't write: {os.strerror(errno.ENOSPC)}"
                if not error:
                    if link is not None:
                        link += data
                    elif out is not None:
                        out.write(data)
                await self.adbd.count_sync(n)
        finally:
            if out is not None:
                out.close()
        if error:
            with contextlib.suppress(OSError):
                if not path.is_dir():
                    path.unlink(missing_ok=True)
            await self.fail(error)
            return
        if link is not None:
            os.symlink(link.rstrip(b"\0"), os.fsencode(path))
        else:
            os.chmod(path, mode & 0o777 or 0o644)
            os.utime(path, (n, n))
        await self.stream.write(struct.pack("<4sI", b"OKAY", 0))

    async def do_recv(self, name: str) -> None:
        try:
            source = self.adbd.path(name).open("rb")
        except OSError as error:
            await self.fail(f"open failed: {error.strerror}")
            return
        with source:
            while data := source.read(SYNC_CHUNK):
                await self.stream.write(struct.pack("<4sI", b"DATA", len(data)) + data)
                await self.adbd.count_sync(len(data))
        await self.stream.write(struct.pack("<4sI", b"DONE", 0))
