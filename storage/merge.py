"""Many `Columns` as one, and as a matrix at steps.

Both stand on passes over rows of unequal length that lie in one array (vectors of times, series of values): each is a few
passes of numpy over all rows at once. `columns.py` stands on the same passes, which is why it imports this file and not the
other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from storage.types import STALE_BITS, Labels, Matrix, Shape, Times, Vector

if TYPE_CHECKING:
    from storage.columns import Columns

Numbers = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PIECE = 1 << 16  # items taken at a time, so that what lies between two passes stays in the cache
LONG_ROW = 512  # rows at least so long on average are copied one by one: a slice costs what some hundred items do
WIDE_ROW = 16  # shorter rows of one length are copied by an index for each item

_NO_PLACES: Places = np.empty(0, np.int64)
_Name = TypeVar("_Name", Labels, Shape)
_Item = TypeVar("_Item", bound=np.generic)


# Rows of unequal length


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
            _windows(out, width)[to[rows]] = _windows(items, width)[starts[rows]]
            continue
        places = spread(starts[rows], counts[rows])
        if packed:
            out[to[rows.start] : to[rows.start] + len(places)] = items[places]
        else:
            out[spread(to[rows], counts[rows])] = items[places]


def _windows(items: npt.NDArray[_Item], width: int) -> npt.NDArray[_Item]:
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


# Names


def key_of(columns: Columns) -> Places:
    """One number for each series, in the order of (shape, owner) where the lists of names are sorted. int64, shape (S,)."""
    return columns.shape.astype(np.int64) * len(columns.owners) + columns.owner


def unify(parts: Sequence[Columns]) -> list[Columns]:
    """The same series, with owners, shapes and metas of all parts in common: sorted, and only those in use.

    What a later part knows of a metric counts.
    """
    owners, owner = _common([part.owners for part in parts], [part.owner for part in parts])
    shapes, shape = _common([part.shapes for part in parts], [part.shape for part in parts])
    known = {metric: meta for part in parts for metric, meta in part.metas.items()}
    metas = {name.metric: known[name.metric] for name in shapes if name.metric in known}
    return [
        replace(part, owners=owners, shapes=shapes, metas=metas, owner=o, shape=s)
        for part, o, s in zip(parts, owner, shape, strict=True)
    ]


def _common(names: Sequence[list[_Name]], numbers: Sequence[Numbers]) -> tuple[list[_Name], list[Numbers]]:
    """One sorted list of the names in use, and each part's numbers in it."""
    used = [np.flatnonzero(in_use(n, len(part))).tolist() for part, n in zip(names, numbers, strict=True)]
    number: dict[_Name, int] = {}  # one look each: a hash of nested names is the dearest part of this
    found = [[number.setdefault(part[i], len(number)) for i in at] for part, at in zip(names, used, strict=True)]
    common = list(number)
    order = sorted(range(len(common)), key=common.__getitem__)
    rank = np.empty(len(common), np.int32)
    rank[order] = np.arange(len(common))
    renumbered = []
    for part, places, at, of_series in zip(names, used, found, numbers, strict=True):
        new = np.zeros(len(part), np.int32)
        new[places] = rank[at]
        renumbered.append(new[of_series])
    return [common[i] for i in order], renumbered


# Merging


class _Stretches(NamedTuple):
    """What the parts have of each series of the result: P stretches of samples, by series and then by the order of writing."""

    key: Places  # (G,), of each series
    heads: Places  # (G,): the first stretch of each
    sizes: Places  # (G,): how many it has
    part: Places  # (P,)
    start: Places  # (P,), in the values of its part
    vector: Places  # (P,), one of those below: equal ones have one number
    times: Times
    vector_start: Places  # (V,)
    vector_count: Places  # (V,)


@dataclass(slots=True)
class _Weave:
    """How the samples of one series' several stretches lie among each other, for every combination of vectors there is.

    An item is a time of a stretch of a combination.
    """

    combination: Places  # (series of several stretches,)
    edges: Places  # (C + 1,), of the combinations' times
    times: Times  # the times of each combination, one after the other
    to: Places  # (stretches of these series,): the place of its first item among its combination's times
    in_one: Mask  # (stretches of these series,): all of its items count and lie next to each other
    first_item: Places  # (stretches of these series,): its first item, of those below
    position: Places  # (items,): its place among its combination's times
    counts: Mask  # (items,): no stretch written later has the same time


def merge(parts: Sequence[Columns]) -> Columns:
    """The samples of all parts in canonical order (see `columns.in_order`).

    Where two have the same series and time, the one in the later part counts, and of those in one part (in which a series
    may stand repeatedly here) the later series. ValueError when there is no part.
    """
    if not parts:
        raise ValueError("merge: got no part; expected at least one, which may be empty")
    parts = [part for part in parts if part.series] or list(parts[:1])
    if len(parts) == 1 and parts[0].is_sorted:
        return parts[0]
    parts = unify(_without_empty(parts))
    found = _stretches(parts)
    single, several = np.flatnonzero(found.sizes == 1), np.flatnonzero(found.sizes > 1)
    weave = _weave(found, several)
    vector = np.empty(len(found.key), np.int32)
    of_single = found.vector[found.heads[single]]
    vector[single], edges, times = pruned(of_single, found.times, found.vector_start, found.vector_count)
    vector[several] = len(edges) - 1 + weave.combination
    edges = np.concatenate((edges, edges[-1] + weave.edges[1:]))
    start = edges_of(np.diff(edges)[vector])
    values = _woven(parts, found, several, weave, start)
    shape, owner = np.divmod(found.key, max(len(parts[0].owners), 1))
    return replace(
        parts[0],
        owner=owner.astype(np.int32),
        shape=shape.astype(np.int32),
        vector=vector,
        start=start[:-1],
        edges=edges,
        times=np.concatenate((times, weave.times)) if len(several) else times,
        values=values,
    )


def _without_empty(parts: list[Columns]) -> list[Columns]:
    """Without series that have no sample."""
    return [part if (counts := part.counts).all() else _take(part, np.flatnonzero(counts)) for part in parts]


def _take(part: Columns, series: Places) -> Columns:
    numbers = {name: getattr(part, name)[series] for name in ("owner", "shape", "vector", "start")}
    return replace(part, **numbers)


def _stretches(parts: list[Columns]) -> _Stretches:
    key = np.concatenate([key_of(part) for part in parts])
    part = np.repeat(np.arange(len(parts)), [p.series for p in parts])
    start = np.concatenate([p.start for p in parts])
    vectors_before = edges_of(np.array([len(p.edges) - 1 for p in parts]))
    times_before = edges_of(np.array([len(p.times) for p in parts]))
    times = np.concatenate([p.times for p in parts])
    starts = np.concatenate([p.edges[:-1] + before for p, before in zip(parts, times_before, strict=False)])
    counts = np.concatenate([np.diff(p.edges) for p in parts])
    firsts, number = distinct(times, starts, counts)
    vector = number[np.concatenate([p.vector + before for p, before in zip(parts, vectors_before, strict=False)])]
    if not (key[1:] > key[:-1]).all():
        order = np.argsort(key, kind="stable")
        key, part, start, vector = key[order], part[order], start[order], vector[order]
    heads = group_starts(key)
    sizes = np.diff(heads, append=len(key))
    return _Stretches(key[heads], heads, sizes, part, start, vector, times, starts[firsts], counts[firsts])


def _weave(found: _Stretches, several: Places) -> _Weave:
    """`several`: the series that have more than one stretch."""
    sizes = found.sizes[several]
    vector = found.vector[spread(found.heads[several], sizes)]
    row_starts = np.cumsum(sizes) - sizes
    firsts, combination = distinct(vector, row_starts, sizes)
    of_stretch = np.repeat(np.arange(len(firsts)), sizes[firsts])
    vector = gathered(vector, row_starts[firsts], sizes[firsts])
    counts = found.vector_count[vector]
    of_item = np.repeat(of_stretch, counts)
    times = gathered(found.times, found.vector_start[vector], counts)
    begin = np.cumsum(counts) - counts
    stretch = spread((np.cumsum(sizes[firsts]) - sizes[firsts])[combination], sizes)
    same = of_item[1:] == of_item[:-1]
    if not (same & (times[1:] <= times[:-1])).any():  # each stretch is after the one before it: the usual case
        edges = edges_of(np.bincount(of_item, minlength=len(firsts)))
        to = (begin - edges[of_stretch])[stretch]
        return _Weave(combination, edges, times, to, np.ones(len(to), np.bool_), to, _NO_PLACES, np.empty(0, np.bool_))
    order = order_by(of_item, times)
    of_item, times = of_item[order], times[order]
    last = np.append((of_item[1:] != of_item[:-1]) | (times[1:] != times[:-1]), True)
    edges = edges_of(np.bincount(of_item[last], minlength=len(firsts)))
    position, valid = np.empty_like(order), np.empty_like(last)
    position[order] = np.cumsum(last) - last - edges[of_item]
    valid[order] = last
    in_one = position[begin + counts - 1] - position[begin] == counts - 1
    in_one &= np.add.reduceat(valid, begin, dtype=np.int64) == counts
    return _Weave(
        combination, edges, times[last], position[begin][stretch], in_one[stretch], begin[stretch], position, valid
    )


def _woven(parts: list[Columns], found: _Stretches, several: Places, weave: _Weave, start: Places) -> Vector:
    """The values of all series, those of series i from start[i] to start[i + 1]. float64."""
    counts = found.vector_count[found.vector]
    to = np.repeat(start[:-1], found.sizes)
    of_several = spread(found.heads[several], found.sizes[several])
    to[of_several[weave.in_one]] += weave.to[weave.in_one]
    in_one, first_item = np.ones(len(to), np.bool_), np.zeros_like(to)
    in_one[of_several], first_item[of_several] = weave.in_one, weave.first_item
    if len(parts) == 1 and in_one.all() and (to == np.cumsum(counts) - counts).all():
        return gathered(parts[0].values, found.start, counts)
    values = np.empty(int(start[-1]))
    for i, part in enumerate(parts):
        rows = np.flatnonzero((found.part == i) & in_one)
        copy_rows(values, to[rows], part.values, found.start[rows], counts[rows])
        rows = np.flatnonzero((found.part == i) & ~in_one)
        for some in (rows[piece] for piece in pieces(counts[rows])):
            items = spread(first_item[some], counts[some])
            valid = weave.counts[items]
            into = np.repeat(to[some], counts[some]) + weave.position[items]
            values[into[valid]] = part.values[spread(found.start[some], counts[some])[valid]]
    return values


# Steps


def steps(columns: Columns, steps_ms: Times, lookback_ms: int) -> Matrix:
    """The newest sample of each series at or before each step, if it is less than `lookback_ms` old. float64, shape (S, T).

    steps_ms: int64, shape (T,), ascending. NaN where there is none; a stale marker ends a series until its next sample.
    """
    sampled = np.flatnonzero(columns.counts)
    if len(sampled) < columns.series or not len(steps_ms):
        out = np.full((columns.series, len(steps_ms)), np.nan)
        if out.size:
            out[sampled] = steps(_take(columns, sampled), steps_ms, lookback_ms)
        return out
    out = np.empty((columns.series, len(steps_ms)))
    begins, ends = columns.edges[:-1], columns.edges[1:]
    first = first_at_or_after(columns.times, columns.edges, int(steps_ms[0]) - lookback_ms + 1)
    first = np.minimum(first, ends - 1)  # of each vector at least one time
    after = np.maximum(first_at_or_after(columns.times, columns.edges, int(steps_ms[-1]) + 1), first + 1)
    if 2 * int((after - first).sum()) > len(columns.times):
        first, after = begins, ends  # whole vectors lie side by side and need no copy
    order = np.argsort(columns.vector, kind="stable")
    heads = group_starts(columns.vector[order])
    used, sizes = columns.vector[order[heads]], np.diff(heads, append=len(order))
    width_ms = int(steps_ms[1] - steps_ms[0]) if len(steps_ms) > 1 and not np.diff(steps_ms, n=2).any() else 0
    at_once = max(PIECE // len(steps_ms), 1)
    for rows in pieces(after[used] - first[used] + len(steps_ms), 2 * PIECE):
        of = used[rows]
        newest, missing = _newest(columns.times, begins[of], first[of], after[of], steps_ms, width_ms, lookback_ms)
        series = order[heads[rows.start] : heads[rows.start] + sizes[rows].sum()]
        row = np.repeat(np.arange(len(of)), sizes[rows])
        for i in range(0, len(series), at_once):
            some = slice(i, i + at_once)
            places = newest[row[some]]
            places += columns.start[series[some], None]
            to = series[some]
            side_by_side = len(to) == int(to[-1]) - int(to[0]) + 1 and bool((to[1:] > to[:-1]).all())
            into = out[to[0] : to[-1] + 1] if side_by_side else None
            found = np.take(columns.values, places, out=into, mode="clip")  # no place is outside: "raise" would copy
            ended = found.view(np.int64) == STALE_BITS
            if ended.any():
                found[ended] = np.nan
            found[:, : missing.shape[1]][missing[row[some]]] = np.nan
            if into is None:
                out[to] = found
    return out


def _newest(
    times: Times, begins: Places, first: Places, after: Places, steps_ms: Times, width_ms: int, lookback_ms: int
) -> tuple[Places, Mask]:
    """Of vectors that begin at `begins`, the newest time at each step, among those from `first` to `after`.

    Returns its place in its vector, int64, shape (vectors, T), and where there is none, bool, shape (vectors, W), of the
    first W steps: at all later ones there is one.
    """
    counts = after - first
    seen = gathered(times, first, counts)
    tails = np.cumsum(counts) - 1
    heads = tails - counts + 1
    # Counting how many times lie at or before each step is quicker than searching: both are sorted.
    if width_ms > 0:
        step = seen - (int(steps_ms[0]) - width_ms + 1)
        step //= width_ms
        if step[heads].min() < 0 or step[tails].max() > len(steps_ms):
            np.clip(step, 0, len(steps_ms), out=step)
    else:
        step = np.searchsorted(steps_ms, seen)
    before = step[heads]
    step += np.repeat(np.arange(len(counts)) * (len(steps_ms) + 1), counts)
    passed = np.cumsum(np.bincount(step, minlength=len(counts) * (len(steps_ms) + 1)))
    place = passed.reshape(len(counts), -1)[:, :-1] - 1
    leading = place[:, : int(before.max())]
    missing = leading < heads[:, None]
    np.maximum(leading, heads[:, None], out=leading)
    if not _without_gap(seen, tails, int(steps_ms[-1]), lookback_ms):
        aged = steps_ms - seen[place] >= lookback_ms
        aged[:, : missing.shape[1]] |= missing
        missing = aged
    place += (first - begins - heads)[:, None]
    return place, missing


def _without_gap(seen: Times, tails: Places, last_step_ms: int, lookback_ms: int) -> bool:
    """No step from a vector's first time on is `lookback_ms` or more behind the newest time. tails: the last of each vector."""
    if last_step_ms - int(seen[tails].min()) >= lookback_ms:
        return False
    gaps = seen[1:] - seen[:-1]
    gaps[tails[:-1]] = 0
    return int(gaps.max(initial=0)) <= lookback_ms
