"""Durations are counted under the bounds that they do not pass, for good."""

from collectord.distribution import BOUNDS_S, Distribution


def test_a_duration_counts_under_every_bound_that_it_does_not_pass() -> None:
    seen = Distribution()
    for seconds in (0.0005, 0.001, 0.06, 99.0):
        seen.observe(seconds)
    buckets = dict(seen.buckets())
    assert [buckets["0.001"], buckets["0.05"], buckets["0.1"], buckets["2.5"], buckets["+Inf"]] == [2, 2, 3, 3, 4]
    assert len(buckets) == len(BOUNDS_S) + 1
    assert seen.sum_s == 0.0005 + 0.001 + 0.06 + 99.0
