"""Did the device slow down while it was measured? By its clock after each block, and by what the board itself says."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from edgekd.device_benchmarks.host import HostState
from edgekd.device_benchmarks.measurement import Block

CLOCK_DROP = 0.02
BLOCKS_MIN = 10
# Bits of `vcgencmd get_throttled`: now, and 16 higher since the last start. Source: Raspberry Pi OS documentation.
_PI_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}


def clock_drop(blocks: Sequence[Block]) -> str | None:
    """What to say when the clock was lower in every late block than in every early one, by over 2% in the median.

    Clocks that wander both ways, as a desktop's turbo, are no throttling. None as well where no clock is told.

    >>> falling = [Block(process=0, round=i, wall_ns=(1,), cpu_ns=(1,), clock_mhz=1500.0 - 10 * i) for i in range(10)]
    >>> clock_drop(falling)
    'its clock fell from 1495 to 1415 MHz'
    """
    clocks = [block.clock_mhz for block in blocks if block.clock_mhz is not None]
    if len(clocks) < BLOCKS_MIN:
        return None
    fifth = len(clocks) // 5
    first, last = clocks[:fifth], clocks[-fifth:]
    before, after = statistics.median(first), statistics.median(last)
    if max(last) >= min(first) or after >= before * (1 - CLOCK_DROP):
        return None
    return f"its clock fell from {before:.0f} to {after:.0f} MHz"


def reported_throttling(start: HostState, end: HostState) -> str | None:
    """What a Raspberry Pi's firmware or a phone's thermal service held against the device during the measurement.

    Android lowers clocks from its first level on; on Apple's devices that is "fair", which only stops background work.
    """
    apple = end.kernel.startswith("Darwin")
    if (end.thermal_status or 0) > (1 if apple else 0):
        return f"{'iOS' if apple else 'Android'}'s thermal status is {end.thermal_status} at the end"
    return raspberry_pi_throttling(start.throttled, end.throttled)


def raspberry_pi_throttling(start: str | None, end: str | None) -> str | None:
    """Of two answers of `vcgencmd get_throttled`: what holds at the end, or has happened between them.

    >>> raspberry_pi_throttling("0x0", "0x50000")
    'its firmware reports under-voltage, throttled'
    >>> raspberry_pi_throttling("0x50000", "0x50000") is None
    True
    """
    before, after = _bits(start), _bits(end)
    if after is None:
        return None
    held = (after & 0xF) | ((after >> 16) & ~((before or 0) >> 16) & 0xF)
    names = [name for bit, name in _PI_BITS.items() if held >> bit & 1]
    return f"its firmware reports {', '.join(names)}" if names else None


def _bits(answer: str | None) -> int | None:
    try:
        return int(answer or "", 16)
    except ValueError:
        return None
