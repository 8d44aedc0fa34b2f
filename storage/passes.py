"""Passes over rows of unequal length that lie in one array: vectors of times, series of values.

Each is a few passes of numpy over all rows at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from storage.types import Times

Numbers = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PIECE = 1 << 16  # items taken at a time, so that what lies between two passes stays in the cache
LONG_ROW = 512  # rows at least so long on average are copied one by one: a slice costs what some hundred items do
WIDE_ROW = 16  # shorter rows of one length are copied by an index for each item

_Item = TypeVar("_Item", bound=np.generic)


def pieces(counts: Places, most: int = PIECE) -> Iterator[slice]:
    """Slices of consecutive rows that have about `most` items together. counts: int64, shape (rows,)."""
    ends = np.cumsum(counts)
    if not len(ends):
        return
    cuts = np.searchsorted(ends, np.arange(most, int(ends[-1]), most)) + 1
    edges = np.unique(np.concatenate(([0], cuts, [len(ends)]))).tolist()
    yield from map(slice, edges, edges[1:])


def spread(starts: Places, counts: Places) -> Places:
    """The places of all items of rows that begin at `starts`, row after row. int64, shape (sum of counts,)."""
    ends = np.cumsum(counts)
    places: Places = np.repeat(starts - ends + counts, counts)
    places += np.arange(len(places))
    return places


def edges_of(counts: Places) -> Places:
    """Where rows that lie one after the other begin, and the end. int64, shape (rows + 1,)."""
    edges: Places = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    return edges


def gathered(items: npt.NDArray[_Item], starts: Places, counts: Places) -> npt.NDArray[_Item]:
    """Rows of `items`, one after the other. A view where they lie so already."""
    to = np.cumsum(counts) - counts
    total = int(counts.sum())
    if total and bool((starts - starts[0] == to).all()):
        return items[starts[0] : starts[0] + total]
    out = np.empty(total, items.dtype)
    copy_rows(out, to, items, starts, counts)
    return out


def copy_rows(out: npt.NDArray[_Item], to: Places, items: npt.NDArray[_Item], starts: Places, counts: Places) -> None:
    """out[to[i] : to[i] + counts[i]] = items[starts[i] : starts[i] + counts[i]] for every i, all int64, shape (rows,).

    The rows must not overlap in `out`.
    """
    if not len(counts):
        return
    packed = bool((to[1:] == to[:-1] + counts[:-1]).all())
    heads = (
        np.flatnonzero(np.append(True, (starts - to)[1:] != (starts - to)[:-1])) if packed else np.arange(len(counts))
    )
    if len(heads) * LONG_ROW <= int(counts.sum()) + LONG_ROW:
        lengths = np.add.reduceat(counts, heads).tolist()
        for at, start, count in zip(to[heads].tolist(), starts[heads].tolist(), lengths, strict=True):
            out[at : at + count] = items[start : start + count]
        return
    width = int(counts[0])
    one_width = bool((counts == width).all())
    for rows in pieces(counts):
        if one_width and width >= WIDE_ROW:
            windows(out, width)[to[rows]] = windows(items, width)[starts[rows]]
            continue
        places = spread(starts[rows], counts[rows])
        if packed:
            out[to[rows.start] : to[rows.start] + len(places)] = items[places]
        else:
            out[spread(to[rows], counts[rows])] = items[places]


def windows(items: npt.NDArray[_Item], width: int) -> npt.NDArray[_Item]:
    """Every stretch of so many items, overlapping, as a view of shape (len(items) - width + 1, width)."""
    step = items.strides[0]
    return as_strided(items, (len(items) - width + 1, width), (step, step), writeable=items.flags.writeable)


def distinct(items: Places, starts: Places, counts: Places) -> tuple[Places, Places]:
    """Which rows of integers are the same.

    Returns (firsts, number), int64, of shapes (D,) and (rows,): row i is equal to row firsts[number[i]], the first such.
    """
    rows = np.arange(len(starts))
    if len(rows) < 2:
        return rows, np.zeros_like(rows)
    items = gathered(items, starts, counts)
    starts = np.cumsum(counts) - counts
    digests = _digests(items, starts, counts)
    ascending = np.sort(digests)
    if (ascending[1:] != ascending[:-1]).all():
        return rows, rows
    order = np.argsort(digests)
    heads = group_starts(digests[order])
    first = np.empty_like(rows)
    first[order] = np.repeat(np.minimum.reduceat(order, heads), np.diff(heads, append=len(rows)))
    # Digests of 64 bits meet by accident about never, by intent perhaps: then the rows are just not shared.
    same = (first != rows) & (counts == counts[first])
    others = np.flatnonzero(same)
    left, right = (
        gathered(items, starts[others], counts[others]),
        gathered(items, starts[first[others]], counts[others]),
    )
    unequal = np.searchsorted(np.cumsum(counts[others]), np.flatnonzero(left != right), side="right")
    same[others[unequal]] = False
    number = np.cumsum(~same) - 1
    return np.flatnonzero(~same), number[np.where(same, first, rows)]


def _digests(items: Places, starts: Places, counts: Places) -> npt.NDArray[np.uint64]:
    """A number of 64 bits for each row: its length, and the sum of its items, each times an odd weight."""
    weights = np.arange(int(counts.max()), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    weights ^= weights >> np.uint64(29)
    weights *= np.uint64(0xBF58476D1CE4E5B9)
    weights |= np.uint64(1)
    bits = items.view(np.uint64)
    digests = counts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for rows in pieces(counts):
        begin, ends = int(starts[rows.start]), np.cumsum(counts[rows])
        within = spread(np.zeros_like(ends), counts[rows])
        sums = np.zeros(len(within) + 1, np.uint64)
        np.cumsum(bits[begin : begin + len(within)] * weights[within], out=sums[1:])
        digests[rows] += sums[ends] - sums[ends - counts[rows]]
    return digests


def group_starts(keys: npt.NDArray[Any]) -> Places:
    """Where a key differs from the one before it, the first included. int64, shape (groups,)."""
    return np.flatnonzero(np.append(np.ones(min(len(keys), 1), np.bool_), keys[1:] != keys[:-1]))


def order_by(group: Places, time: Times) -> Places:
    """The order by (group, time), equal ones as they stand. group: int64, shape (K,), not below 0. int64, shape (K,)."""
    if not len(group):
        return np.empty(0, np.int64)
    first_ms, last_ms = int(time.min()), int(time.max())
    span = last_ms - first_ms + 1
    if (
        span * (int(group.max()) + 1) < np.iinfo(np.int64).max
    ):  # one key sorts quicker than two, above all where runs are sorted
        return np.argsort(group * span + (time - first_ms), kind="stable")
    return np.lexsort((time, group))


def first_at_or_after(times: Times, edges: Places, time_ms: int) -> Places:
    """The place in `times` of each vector's first time >= time_ms, or of its end. int64, shape (V,)."""
    low, high = edges[:-1].copy(), edges[1:].copy()
    while (open_ := low < high).any():
        middle = (low + high) >> 1
        below = open_ & (times[np.where(open_, middle, 0)] < time_ms)
        low = np.where(below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)
    return low


def in_use(numbers: Numbers, count: int) -> Mask:
    """Which of the numbers below `count` occur. bool, shape (count,)."""
    used = np.zeros(count, np.bool_)
    used[numbers] = True
    return used


def pruned(vector: Places, times: Times, starts: Places, counts: Places) -> tuple[Numbers, Places, Times]:
    """`vector`, `edges` and `times` of `Columns` with only those vectors, begun at `starts`, that are in use."""
    used = np.zeros(len(starts), np.bool_)
    used[vector] = True
    number = (np.cumsum(used) - 1).astype(np.int32)
    return number[vector], edges_of(counts[used]), gathered(times, starts[used], counts[used])
