"""Vectorised passes agree with what PromQL's documentation says of them."""

import numpy as np
import pytest

from storage.functions import histogram_quantile, increase


def test_increase_counts_a_reset_from_zero() -> None:
    counters = np.array([[1.0, 3.0, 2.0, 2.0, np.nan, 5.0]])
    np.testing.assert_array_equal(increase(counters), [[2.0, 2.0, 0.0, np.nan, np.nan]])


BOUNDS = np.array([0.1, 1.0, 10.0, np.inf])


@pytest.mark.parametrize(
    ("q", "buckets", "expected"),
    [
        (0.5, [0, 10, 10, 10], 0.55),  # all between 0.1 and 1: half way
        (0.5, [10, 10, 10, 10], 0.05),  # in the first bucket, which begins at 0
        (0.95, [10, 10, 10, 100], 10.0),  # in the last: its lower bound
        (1.0, [0, 0, 10, 10], 10.0),
        (0.0, [0, 5, 10, 10], 0.0),
    ],
)
def test_quantiles_are_interpolated_inside_their_bucket(q: float, buckets: list, expected: float) -> None:
    got = histogram_quantile(q, BOUNDS, np.array(buckets, dtype=float))
    assert got == pytest.approx(expected, abs=1e-9)


def test_no_observations_have_no_quantile() -> None:
    assert np.isnan(histogram_quantile(0.5, BOUNDS, np.zeros(4)))


def test_a_quantile_is_taken_along_the_first_axis() -> None:
    buckets = np.array([[0, 10, 10, 10], [10, 10, 10, 10]], dtype=float).T
    np.testing.assert_allclose(histogram_quantile(0.5, BOUNDS, buckets), [0.55, 0.05])
