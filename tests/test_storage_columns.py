"""`Columns` hold what they were made from, in whatever way they were made, taken, cut or put in order."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

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
    from_model,
    many,
    merged,
    models,
    some,
    to_model,
    value_bits,
    vectors_of,
)
from hypothesis import given
from hypothesis import strategies as st

from storage.columns import (
    Columns,
    Slab,
    cut,
    from_loose,
    from_rows,
    from_slabs,
    in_order,
    keep,
    take,
    with_shared_vectors,
)
from storage.types import ABSENT_BITS, Matrix, absent

X, Y = OWNERS[:2]
A, B, C = SHAPES[:3]


def run(owner: tuple, shape: tuple, times: Sequence[int], first: float = 0) -> Model:
    return {(owner, shape, t): bits_of(first + i) for i, t in enumerate(times)}


def as_values(bits: Any) -> Matrix:
    return np.array(bits, dtype=np.int64).view(np.float64)


# In order


@some
@given(columns())
def test_in_order_keeps_every_sample_and_every_bit(drawn: tuple[Columns, Model]) -> None:
    result = in_order(drawn[0])
    check_order(result)
    assert to_model(result) == drawn[1]
    assert in_order(result) is result


@some
@given(columns())
def test_vectors_of_ordered_columns_are_all_different(drawn: tuple[Columns, Model]) -> None:
    if not drawn[0].is_sorted:
        vectors = vectors_of(in_order(drawn[0]))
        assert len(set(vectors)) == len(vectors)


def disordered(name: str) -> Columns:
    """Ordered columns with one thing out of order."""
    part = in_order(from_model(merged(run(owner, shape, range(4)) for owner in OWNERS for shape in SHAPES)))
    if name == "owners":
        part.owners = part.owners[::-1]
    elif name == "shapes":
        part.shapes = part.shapes[::-1]
    elif name == "an owner in no use":
        part.owners = [*part.owners, (("instance", "öö"),)]
    elif name == "a shape in no use":
        part.shapes = [*part.shapes, SHAPES[-1]._replace(metric="e")]
    elif name == "series":
        part = take(part, np.arange(part.series)[::-1])
    elif name == "values":
        part.values = np.append(part.values, 1.0)
    elif name == "places of values":
        part.values, part.start = np.append(0.0, part.values), part.start + 1
    elif name == "a vector in no use":
        part.edges, part.times = np.append(part.edges, part.edges[-1] + 1), np.append(part.times, 9)
    elif name == "times in no use":
        part.times = np.append(part.times, 9)
    elif name == "an empty vector":
        part.edges = np.append(part.edges, part.edges[-1])
        part.vector = np.append(part.vector[:-1], np.int32(1))
        part.values = part.values[:-4]
    return part


@pytest.mark.parametrize(
    "name",
    ["owners", "shapes", "an owner in no use", "a shape in no use", "series", "values", "places of values",
     "a vector in no use", "times in no use", "an empty vector"],
)  # fmt: skip
def test_whatever_is_out_of_order_is_seen_and_put_in_order(name: str) -> None:
    assert disordered("nothing").is_sorted
    part = disordered(name)
    assert not part.is_sorted
    model = to_model(part)
    result = in_order(part)
    check_order(result)
    assert to_model(result) == model


def test_values_that_lie_in_order_are_not_copied() -> None:
    part = disordered("an owner in no use")
    assert np.shares_memory(in_order(part).values, part.values)


# Taking and cutting


@some
@given(columns(), st.data())
def test_take_is_the_series_that_were_asked_for(drawn: tuple[Columns, Model], data: st.DataObject) -> None:
    part, model = drawn
    series = data.draw(st.lists(st.integers(0, part.series - 1), unique=True) if part.series else st.just([]))
    taken = take(part, np.array(series, np.int64))
    wanted = {(part.owners[part.owner[i]], part.shapes[part.shape[i]]) for i in series}
    assert to_model(taken) == {key: bits for key, bits in model.items() if key[:2] in wanted}
    assert taken.values is part.values


@some
@given(columns(), st.integers(-5, 13), st.integers(-5, 13))
def test_cut_is_the_samples_from_start_to_before_end(drawn: tuple[Columns, Model], start_ms: int, end_ms: int) -> None:
    part, model = drawn
    result = cut(part, start_ms, end_ms)
    assert to_model(result) == {key: bits for key, bits in model.items() if start_ms <= key[2] < end_ms}
    assert result.counts.all()
    assert result.values is part.values


def test_cut_of_all_is_the_same() -> None:
    part = from_model(run(X, A, [3, 4, 5]))
    assert cut(part, 3, 6) is part
    assert cut(part, 4, 6) is not part
    assert cut(part, 3, 5) is not part


def test_what_cut_leaves_equal_is_shared() -> None:
    part = from_model(run(X, A, [1, 2, 3, 4]) | run(X, B, [0, 3, 4]))
    assert vectors_of(cut(part, 3, 9)) == [(3, 4)]


@some
@given(columns())
def test_range_is_the_smallest_and_the_greatest_time(drawn: tuple[Columns, Model]) -> None:
    times = [time for _, _, time in drawn[1]]
    assert drawn[0].range_ms == ((min(times), max(times)) if times else None)


def test_range_is_of_the_vectors_in_use() -> None:
    part = from_model(run(X, A, [1, 2]) | run(Y, B, [5, 6]))
    assert take(part, np.flatnonzero(part.owner == part.owners.index(X))).range_ms == (1, 2)


@some
@given(columns(), st.randoms(use_true_random=False))
def test_keep_is_the_samples_that_are_wanted(drawn: tuple[Columns, Model], dice: Any) -> None:
    part = in_order(drawn[0])
    wanted = np.array([dice.random() < 0.6 for _ in range(part.samples)], np.bool_)
    keys = list(to_model(part).items())
    assert to_model(keep(part, wanted)) == {key: bits for (key, bits), w in zip(keys, wanted, strict=True) if w}


def test_series_of_which_the_same_is_kept_share_a_vector() -> None:
    part = in_order(from_model(merged(run(owner, A, range(4)) for owner in OWNERS)))
    wanted = np.array([True, False, True, True] * 2 + [True] * 4 + [False] * 4)
    result = keep(part, wanted)
    assert sorted(vectors_of(result)) == [(0, 1, 2, 3), (0, 2, 3)]
    assert result.series == 3


@some
@given(columns())
def test_shared_vectors_change_no_sample(drawn: tuple[Columns, Model]) -> None:
    result = with_shared_vectors(drawn[0])
    assert to_model(result) == drawn[1]
    assert len(set(vectors_of(result))) == len(vectors_of(result))
    assert len({(tuple(vectors_of(result)[v])) for v in result.vector}) == len(result.edges) - 1


# Making

cells = st.one_of(st.just(ABSENT_BITS), value_bits)


@st.composite
def slabs(draw: st.DrawFn, numbers: Sequence[int]) -> Slab:
    """Rows in any order, some with one time, over some of the shapes of one owner."""
    shapes = draw(st.lists(st.sampled_from(numbers), unique=True, max_size=4))
    times = draw(st.lists(st.integers(0, 9), max_size=6))
    if draw(st.booleans()):
        times = sorted(set(times))
    size = len(times) * len(shapes)
    bits = draw(st.lists(cells if draw(st.booleans()) else value_bits, min_size=size, max_size=size))
    values = as_values(bits).reshape(len(times), len(shapes))
    return Slab(draw(st.integers(0, 2)), np.array(shapes, np.int32), np.array(times, np.int64), values)


def written(owners: Sequence, shapes: Sequence, parts: Sequence[Slab]) -> Model:
    """Slab after slab and row after row."""
    model = Model()
    for slab in parts:
        for time, row in zip(slab.times.tolist(), slab.values.view(np.int64).tolist(), strict=True):
            named = zip(slab.shapes.tolist(), row, strict=True)
            model |= {(owners[slab.owner], shapes[s], time): bits for s, bits in named if bits != ABSENT_BITS}
    return model


@many
@given(st.lists(slabs([0, 1, 2, 3, 4]), max_size=5))
def test_slabs_agree_with_a_dictionary(parts: list[Slab]) -> None:
    result = from_slabs(OWNERS[:3], SHAPES[:5], parts, METAS)
    assert to_model(result) == written(OWNERS[:3], SHAPES[:5], parts)
    assert result.metas.items() <= METAS.items()


@some
@given(st.lists(slabs([0, 1, 2, 3]), max_size=4))
def test_names_may_stand_in_the_lists_twice(parts: list[Slab]) -> None:
    owners, shapes = [X, Y, X], [A, B, A, C]
    parts = [slab for slab in parts if not {0, 2} <= set(slab.shapes.tolist())]
    assert to_model(from_slabs(owners, shapes, parts)) == written(owners, shapes, parts)


def test_slabs_are_left_as_they_are() -> None:
    times, values = np.array([3, 1, 1, 2], np.int64), as_values([[1], [2], [3], [4]])
    for array in (times, values):
        array.flags.writeable = False
    result = from_rows(X, [A], times, values)
    assert to_model(result) == {(X, A, 1): 3, (X, A, 2): 4, (X, A, 3): 1}
    assert (times.tolist(), values.view(np.int64).tolist()) == ([3, 1, 1, 2], [[1], [2], [3], [4]])


ROWS = {
    "the later row counts": ([5, 5], [[1, 2], [3, 4]], {(A, 5): 3, (B, 5): 4}),
    "but where it is absent": ([5, 5], [[1, 2], [ABSENT_BITS, 4]], {(A, 5): 1, (B, 5): 4}),
    "rows in any order": ([7, 5], [[1, 2], [3, 4]], {(A, 5): 3, (B, 5): 4, (A, 7): 1, (B, 7): 2}),
    "a series without a sample": ([5, 6], [[1, ABSENT_BITS], [3, ABSENT_BITS]], {(A, 5): 1, (A, 6): 3}),
    "no sample at all": ([5], [[ABSENT_BITS, ABSENT_BITS]], {}),
    "no row": ([], [], {}),
}


@pytest.mark.parametrize(("times", "bits", "expected"), ROWS.values(), ids=ROWS)
def test_rows(times: list[int], bits: list[list[int]], expected: dict) -> None:
    result = from_rows(X, [A, B], np.array(times, np.int64), as_values(bits).reshape(len(times), 2), METAS)
    assert to_model(result) == {(X, shape, time): value for (shape, time), value in expected.items()}


def test_columns_without_holes_share_one_vector_and_each_pattern_of_holes_has_one() -> None:
    values = np.zeros((4, 12))
    values[1, 3:6] = values[2, 6:9] = absent((1, 3))
    result = from_rows(X, SHAPES, np.arange(4), values)
    assert sorted(vectors_of(result)) == [(0, 1, 2, 3), (0, 1, 3), (0, 2, 3)]
    assert len({int(result.vector[result.shapes.index(SHAPES[i])]) for i in (0, 1, 2, 9, 10, 11)}) == 1


def test_many_one_row_slabs_become_one_series_each() -> None:
    parts = [
        Slab(0, np.arange(i % 3, 5, dtype=np.int32), np.array([i]), np.full((1, 5 - i % 3), float(i)))
        for i in range(60)
    ]
    result = from_slabs([X], SHAPES[:5], parts)
    assert to_model(result) == written([X], SHAPES[:5], parts)
    assert result.series == 5


SAMPLES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5), cells), max_size=40)


@some
@given(SAMPLES)
def test_loose_samples_agree_with_a_dictionary(samples: list[tuple[int, int, int, int]]) -> None:
    owners, shapes = [*OWNERS[:3], X], [*SHAPES[:5], B]  # the last of each stands twice
    result = loose(owners, shapes, samples)
    assert to_model(result) == {(owners[o], shapes[s], t): b for o, s, t, b in samples if b != ABSENT_BITS}


def test_of_samples_of_one_series_under_two_numbers_the_later_counts() -> None:
    result = loose([X, Y, X], [A, A], [(2, 1, 5, 1), (0, 0, 5, 2), (2, 0, 6, 3), (0, 1, 6, 4), (1, 1, 5, 5)])
    assert to_model(result) == {(X, A, 5): 2, (X, A, 6): 4, (Y, A, 5): 5}


def loose(owners: Sequence, shapes: Sequence, samples: Sequence[tuple[int, int, int, int]]) -> Columns:
    table = np.array(samples, dtype=np.int64).reshape(len(samples), 4)
    numbers = table[:, 0].astype(np.int32), table[:, 1].astype(np.int32)
    return from_loose(owners, shapes, *numbers, table[:, 2].copy(), table[:, 3].copy().view(np.float64), METAS)


def test_loose_series_with_the_same_times_share_a_vector() -> None:
    result = loose(OWNERS, SHAPES, [(o, s, t, 1) for t in (5, 3, 4) for o in range(4) for s in range(12)])
    assert vectors_of(result) == [(3, 4, 5)]


@some
@given(models())
def test_loose_samples_and_merged_parts_are_the_same(model: Model) -> None:
    table = [(OWNERS.index(o), SHAPES.index(s), t, b) for (o, s, t), b in model.items()]
    left, right = in_order(loose(OWNERS, SHAPES, table)), in_order(from_model(model))
    for field in fields(Columns):
        if field.name in ("owner", "shape", "owners", "shapes", "start", "metas"):
            assert list(getattr(left, field.name)) == list(getattr(right, field.name))
    assert left.values.tobytes() == right.values.tobytes()


WRONG = {
    "values that are fewer than the times": (Slab(0, np.zeros(1, np.int32), np.arange(2), np.zeros((1, 1))), r"slab 0: values of shape \(1, 1\); expected .* \(2, 1\)"),
    "values that are more than the shapes": (Slab(0, np.zeros(1, np.int32), np.arange(1), np.zeros((1, 2))), r"slab 0: values of shape \(1, 2\); expected .* \(1, 1\)"),
    "an owner that is not there": (Slab(1, np.zeros(1, np.int32), np.arange(1), np.zeros((1, 1))), "owner 1; expected a place in the list of 1"),
    "a shape that is not there": (Slab(0, np.full(1, -1, np.int32), np.arange(1), np.zeros((1, 1))), "shape -1; expected a place in the list of 1"),
}  # fmt: skip


@pytest.mark.parametrize(("slab", "message"), WRONG.values(), ids=WRONG)
def test_slabs_that_do_not_fit_are_refused(slab: Slab, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_slabs([X], [A], [slab])


@pytest.mark.parametrize(
    ("sample", "message"), [((4, 0, 0, 1), "owner 4"), ((0, 12, 0, 1), "shape 12"), ((-1, 0, 0, 1), "owner -1")]
)
def test_loose_samples_of_nobody_are_refused(sample: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}; expected a place"):
        loose(OWNERS, SHAPES, [sample])


def test_no_columns_are_sorted_and_empty() -> None:
    for nothing in (Columns(), from_slabs([], [], []), loose([], [], []), in_order(from_model({}))):
        check(nothing)
        assert nothing.is_sorted
        assert (nothing.series, nothing.samples, nothing.range_ms) == (0, 0, None)
