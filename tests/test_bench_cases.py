"""The fleets that stores are filled with: what the documentation says of them holds."""

from __future__ import annotations

import numpy as np
import pytest

from bench import cases, workload
from bench.machine import BenchError

START_MS = 1_700_000_000_000
POINTS = 300


def samples(case: str, index: int = 3, series: int = 100) -> cases.Samples:
    return cases.make(case, index, series, POINTS, START_MS)


def gaps_ms(times: cases.Times) -> cases.Times:
    return np.diff(times, axis=-1, prepend=START_MS)


@pytest.mark.parametrize("case", cases.CASES)
def test_the_same_arguments_give_the_same_samples_and_another_agent_others(case: str) -> None:
    one, again, other = samples(case), samples(case), samples(case, index=4)
    assert one.names == again.names
    assert np.array_equal(one.times, again.times)
    assert np.array_equal(one.values, again.values, equal_nan=True)
    assert not np.array_equal(one.values, other.values, equal_nan=True)


@pytest.mark.parametrize("case", cases.CASES)
def test_every_series_has_a_name_of_its_own_and_a_row_of_values(case: str) -> None:
    one = samples(case)
    assert len({(name.prometheus, name.labels) for name in one.names}) == len(one.names) == len(one.values)
    assert all(list(name.labels) == sorted(name.labels) for name in one.names)
    assert one.times.shape in ((POINTS,), one.values.shape)
    assert one.values.shape[1] == POINTS
    assert one.count == np.isfinite(one.values).sum()


@pytest.mark.parametrize("case", cases.CASES)
def test_times_ascend_from_the_start(case: str) -> None:
    times = samples(case).times
    assert (np.diff(times, axis=-1) > 0).all()
    assert times.min() >= START_MS
    assert gaps_ms(times)[..., 1:].mean() == pytest.approx(cases.STEP_MS, rel=0.05)


def test_the_realistic_case_is_the_mix_of_the_other_benches() -> None:
    values = samples("realistic").values
    assert ((values[:25] >= 0) & (values[:25] <= 100)).all()
    assert (values[25:40] % 4096 == 0).all()
    assert (np.diff(values[40:80]) >= 0).all()
    assert (np.diff(values[80:90]) == 0).all()
    assert (values[90:] % 1 != 0).all()
    assert samples("realistic").names == workload.series_names(100, workload.agent_name(3)[2])


def test_gauges_are_walks_with_one_decimal() -> None:
    values = samples("gauges").values
    assert ((values >= 0) & (values <= 100)).all()
    assert np.array_equal(values, values.round(1))
    assert np.diff(values).std() == pytest.approx(2, rel=0.1)


def test_random_floats_have_nothing_in_common_from_one_to_the_next() -> None:
    logs = np.log(samples("random").values)
    assert logs.mean() == pytest.approx(-1, abs=0.02)
    assert logs.std() == pytest.approx(0.7, rel=0.02)
    assert abs(np.corrcoef(logs[:, :-1].ravel(), logs[:, 1:].ravel())[0, 1]) < 0.03


def test_a_sparse_series_has_a_sample_in_one_row_of_twenty() -> None:
    one = samples("sparse")
    assert one.count / one.values.size == pytest.approx(1 / cases.SPARSE, rel=0.1)
    there = np.isfinite(one.values)
    assert len({row.tobytes() for row in there}) == len(there), "series that are there in the same rows are not sparse"


def test_irregular_series_have_times_of_their_own_with_exponential_gaps() -> None:
    gaps = gaps_ms(samples("irregular").times)
    assert len(np.unique(gaps)) > 0.3 * gaps.size
    assert (gaps < cases.STEP_MS).mean() == pytest.approx(1 - np.exp(-1), abs=0.02)


def test_histograms_are_cumulative_and_agree_with_their_counts_and_sums() -> None:
    one = samples("histograms")
    assert len(one.names) == 100 // cases.HISTOGRAM_SERIES * cases.HISTOGRAM_SERIES
    for first in range(0, len(one.names), cases.HISTOGRAM_SERIES):
        part = one.values[first : first + cases.HISTOGRAM_SERIES]
        buckets, sums, counts = part[:-2], part[-2], part[-1]
        assert len(buckets) == 12
        assert (np.diff(buckets, axis=0) >= 0).all()
        assert (np.diff(part, axis=1) >= 0).all()
        assert np.array_equal(buckets[-1], counts)
        assert counts[-1] > POINTS / 2
        # Between what the buckets' lower and upper bounds allow.
        each = np.diff(buckets[:, -1], prepend=0)
        edges = np.array([0.0, *map(float, cases.BOUNDS)])
        assert (each * edges).sum() < sums[-1] < (each[:-1] * edges[1:]).sum() + each[-1] * 100


def test_buckets_are_labelled_by_their_upper_bounds() -> None:
    names = samples("histograms").names[: cases.HISTOGRAM_SERIES]
    assert [dict(name.labels).get("le") for name in names] == [*cases.BOUNDS, "+Inf", None, None]
    assert [name.prometheus for name in names[-2:]] == [
        "bench_latency_00_seconds_sum",
        "bench_latency_00_seconds_count",
    ]


def test_an_unknown_case_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BenchError, match="'none', expected one of realistic, gauges"):
        cases.make("none", 0, 100, 10, START_MS)
