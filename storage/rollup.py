"""Rollups: of raw samples the minimum, maximum, sum, count and increase of each minute or hour (FORMAT.md, "Rollups")."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from storage.columns import Columns, in_order, keep, take, with_shared_vectors
from storage.format import AGGREGATES, ROLLUP_LABEL
from storage.merge import key_of, merge
from storage.passes import Mask, Places, edges_of, gathered, order_by, pieces, spread
from storage.types import Matrix, Shape, Vector, labels_of

CUMULATIVE = ("counter", "histogram")  # kinds whose samples only grow, but for resets

_MIN, _MAX, _SUM, _COUNT, _INCREASE = range(len(AGGREGATES))
_OUTSIDE = np.iinfo(np.int64).min


class _Buckets(NamedTuple):
    """Every vector's times by bucket. Those outside of what is asked for are buckets too, B in all."""

    heads: Places  # (B,): the place in the times where each begins
    inside: Places  # (B + 1,): how many before it are asked for
    edges: Places  # (V + 1,): which of them are a vector's


def roll_up(columns: Columns, width_ms: int, start_ms: int, end_ms: int) -> Columns:
    """The aggregates of the buckets (t - width_ms, t], where t is a multiple of width_ms and start_ms < t <= end_ms.

    Every series becomes one for each aggregate, told apart by the label `__rollup__`: `increase` for counters and histograms,
    the others for all. Samples outside (start_ms, end_ms] count only as what a counter's first sample inside has grown from;
    where there is none, it has not grown. NaNs and stale markers are passed over. The result is in canonical order.
    ValueError when the width is not positive.
    """
    if width_ms <= 0:
        raise ValueError(f"roll_up: got a width of {width_ms} ms; expected more than 0")
    columns = in_order(columns)
    columns = keep(columns, ~np.isnan(columns.values))
    ends_ms = -(-columns.times // width_ms) * width_ms
    ends_ms[(columns.times <= start_ms) | (ends_ms > end_ms)] = _OUTSIDE
    begins = np.zeros(len(ends_ms), np.bool_)
    begins[columns.edges[:-1]] = True
    begins[1:] |= ends_ms[1:] != ends_ms[:-1]
    heads = np.flatnonzero(begins)
    wanted = ends_ms[heads] != _OUTSIDE
    buckets = _Buckets(heads, edges_of(wanted), np.searchsorted(heads, columns.edges))
    grows = _cumulative(columns)[columns.shape]
    rolled = replace(columns, edges=buckets.inside[buckets.edges], times=ends_ms[heads[wanted]])
    return _told_apart(rolled, _aggregates(columns, buckets, grows), grows)


def approximate(columns: Columns) -> Columns:
    """What rollups tell of the raw series, for times beyond which there are no raw samples any more. In canonical order.

    One sample a bucket: of counters and histograms the greatest, of others the mean. Series without the label `__rollup__`
    are left out, and buckets of which the aggregates that this takes are not all there.
    """
    labels = [dict(shape.labels) for shape in columns.shapes]
    named = [part.pop(ROLLUP_LABEL, "") for part in labels]
    kinds = [AGGREGATES.index(name) if name in AGGREGATES else -1 for name in named]
    raw = [Shape(shape.metric, labels_of(part)) for shape, part in zip(columns.shapes, labels, strict=True)]
    place = {shape: i for i, shape in enumerate(dict.fromkeys(raw))}
    aggregate = np.array(kinds, np.int64)[columns.shape]
    shape = np.array([place[shape] for shape in raw], np.int32)[columns.shape]
    columns = with_shared_vectors(replace(columns, shapes=list(place), shape=shape))
    grows = _cumulative(columns)[columns.shape]
    greatest = take(columns, np.flatnonzero(grows & (aggregate == _MAX)))
    sums = take(columns, np.flatnonzero(~grows & (aggregate == _SUM)))
    counts = take(columns, np.flatnonzero(~grows & (aggregate == _COUNT)))
    _, of_sums, of_counts = np.intersect1d(key_of(sums), key_of(counts), assume_unique=True, return_indices=True)
    return merge([greatest, _means(take(sums, of_sums), take(counts, of_counts))])


def _cumulative(columns: Columns) -> Mask:
    """Whose samples only grow. bool, by shape."""
    metas = (columns.metas.get(shape.metric) for shape in columns.shapes)
    return np.array([meta is not None and meta.kind in CUMULATIVE for meta in metas], np.bool_)


def _aggregates(columns: Columns, buckets: _Buckets, grows: Mask) -> Matrix:
    """Of each series' buckets that are asked for, series after series. float64, shape (5, of all series).

    The increase of series that do not grow is undefined.
    """
    first, last = buckets.edges[:-1][columns.vector], buckets.edges[1:][columns.vector]
    to = edges_of(buckets.inside[last] - buckets.inside[first])
    from_times = columns.start - columns.edges[columns.vector]
    counts = columns.counts
    out = np.empty((len(AGGREGATES), int(to[-1])))
    for some in pieces(counts):
        begin = int(columns.start[some.start])
        values = columns.values[begin : begin + int(counts[some].sum())]
        sizes = last[some] - first[some]
        places = spread(first[some], sizes)
        heads = buckets.heads[places] + np.repeat(from_times[some] - begin, sizes)
        wanted = buckets.inside[places + 1] > buckets.inside[places]
        part = out[:, to[some.start] : to[some.stop]]
        part[_MIN] = np.minimum.reduceat(values, heads)[wanted]
        part[_MAX] = np.maximum.reduceat(values, heads)[wanted]
        part[_COUNT] = np.diff(heads, append=len(values))[wanted]
        with np.errstate(invalid="ignore", over="ignore"):  # infinities, and sums that become such
            part[_SUM] = np.add.reduceat(values, heads)[wanted]
            if grows[some].any():
                part[_INCREASE] = np.add.reduceat(_growth(values, columns.start[some] - begin), heads)[wanted]
    return out


def _growth(values: Vector, starts: Places) -> Vector:
    """How much each value is above the one before it; after a fall it has grown from zero. 0 at `starts`."""
    growth = np.empty_like(values)
    before, after = values[:-1], values[1:]
    np.subtract(after, before, out=growth[1:])
    fell = np.flatnonzero(after < before)
    growth[fell + 1] = after[fell]
    growth[starts] = 0
    growth[np.isnan(growth)] = 0  # from infinity to infinity
    return growth


def _told_apart(rolled: Columns, aggregates: Matrix, grows: Mask) -> Columns:
    """One series for each series and aggregate. rolled: with the buckets as its times, and the raw names."""
    shapes = [
        Shape(shape.metric, labels_of({**dict(shape.labels), ROLLUP_LABEL: aggregate}))
        for shape in rolled.shapes
        for aggregate in AGGREGATES
    ]
    every = np.arange(rolled.series)
    series = np.concatenate([every, every, every, every, np.flatnonzero(grows)])
    aggregate = np.repeat(np.arange(len(AGGREGATES)), [*[rolled.series] * 4, int(grows.sum())])
    start = edges_of(rolled.counts)[:-1]
    told = replace(
        take(rolled, series),
        shapes=shapes,
        shape=(rolled.shape[series] * len(AGGREGATES) + aggregate).astype(np.int32),
        start=start[series] + aggregate * aggregates.shape[1],
        values=aggregates.reshape(-1),
    )
    return in_order(told)


def _means(sums: Columns, counts: Columns) -> Columns:
    """The sums by the counts, series by series, at the times that both have."""
    sums, counts = _laid(sums), _laid(counts)
    if (
        sums.vector != counts.vector
    ).any():  # after damage; otherwise the aggregates of a series have their times in common
        both = _in_both(sums, counts)
        sums, counts = keep(sums, both[: len(sums.values)]), keep(counts, both[len(sums.values) :])
    with np.errstate(divide="ignore", invalid="ignore"):
        return replace(sums, values=sums.values / counts.values)


def _laid(columns: Columns) -> Columns:
    """With the values in the order of series, without gaps."""
    counts = columns.counts
    return replace(columns, values=gathered(columns.values, columns.start, counts), start=np.cumsum(counts) - counts)


def _in_both(left: Columns, right: Columns) -> Mask:
    """Which samples of series i have one of the other's series i at the same time. bool, left's and then right's."""
    series = np.concatenate([np.repeat(np.arange(part.series), part.counts) for part in (left, right)])
    times = np.concatenate([part.times[spread(part.edges[part.vector], part.counts)] for part in (left, right)])
    order = order_by(series, times)
    series, times = series[order], times[order]
    pairs = np.flatnonzero((series[1:] == series[:-1]) & (times[1:] == times[:-1]))
    found = np.zeros(len(order), np.bool_)
    found[order[pairs]] = True
    found[order[pairs + 1]] = True
    return found
