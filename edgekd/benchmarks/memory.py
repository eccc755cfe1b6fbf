"""Peak memory of a training, edgekd's and a hand-written one, each in a fresh process.

    python -m edgekd.benchmarks.memory WHO DEVICE STUDENT TEACHER

prints the peak in MiB and what the steps added to it. WHO: edgekd or hand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
STEPS = 6
PROCESSES = 3


def peaks(device: torch.device, student: str, teacher: str) -> dict[str, Any]:
    """Peaks in MiB of three processes each, by turns; ratio: of the smallest of each.

    On a CPU the resident set of the whole process, on a GPU what torch allocated there.
    """
    found: dict[str, list[float]] = {"hand": [], "edgekd": []}
    for _ in range(PROCESSES):
        for who, values in found.items():
            command = [sys.executable, "-m", "edgekd.benchmarks.memory", who, str(device), student, teacher]
            told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            values.append(float(told.stdout.split()[-1]))
    return {
        "ratio": min(found["edgekd"]) / min(found["hand"]),
        "hand_mib": found["hand"],
        "edgekd_mib": found["edgekd"],
        "steps": STEPS,
    }


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    text = Path("/proc/self/status").read_text(encoding="ascii") if Path("/proc/self/status").is_file() else ""
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB  # macOS counts bytes


def _train(who: str, device: torch.device, student: str, teacher: str) -> None:
    from edgekd.benchmarks import loop
    from edgekd.benchmarks.hand_written import HandWritten

    data = loop.random_data(8 * loop.BATCH, 32)
    if who == "hand":
        nets = (loop.new_net(student), loop.new_net(teacher))
        HandWritten(data, *nets, loop.BATCH, 4, device).go(STEPS)
        return
    with loop.kd_loop(data, student, teacher, device, shift_px=4) as go:
        go(STEPS)


if __name__ == "__main__":
    _who, _device, _student, _teacher = sys.argv[1:]
    _train(_who, torch.device(_device), _student, _teacher)
    sys.stdout.write(f"{_peak_mib(torch.device(_device)):.1f}\n")
