"""An aarch64 machine for tests: a Debian root with real aarch64 wheels, run by user-mode QEMU. Its times mean nothing.

Built once into a cache folder (about a minute, 350 MB), by root only: chroot and binfmt_misc need it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

NEEDED = "needs root, mmdebstrap and qemu-user-static (apt install mmdebstrap qemu-user-static)"
NOT_BUILT = "the aarch64 root is not built: EDGEKD_ARM64=1 builds it (a minute, 350 MB), CI=1 does too"
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_REGISTRATION = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
_DEBIAN = ("dash", "coreutils", "python3", "libstdc++6", "procps")
_WHEELS = (
    "numpy",
    "flatbuffers",
    "protobuf",
    "ml_dtypes",
    "tqdm",
    "typing_extensions",
    "packaging",
    "backports.strenum",
)
_CORE = (
    "processor\t: {n}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
)


def available() -> bool:
    """Whether this system can build and run it."""
    tools = all(shutil.which(tool) for tool in ("mmdebstrap", "qemu-aarch64-static", "chroot", "mount"))
    return os.getuid() == 0 and tools and _REGISTRATION.is_file()


def cached() -> Path:
    """Where the root of these versions lies, built or not."""
    wanted = ("bookworm", *_DEBIAN, *_runtimes(), *_WHEELS)
    key = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    base = Path(os.environ.get("EDGEKD_CI_CACHE") or Path.home() / ".cache" / "edgekd-ci")
    return base / f"arm64-{key}"


def build(root: Path) -> None:
    """Beside its place, then renamed: a root that is there is whole."""
    draft = root.with_name(f"{root.name}.{os.getpid()}")
    draft.parent.mkdir(parents=True, exist_ok=True)
    source = "deb http://deb.debian.org/debian bookworm main"
    options = ("--quiet", "--architectures=arm64", "--variant=extract", f"--include={','.join(_DEBIAN)}")
    subprocess.run(["mmdebstrap", *options, "bookworm", str(draft), source], check=True, timeout=150)
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)] + ["manylinux2014_aarch64", "any"]
    where = [word for name in platforms for word in ("--platform", name)]
    abis = [word for name in ("cp311", "abi3", "none") for word in ("--abi", name)]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(draft / "opt/py")]
    python = ["--implementation", "cp", "--python-version", "3.11", *abis, *where, "--only-binary=:all:"]
    subprocess.run([*pip, *python, *_runtimes(), *_WHEELS], check=True, timeout=150, capture_output=True)
    _furnish(draft)
    draft.rename(root)


def enable() -> None:
    """Let this kernel start aarch64 programs."""
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)], check=True)
    if not (_BINFMT / "qemu-aarch64").exists():
        (_BINFMT / "register").write_bytes(_REGISTRATION.read_bytes())


def _furnish(root: Path) -> None:
    """Plain files where a board has /proc and /sys: with this host's mounted LiteRT crashes, with none it refuses."""
    for name in ("root", "proc/device-tree", "tmp", "sys/devices/system/cpu", "data/local/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    files = {
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\n",
        "proc/cpuinfo": "".join(_CORE.format(n=n) for n in (0, 1)),
        "proc/meminfo": "MemTotal:        3884360 kB\nMemFree:         3000000 kB\nMemAvailable:    3400000 kB\n",
        "proc/device-tree/model": "Stand-in Model B Rev 1.0\0",
        **{f"sys/devices/system/cpu/{name}": "0-1\n" for name in ("possible", "present", "online")},
    }
    for name, text in files.items():
        (root / name).write_text(text)


def _runtimes() -> list[str]:
    """The versions that this host compares with."""
    return [f"{name}=={metadata.version(name)}" for name in ("ai-edge-litert", "onnxruntime")]
