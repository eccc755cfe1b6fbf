"""Exact statistics of right and wrong answers. A leaf room: standard library only."""

from __future__ import annotations

import math

from edgekd.errors import InputError

Z95 = 1.959963984540054


def wilson_interval(correct: int, n: int, *, z: float = Z95) -> tuple[float, float]:
    """Confidence interval of a share, 95% by default. Honest near 0 and 1, where the normal interval is not.

    Source: Wilson 1927. Raises: InputError: not 0 <= correct <= n with n > 0.

    >>> [round(v, 4) for v in wilson_interval(95, 100)]
    [0.8882, 0.9785]
    """
    if n <= 0 or not 0 <= correct <= n:
        raise InputError(f"no proportion of {correct} in {n}")
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # At 0 and 1 the sums may miss the share by rounding.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p of a paired comparison: answers that only the first had right (lost) or only the second (gained).

    The chance of a split at least as uneven when each disagreement falls either way alike (binomial, one half).
    Source: McNemar 1947, in its exact form. Raises: InputError: a count is negative.

    >>> mcnemar_exact(0, 0), mcnemar_exact(3, 3), mcnemar_exact(10, 0)
    (1.0, 1.0, 0.001953125)
    """
    if min(lost, gained) < 0:
        raise InputError(f"counts of disagreements are {lost} and {gained}")
    n, term, total = lost + gained, 1, 0
    for k in range(min(lost, gained) + 1):
        total += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * total / (1 << n))
