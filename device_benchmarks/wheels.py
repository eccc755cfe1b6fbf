"""A runtime for a device that has none and no pip: wheels of this host, unpacked into the temporary folder there."""

from __future__ import annotations

from pathlib import Path

from edgekd.device_benchmarks.transports import DeviceError, Remote
from edgekd.errors import InputError

SITE = "site"
UNPACK_TIMEOUT_S = 600.0


def wheels_in(folder: Path) -> list[Path]:
    """The folder's wheels. Raises: InputError: there is no such folder, or no wheel in it."""
    found = sorted(folder.glob("*.whl"))
    if not found:
        fix = "fill it: pip download --only-binary=:all: --platform manylinux2014_aarch64 onnxruntime"
        raise InputError("no wheels there", where=folder, fix=fix)
    return found


def push_wheels(remote: Remote, folder: Path) -> str:
    """Push and unpack every wheel; the folder there for PYTHONPATH, which goes with all the rest.

    Raises: InputError: no wheels. DeviceError: no space, the link failed, or one is no wheel.
    """
    site, python = f"{remote.folder}/{SITE}", remote.require_python()
    for number, wheel in enumerate(wheels_in(folder)):
        path = remote.push(wheel, f"{number}.whl")
        done = remote.run([python, "-m", "zipfile", "-e", path, site], timeout_s=UNPACK_TIMEOUT_S)
        if done.returncode != 0:
            said = " ".join(done.stderr.split())[-200:]
            raise DeviceError(f"could not unpack {wheel.name} ({said})", where=remote.name, fix="is it a whole wheel?")
        remote.run(["rm", "-f", path], timeout_s=60)
    return site
