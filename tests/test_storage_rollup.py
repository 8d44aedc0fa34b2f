"""Rollups say of each bucket what its samples say, and reading them back is the best guess at the raw series."""

import math
from typing import Any

import numpy as np
import pytest
from columns_model import (
    METAS,
    ODD_BITS,
    OWNERS,
    SHAPES,
    Model,
    bits_of,
    check_order,
    columns,
    float_of,
    from_model,
    many,
    merged,
    models,
    some,
    to_model,
    vectors_of,
)
from hypothesis import given
from hypothesis import strategies as st

from storage.columns import Columns, take
from storage.format import AGGREGATES
from storage.merge import merge
from storage.rollup import approximate, roll_up
from storage.types import STALE_BITS, Shape, labels_of

X = OWNERS[0]
COUNTER, GAUGE, HISTOGRAM, UNKNOWN = (Shape(metric, ()) for metric in "abcd")
MINUTE = 60_000


def named(shape: Shape, aggregate: str) -> Shape:
    return Shape(shape.metric, labels_of({**dict(shape.labels), "__rollup__": aggregate}))


def samples(shape: Shape, values: dict[int, float], owner: Any = X) -> Model:
    return {(owner, shape, time): bits_of(value) for time, value in values.items()}


def rolled(model: Model, width_ms: int, start_ms: int, end_ms: int) -> dict[tuple[Any, Shape, int], float]:
    """The definition, sample by sample."""
    out: dict[tuple[Any, Shape, int], float] = {}
    for owner, shape in sorted({(o, s) for o, s, _ in model}):
        before = None
        buckets: dict[int, list[tuple[float, float]]] = {}
        for time, value in sorted((t, float_of(b)) for (o, s, t), b in model.items() if (o, s) == (owner, shape)):
            if math.isnan(value):
                continue
            grown = 0.0 if before is None or value == before else value if value < before else value - before
            before = value
            end = math.ceil(time / width_ms) * width_ms
            if start_ms < time and end <= end_ms:
                buckets.setdefault(end, []).append((value, grown))
        for end, found in buckets.items():
            values = [value for value, _ in found]
            aggregates = [min(values), max(values), sum(values), float(len(values)), sum(grown for _, grown in found)]
            for name, aggregate in zip(AGGREGATES, aggregates, strict=True):
                if name != "increase" or shape.metric in ("a", "c"):
                    out[owner, named(shape, name), end] = aggregate
    return out


@many
@given(columns(), st.integers(1, 6), st.integers(-4, 12), st.integers(-4, 12))
def test_rollups_agree_with_their_definition(
    drawn: tuple[Columns, Model], width_ms: int, start_ms: int, end_ms: int
) -> None:
    part, model = drawn
    result = roll_up(part, width_ms, start_ms, end_ms)
    check_order(result)
    found = {key: float_of(bits) for key, bits in to_model(result).items()}
    expected = rolled(model, width_ms, start_ms, end_ms)
    assert found.keys() == expected.keys()
    # Sums are of halves, so they are exact; which zero or which NaN it is, is free.
    np.testing.assert_array_equal([found[key] for key in expected], list(expected.values()))


BUCKETS = {
    "a bucket ends with its own time": ({1: 5.0, MINUTE: 6.0, MINUTE + 1: 7.0}, {MINUTE: [5, 6, 11, 2, 1], 2 * MINUTE: [7, 7, 7, 1, 1]}),
    "a fall is a reset": ({1: 5.0, 2: 2.0, 3: 4.0}, {MINUTE: [2, 5, 11, 3, 4]}),
    "the first has not grown": ({1: 5.0}, {MINUTE: [5, 5, 5, 1, 0]}),
    "growth since before the range": ({-5: 1.0, 1: 5.0}, {MINUTE: [5, 5, 5, 1, 4]}),
    "growth over an empty bucket": ({1: 5.0, 2 * MINUTE + 1: 9.0}, {MINUTE: [5, 5, 5, 1, 0], 3 * MINUTE: [9, 9, 9, 1, 4]}),
    "NaN and stale markers are passed over": (
        {1: 5.0, 2: math.nan, 3: float_of(STALE_BITS), 4: 8.0},
        {MINUTE: [5, 8, 13, 2, 3]},
    ),
    "nothing but NaN": ({1: math.nan, 2: float_of(STALE_BITS)}, {}),
    "nothing inside": ({-1: 1.0, 0: 2.0, 4 * MINUTE: 3.0}, {}),
    "infinities": ({1: math.inf, 2: math.inf}, {MINUTE: [math.inf, math.inf, math.inf, 2, 0]}),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "expected"), BUCKETS.values(), ids=BUCKETS)
def test_a_counters_buckets(raw: dict[int, float], expected: dict[int, list[float]]) -> None:
    result = roll_up(from_model(samples(COUNTER, raw)), MINUTE, 0, 3 * MINUTE)
    wanted = merged(
        samples(named(COUNTER, a), {end: v[i] for end, v in expected.items()}) for i, a in enumerate(AGGREGATES)
    )
    assert to_model(result) == wanted


def test_a_rollup_of_pieces_is_the_rollup_of_the_whole() -> None:
    dice = np.random.default_rng(1)
    raw = merged(
        samples(shape, {t: float(dice.integers(100)) for t in range(100, 40 * MINUTE, 7000)}, owner)
        for owner in OWNERS
        for shape in SHAPES
    )
    part = from_model(raw)
    whole = roll_up(part, MINUTE, 0, 40 * MINUTE)
    halves = [roll_up(part, MINUTE, 0, 17 * MINUTE), roll_up(part, MINUTE, 17 * MINUTE, 40 * MINUTE)]
    assert to_model(merge(halves)) == to_model(whole)


def test_sums_over_buckets_are_sums_over_samples() -> None:
    raw = {t: float(t % 13) for t in range(1, 30 * MINUTE, 9000)}
    part = from_model(samples(COUNTER, raw))
    totals = {}
    for width_ms in (MINUTE, 5 * MINUTE, 30 * MINUTE):
        found = to_model(roll_up(part, width_ms, 0, 30 * MINUTE))
        totals[width_ms] = [
            sum(float_of(b) for (_, s, _), b in found.items() if s == named(COUNTER, a))
            for a in ("sum", "count", "increase")
        ]
    assert totals[MINUTE] == totals[5 * MINUTE] == totals[30 * MINUTE]
    assert totals[MINUTE][:2] == [sum(raw.values()), len(raw)]


def test_only_counters_and_histograms_have_an_increase() -> None:
    raw = merged(samples(shape, {1: 1.0}) for shape in (COUNTER, GAUGE, HISTOGRAM, UNKNOWN))
    result = roll_up(from_model(raw), MINUTE, 0, MINUTE)
    assert [s.metric for s in result.shapes if s in [named(Shape(s.metric, ()), "increase")]] == ["a", "c"]
    assert result.series == 4 * 4 + 2
    assert result.metas == METAS


def test_the_aggregates_of_a_scrape_share_a_vector() -> None:
    raw = merged(
        samples(shape, dict.fromkeys(range(1, 3 * MINUTE, 9000), 1.0), owner) for owner in OWNERS for shape in SHAPES
    )
    result = roll_up(from_model(raw), MINUTE, 0, 3 * MINUTE)
    assert vectors_of(result) == [(MINUTE, 2 * MINUTE, 3 * MINUTE)]


def test_labels_stay_sorted() -> None:
    shape = Shape("b", (("A", "1"), ("z", "1")))
    result = roll_up(from_model(samples(shape, {1: 1.0})), MINUTE, 0, MINUTE)
    assert result.shapes[0].labels == (("A", "1"), ("__rollup__", "count"), ("z", "1"))


@pytest.mark.parametrize("width_ms", [0, -1])
def test_a_width_that_is_none_is_an_error(width_ms: int) -> None:
    with pytest.raises(ValueError, match=f"got a width of {width_ms} ms; expected more than 0"):
        roll_up(Columns(), width_ms, 0, 1)


def test_nothing_rolls_up_to_nothing() -> None:
    assert roll_up(Columns(), MINUTE, 0, MINUTE).series == 0
    assert approximate(Columns()).series == 0


# Reading back


def test_a_counter_is_read_back_as_its_greatest_and_a_gauge_as_its_mean() -> None:
    values = {1: 1.0, 2: 5.0, MINUTE + 1: 8.0}
    raw = merged(samples(shape, values) for shape in (COUNTER, GAUGE, HISTOGRAM, UNKNOWN))
    result = approximate(roll_up(from_model(raw), MINUTE, 0, 2 * MINUTE))
    check_order(result)
    greatest, mean = {MINUTE: 5.0, 2 * MINUTE: 8.0}, {MINUTE: 3.0, 2 * MINUTE: 8.0}
    expected = [samples(COUNTER, greatest), samples(GAUGE, mean), samples(HISTOGRAM, greatest), samples(UNKNOWN, mean)]
    assert to_model(result) == merged(expected)


numbers = st.integers(-50, 50).map(lambda n: bits_of(n / 4))


@some
@given(columns(models(values=numbers)), st.integers(1, 6))
def test_a_constant_is_read_back_as_itself(drawn: tuple[Columns, Model], width_ms: int) -> None:
    constant = {(owner, shape, time): bits_of(3.25) for owner, shape, time in drawn[1]}
    found = to_model(approximate(roll_up(from_model(constant), width_ms, -100, 100)))
    assert set(found.values()) <= {bits_of(3.25)}
    assert {(o, s) for o, s, _ in found} == {(o, s) for o, s, _ in constant}


def test_buckets_without_their_count_are_left_out() -> None:
    sums, counts = named(GAUGE, "sum"), named(GAUGE, "count")
    others = Shape("b", (("k", "1"),))
    damaged = merged(
        [
            samples(sums, {1: 10.0, 2: 20.0, 4: 40.0}),
            samples(counts, {2: 2.0, 3: 3.0, 4: 4.0}),
            samples(named(others, "sum"), {7: 10.0}),
            samples(named(others, "count"), {7: 4.0}),
            samples(named(UNKNOWN, "sum"), {7: 10.0}),
            samples(named(COUNTER, "count"), {7: 10.0}),
        ]
    )
    assert to_model(approximate(from_model(damaged))) == samples(GAUGE, {2: 10.0, 4: 10.0}) | samples(others, {7: 2.5})


def test_series_that_are_no_rollups_are_not_read_back() -> None:
    raw = samples(GAUGE, {1: 1.0}) | samples(named(GAUGE, "median"), {1: 1.0})
    assert approximate(from_model(raw)).series == 0


def test_odd_values_do_not_stop_it() -> None:
    raw = {(X, shape, t): bits for shape in (COUNTER, GAUGE) for t, bits in enumerate([*ODD_BITS, bits_of(-math.inf)])}
    result = roll_up(from_model(raw), 100, -1000, 1000)
    found = {s.labels[0][1]: float_of(b) for (_, s, _), b in to_model(result).items() if s.metric == "a"}
    assert (found["min"], found["max"], found["count"]) == (-math.inf, math.inf, 5)
    assert math.isnan(found["sum"])
    assert approximate(take(result, np.arange(result.series))).series == 2
