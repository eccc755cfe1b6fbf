"""Fetch a public file into the cache, whole or not at all, and give up fast when there is no network.

Run as a module (`python -m edgekd.data.download BASE_URL FOLDER NAME=MD5 ...`) it fetches; `fetch` runs it so, because
a stalled download can then be ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path

PROBE_TIMEOUT_S = 6.0
FETCH_TIMEOUT_S = 180.0


def cache_folder() -> Path:
    """Where downloads are kept: ~/.cache/edgekd, or under XDG_CACHE_HOME where that is set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekd"


def fetch(base_url: str, md5_of: Mapping[str, str], folder: Path) -> str | None:
    """Files `base_url + name`, checked against their MD5, into a new `folder`; None when done, else why not.

    The folder appears once, complete: files are fetched beside it and the whole is renamed.
    """
    if not reachable(base_url + next(iter(md5_of))):
        return f"{base_url} cannot be reached"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        return f"the cache cannot be written ({error})"
    try:
        command = [sys.executable, "-m", "edgekd.data.download", base_url, str(temporary)]
        command += [f"{name}={md5}" for name, md5 in md5_of.items()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
        if done.returncode:
            return f"{base_url}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
        with contextlib.suppress(OSError):  # another process was first: its folder is as good
            os.replace(temporary, folder)
        return None
    except subprocess.TimeoutExpired:
        return f"{base_url} sent too little in {FETCH_TIMEOUT_S:.0f} s"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def reachable(url: str) -> bool:
    """Whether a HEAD request is answered within PROBE_TIMEOUT_S, name lookup included."""
    answers: list[int] = []

    def probe() -> None:
        with contextlib.suppress(OSError, ValueError):
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S) as response:
                answers.append(response.status)

    # A name lookup has no timeout of its own, so the wait is on the thread.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S)
    return answers == [200]


def _fetch_here(base_url: str, folder: str, *files: str) -> None:
    from torchvision.datasets.utils import download_url

    socket.setdefaulttimeout(10)
    for file in files:
        name, _, md5 = file.partition("=")
        download_url(base_url + name, folder, filename=name, md5=md5)


if __name__ == "__main__":
    _fetch_here(*sys.argv[1:])
