"""A ring holds the newest rows of its group, whatever the order in which they came."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.rings import RingGroup
from storage.types import ABSENT_BITS, STALE_BITS, absent


def ring(width: int = 3, slots: int = 4) -> RingGroup:
    return RingGroup(owner=(), base=0, width=width, slots=slots)


def row(*values: float | None) -> np.ndarray:
    out = absent((len(values),))
    for i, value in enumerate(values):
        if value is not None:
            out[i] = value
    return out


def content(group: RingGroup) -> dict[int, list[float | None]]:
    times, values = group.read(slice(0, group.width))
    bits = values.view(np.int64)
    return {
        int(t): [None if b == ABSENT_BITS else float(v) for v, b in zip(vs, bs, strict=True)]
        for t, vs, bs in zip(times, values, bits, strict=True)
    }


ALL = slice(0, 3)


def test_rows_read_back_in_order_of_time() -> None:
    group = ring()
    for time_ms in (1, 2, 3):
        assert group.append(time_ms, ALL, row(time_ms, 0, -time_ms))
    assert content(group) == {1: [1, 0, -1], 2: [2, 0, -2], 3: [3, 0, -3]}


def test_a_full_ring_overwrites_the_oldest() -> None:
    group = ring()
    for time_ms in range(1, 8):
        group.append(time_ms, ALL, row(time_ms, 0, 0))
    assert list(content(group)) == [4, 5, 6, 7]


def test_columns_not_in_a_batch_are_absent() -> None:
    group = ring()
    group.append(1, np.array([0, 2]), row(5, 6))
    assert content(group) == {1: [5, None, 6]}


def test_a_column_named_twice_leaves_no_other_column_with_what_was_there_before() -> None:
    group = ring(slots=2)
    for time_ms in (1, 2):
        group.append(time_ms, ALL, row(7, 8, 9))
    group.append(3, np.array([0, 0, 1]), row(1, 2, 3))
    assert content(group)[3] == [2, 3, None]


def test_equal_times_are_merged_and_the_last_write_wins() -> None:
    group = ring()
    group.append(1, ALL, row(1, 2, 3))
    group.append(1, slice(1, 2), row(20))
    group.append(1, ALL, row(None, None, 30))
    assert content(group) == {1: [1, 20, 30]}


@pytest.mark.parametrize("filled", [2, 4, 7])
def test_a_late_row_lands_in_its_place(filled: int) -> None:
    group = ring()
    for i in range(filled):
        group.append(10 * (i + 1), ALL, row(i, i, i))
    late = 10 * filled - 5
    assert group.append(late, ALL, row(9, 9, 9))
    assert list(content(group)) == sorted([*(10 * (i + 1) for i in range(filled)), late])[-4:]
    assert content(group)[late] == [9, 9, 9]


def test_a_row_older_than_a_full_ring_is_refused() -> None:
    group = ring()
    for time_ms in (10, 20, 30, 40):
        group.append(time_ms, ALL, row(0, 0, 0))
    assert not group.append(5, ALL, row(1, 1, 1))
    assert list(content(group)) == [10, 20, 30, 40]


def test_a_ring_of_another_length_keeps_the_newest_rows() -> None:
    group = ring()
    for time_ms in range(1, 7):
        group.append(time_ms, ALL, row(time_ms, 0, 0))
    group.shorten(2)
    assert list(content(group)) == [5, 6]
    group.lengthen(8)
    group.append(7, ALL, row(7, 0, 0))
    assert list(content(group)) == [5, 6, 7]


def test_at_finds_the_newest_sample_within_lookback() -> None:
    group = ring(width=2, slots=8)
    group.append(1000, slice(0, 2), row(1, 10))
    group.append(2000, slice(0, 1), row(2))
    steps = np.array([500, 1000, 1999, 2000, 5999, 7000], dtype=np.int64)
    found = group.at(slice(0, 2), steps, lookback_ms=5000)
    np.testing.assert_array_equal(found[0], [np.nan, 1, 1, 2, 2, np.nan])
    np.testing.assert_array_equal(found[1], [np.nan, 10, 10, 10, 10, np.nan])


def test_a_stale_marker_ends_a_series() -> None:
    group = ring(width=1, slots=8)
    group.append(1000, slice(0, 1), row(1))
    group.append(2000, slice(0, 1), np.array([STALE_BITS], dtype=np.int64).view(np.float64))
    group.append(3000, slice(0, 1), row(3))
    steps = np.array([1500, 2500, 3500], dtype=np.int64)
    np.testing.assert_array_equal(group.at(slice(0, 1), steps, 60_000)[0], [1, np.nan, 3])


def test_an_ordinary_nan_is_a_sample() -> None:
    group = ring(width=1, slots=8)
    group.append(1000, slice(0, 1), np.array([np.nan]))
    assert np.isnan(content(group)[1000][0] or 0)


operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("append"),
            st.integers(0, 30),
            st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=3, max_size=3),
        ),
        st.tuples(st.just("resize"), st.integers(2, 9), st.none()),
    ),
    max_size=60,
)


@given(operations)
def test_a_ring_agrees_with_a_dictionary(steps: list) -> None:
    group, model, slots = ring(), {}, 4
    for what, number, values in steps:
        if what == "resize":
            (group.lengthen if number > slots else group.shorten)(number)
            slots = number
            model = dict(sorted(model.items())[-slots:])
            continue
        kept = len(model) < slots or number in model or number > min(model)
        assert group.append(number, ALL, row(*values)) == kept
        if kept:
            old = model.get(number, [None] * 3)
            model[number] = [o if v is None else v for o, v in zip(old, values, strict=True)]
            model = dict(sorted(model.items())[-slots:])
    assert content(group) == dict(sorted(model.items()))
