"""Claims about downloads, against a server on this machine."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd.data import download


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.gz").write_bytes(b"hello")
    handler = functools.partial(_Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.mark.slow
def test_a_good_download_appears_whole(server: str, tmp_path: Path) -> None:
    assert download.fetch(server, {"a.gz": _md5(b"hello")}, tmp_path / "cache" / "data") is None
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["data"]
    assert (tmp_path / "cache" / "data" / "a.gz").read_bytes() == b"hello"


@pytest.mark.slow
def test_other_contents_are_refused_and_nothing_is_left(server: str, tmp_path: Path) -> None:
    why_not = download.fetch(server, {"a.gz": _md5(b"other")}, tmp_path / "cache" / "data")
    assert why_not is not None
    assert "corrupted" in why_not
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_stalled_download_is_ended_and_nothing_is_left(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "FETCH_TIMEOUT_S", 0.05)
    why_not = download.fetch(server, {"a.gz": _md5(b"hello")}, tmp_path / "cache" / "data")
    assert why_not is not None
    assert "sent too little" in why_not
    assert list((tmp_path / "cache").iterdir()) == []
