"""Functions of range vectors agree with what their definitions say of each window, sample by sample.

The reference below is written from the definitions (promql/functions.go of Prometheus), with a loop over samples.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_promql_notation import STALE, Samples, matrix

from storage.promql import kahan
from storage.promql.form import counted
from storage.types import STALE_BITS

Points = list[tuple[int, float]]
some = settings(deadline=None, max_examples=120)


def window(points: Points, end_ms: int, range_ms: int) -> Points:
    """Open on the left; stale markers are not in it."""
    inside = [(t, v) for t, v in points if end_ms - range_ms < t <= end_ms]
    return [(t, v) for t, v in inside if np.float64(v).view(np.int64) != STALE_BITS]


def added(values: list[float]) -> float:
    """Neumaier's sum."""
    total = rest = 0.0
    for value in values:
        after = total + value
        if math.isinf(after):
            rest = 0.0
        elif abs(total) >= abs(value):
            rest += (total - after) + value
        else:
            rest += (value - after) + total
        total = after
    return total if math.isinf(total) else total + rest


def rated(points: Points, end_ms: int, range_ms: int, counter: bool, per_second: bool) -> float | None:
    if len(points) < 2:
        return None
    (first_t, first), (last_t, last) = points[0], points[-1]
    result = last - first
    if counter:
        for (_, before), (_, after) in itertools.pairwise(points):
            if after < before:
                result += before
    to_start, to_end = (first_t - (end_ms - range_ms)) / 1000, (end_ms - last_t) / 1000
    interval = (last_t - first_t) / 1000
    mean = interval / (len(points) - 1)
    if to_start >= mean * 1.1:
        to_start = mean / 2
    if counter and result > 0 and first >= 0:
        to_start = min(to_start, interval * (first / result))
    if to_end >= mean * 1.1:
        to_end = mean / 2
    factor = (interval + to_start + to_end) / interval
    return result * (factor / (range_ms / 1000) if per_second else factor)


def quantiled(values: list[float], q: float) -> float:
    ordered = sorted(values, key=lambda v: (not math.isnan(v), v))
    rank = q * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] * (1 - (rank - low)) + ordered[high] * (rank - low)


def varied(values: list[float]) -> float:
    count = mean = rest = total = total_rest = 0.0

    def plus(sum_: float, c: float, more: float) -> tuple[float, float]:
        after = sum_ + more
        if math.isinf(after):
            return after, 0.0
        return after, c + ((sum_ - after) + more if abs(sum_) >= abs(more) else (more - after) + sum_)

    for value in values:
        count += 1
        delta = value - (mean + rest)
        mean, rest = plus(mean, rest, delta / count)
        total, total_rest = plus(total, total_rest, delta * (value - (mean + rest)))
    return (total + total_rest) / count


def instant_rate(points: Points, per_second: bool) -> float | None:
    if len(points) < 2:
        return None
    (before_t, before), (after_t, after) = points[-2:]
    change = after if per_second and after < before else after - before
    return change / ((after_t - before_t) / 1000) if per_second else change


def pairs(points: Points, differs: Callable[[float, float], bool]) -> float:
    return float(sum(differs(a, b) for (_, a), (_, b) in itertools.pairwise(points)))


def changed(before: float, after: float) -> bool:
    return before != after and not (math.isnan(before) and math.isnan(after))


Reference = Callable[[Points, int, int], float | None]
VALUES: dict[str, Reference] = {
    "sum_over_time(m[{r}])": lambda p, e, r: added([v for _, v in p]),
    "count_over_time(m[{r}])": lambda p, e, r: float(len(p)),
    "present_over_time(m[{r}])": lambda p, e, r: 1.0,
    "last_over_time(m[{r}])": lambda p, e, r: p[-1][1],
    "first_over_time(m[{r}])": lambda p, e, r: p[0][1],
    "max_over_time(m[{r}])": lambda p, e, r: max((v for _, v in p if not math.isnan(v)), default=math.nan),
    "min_over_time(m[{r}])": lambda p, e, r: min((v for _, v in p if not math.isnan(v)), default=math.nan),
    "quantile_over_time(0.3, m[{r}])": lambda p, e, r: quantiled([v for _, v in p], 0.3),
    "stdvar_over_time(m[{r}])": lambda p, e, r: varied([v for _, v in p]),
    "stddev_over_time(m[{r}])": lambda p, e, r: math.sqrt(varied([v for _, v in p])),
    "changes(m[{r}])": lambda p, e, r: pairs(p, changed),
    "resets(m[{r}])": lambda p, e, r: pairs(p, lambda a, b: b < a),
    "rate(m[{r}])": lambda p, e, r: rated(p, e, r, True, True),
    "increase(m[{r}])": lambda p, e, r: rated(p, e, r, True, False),
    "delta(m[{r}])": lambda p, e, r: rated(p, e, r, False, False),
    "irate(m[{r}])": lambda p, e, r: instant_rate(p, True),
    "idelta(m[{r}])": lambda p, e, r: instant_rate(p, False),
}


@st.composite
def series(draw: st.DrawFn) -> list[Points]:
    """Series whose samples come at odd times; counters with resets, NaN, and stale markers."""
    listed = []
    shared = draw(st.booleans())
    times = sorted(draw(st.sets(st.integers(1, 400), min_size=1, max_size=25)))
    for _ in range(draw(st.integers(1, 4))):
        own = times if shared else sorted(draw(st.sets(st.integers(1, 400), min_size=1, max_size=25)))
        value = st.one_of(st.integers(0, 30).map(float), st.sampled_from([math.nan, STALE, 0.1, 1e9, 2.5]))
        listed.append([(t * 1000, draw(value)) for t in own])
    return listed


@pytest.mark.parametrize("expression", sorted(VALUES))
@given(listed=series(), range_s=st.sampled_from([7, 30, 100, 1000]), step_s=st.sampled_from([1, 10, 45, 500]))
@some
def test_every_window_has_what_its_definition_says(
    expression: str, listed: list[Points], range_s: int, step_s: int
) -> None:
    samples = Samples([({"__name__": "m", "n": str(i)}, points) for i, points in enumerate(listed)])
    result = samples.engine().range(expression.format(r=f"{range_s}s"), 0, 450_000, step_s * 1000)
    got = {labels["n"]: dict(zip(t.tolist(), v.tolist(), strict=True)) for labels, t, v in result.series()}
    for i, points in enumerate(listed):
        expected = {}
        for end_ms in range(0, 450_001, step_s * 1000):
            inside = window(points, end_ms, range_s * 1000)
            value = VALUES[expression](inside, end_ms, range_s * 1000) if inside else None
            if value is not None:
                expected[end_ms] = value
        np.testing.assert_equal(got.get(str(i), {}), expected)


@given(
    st.lists(st.lists(st.integers(-5, 50), unique=True, max_size=12).map(sorted), min_size=1, max_size=4),
    st.integers(1, 9),
)
@some
def test_counting_is_searching(vectors: list[list[int]], width: int) -> None:
    times = np.array(functools.reduce(operator.iadd, vectors, []), np.int64)
    edges = np.cumsum([0, *map(len, vectors)])
    steps = np.arange(3, 3 + 12 * width, width)
    expected = [edges[v] + np.searchsorted(vectors[v], steps, side="right") for v in range(len(vectors))]
    np.testing.assert_array_equal(counted(times, edges, steps), expected)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=60))
@some
def test_a_sum_by_halves_is_exact(values: list[float]) -> None:
    column = np.array(values)[:, None]
    total, rest = kahan.tree(column, np.zeros_like(column))
    assert kahan.finished(total, rest)[0] == pytest.approx(math.fsum(values), rel=1e-15, abs=1e-300)


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([1e308, 1e308, 1e308], 1e308),  # the sum overflows, the mean does not
        ([1e308, -1e308, 3.0], 1.0),
        ([math.inf, 1.0], math.inf),
        ([1.0, math.inf, -math.inf], math.nan),
        ([5.0], 5.0),
        ([1e100, 1.0, -1e100, 1.0], 0.5),  # a plain sum would lose both ones
    ],
)
def test_means_do_not_overflow_and_lose_nothing(values: list[float], mean: float) -> None:
    with np.errstate(all="ignore"):
        got = kahan.mean(1, (np.array([value]) for value in values))
    np.testing.assert_allclose(got, [mean], rtol=1e-15)


def test_a_line_through_points_is_found_and_followed() -> None:
    samples = Samples.load("m 0+10x10\nc 7x10\nodd 1 NaN 3 4", 60_000)
    engine = samples.engine()
    assert matrix(engine.range("deriv(m[5m])", 600_000, 600_000, 1))["{}"] == {
        600_000: pytest.approx(10 / 60, rel=1e-14)
    }
    predicted = engine.instant("predict_linear(m[5m], 60)", 600_000)
    assert predicted.values.tolist() == [pytest.approx(110, rel=1e-12)]
    assert engine.instant("predict_linear(c[5m], 60)", 600_000).values.tolist() == [7.0]
    assert math.isnan(engine.instant("deriv(odd[10m])", 600_000).values[0])


def test_few_long_windows_are_worked_on_whole() -> None:
    dice = np.random.default_rng(1)
    values = dice.normal(1e6, 3, 4000)
    values[100] = 1e12
    times = np.arange(4000) * 1000
    points = list(zip(times.tolist(), values.tolist(), strict=True))
    series = [({"__name__": "m", "n": "1"}, points), ({"__name__": "m", "n": "2"}, points[:3000])]
    engine = Samples(series).engine()
    for n, own in (("1", values), ("2", values[:3000])):

        def asked(expression: str, n: str = n) -> float:
            return float(engine.instant(expression.format(m=f'm{{n=~"{n}|0"}}[2h]'), 4_000_000).values[0])

        both = engine.instant("sum_over_time(m[2h])", 4_000_000)
        assert dict(zip((labels["n"] for labels in both.labels), both.values, strict=True))[n] == math.fsum(own)
        assert asked("sum_over_time({m})") == math.fsum(own)
        assert asked("avg_over_time({m})") == pytest.approx(math.fsum(own) / len(own), rel=1e-15)
        assert asked("stdvar_over_time({m})") == pytest.approx(float(np.var(own)), rel=1e-11)
        slope = np.polyfit(times[: len(own)] / 1000, own, 1)[0]
        assert asked("deriv({m})") == pytest.approx(slope, rel=1e-9)
    huge = Samples([({"__name__": "m"}, [(t, 1e308) for t in range(1000)])]).engine()
    assert huge.instant("avg_over_time(m[1m])", 1000).values.tolist() == [pytest.approx(1e308, rel=1e-12)]
    assert huge.instant("deriv(m[1m])", 1000).values.tolist() == [0.0]


def test_smoothing_follows_level_and_trend() -> None:
    engine = Samples.load("m 1 2 4 8", 60_000).engine()
    level, before, slope = 1.0, 0.0, 1.0
    for k, value in enumerate([2.0, 4.0, 8.0]):
        slope = slope if k == 0 else 0.2 * (level - before) + 0.8 * slope
        before, level = level, 0.3 * value + 0.7 * (level + slope)
    for name in ("holt_winters", "double_exponential_smoothing"):
        assert engine.instant(f"{name}(m[10m], 0.3, 0.2)", 180_000).values.tolist() == [pytest.approx(level, rel=1e-15)]
