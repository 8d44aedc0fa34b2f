"""The *_over_time functions, changes and resets: each a vector function over windows (promql/functions.go)."""

from __future__ import annotations

import numpy as np

from storage.passes import Mask, Places
from storage.promql import kahan
from storage.promql.form import Piece, Windows
from storage.promql.windowed import Cells, Found, Prepare, Work, cells
from storage.types import Matrix, Vector


def _there(piece: Piece) -> Mask:
    return piece.high > piece.low


def count(windows: Windows) -> Work:
    """How many samples there are."""
    return lambda piece: (piece.each(piece.counts), _there(piece))


def present(windows: Windows) -> Work:
    """1 where there are any."""
    return lambda piece: (np.ones((1, 1)), _there(piece))


def first(windows: Windows) -> Work:
    """The first sample."""
    return lambda piece: (windows.values[piece.first_places()], _there(piece))


def last(windows: Windows) -> Work:
    """The last sample."""
    return lambda piece: (windows.values[piece.last_places()], _there(piece))


def sums(windows: Windows) -> Work:
    """The compensated sum."""

    def work(piece: Piece) -> Found:
        of = cells(piece)
        return of.spread(kahan.finished(*_totals(of, windows.values))), _there(piece)

    return work


def _totals(of: Cells, values: Vector) -> tuple[Vector, Vector]:
    """Compensated totals and rests, each (M,)."""
    if not of.are_long:
        return kahan.summed(len(of.low), of.each(values))
    total, rest = np.empty((2, len(of.low)))
    for some, places, there in of.wholes():
        total[some], rest[some] = kahan.whole(np.where(there, values[places], 0.0))
    return total, rest


def means(windows: Windows) -> Work:
    """The mean."""

    def work(piece: Piece) -> Found:
        of = cells(piece)
        return of.spread(_means(of, windows.values)), _there(piece)

    return work


def _means(of: Cells, values: Vector) -> Vector:
    if of.are_long:
        total, rest = _totals(of, values)
        if not np.isinf(total).any() or not np.isfinite(values).all():
            return np.where(np.isfinite(total), total / of.counts + rest / of.counts, total)
    return kahan.mean(len(of.low), of.each(values))  # step by step where the sum overflows


def variance(windows: Windows) -> Work:
    """The population variance, by Welford's method with compensated sums (varianceOverTime)."""

    def work(piece: Piece) -> Found:
        of = cells(piece)
        return of.spread(_variance(of, windows.values)), _there(piece)

    return work


def deviation(windows: Windows) -> Work:
    """The population standard deviation."""
    of_variance = variance(windows)

    def work(piece: Piece) -> Found:
        found, there = of_variance(piece)
        return np.sqrt(found), there

    return work


def _variance(of: Cells, values: Vector) -> Vector:
    many = len(of.low)
    if of.are_long:
        return _variance_in_two(of, values)
    mean, mean_rest, total, total_rest = np.zeros((4, many))
    for k, sample in enumerate(of.each(values), start=1):
        m = len(sample)
        delta = sample - (mean[:m] + mean_rest[:m])
        kahan.add(mean[:m], mean_rest[:m], delta / k)
        kahan.add(total[:m], total_rest[:m], delta * (sample - (mean[:m] + mean_rest[:m])))
    return (total + total_rest) / of.counts


def _variance_in_two(of: Cells, values: Vector) -> Vector:
    """In two passes over whole windows."""
    mean, total = _means(of, values), np.empty(len(of.low))
    for some, places, there in of.wholes():
        away = np.where(there, values[places] - mean[some], 0.0)
        total[some] = kahan.finished(*kahan.whole(away * away))
    return total / of.counts


def greatest(windows: Windows) -> Work:
    """The greatest sample; NaN only where all are."""
    return _extreme(windows, np.fmax)


def least(windows: Windows) -> Work:
    """The least sample; NaN only where all are."""
    return _extreme(windows, np.fmin)


def _extreme(windows: Windows, better: np.ufunc) -> Work:
    """By doubling: level k has the extreme of 2^k samples from each place on, and two of one level cover a window."""
    levels = [windows.values]

    def level(k: int) -> Vector:
        while len(levels) <= k:
            below, half = levels[-1], 1 << (len(levels) - 1)
            above = below.copy()
            better(below[:-half], below[half:], out=above[:-half])
            levels.append(above)
        return levels[k]

    def work(piece: Piece) -> Found:
        counts, low = piece.counts, piece.first_places()
        found = np.zeros(low.shape)
        power = np.frexp(np.maximum(counts, 1))[1] - 1  # the greatest k with 2^k samples in the window
        for k in np.unique(power[counts > 0]).tolist():
            table = level(k)
            back = piece.each(counts - (1 << k))
            if (power == k).all() and (counts > 0).all():
                return better(table[low], table[low + back]), counts > 0
            at = np.broadcast_to(piece.each((power == k) & (counts > 0)), low.shape)
            places = low[at]
            found[at] = better(table[places], table[places + np.broadcast_to(back, low.shape)[at]])
        return found, counts > 0

    return work


def changes(windows: Windows) -> Work:
    """How often a sample differs from the one before it; NaN does not differ from NaN."""
    after, before = windows.values[1:], windows.values[:-1]
    return _pairs(windows, (after != before) & ~(np.isnan(after) & np.isnan(before)))


def resets(windows: Windows) -> Work:
    """How often a sample is below the one before it."""
    return _pairs(windows, windows.values[1:] < windows.values[:-1])


def _pairs(windows: Windows, marked: Mask) -> Work:
    """How many of the neighbours in each window are marked: exact, because whole numbers are added."""
    before: Places = np.concatenate((np.zeros(1, np.int64), np.cumsum(marked)))

    def work(piece: Piece) -> Found:
        found = before[piece.last_places()] - before[piece.first_places()]
        return found, _there(piece)

    return work


def quantile(wanted: Vector) -> Prepare:
    """The quantile at each step. wanted: float64, shape (T,)."""

    def prepare(windows: Windows) -> Work:
        def work(piece: Piece) -> Found:
            low, counts = (
                piece.first_places(),
                np.broadcast_to(piece.each(piece.counts), (len(piece.rows), len(wanted))),
            )
            found = np.zeros(low.shape)
            for size in np.unique(piece.counts[piece.counts > 0]).tolist():
                rows, steps = np.nonzero(counts == size)
                for some in _bounded(len(rows), size):
                    places = low[rows[some], steps[some]][:, None] + np.arange(size)
                    found[rows[some], steps[some]] = quantile_of(windows.values[places], wanted[steps[some]])
            return found, _there(piece)

        return work

    return prepare


def _bounded(rows: int, size: int, room: int = 1 << 20) -> list[slice]:
    wide = max(room // size, 1)
    return [slice(at, at + wide) for at in range(0, rows, wide)]


def quantile_of(samples: Matrix, wanted: Vector) -> Vector:
    """The quantile of each row, between the two samples where it lies. samples: (M, K), wanted: (M,). NaN sorts first.

    quantile of promql/quantile.go.
    """
    ordered = np.sort(samples, axis=1)
    size = ordered.shape[1]
    return quantile_in(ordered, np.full(len(ordered), size), np.isnan(ordered).sum(axis=1), wanted)


def quantile_in(ordered: Matrix, sizes: Places, not_numbers: Places, wanted: Vector) -> Vector:
    """Of rows that are in order, as numpy sorts: of each the first samples are numbers, then come so many NaN.

    ordered: (M, K). sizes: (M,), of the samples that count, the NaN among them. Where there are none the result is NaN.
    """
    inside = (wanted >= 0) & (wanted <= 1) & (sizes > 0)
    rank = np.where(inside, wanted, 0.0) * np.maximum(sizes - 1, 0)
    lower = np.floor(rank)
    upper = np.minimum(sizes - 1, lower + 1)
    weight = rank - lower
    rows = np.arange(len(ordered))

    def sample(place: Vector) -> Vector:
        at = place.astype(np.int64) - not_numbers
        return np.where(at < 0, np.nan, ordered[rows, np.clip(at, 0, ordered.shape[1] - 1)])

    between = sample(lower) * (1 - weight) + sample(np.maximum(upper, 0)) * weight
    outside = np.where(wanted < 0, -np.inf, np.where(wanted > 1, np.inf, np.nan))
    found: Vector = np.where(inside, between, np.where(sizes > 0, outside, np.nan))
    return found


def smoothed(factor: Vector, trend: Vector) -> Prepare:
    """Holt's linear exponential smoothing (funcDoubleExponentialSmoothing). Factors are those of the first step."""
    sf, tf = float(factor[0]), float(trend[0])

    def prepare(windows: Windows) -> Work:
        def work(piece: Piece) -> Found:
            of = cells(piece)
            return of.spread(_smoothed(of, windows.values, sf, tf)), piece.counts >= 2

        return work

    return prepare


def _smoothed(of: Cells, values: Vector, sf: float, tf: float) -> Vector:
    before, level, slope = np.zeros((3, len(of.low)))
    for k, sample in enumerate(of.each(values)):
        m = len(sample)
        if k == 0:
            level[:m] = sample
            continue
        if k == 1:
            slope[:m] = sample - level[:m]
        else:
            slope[:m] = tf * (level[:m] - before[:m]) + (1 - tf) * slope[:m]
        moved = sf * sample + (1 - sf) * (level[:m] + slope[:m])
        before[:m], level[:m] = level[:m], moved
    return level
