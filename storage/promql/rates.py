"""rate, increase, delta, irate, idelta, deriv and predict_linear (promql/functions.go)."""

from __future__ import annotations

import numpy as np

from storage.passes import Mask, Places
from storage.promql import kahan
from storage.promql.form import Piece, Windows
from storage.promql.windowed import Cells, Found, Prepare, Work, cells
from storage.types import Matrix, Times, Vector

THRESHOLD = 1.1  # a series that has no sample for so many mean intervals is taken to begin or end within the range


def extrapolated(is_counter: bool, is_rate: bool) -> Prepare:
    """The difference of last and first sample, stretched to the window's borders (extrapolatedRate)."""

    def prepare(windows: Windows) -> Work:
        resets = _resets(windows.values) if is_counter else np.empty(0, np.int64)
        passed = _passed(resets, len(windows.values))

        def work(piece: Piece) -> Found:
            there = piece.counts >= 2
            low, high = piece.first_places(), piece.last_places()
            first = windows.values[low]
            found = windows.values[high] - first
            if len(resets):
                _add_resets(found, windows.values, resets, passed[low], passed[high], piece.each(there))
            interval, to_start, to_end = _borders(piece)
            to_start, to_end, interval = (piece.each(x) for x in (to_start, to_end, interval))
            if is_counter:
                to_start = _not_below_zero(found, first, interval, to_start)
            factor = (interval + to_start + to_end) / interval
            if is_rate:
                factor /= windows.range_ms / 1000.0
            return found * factor, there

        return work

    return prepare


def _resets(values: Vector) -> Places:
    """The places of samples that are below the one before them."""
    return np.flatnonzero(values[1:] < values[:-1]) + 1


def _passed(resets: Places, count: int) -> Places:
    """How many resets there are up to each place, itself included."""
    if not len(resets):
        return resets
    marked = np.zeros(count, np.int64)
    marked[resets] = 1
    return np.cumsum(marked)


def _add_resets(found: Matrix, values: Vector, resets: Places, before: Places, upto: Places, there: Mask) -> None:
    """What was lost at each reset of a window, the earliest first, as Prometheus adds it."""
    rows, steps = np.nonzero((upto > before) & there)
    before, upto = before[rows, steps], upto[rows, steps]
    while len(rows):
        found[rows, steps] += values[resets[before] - 1]
        before = before + 1
        left = before < upto
        rows, steps, before, upto = rows[left], steps[left], before[left], upto[left]


def _borders(piece: Piece) -> tuple[Vector, Vector, Vector]:
    """Seconds between first and last sample, and how far the series is stretched to either side. Each (v, T)."""
    windows = piece.windows
    first_ms, last_ms = piece.first_ms(), piece.last_ms()
    start_ms = windows.ends_ms - windows.range_ms
    to_start, to_end = (first_ms - start_ms) / 1000.0, (windows.ends_ms - last_ms) / 1000.0
    interval = (last_ms - first_ms) / 1000.0
    mean = interval / (piece.counts - 1)
    threshold = mean * THRESHOLD
    to_start = np.where(to_start >= threshold, mean / 2, to_start)
    to_end = np.where(to_end >= threshold, mean / 2, to_end)
    return interval, to_start, to_end


def _not_below_zero(found: Matrix, first: Matrix, interval: Vector, to_start: Vector) -> Matrix:
    """A counter begins at zero: it is not stretched further back than to where it was that."""
    to_zero = interval * (first / found)
    nearer = (found > 0) & (first >= 0) & (to_zero < to_start)
    return np.where(nearer, to_zero, to_start)


def instant(is_rate: bool) -> Prepare:
    """The difference of the last two samples, for a rate by the second and with a reset counted from zero (instantValue)."""

    def prepare(windows: Windows) -> Work:
        def work(piece: Piece) -> Found:
            places = piece.last_places()
            after, before = windows.values[places], windows.values[np.maximum(places - 1, 0)]
            found = after - before
            if is_rate:
                found = np.where(after < before, after, found)
                last = np.maximum(piece.high - 1, 0)
                interval_ms = windows.times[last] - windows.times[np.maximum(last - 1, 0)]
                found = found / piece.each(interval_ms / 1000.0)
            return found, piece.counts >= 2

        return work

    return prepare


def derivative(windows: Windows) -> Work:
    """The slope of the line with least squares, by the second."""

    def work(piece: Piece) -> Found:
        of = cells(piece)
        origin = np.broadcast_to(piece.each(piece.first_ms()), of.shape)
        slope, _ = _line(of, piece, origin)
        return of.spread(slope), piece.counts >= 2

    return work


def predicted(seconds: Vector, steps_ms: Times) -> Prepare:
    """What the line with least squares will be at so many seconds after each step. Both of shape (T,)."""

    def prepare(windows: Windows) -> Work:
        def work(piece: Piece) -> Found:
            of = cells(piece)
            slope, intercept = _line(of, piece, np.broadcast_to(steps_ms, of.shape))
            ahead = np.broadcast_to(seconds, of.shape).reshape(-1)[of.where]
            return of.spread(slope * ahead + intercept), piece.counts >= 2

        return work

    return prepare


def _line(of: Cells, piece: Piece, origin_ms: Times) -> tuple[Vector, Vector]:
    """Slope, and value at the origin, of each window's line (linearRegression). origin_ms: int64, shape (n, T)."""
    values = piece.windows.values
    origin = origin_ms.reshape(-1)[of.where]
    to_time = np.broadcast_to(-piece.shift, of.shape).reshape(-1)[of.where]
    if of.are_long:
        (sum_x, sum_y, sum_xy, sum_xx), constant = _line_sums_whole(of, piece, origin, to_time)
    else:
        (sum_x, sum_y, sum_xy, sum_xx), constant = _line_sums(of, piece, origin, to_time)
    n = of.counts
    slope = (sum_xy - sum_x * sum_y / n) / (sum_xx - sum_x * sum_x / n)
    intercept = sum_y / n - slope * sum_x / n
    start = values[of.low]
    endless = np.where(np.isinf(start), np.nan, 0.0)
    return np.where(constant, endless, slope), np.where(constant, start + endless, intercept)


def _line_sums(of: Cells, piece: Piece, origin: Times, to_time: Places) -> tuple[Matrix, Mask]:
    """Sums of x, y, xy and xx, shape (4, M), and whether all y are the same: sample by sample."""
    windows = piece.windows
    sums = np.zeros((4, 2, len(of.low)))
    constant = np.ones(len(of.low), np.bool_)
    start = windows.values[of.low]
    for k, y in enumerate(of.each(windows.values)):
        m = len(y)
        x = (windows.times[of.low[:m] + to_time[:m] + k] - origin[:m]) / 1000.0
        constant[:m] &= (y == start[:m]) | (k == 0)
        for (total, rest), more in zip(sums, (x, y, x * y, x * x), strict=True):
            kahan.add(total[:m], rest[:m], more)
    return sums.sum(axis=1), constant


def _line_sums_whole(of: Cells, piece: Piece, origin: Times, to_time: Places) -> tuple[Matrix, Mask]:
    """The same, window by window."""
    windows = piece.windows
    sums, constant = np.empty((4, len(of.low))), np.empty(len(of.low), np.bool_)
    for some, places, there in of.wholes():
        y = np.where(there, windows.values[places], 0.0)
        x = np.where(there, (windows.times[places + to_time[some]] - origin[some]) / 1000.0, 0.0)
        constant[some] = ((windows.values[places[1:]] == windows.values[places[0]]) | ~there[1:]).all(axis=0)
        for i, terms in enumerate((x, y, x * y, x * x)):
            total, rest = kahan.whole(terms)
            sums[i, some] = total + rest
    return sums, constant
