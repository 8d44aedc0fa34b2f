"""histogram_quantile and histogram_fraction over classic histograms (promql/quantile.go).

The seam for native histograms: `Rows` hold floats only. Once a form for native samples is there, `quantile` and `fraction`
take them beside the classic ones, as Prometheus does, and the functions of `NATIVE_ONLY` find something to work on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from storage.passes import Places
from storage.promql.form import Rows, empty_rows, merged
from storage.promql.grouping import Groups, groups_by_codes
from storage.promql.labels import METADATA
from storage.promql.notes import Forced
from storage.promql.query import Context
from storage.types import Matrix, Vector

NATIVE_ONLY: Final = frozenset(
    f"histogram_{what}" for what in ("count", "sum", "avg", "stddev", "stdvar")
)  # nothing of floats
TOLERANCE: Final = 1e-12  # smallDeltaTolerance: differences below it are errors of addition
_SMALLEST_NORMAL: Final = float(np.finfo(np.float64).tiny)
_BUCKET: Final = "le"

_Mask = npt.NDArray[np.bool_]


class Buckets(NamedTuple):
    """M histograms with the same B buckets, in the order of their upper bounds, all different."""

    bounds: Vector  # (B,)
    counts: Matrix  # (B, M), cumulative


Work = Callable[[Buckets, Places, Context], Vector]
"""The result of each histogram. The places are the steps they belong to, int64, shape (M,)."""


def over_histograms(rows: Rows, start: int, work: Work, context: Context) -> Rows:
    """One series for each histogram, that is for each set of labels without le. start: the place for messages."""
    rows, bound = _bounded(rows, start, context)
    if not len(rows.values):
        return empty_rows(context.count)
    unlabelled = rows.labels.without((_BUCKET,))
    groups = groups_by_codes(unlabelled.codes())
    found = np.full((len(groups.sizes), context.count), np.nan)
    present = np.zeros(found.shape, np.bool_)
    for of, members in _alike(groups, bound):
        context.query.check()
        values, mask = rows.values[members], rows.mask[members]
        present[of] = mask.any(axis=1)
        found[of] = _worked(values, mask, bound[members[0]], work, context)
    labels = unlabelled.take(groups.order[groups.heads]).without(METADATA)
    return merged(Rows(labels, found, None if present.all() else present).nonempty())


def _bounded(rows: Rows, start: int, context: Context) -> tuple[Rows, Vector]:
    """The series that are buckets, and the upper bound of each."""
    column = rows.labels.column(_BUCKET).tidy()
    bounds = [_bound(word) for word in column.words]
    for word in (word for word, bound in zip(column.words, bounds, strict=True) if bound is None):
        context.query.notes.bad_bucket(word, start)
    known = np.array([bound is not None for bound in bounds], np.bool_)[column.codes]
    of_rows = np.array([0.0 if bound is None else bound for bound in bounds])[column.codes]
    return (rows, of_rows) if known.all() else (rows.take(np.flatnonzero(known)), of_rows[known])


def _bound(word: str) -> float | None:
    """As Go reads a number, which takes no spaces, and underscores only within other bases."""
    try:
        return None if "_" in word or word != word.strip() else float(word)
    except ValueError:
        return None


def _alike(groups: Groups, bound: Vector) -> Iterator[tuple[Places, Places]]:
    """Groups whose members have the same bounds, (g,), and these in the order of bounds, (g, B)."""
    for of, members in groups.by_size():
        own = bound[members]
        order = np.argsort(own, axis=1, kind="stable")
        ordered = np.take_along_axis(members, order, axis=1)
        _, inverse = np.unique(np.take_along_axis(own, order, axis=1), axis=0, return_inverse=True)
        kind = inverse.reshape(-1)
        for k in range(int(kind.max()) + 1):
            yield of[kind == k], ordered[kind == k]


def _worked(values: Matrix, mask: _Mask, bound: Vector, work: Work, context: Context) -> Matrix:
    """Of histograms with the same bounds. values, mask: (g, B, T). Returns (g, T)."""
    many, size, steps = values.shape
    counts = np.moveaxis(values, 1, 0).reshape(size, -1)
    there = np.moveaxis(mask, 1, 0).reshape(size, -1)
    step = np.tile(np.arange(steps), many)
    found = np.full(many * steps, np.nan)
    whole = there.all(axis=0)
    if whole.any():
        cells = slice(None) if whole.all() else whole
        chosen = _joined(bound, counts[:, cells])
        found[cells] = work(chosen, step[cells], context)
    broken = ~whole & there.any(axis=0)
    for pattern in np.unique(there[:, broken], axis=1).T if broken.any() else ():
        cells = broken & (there == pattern[:, None]).all(axis=0)
        found[cells] = work(_joined(bound[pattern], counts[pattern][:, cells]), step[cells], context)
    return found.reshape(many, steps)


def _joined(bound: Vector, counts: Matrix) -> Buckets:
    """Buckets with one bound as one (coalesceBuckets)."""
    heads = np.flatnonzero(np.append(True, bound[1:] != bound[:-1]))
    if len(heads) < len(bound):
        bound, counts = bound[heads], np.add.reduceat(counts, heads, axis=0)
    return Buckets(bound, counts)


def quantile(wanted: Vector, start: int) -> Work:
    """The quantile at each step, on a line inside its bucket. wanted: float64, shape (T,)."""

    def work(buckets: Buckets, steps: Places, context: Context) -> Vector:
        q = wanted[steps]
        bounds = buckets.bounds
        inside = (q >= 0) & (q <= 1)
        if bounds[-1] != np.inf:
            return _outside(q, inside, np.full(len(q), np.nan))
        counts, forced = _monotonic(bounds, buckets.counts, inside)
        if forced.any():
            _note(buckets.counts, counts, forced, bounds, steps, start, context)
        return _outside(q, inside, _quantile(q, bounds, counts))

    return work


def _outside(q: Vector, inside: _Mask, found: Vector) -> Vector:
    return np.where(inside, found, np.where(q < 0, -np.inf, np.where(q > 1, np.inf, np.nan)))


def _quantile(q: Vector, bounds: Vector, counts: Matrix) -> Vector:
    """BucketQuantile of buckets in order that do not fall. bounds: (B,), counts: (B, M)."""
    if len(bounds) < 2:
        return np.full(len(q), np.nan)
    total = counts[-1]
    rank = q * total
    at = _first_at_least(counts[:-1], rank)
    before = np.maximum(at - 1, 0)
    cells = np.arange(len(q))
    below = np.where(at > 0, counts[before, cells], 0.0)
    begin = np.where(at > 0, bounds[before], 0.0)
    found = begin + (bounds[at] - begin) * ((rank - below) / (counts[at, cells] - below))
    if bounds[0] <= 0:
        found = np.where(at == 0, bounds[0], found)
    found = np.where(at == len(bounds) - 1, bounds[-2], found)
    return np.where(total == 0, np.nan, found)


def _first_at_least(counts: Matrix, rank: Vector) -> Places:
    """The first bucket that reaches the rank, or the one behind the last; where counts are NaN, what halving comes to."""
    reached = counts >= rank
    if not np.isnan(counts).any():
        return np.asarray((~reached).sum(axis=0))
    cells = np.arange(len(rank))
    low, high = np.zeros((2, len(rank)), np.int64)
    high += len(counts)
    while (open_ := low < high).any():
        middle = (low + high) >> 1
        found = reached[np.minimum(middle, len(counts) - 1), cells]
        low = np.where(open_ & ~found, middle + 1, low)
        high = np.where(open_ & found, middle, high)
    return low


def _monotonic(bounds: Vector, counts: Matrix, inside: _Mask) -> tuple[Matrix, _Mask]:
    """Counts that do not fall, and where one fell by more than an error of addition (ensureMonotonic...)."""
    if (counts[1:] >= counts[:-1]).all() and not _nearly(counts[:-1], counts[1:]).any():
        return counts, np.zeros(counts.shape, np.bool_)
    fixed, forced = counts.copy(), np.zeros(counts.shape, np.bool_)
    previous = fixed[0].copy()
    for b in range(1, len(bounds)):
        current = fixed[b].copy()
        near = _nearly(previous, current)
        falls = (current < previous) & ~near
        held = near | falls
        fixed[b] = np.where(held, previous, current)
        forced[b] = falls & inside
        previous = np.where(held | (current == previous), previous, current)
    return fixed, forced


def _nearly(left: Matrix, right: Matrix) -> _Mask:
    """Not equal, but for an error of addition (util/almost)."""
    total, difference = np.abs(left) + np.abs(right), np.abs(left - right)
    tiny = (left == 0) | (right == 0) | (total < _SMALLEST_NORMAL)
    greatest = np.finfo(np.float64).max
    close = np.where(
        tiny, difference < TOLERANCE * _SMALLEST_NORMAL, difference / np.minimum(total, greatest) < TOLERANCE
    )
    nearly: _Mask = ((left != right) & close) | (np.isnan(left) & np.isnan(right))
    return nearly


def _note(
    given: Matrix, fixed: Matrix, forced: _Mask, bounds: Vector, steps: Places, start: int, context: Context
) -> None:
    cells = np.flatnonzero(forced.any(axis=0))
    times = context.steps_ms[steps[cells]]
    of = bounds[np.flatnonzero(forced.any(axis=1))]
    most = float((fixed - given)[forced].max())
    forced_cells = Forced(int(times.min()), int(times.max()), float(of.min()), float(of.max()), most, len(cells))
    context.query.notes.forced_monotonic(forced_cells, start)


def fraction(low: Vector, high: Vector) -> Work:
    """The share of observations between two values. low, high: float64, shape (T,)."""

    def work(buckets: Buckets, steps: Places, context: Context) -> Vector:
        bounds, counts = buckets
        lower, upper = low[steps], high[steps]
        if bounds[-1] != np.inf:
            return np.full(len(steps), np.nan)
        total = counts[-1]
        share = (_rank(upper, bounds, counts) - _rank(lower, bounds, counts)) / total
        share = np.where(lower >= upper, 0.0, share)
        return np.where((total == 0) | np.isnan(lower) | np.isnan(upper), np.nan, share)

    return work


def _rank(value: Vector, bounds: Vector, counts: Matrix) -> Vector:
    """How many observations lie below a value, at most all (BucketFraction)."""
    first = 0.0 if bounds[0] > 0 else -np.inf
    at = np.searchsorted(bounds, value, side="right")  # the bucket that holds the value above its lower bound
    at = np.minimum(at, len(bounds) - 1)
    cells = np.arange(len(value))
    begin = np.where(at > 0, bounds[np.maximum(at - 1, 0)], first)
    below = np.where(at > 0, counts[np.maximum(at - 1, 0), cells], 0.0)
    here = counts[at, cells]
    inside = np.where(begin == -np.inf, here, below + (here - below) * (value - begin) / (bounds[at] - begin))
    rank = np.where(begin >= value, below, inside)
    rank = np.where(value == np.inf, counts[-1], rank)
    bounded: Vector = np.minimum(rank, counts[-1])
    return bounded
