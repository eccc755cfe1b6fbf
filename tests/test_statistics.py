"""The statistics of right and wrong answers agree with scipy's and stay in range."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from edgekd.errors import InputError
from edgekd.statistics import mcnemar_exact, wilson_interval


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (7, 10), (10, 10), (1, 1), (9350, 10000)])
def test_the_interval_is_wilsons_and_holds_its_share(correct: int, n: int) -> None:
    expected = binomtest(correct, n).proportion_ci(method="wilson")
    low, high = wilson_interval(correct, n)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert 0 <= low <= correct / n <= high <= 1


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no proportion of 0 in 0"):
        wilson_interval(0, 0)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (12, 5), (5, 12), (40, 40), (900, 700)])
def test_mcnemars_test_is_a_binomial_test_of_the_disagreements(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert mcnemar_exact(lost, gained) == pytest.approx(expected)


def test_a_count_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match="-1"):
        mcnemar_exact(-1, 3)
