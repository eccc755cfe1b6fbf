"""Reads the state of the machine that it runs on: this host's for a local measurement, a device's when pushed there.

Only the standard library, Python 3.6: see `device_runner`, beside which it is pushed.
"""
# ruff: noqa: UP006, UP035, UP045

import glob
import hashlib
import os
import platform
import subprocess
import sys
import threading
import time
from typing import Any, Dict, Iterable, List, Optional, Sequence

DISTRIBUTIONS = (
    "ai-edge-litert",
    "coremltools",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorflow",
    "tflite-runtime",
    "timm",
    "torch",
    "torchvision",
)
SAID_TIMEOUT_S = 5
WATCH_S, SIGN_OF_LIFE_S = 2.0, 30.0
SAYING = threading.Lock()
# set_robust_list by machine. Every kernel has it and answers a wrong size with EINVAL; user-mode QEMU answers ENOSYS.
ROBUST_LIST = {"x86_64": 273, "aarch64": 99, "arm64": 99, "armv7l": 338, "armv8l": 338, "armv6l": 338, "i686": 311}
ENOSYS = 38


def state(sys_root: str = "/sys", proc_root: str = "/proc") -> Dict[str, Any]:
    """What a latency depends on besides the model, read and never changed; None or empty where it is not told."""
    cpus = sorted(glob.glob(sys_root + "/devices/system/cpu/cpu[0-9]*"), key=lambda path: int(path.rsplit("cpu", 1)[1]))
    clocks = {os.path.basename(path): _number(path + "/cpufreq/scaling_cur_freq", 1000) for path in cpus}
    known = {name: mhz for name, mhz in clocks.items() if mhz is not None}
    memory = fields(proc_root + "/meminfo")
    mask = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return {
        "cpu_model": cpu_model(proc_root),
        "logical_cpus": os.cpu_count() or 1,
        "usable_cpus": len(mask),
        "thread_mask": mask,
        "governor": text(sys_root + "/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "frequency_mhz": known.get("cpu0"),
        "frequencies_mhz": known,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "temperatures_c": temperatures_c(sys_root),
        "cpu_steal_s": _steal_s(proc_root),
        "memory_mib": memory["MemTotal"] / 1024 if "MemTotal" in memory else None,
        "kernel": " ".join((platform.system(), platform.release(), platform.machine())),
        "python": platform.python_version(),
        "versions": versions(DISTRIBUTIONS),
        "boot_id": text(proc_root + "/sys/kernel/random/boot_id"),
        "emulated": emulated(),
        **_board(sys_root, proc_root),
    }


def clock_mhz(sys_root: str = "/sys") -> Optional[float]:
    """The highest clock of the cores that this process may use; None: the kernel does not tell (virtual machines)."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    paths = (f"{sys_root}/devices/system/cpu/cpu{number}/cpufreq/scaling_cur_freq" for number in usable)
    found = [mhz for mhz in (_number(path, 1000) for path in paths) if mhz is not None]
    return max(found) if found else None


def _board(sys_root: str, proc_root: str) -> Dict[str, Any]:
    """Model, SoC, OS build, power mode and throttling of Android, Raspberry Pi, Jetson, PC; serials only as a hash."""
    android = "ANDROID_ROOT" in os.environ
    model = _property("ro.product.model") if android else None
    soc = _property("ro.soc.model") or _property("ro.board.platform") if android else None
    build = _property("ro.build.fingerprint") if android else _os_release()
    serial = _property("ro.serialno") if android else text(proc_root + "/device-tree/serial-number")
    compatible = (text(proc_root + "/device-tree/compatible") or "").split("\0")
    return {
        "device_model": model
        or text(proc_root + "/device-tree/model")
        or text(sys_root + "/class/dmi/id/product_name"),
        "soc": soc or compatible[-1].strip("\0") or text(sys_root + "/devices/soc0/soc_id"),
        "os_build": build,
        "serial_sha256": hashlib.sha256(serial.encode()).hexdigest()[:16] if serial else None,
        "power_mode": _one_line(said(["nvpmodel", "-q"])),
        "clocks": _one_line(said(["jetson_clocks", "--show"])),
        "throttled": (said(["vcgencmd", "get_throttled"]) or "").partition("=")[2] or None,
    }


def cpu_model(proc_root: str = "/proc") -> str:
    """The processor's name for a table, as the kernel tells it."""
    for line in (text(proc_root + "/cpuinfo") or "").splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def temperatures_c(sys_root: str = "/sys") -> Dict[str, float]:
    """Thermal zones by their kernel name, in degrees Celsius; empty on most virtual machines."""
    found = {}
    for zone in sorted(glob.glob(sys_root + "/class/thermal/thermal_zone*")):
        reading = text(zone + "/temp")
        if reading and reading.lstrip("-").isdigit():
            kind = text(zone + "/type") or "zone"
            found[f"{kind}/{os.path.basename(zone)}"] = int(reading) / 1000.0
    return found


def emulated() -> bool:
    """Whether this process runs in user-mode QEMU or on Android's emulator: its times say nothing about a device."""
    if "ANDROID_ROOT" in os.environ and "1" in (_property("ro.kernel.qemu"), _property("ro.boot.qemu")):
        return True
    number = ROBUST_LIST.get(platform.machine())
    if sys.platform not in ("linux", "android") or number is None:
        return False
    try:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        return bool(library.syscall(number, 0, 0) == -1 and ctypes.get_errno() == ENOSYS)
    except (ImportError, OSError, AttributeError):
        return False


def versions(names: Iterable[str]) -> Dict[str, str]:
    """Versions of the distributions that are installed, from their folders' names: nothing is imported."""
    wanted = {name.replace("-", "_").lower(): name for name in names}
    found: Dict[str, str] = {}
    for folder in sys.path:
        for entry in _listed(folder):
            stem, dot, kind = entry.rpartition(".")
            name, dash, version = stem.partition("-")
            key = name.replace("-", "_").lower()
            if dot and dash and kind in ("dist-info", "egg-info") and key in wanted:
                found.setdefault(wanted[key], version.partition("-")[0])
    return dict(sorted(found.items()))


def said(command: Sequence[str]) -> Optional[str]:
    """What a program of the device says, or None: it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            list(command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=SAID_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def text(path: str) -> Optional[str]:
    """A small file's text without white space and NULs at its ends, or None."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().strip().strip("\0") or None
    except OSError:
        return None


def _property(name: str) -> Optional[str]:
    return said(["getprop", name]) or None


def _os_release() -> Optional[str]:
    for line in (text("/etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip("\"'")
    return None


def _one_line(words: Optional[str]) -> Optional[str]:
    return " ".join(words.split())[:2000] if words else None


def _number(path: str, divisor: float) -> Optional[float]:
    found = text(path)
    return int(found) / divisor if found and found.isdigit() else None


def fields(path: str) -> Dict[str, int]:
    """`Name:  123 kB` lines, in KiB."""
    rows = (line.split() for line in (text(path) or "").splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def digest(path: str) -> str:
    """sha256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            found.update(chunk)
    return found.hexdigest()


def _steal_s(proc_root: str) -> Optional[float]:
    fields = (text(proc_root + "/stat") or "").splitlines()[:1]
    ticks = fields[0].split()[1:] if fields else []
    return int(ticks[7]) / float(os.sysconf("SC_CLK_TCK")) if len(ticks) > 7 else None


def _listed(folder: str) -> List[str]:
    try:
        return sorted(os.listdir(folder or "."))
    except OSError:
        return []


def say(stream: int, text: str) -> None:
    """Write a whole line to a file descriptor; nobody left to hear it ends this process."""
    data = text.encode()
    try:
        with SAYING:
            while data:
                data = data[os.write(stream, data) :]
    except OSError:
        os._exit(0)


def end_with_the_link(stream: int, idle: Any) -> None:
    """Runs in a thread of the runner and ends it when its link to the host is dead, although its input did not end.

    Its parent went: what started it was killed, and something else holds its input open. Its line was cut in a way
    that TCP notices only when something is sent: between two commands it sends an empty line now and then, which the
    host passes over. Not while a command runs (`idle` is clear then): nothing wakes beside what is timed but a sleep.
    """
    parent, quiet_s = os.getppid(), 0.0
    while True:
        time.sleep(WATCH_S)
        quiet_s = quiet_s + WATCH_S if idle.is_set() else 0.0
        if idle.is_set() and os.getppid() != parent:
            os._exit(0)
        if quiet_s >= SIGN_OF_LIFE_S:
            quiet_s = 0.0
            say(stream, "\n")
