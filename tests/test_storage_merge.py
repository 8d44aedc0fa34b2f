"""Merging is last write wins by series and time, whatever the parts look like; steps see the newest sample."""

import numpy as np
import pytest
from columns_model import (
    METAS,
    OWNERS,
    SHAPES,
    Model,
    bits_of,
    check,
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
from storage.merge import merge, steps, unify
from storage.passes import copy_rows, distinct, first_at_or_after, gathered, order_by, pieces, spread
from storage.types import STALE_BITS, Meta

X, Y = OWNERS[:2]
A, B = SHAPES[0], SHAPES[3]


def run(owner: tuple, shape: tuple, times: range | list[int], first: float = 0) -> Model:
    return {(owner, shape, t): bits_of(first + i) for i, t in enumerate(times)}


@many
@given(st.lists(columns(), min_size=1, max_size=4))
def test_a_merge_agrees_with_a_dictionary(parts: list[tuple[Columns, Model]]) -> None:
    result = merge([part for part, _ in parts])
    check_order(result)
    assert to_model(result) == merged(model for _, model in parts)


SHAPES_OF_OVERLAP = {
    "one part": [run(X, A, range(5))],
    "no common series": [run(X, A, range(5)), run(Y, A, range(5)), run(X, B, range(5))],
    "consecutive": [run(X, A, range(5)), run(X, A, range(5, 9)), run(X, A, range(9, 20))],
    "the older last": [run(X, A, range(9, 20)), run(X, A, range(5, 9)), run(X, A, range(5))],
    "the same times": [run(X, A, range(5)), run(X, A, range(5), 100)],
    "overlapping": [run(X, A, range(5)), run(X, A, range(3, 8), 100), run(X, A, range(7, 9), 200)],
    "interleaved": [run(X, A, range(0, 20, 2)), run(X, A, range(1, 20, 2), 100)],
    "one within the other": [run(X, A, range(20)), run(X, A, range(5, 8), 100)],
    "one around the other": [run(X, A, range(5, 8)), run(X, A, range(20), 100)],
    "in a gap of the other": [run(X, A, [1, 2, 8, 9]), run(X, A, [4, 5], 100)],
    "partly common": [run(X, A, range(5)) | run(Y, B, range(5)), run(X, A, range(3, 8)) | run(X, B, range(5))],
    "far apart": [
        run(X, A, [-(1 << 62), 0, 1 << 62]) | run(X, B, [5]),
        run(X, A, [-1, 0], 100) | run(X, B, [-(1 << 62), 5]),
    ],
}


@pytest.mark.parametrize("parts", SHAPES_OF_OVERLAP.values(), ids=SHAPES_OF_OVERLAP)
def test_the_later_part_wins(parts: list[Model]) -> None:
    result = merge([from_model(part, seed) for seed, part in enumerate(parts)])
    check_order(result)
    assert to_model(result) == merged(parts)


@pytest.mark.parametrize("empty", [Columns(), from_model({}), take(from_model(run(X, A, range(3))), np.arange(0))])
def test_empty_parts_change_nothing(empty: Columns) -> None:
    part = from_model(run(X, A, range(5)))
    assert to_model(merge([empty, part, empty])) == run(X, A, range(5))
    nothing = merge([empty, empty])
    check_order(nothing)
    assert (nothing.series, nothing.samples, nothing.range_ms) == (0, 0, None)


def test_no_part_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="got no part; expected at least one"):
        merge([])


def test_a_series_that_has_no_sample_drops_out() -> None:
    part = from_model(run(X, A, range(3)) | run(Y, B, range(3, 6)))
    part.edges = np.append(part.edges, part.edges[-1])
    part.vector = np.where(part.owner == part.owners.index(X), len(part.edges) - 2, part.vector).astype(np.int32)
    for result in (merge([part]), merge([part, part])):
        check_order(result)
        assert to_model(result) == run(Y, B, range(3, 6))


def test_a_merge_of_one_ordered_part_is_that_part() -> None:
    part = merge([from_model(run(X, A, range(5)))])
    assert merge([part]) is part
    assert merge([Columns(), part]) is part


def test_of_a_series_that_stands_twice_in_a_part_the_later_one_wins() -> None:
    both = {A: run(X, A, range(5)), B: run(X, A, range(3, 8), 100)}
    part = from_model(both[A] | {(owner, B, time): bits for (owner, _, time), bits in both[B].items()})
    written = [both[part.shapes[shape]] for shape in part.shape]
    part.shape = np.full(2, part.shapes.index(A), np.int32)
    result = merge([part])
    check_order(result)
    assert to_model(result) == merged(written)


def test_series_that_share_vectors_in_all_parts_share_one_in_the_result() -> None:
    first = merged(run(owner, shape, range(5)) for owner in OWNERS for shape in SHAPES)
    overlapping = merged(run(owner, shape, range(3, 9)) for owner in OWNERS for shape in SHAPES)
    result = merge([from_model(first, 1), from_model(overlapping, 2)])
    assert vectors_of(result) == [tuple(range(9))]
    assert result.series == len(OWNERS) * len(SHAPES)


def test_what_the_later_part_knows_of_a_metric_counts() -> None:
    newer = Meta("gauge", "", "now a gauge", "a")
    first = from_model(run(X, A, range(3)) | run(X, B, range(3)))
    second = from_model(run(X, A, range(3)), metas={"a": newer, "c": METAS["c"]})
    assert merge([first, second]).metas == {"a": newer, "b": METAS["b"]}


def test_parts_are_left_as_they_are() -> None:
    parts = [from_model(run(X, A, range(5)), 1), from_model(run(X, A, range(3, 8), 100), 2)]
    for part in parts:
        for array in (part.owner, part.shape, part.vector, part.start, part.edges, part.times, part.values):
            array.flags.writeable = False
    result = merge(parts)
    assert to_model(result) == run(X, A, range(3)) | run(X, A, range(3, 8), 100)


@some
@given(st.lists(columns(), min_size=1, max_size=3))
def test_unified_parts_have_their_names_in_common(parts: list[tuple[Columns, Model]]) -> None:
    common = unify([part for part, _ in parts])
    for part, (_, model) in zip(common, parts, strict=True):
        check(part)
        assert part.owners is common[0].owners
        assert part.shapes is common[0].shapes
        assert to_model(part) == model
    assert common[0].owners == sorted({owner for _, model in parts for owner, _, _ in model})
    assert common[0].shapes == sorted({shape for _, model in parts for _, shape, _ in model})


# Rows of unequal length

ROWS = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=12)


def laid(rows: list[list[int]], gap: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    items: list[int] = []
    starts = []
    for row in rows:
        items += [9] * gap
        starts.append(len(items))
        items += row
    return np.array(items, np.int64), np.array(starts, np.int64), np.array([len(row) for row in rows], np.int64)


@some
@given(ROWS, st.integers(0, 2))
def test_distinct_finds_the_first_of_equal_rows(rows: list[list[int]], gap: int) -> None:
    firsts, number = distinct(*laid(rows, gap))
    assert [rows[firsts[n]] for n in number] == rows
    assert firsts.tolist() == [i for i, row in enumerate(rows) if rows.index(row) == i]


def test_rows_whose_digests_meet_are_not_taken_for_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.passes._digests", lambda _items, _starts, counts: np.zeros(len(counts), np.uint64))
    rows = [[1, 2], [1, 2], [3], [1, 3], [1, 2], []]
    firsts, number = distinct(*laid(rows))
    assert [rows[firsts[n]] for n in number] == rows


@pytest.mark.parametrize("lengths", [[3] * 7, [40] * 3, [1, 2, 3], [0, 5, 0, 2], [2000, 3000, 1], [5], []], ids=str)
@pytest.mark.parametrize("gap", [0, 2])
def test_gathered_rows_lie_one_after_the_other(lengths: list[int], gap: int) -> None:
    rows = [[100 * i + k for k in range(length)] for i, length in enumerate(lengths)]
    items, starts, counts = laid(rows, gap)
    order = np.arange(len(rows))[::-1]
    assert gathered(items, starts, counts).tolist() == [v for row in rows for v in row]
    assert gathered(items, starts[order], counts[order]).tolist() == [v for row in rows[::-1] for v in row]
    out = np.full(len(items), 9)
    copy_rows(out, starts[order], items, starts[order], counts[order])
    assert out.tolist() == items.tolist()


@some
@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_pieces_cover_all_rows_once_and_are_bounded(counts: list[int], most: int) -> None:
    found = list(pieces(np.array(counts, np.int64), most))
    assert [i for piece in found for i in range(len(counts))[piece]] == list(range(len(counts)))
    for piece in found:
        assert sum(counts[piece]) <= most + max(counts[piece])


@some
@given(ROWS)
def test_spread_is_every_place_of_every_row(rows: list[list[int]]) -> None:
    _, starts, counts = laid(rows, 1)
    assert spread(starts, counts).tolist() == [s + k for s, c in zip(starts, counts, strict=True) for k in range(c)]


@some
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-(1 << 62), 0, 1, 2, 1 << 62])), max_size=20))
def test_order_by_keeps_equal_ones_as_they_stand(rows: list[tuple[int, int]]) -> None:
    group, time = np.array([g for g, _ in rows], np.int64), np.array([t for _, t in rows], np.int64)
    assert order_by(group, time).tolist() == sorted(range(len(rows)), key=lambda i: rows[i])


@some
@given(st.lists(st.lists(st.integers(0, 20), unique=True).map(sorted), max_size=6), st.integers(-1, 22))
def test_first_at_or_after_is_a_search_in_each_vector(rows: list[list[int]], time_ms: int) -> None:
    times, starts, counts = laid(rows)
    found = first_at_or_after(
        times, np.append(starts, starts[-1:] + counts[-1:]) if rows else np.zeros(1, np.int64), time_ms
    )
    assert found.tolist() == [s + sum(t < time_ms for t in row) for s, row in zip(starts, rows, strict=True)]


# Steps


def step_by_step(part: Columns, steps_ms: list[int], lookback_ms: int) -> np.ndarray:
    """The definition, sample by sample."""
    model = to_model(part)
    out = np.full((part.series, len(steps_ms)), np.nan)
    for i in range(part.series):
        owner, shape = part.owners[part.owner[i]], part.shapes[part.shape[i]]
        times = sorted(t for o, s, t in model if (o, s) == (owner, shape))
        for k, step in enumerate(steps_ms):
            seen = [t for t in times if step - lookback_ms < t <= step]
            if seen and model[owner, shape, seen[-1]] != STALE_BITS:
                out[i, k] = float_of(model[owner, shape, seen[-1]])
    return out


AT = st.one_of(
    st.lists(st.integers(-6, 18), max_size=8).map(sorted),
    st.tuples(st.integers(-6, 18), st.integers(1, 5), st.integers(1, 8)).map(
        lambda a: [a[0] + a[1] * k for k in range(a[2])]
    ),
)


@many
@given(columns(), AT, st.integers(1, 12))
def test_steps_agree_with_their_definition(drawn: tuple[Columns, Model], steps_ms: list[int], lookback_ms: int) -> None:
    part, _ = drawn
    found = steps(part, np.array(steps_ms, np.int64), lookback_ms)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, step_by_step(part, steps_ms, lookback_ms))


@some
@given(models(), st.integers(1, 12))
def test_steps_are_the_same_whatever_is_shared(model: Model, lookback_ms: int) -> None:
    part = from_model(model)
    at = np.arange(-5, 15, 2, dtype=np.int64)
    order = np.lexsort((part.owner, part.shape))
    ordered = merge([take(part, order)])
    by_name = np.lexsort((rank_of(part.owners)[part.owner], rank_of(part.shapes)[part.shape]))
    np.testing.assert_array_equal(steps(ordered, at, lookback_ms), steps(part, at, lookback_ms)[by_name])


def rank_of(names: list) -> np.ndarray:
    return np.array([sorted(names).index(name) for name in names])


STEP_CASES = {
    "a sample counts from its own time on": ([1000], [1, 999, 1000, 5999], [None, None, 1.0, 1.0]),
    "the lookback is open on the left": ([1000], [5999, 6000], [1.0, None]),
    "the newest counts": ([1000, 2000], [1500, 2000, 3000], [1.0, 2.0, 2.0]),
    "a gap longer than the lookback is a gap": ([1000, 20000], [5999, 6000, 19999, 20000], [1.0, None, None, 2.0]),
    "all before": ([1000], [100000, 200000], [None, None]),
    "all after": ([500000], [100000, 200000], [None, None]),
}


@pytest.mark.parametrize(("times", "at", "expected"), STEP_CASES.values(), ids=STEP_CASES)
def test_steps_look_back(times: list[int], at: list[int], expected: list[float | None]) -> None:
    part = from_model({(X, A, t): bits_of(i + 1) for i, t in enumerate(times)})
    found = steps(part, np.array(at, np.int64), 5000)[0].tolist()
    assert [None if v != v else v for v in found] == expected


def test_a_stale_marker_ends_a_series_until_its_next_sample() -> None:
    part = from_model({(X, A, 1000): bits_of(1), (X, A, 2000): STALE_BITS, (X, A, 3000): bits_of(3)})
    found = steps(part, np.array([1500, 2000, 2500, 3500], np.int64), 60_000)
    np.testing.assert_array_equal(found, [[1, np.nan, np.nan, 3]])


def test_steps_of_a_series_without_samples_are_nan() -> None:
    part = from_model(run(X, A, [1, 2]) | run(X, B, [1, 2, 3]))
    part.edges = np.append(part.edges, part.edges[-1])
    part.vector[part.shape == part.shapes.index(A)] = len(part.edges) - 2
    found = steps(part, np.array([2, 3], np.int64), 5)
    assert np.isnan(found[part.shape == part.shapes.index(A)]).all()
    np.testing.assert_array_equal(found[part.shape == part.shapes.index(B)], [[1, 2]])


@pytest.mark.parametrize("at", [[], [5]])
def test_steps_of_nothing_are_an_empty_matrix(at: list[int]) -> None:
    assert steps(Columns(), np.array(at, np.int64), 5).shape == (0, len(at))
    assert steps(from_model(run(X, A, [1])), np.array([], np.int64), 5).shape == (1, 0)
