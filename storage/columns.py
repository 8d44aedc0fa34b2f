"""`Columns`: samples of many series in one piece. What a WAL file decodes to, what a segment encodes, what a read returns."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from storage.merge import key_of, merge
from storage.passes import (
    Mask,
    Numbers,
    Places,
    distinct,
    edges_of,
    first_at_or_after,
    gathered,
    group_starts,
    in_use,
    order_by,
    pruned,
)
from storage.types import ABSENT_BITS, Labels, Matrix, Meta, Shape, Times, Vector

_Name = TypeVar("_Name", Labels, Shape)


@dataclass(slots=True)
class Columns:
    """S series, V vectors of times, T times, N samples. Arrays are never written to once they are in here.

    Series i belongs to `owners[owner[i]]` and `shapes[shape[i]]`; its times are vector `vector[i]`, which other series may
    share, and its values begin at `start[i]` in `values`, as many as the vector has times. No series stands twice. A vector's
    times are strictly ascending. No value is ABSENT (stale markers are values).
    """

    owners: list[Labels] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    metas: dict[str, Meta] = field(default_factory=dict)  # by metric; what is missing here is not known
    owner: Numbers = field(default_factory=lambda: np.empty(0, np.int32))  # (S,)
    shape: Numbers = field(default_factory=lambda: np.empty(0, np.int32))  # (S,)
    vector: Numbers = field(default_factory=lambda: np.empty(0, np.int32))  # (S,)
    start: Places = field(default_factory=lambda: np.empty(0, np.int64))  # (S,)
    edges: Places = field(default_factory=lambda: np.zeros(1, np.int64))  # (V + 1,): v is times[edges[v]:edges[v + 1]]
    times: Times = field(default_factory=lambda: np.empty(0, np.int64))  # (T,), Unix ms
    values: Vector = field(default_factory=lambda: np.empty(0, np.float64))  # (N,) or longer: there may be gaps

    @property
    def series(self) -> int:
        """How many series there are."""
        return len(self.vector)

    @property
    def counts(self) -> Places:
        """Samples of each series. int64, shape (S,)."""
        counts: Places = np.diff(self.edges)[self.vector]
        return counts

    @property
    def samples(self) -> int:
        """Samples of all series."""
        return int(self.counts.sum())

    @property
    def range_ms(self) -> tuple[int, int] | None:
        """The smallest and the greatest time of a sample; None when there is none."""
        used = in_use(self.vector, len(self.edges) - 1) & (np.diff(self.edges) > 0)
        if not used.any():
            return None
        return int(self.times[self.edges[:-1][used]].min()), int(self.times[self.edges[1:][used] - 1].max())

    @property
    def is_sorted(self) -> bool:
        """In canonical order: see `in_order`."""
        counts = self.counts
        return (
            len(self.values) == int(counts.sum())
            and len(self.times) == int(self.edges[-1])
            and bool(counts.all())
            and bool((self.start == np.cumsum(counts) - counts).all())
            and bool(in_use(self.vector, len(self.edges) - 1).all())
            and bool(in_use(self.owner, len(self.owners)).all())
            and bool(in_use(self.shape, len(self.shapes)).all())
            and _ascending(key_of(self))
            and _names_ascending(self.owners)
            and _names_ascending(self.shapes)
        )


class Slab(NamedTuple):
    """Rows of one owner's series, numbers being places in the lists of owners and shapes that are given with it.

    values[r, w] is the sample of shapes[w] at times[r], or ABSENT. Times may be in any order and may repeat.
    """

    owner: int
    shapes: Numbers  # (W,)
    times: Times  # (R,), Unix ms
    values: Matrix  # (R, W)


def _ascending(numbers: npt.NDArray[Any]) -> bool:
    return bool((numbers[1:] > numbers[:-1]).all())


def _names_ascending(names: list[Labels] | list[Shape]) -> bool:
    return all(map(operator.lt, names, islice(names, 1, None)))


# Passes


def in_order(columns: Columns) -> Columns:
    """The same samples in canonical order, the one in which a segment holds them; itself when it is so already.

    Owners and shapes are strictly ascending and all in use; series are strictly ascending by (shape, owner); values lie in
    the order of series with no gap; every vector is in use.
    """
    return merge([columns])


def take(columns: Columns, series: Places) -> Columns:
    """Some of the series, in the order that is asked for. series: int64, shape (any,), none twice. Copies no sample."""
    return replace(
        columns,
        owner=columns.owner[series],
        shape=columns.shape[series],
        vector=columns.vector[series],
        start=columns.start[series],
    )


def with_shared_vectors(columns: Columns) -> Columns:
    """The same series, with the vectors that are in use, each once."""
    starts, counts = columns.edges[:-1], np.diff(columns.edges)
    firsts, number = distinct(columns.times, starts, counts)
    vector, edges, times = pruned(firsts[number[columns.vector]], columns.times, starts, counts)
    return replace(columns, vector=vector, edges=edges, times=times)


def cut(columns: Columns, start_ms: int, end_ms: int) -> Columns:
    """The samples with start_ms <= time < end_ms. Series that have none drop out. Copies no value."""
    span = columns.range_ms
    if span is None or (start_ms <= span[0] and span[1] < end_ms):
        return columns
    first = first_at_or_after(columns.times, columns.edges, start_ms)
    counts = np.maximum(first_at_or_after(columns.times, columns.edges, end_ms) - first, 0)
    start = columns.start + (first - columns.edges[:-1])[columns.vector]
    times = gathered(columns.times, first, counts)
    rest = replace(columns, start=start, edges=edges_of(counts), times=times)
    return with_shared_vectors(take(rest, np.flatnonzero(rest.counts)))


def keep(columns: Columns, wanted: Mask) -> Columns:
    """Some of the samples. Series that have none left drop out.

    wanted: bool, shape (N,). REQUIRES: values lie in the order of series, with no gap.
    """
    if wanted.all():
        return columns
    places = np.flatnonzero(wanted)
    begins = np.searchsorted(places, np.append(columns.start, len(wanted)))
    left = np.diff(begins)
    holed = np.flatnonzero(left < columns.counts)
    to_times = columns.edges[columns.vector[holed]] - columns.start[holed]
    of_holed = gathered(places, begins[holed], left[holed]) + np.repeat(to_times, left[holed])
    vector = columns.vector.copy()
    vector[holed] = len(columns.edges) - 1 + np.arange(len(holed))
    kept = replace(
        columns,
        vector=vector,
        start=begins[:-1],
        edges=np.concatenate((columns.edges, columns.edges[-1] + np.cumsum(left[holed]))),
        times=np.concatenate((columns.times, columns.times[of_holed])),
        values=columns.values[places],
    )
    return with_shared_vectors(take(kept, np.flatnonzero(left)))


# Making


def from_rows(
    owner: Labels, shapes: Sequence[Shape], times: Times, values: Matrix, metas: Mapping[str, Meta] | None = None
) -> Columns:
    """One owner's rows. times: int64, shape (R,), in any order, values: float64, shape (R, W), ABSENT where there is no sample.

    For equal times the later row counts, but where it is ABSENT. ValueError for shapes that do not fit.
    """
    return from_slabs([owner], shapes, [Slab(0, np.arange(len(shapes), dtype=np.int32), times, values)], metas)


def from_slabs(
    owners: Sequence[Labels], shapes: Sequence[Shape], slabs: Sequence[Slab], metas: Mapping[str, Meta] | None = None
) -> Columns:
    """Rows of many owners. A series may stand in several slabs: for equal times the later slab and row count.

    An owner or shape may stand in the lists more than once. The result is not in canonical order. ValueError for arrays that
    do not fit each other, and for numbers that are not in the lists.
    """
    columns = _laid(_tidied([slab for i, slab in enumerate(slabs) if _fits(i, slab) and slab.values.size]))
    owner_list, owner = _each_once(owners, columns.owner, "owner")
    shape_list, shape = _each_once(shapes, columns.shape, "shape")
    columns = replace(columns, owners=owner_list, shapes=shape_list, metas=dict(metas or {}), owner=owner, shape=shape)
    columns = keep(columns, columns.values.view(np.int64) != ABSENT_BITS)
    return columns if _ascending(np.sort(key_of(columns))) else merge([columns])


def from_loose(
    owners: Sequence[Labels],
    shapes: Sequence[Shape],
    owner: Numbers,
    shape: Numbers,
    time: Times,
    value: Vector,
    metas: Mapping[str, Meta] | None = None,
) -> Columns:
    """Single samples in any order, arrays of shape (K,); of those with equal series and time the later in the array counts.

    An owner or shape may stand in the lists more than once. ABSENT values are none. ValueError for numbers that are not in
    the lists.
    """
    there = np.flatnonzero(value.view(np.int64) != ABSENT_BITS)
    owner_list, owner = _each_once(owners, owner[there], "owner")
    shape_list, shape = _each_once(shapes, shape[there], "shape")
    time, value = time[there], value[there]
    keys, series = np.unique(shape.astype(np.int64) << 32 | owner, return_inverse=True)
    order = order_by(series, time)
    series, time = series[order], time[order]
    last = np.append((series[1:] != series[:-1]) | (time[1:] != time[:-1]), np.ones(min(len(order), 1), np.bool_))
    counts = np.bincount(series[last], minlength=len(keys))
    columns = Columns(
        owners=owner_list,
        shapes=shape_list,
        metas=dict(metas or {}),
        owner=(keys & 0xFFFFFFFF).astype(np.int32),
        shape=(keys >> 32).astype(np.int32),
        vector=np.arange(len(keys), dtype=np.int32),
        start=np.cumsum(counts) - counts,
        edges=edges_of(counts),
        times=time[last],
        values=value[order[last]],
    )
    return with_shared_vectors(columns)


def _each_once(names: Sequence[_Name], numbers: Numbers, what: str) -> tuple[list[_Name], Numbers]:
    """The names without repetition, and the numbers in that list."""
    wrong = numbers[(numbers < 0) | (numbers >= len(names))]
    if len(wrong):
        raise ValueError(f"samples of {what} {wrong[0]}; expected a place in the list of {len(names)}")
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if len(place) == len(names):
        return list(names), numbers
    return list(place), np.array([place[name] for name in names], dtype=np.int32)[numbers]


def _fits(i: int, slab: Slab) -> bool:
    expected = (len(slab.times), len(slab.shapes))
    if slab.values.shape != expected:
        raise ValueError(f"slab {i}: values of shape {slab.values.shape}; expected (times, shapes), {expected}")
    return True


def _tidied(slabs: list[Slab]) -> list[Slab]:
    """The same samples, every slab's times strictly ascending."""
    if not slabs:
        return slabs
    ends = np.cumsum([len(slab.times) for slab in slabs])
    times = np.concatenate([slab.times for slab in slabs])
    falls = np.setdiff1d(np.flatnonzero(times[1:] <= times[:-1]) + 1, ends)
    for i in np.unique(np.searchsorted(ends, falls, side="right")).tolist():
        slabs[i] = _tidy(slabs[i])
    return slabs


def _tidy(slab: Slab) -> Slab:
    order = np.argsort(slab.times, kind="stable")
    times, values = slab.times[order], slab.values[order]
    first = group_starts(times)
    if len(first) < len(times):
        rows = np.where(values.view(np.int64) != ABSENT_BITS, np.arange(len(times))[:, None], -1)
        newest = np.maximum.reduceat(rows, first, axis=0)
        newest = np.where(newest < 0, first[:, None], newest)  # where all are ABSENT, any is
        times, values = times[first], np.take_along_axis(values, newest, axis=0)
    return slab._replace(times=times, values=values)


def _laid(slabs: list[Slab]) -> Columns:
    """Every slab's series one after the other. Without names."""
    rows = np.array([len(slab.times) for slab in slabs], np.int64)
    widths = np.array([len(slab.shapes) for slab in slabs], np.int64)
    counts = np.repeat(rows, widths)
    values = np.empty(int(counts.sum()))
    at = 0
    for slab in slabs:
        size = slab.values.size
        values[at : at + size].reshape(slab.values.shape[::-1])[...] = slab.values.T
        at += size
    return Columns(
        owner=np.repeat(np.array([slab.owner for slab in slabs], np.int32), widths),
        shape=np.concatenate([np.empty(0, np.int32), *(slab.shapes for slab in slabs)]),
        vector=np.repeat(np.arange(len(slabs), dtype=np.int32), widths),
        start=np.cumsum(counts) - counts,
        edges=edges_of(rows),
        times=np.concatenate([np.empty(0, np.int64), *(slab.times for slab in slabs)]),
        values=values,
    )
