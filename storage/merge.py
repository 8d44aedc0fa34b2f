"""Many `Columns` as one, and as a matrix at steps.

`columns.py` imports this file, and not the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from storage.passes import (
    PIECE,
    Mask,
    Numbers,
    Places,
    copy_rows,
    distinct,
    edges_of,
    first_at_or_after,
    gathered,
    group_starts,
    in_use,
    order_by,
    pieces,
    pruned,
    spread,
)
from storage.types import STALE_BITS, Labels, Matrix, Shape, Times, Vector

if TYPE_CHECKING:
    from storage.columns import Columns

_NO_PLACES: Places = np.empty(0, np.int64)
_Name = TypeVar("_Name", Labels, Shape)


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
    keys = _sort_keys(common)
    order = sorted(range(len(common)), key=keys.__getitem__)
    rank = np.empty(len(common), np.int32)
    rank[order] = np.arange(len(common))
    renumbered = []
    for part, places, at, of_series in zip(names, used, found, numbers, strict=True):
        new = np.zeros(len(part), np.int32)
        new[places] = rank[at]
        renumbered.append(new[of_series])
    return [common[i] for i in order], renumbered


def _sort_keys(names: list[_Name]) -> Sequence[Any]:
    """What sorts as the names do: one text each, which is quicker to compare, or the names where a text would not sort so."""
    parts = [tuple(_texts(name)) for name in names]
    keys = ["\0".join(some) for some in parts]
    return keys if all(key.count("\0") < max(len(some), 1) for key, some in zip(keys, parts, strict=True)) else names


def _texts(name: Labels | Shape) -> Iterator[str]:
    if isinstance(name, Shape):
        yield name.metric
        name = name.labels
    yield from chain.from_iterable(name)


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
    return merge_named(unify(_without_empty(parts)))


def merge_named(parts: Sequence[Columns]) -> Columns:
    """The same for parts with names in common, as `unify` gives them; the result has them all, also those not in use.

    REQUIRES: no series without a sample.
    """
    parts = [part for part in parts if part.series] or list(parts[:1])
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


def _stretches(parts: Sequence[Columns]) -> _Stretches:
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


def _woven(parts: Sequence[Columns], found: _Stretches, several: Places, weave: _Weave, start: Places) -> Vector:
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
