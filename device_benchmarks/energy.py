"""Energy of one inference from RAPL, the package counters of x86 processors; None with the reason where there are none.

Written after the kernel's documentation (Documentation/power/powercap): no host of this project lets them be read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

IDLE_S, BUSY_S = 1.0, 2.0


@dataclass(frozen=True)
class Energy:
    """mj: millijoules above idle of one inference, all packages together and everything that ran meanwhile."""

    mj: float | None
    note: str


@dataclass(frozen=True)
class Counter:
    """One package's counter in uJ, which starts again from 0 after `range_uj`."""

    path: Path
    range_uj: int

    def read_uj(self) -> int:
        """Raises: OSError: not readable (most often for root only)."""
        return int(self.path.read_text(encoding="ascii"))

    def between_uj(self, before: int, after: int) -> int:
        """Across one wraparound at most, which takes a minute or more.

        >>> Counter(Path("x"), 1000).between_uj(900, 100)
        200
        """
        return after - before if after >= before else after - before + self.range_uj


def counters(sys_root: Path) -> list[Counter]:
    """Of the packages; their cores and memory are parts of them."""
    found = []
    for folder in sorted((sys_root / "class" / "powercap").glob("intel-rapl:*")):
        try:
            if (folder / "name").read_text(encoding="ascii").startswith("package"):
                found.append(Counter(folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            continue
    return found


def energy_per_run(
    run: Callable[[], object],
    *,
    sys_root: Path = Path("/sys"),
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """(energy while running - idle power x time) / runs: 1 s of idling, then runs for 2 s."""
    packages = counters(sys_root)
    if not packages:
        return Energy(None, "no energy sensor: this host has no RAPL counter")
    try:
        idle_uj, idle_s, _ = _spent(packages, clock, lambda: sleep(IDLE_S), until_s=0)
        busy_uj, busy_s, runs = _spent(packages, clock, run, until_s=BUSY_S)
    except PermissionError:
        return Energy(None, "RAPL is readable by root only on this host")
    except (OSError, ValueError) as error:
        return Energy(None, f"RAPL cannot be read ({type(error).__name__})")
    mj = (busy_uj - idle_uj / idle_s * busy_s) / runs / 1e3
    return Energy(max(0.0, mj), f"RAPL, {len(packages)} package(s), above idle, over {runs} runs")


def _spent(
    packages: Sequence[Counter], clock: Callable[[], float], action: Callable[[], object], *, until_s: float
) -> tuple[int, float, int]:
    """uJ, seconds and how often the action ran: once at least, and until the time is over."""
    before, start, runs = [package.read_uj() for package in packages], clock(), 0
    while runs == 0 or clock() - start < until_s:
        action()
        runs += 1
    after, spent_s = [package.read_uj() for package in packages], clock() - start
    spent_uj = sum(package.between_uj(*ends) for package, *ends in zip(packages, before, after, strict=True))
    return spent_uj, max(spent_s, 1e-9), runs
