"""The transport: packets, authentication, streams with one unacknowledged write."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .device import Adbd

VERSION_MIN, VERSION = 0x01000000, 0x01000001  # from 0x01000001 on checksums are not looked at
MAX_PAYLOAD = 1024 * 1024
HEADER = struct.Struct("<6I")


def _id(name: str) -> int:
    return int.from_bytes(name.encode(), "little")


CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = map(_id, ("CNXN", "AUTH", "OPEN", "OKAY", "WRTE", "CLSE"))
AUTH_TOKEN, AUTH_SIGNATURE, AUTH_RSAPUBLICKEY = 1, 2, 3
# DigestInfo of a SHA-1 digest, PKCS#1 v1.5: the 20-byte token is used as if it were the digest.
SHA1_PREFIX = bytes.fromhex("3021300906052b0e03021a05000414")


@dataclasses.dataclass
class Faults:
    """What goes wrong.  All off by default."""

    auth: str = "none"  # none | accept (a new key is remembered) | known (only keys already known) | reject
    silent: bool = False  # TCP is accepted, CNXN is never answered
    drop_after_sync_bytes: int | None = None  # connection reset after so many pushed/pulled bytes, once
    stall_after_sync_bytes: int | None = None  # stop answering after so many pushed/pulled bytes
    disk_bytes: int | None = None  # a push larger than this fails with ENOSPC
    refuse_services: tuple[str, ...] = ()  # OPEN of a service with one of these prefixes is refused


class Disconnect(Exception):
    """The transport must go away now."""


def parse_android_pubkey(data: bytes) -> tuple[int, int]:
    """(n, e) of the key line ``base64 user@host\\0`` that adb sends."""
    raw = base64.b64decode(data.split(b"\0")[0].split(b" ")[0])
    words = struct.unpack_from("<I", raw)[0]
    size = words * 4
    if len(raw) != 12 + 2 * size:
        raise ValueError("not an Android RSA public key")
    return int.from_bytes(raw[8 : 8 + size], "little"), struct.unpack_from("<I", raw, 8 + 2 * size)[0]


def signature_ok(key: tuple[int, int], token: bytes, signature: bytes) -> bool:
    n, e = key
    size = (n.bit_length() + 7) // 8
    tail = b"\0" + SHA1_PREFIX + token
    want = b"\0\1" + b"\xff" * (size - 2 - len(tail)) + tail
    return len(signature) == size and pow(int.from_bytes(signature, "big"), e, n).to_bytes(size, "big") == want


class Stream:
    """One OPENed service: a byte stream each way, one unacknowledged WRTE at a time."""

    def __init__(self, transport: Transport, local: int, remote: int) -> None:
        self.transport, self.local, self.remote = transport, local, remote
        self._in: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._buffer = bytearray()
        self._acked = asyncio.Event()
        self._lock = asyncio.Lock()
        self.closed = False

    def feed(self, data: bytes | None) -> None:
        self._in.put_nowait(data)

    def acked(self) -> None:
        self._acked.set()

    async def read_some(self) -> bytes:
        """The next bytes, b'' at the end.  Reading is what acknowledges a WRTE."""
        if self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            return data
        data = await self._in.get()
        if data is None:
            self.feed(None)
            return b""
        if not self.closed:
            await self.transport.send(OKAY, self.local, self.remote)
        return data

    async def read_exactly(self, n: int) -> bytes:
        while len(self._buffer) < n:
            have, self._buffer = self._buffer, bytearray()
            data = await self.read_some()
            if not data:
                raise EOFError
            self._buffer = have + data
        data = bytes(self._buffer[:n])
        del self._buffer[:n]
        return data

    async def write(self, data: bytes) -> None:
        async with self._lock:
            for at in range(0, len(data), self.transport.max_payload):
                if self.closed:
                    return
                self._acked.clear()
                await self.transport.send(WRTE, self.local, self.remote, data[at : at + self.transport.max_payload])
                await self._acked.wait()

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            with contextlib.suppress(ConnectionError):
                await self.transport.send(CLSE, self.local, self.remote)

    def abort(self) -> None:
        """The peer closed, or the transport went."""
        self.closed = True
        self.feed(None)
        self._acked.set()


class Transport:
    """One TCP connection of an adb server."""

    def __init__(self, adbd: Adbd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.adbd, self.reader, self.writer = adbd, reader, writer
        self.max_payload = 4096
        self.streams: dict[int, Stream] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.next_id = 1
        self.online = False
        self.token = b""
        self.seen_key: tuple[int, int] | None = None
        self.version = VERSION_MIN
        self._write_lock = asyncio.Lock()

    async def send(self, command: int, arg0: int, arg1: int, data: bytes = b"") -> None:
        check = sum(data) & 0xFFFFFFFF if self.version < VERSION else 0
        async with self._write_lock:
            self.writer.write(HEADER.pack(command, arg0, arg1, len(data), check, command ^ 0xFFFFFFFF))
            self.writer.write(data)
            await self.writer.drain()

    async def run(self) -> None:
        try:
            while True:
                head = await self.reader.readexactly(HEADER.size)
                command, arg0, arg1, length, check, magic = HEADER.unpack(head)
                if command != magic ^ 0xFFFFFFFF or length > MAX_PAYLOAD:
                    raise Disconnect("not an ADB packet")
                data = await self.reader.readexactly(length)
                if self.version < VERSION and check != sum(data) & 0xFFFFFFFF:
                    raise Disconnect("bad checksum")
                await self.handle(command, arg0, arg1, data)
        except (asyncio.IncompleteReadError, ConnectionError, Disconnect):
            pass
        finally:
            await self.shut()

    async def shut(self, *, reset: bool = False) -> None:
        if reset and (sock := self.writer.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for stream in self.streams.values():
            stream.abort()
        current = asyncio.current_task()
        for task in self.tasks:
            if task is not current:
                task.cancel()
        self.writer.close()

    async def handle(self, command: int, arg0: int, arg1: int, data: bytes) -> None:
        if command == CNXN:
            self.max_payload, self.peer_version = min(arg1, MAX_PAYLOAD), arg0
            if self.adbd.faults.silent:
                return
            await (self.welcome() if self.adbd.faults.auth == "none" else self.challenge())
        elif command == AUTH:
            await self.authenticate(arg0, data)
        elif not self.online:
            return  # as adbd: anything else before CNXN is dropped
        elif command == OPEN:
            await self.open(arg0, data.rstrip(b"\0").decode("utf-8", "replace"))
        elif (stream := self.streams.get(arg1)) is not None and stream.remote in (arg0, 0):
            if command == WRTE:
                stream.feed(data)
            elif command == OKAY:
                stream.acked()
            elif command == CLSE:
                answer = not stream.closed  # as adbd: its end of the pair closes too, and says so
                stream.abort()
                self.streams.pop(arg1, None)
                if answer:
                    await self.send(CLSE, stream.local, stream.remote)

    async def welcome(self) -> None:
        self.online = True
        await self.send(CNXN, VERSION, MAX_PAYLOAD, self.adbd.banner())
        self.version = min(VERSION, self.peer_version)

    async def challenge(self) -> None:
        self.token = os.urandom(20)
        await self.send(AUTH, AUTH_TOKEN, 0, self.token)

    async def authenticate(self, kind: int, data: bytes) -> None:
        adbd = self.adbd
        if kind == AUTH_SIGNATURE:
            if adbd.faults.auth != "reject" and any(signature_ok(k, self.token, data) for k in adbd.keys):
                await self.welcome()
            else:
                await self.challenge()
        elif kind == AUTH_RSAPUBLICKEY:  # a phone would now show its dialog
            self.seen_key = parse_android_pubkey(data)
            adbd.offered_keys.append(self.seen_key)
            if adbd.faults.auth == "accept":
                adbd.keys.append(self.seen_key)
                await self.welcome()

    async def open(self, remote: int, service: str) -> None:
        self.adbd.log.append(service)
        handler = None
        if not service.startswith(self.adbd.faults.refuse_services or ("\0",)):
            handler = self.adbd.service(service)
        if handler is None:
            await self.send(CLSE, 0, remote)
            return
        stream = Stream(self, self.next_id, remote)
        self.next_id += 1
        self.streams[stream.local] = stream
        await self.send(OKAY, stream.local, remote)

        async def serve() -> None:
            try:
                await handler(stream)
            except (EOFError, ConnectionError):
                pass
            except Disconnect:
                await self.shut(reset=True)
                return
            await stream.close()
            self.streams.pop(stream.local, None)

        task = asyncio.create_task(serve())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
