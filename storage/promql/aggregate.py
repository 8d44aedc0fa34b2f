"""Aggregations that give one series for each group (promql/engine.go, aggregation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from storage.promql import kahan
from storage.promql.form import Rows
from storage.promql.grouping import Groups, cube
from storage.promql.over_time import quantile_in
from storage.types import Matrix, Vector

LARGE = 512  # a group of more members is summed by halves; below, one after the other, exactly as Prometheus does

Aggregation = Callable[[Rows, Groups], Matrix]
"""Values of shape (G, T). What stands where a group has no sample means nothing."""


def aggregated(rows: Rows, groups: Groups, work: Aggregation) -> Rows:
    """One series for each group, with a sample where any member has one."""
    present = None
    if rows.present is not None:
        present = np.logical_or.reduceat(rows.present[groups.order], groups.heads, axis=0)
    return Rows(groups.labels, work(rows, groups), present).nonempty()


def _reduced(ufunc: np.ufunc, values: Matrix, groups: Groups) -> Matrix:
    if len(groups.heads) == len(groups.order):
        return values[groups.order]
    if len(groups.heads) == 1:
        return np.asarray(ufunc.reduce(values, axis=0, keepdims=True))
    return np.asarray(ufunc.reduceat(values[groups.order], groups.heads, axis=0))


def _counts(rows: Rows, groups: Groups) -> Matrix:
    """Members with a sample. float64, shape (G, T)."""
    if rows.present is None:
        shape = (len(groups.sizes), rows.values.shape[1])
        return np.broadcast_to(groups.sizes[:, None].astype(np.float64), shape)
    return _reduced(np.add, rows.present.astype(np.float64), groups)


def _filled(rows: Rows, value: float) -> Matrix:
    return rows.values if rows.present is None else np.where(rows.present, rows.values, value)


def _greatest(rows: Rows, groups: Groups) -> Matrix:
    return _reduced(np.fmax, _filled(rows, np.nan), groups)


def _least(rows: Rows, groups: Groups) -> Matrix:
    return _reduced(np.fmin, _filled(rows, np.nan), groups)


def _group(rows: Rows, groups: Groups) -> Matrix:
    return np.ones((len(groups.sizes), rows.values.shape[1]))


def _sums(values: Matrix, groups: Groups) -> tuple[Matrix, Matrix]:
    """Compensated: totals and rests, each (G, T)."""
    steps = values.shape[1]
    total, rest = np.zeros((2, len(groups.sizes), steps))
    large = groups.sizes > LARGE
    for g in np.flatnonzero(large).tolist():
        members = values[groups.order[groups.heads[g] : groups.heads[g] + groups.sizes[g]]]
        total[g], rest[g] = kahan.tree(members, np.zeros_like(members))
    if large.all():
        return total, rest
    place = np.argsort(-np.where(large, 0, groups.sizes), kind="stable")
    small = Groups(groups.labels, groups.number, groups.order, groups.heads, np.where(large, 0, groups.sizes))
    ordered_total, ordered_rest = np.zeros((2, len(place), steps))
    for _, ranked in small.by_rank():
        many = len(ranked)
        kahan.add(ordered_total[:many], ordered_rest[:many], values[ranked])
    kept = ~large[place]
    total[place[kept]], rest[place[kept]] = ordered_total[kept], ordered_rest[kept]
    return total, rest


def _sum(rows: Rows, groups: Groups) -> Matrix:
    return kahan.finished(*_sums(_filled(rows, 0.0), groups))


def _average(rows: Rows, groups: Groups) -> Matrix:
    values, counts = _filled(rows, 0.0), _counts(rows, groups)
    total, rest = _sums(values, groups)
    found = total / counts + rest / counts
    endless = np.isinf(total)
    if endless.any():
        finite = _reduced(np.logical_and, np.isfinite(values), groups).astype(np.bool_)
        _stepwise(found, rows, groups, endless & finite)
        found[endless & ~finite] = total[endless & ~finite]
    return found


def _stepwise(found: Matrix, rows: Rows, groups: Groups, overflown: np.ndarray) -> None:
    """Means whose sum would overflow, as steps from mean to mean. overflown: bool, (G, T)."""
    steps = np.flatnonzero(overflown.any(axis=0))
    for of, members in groups.by_size():
        if not overflown[of].any():
            continue
        values, mask = cube(rows, members)
        values, mask = values[:, :, steps], mask[:, :, steps]
        order = np.argsort(~mask, axis=1, kind="stable")  # members that are there first, in their order
        values = np.take_along_axis(values, order, axis=1)
        counts = mask.sum(axis=1).reshape(-1)
        by_count = np.argsort(-counts, kind="stable")
        columns = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)[:, by_count]
        terms = (columns[k, : int((counts > k).sum())] for k in range(int(counts.max(initial=0))))
        means = np.empty(len(counts))
        means[by_count] = kahan.mean(len(counts), terms)
        wide = found[of]
        wide[:, steps] = np.where(overflown[of][:, steps], means.reshape(len(of), -1), wide[:, steps])
        found[of] = wide


def _variance(rows: Rows, groups: Groups) -> Matrix:
    """Of the population: by Welford's method, or in two passes where a group is large."""
    if groups.sizes.max(initial=0) > LARGE:
        return _variance_in_two(rows, groups)
    steps = rows.values.shape[1]
    mean, total, count = np.zeros((3, len(groups.sizes), steps))
    place = np.argsort(-groups.sizes, kind="stable")
    mask = rows.mask
    for of, members in groups.by_rank():
        m = len(of)
        value, there = rows.values[members], mask[members]
        first = there & (count[:m] == 0)
        after = count[:m] + there
        delta = np.where(there, value - mean[:m], 0.0)
        moved = np.where(first, value, np.where(there, mean[:m] + delta / after, mean[:m]))
        change = np.where(first, np.where(np.isfinite(value), 0.0, np.nan), delta * (value - moved))
        total[:m] += np.where(there, change, 0.0)
        mean[:m], count[:m] = moved, after
    found = np.empty_like(total)
    found[place] = total / count
    return found


def _variance_in_two(rows: Rows, groups: Groups) -> Matrix:
    mean, counts = _average(rows, groups), _counts(rows, groups)
    away = np.where(rows.mask, rows.values - mean[groups.number], 0.0)
    return kahan.finished(*_sums(away * away, groups)) / counts


def _deviation(rows: Rows, groups: Groups) -> Matrix:
    return np.sqrt(_variance(rows, groups))


def quantile(wanted: Vector) -> Aggregation:
    """The quantile at each step. wanted: float64, shape (T,)."""

    def work(rows: Rows, groups: Groups) -> Matrix:
        found = np.empty((len(groups.sizes), rows.values.shape[1]))
        for of, members in groups.by_size():
            values, mask = cube(rows, members)
            ordered = np.moveaxis(np.where(mask, values, np.nan), 1, 2).reshape(-1, values.shape[1])
            ordered = np.sort(ordered, axis=1)
            sizes = mask.sum(axis=1).reshape(-1)
            not_numbers = (mask & np.isnan(values)).sum(axis=1).reshape(-1)
            found[of] = quantile_in(ordered, sizes, not_numbers, np.tile(wanted, len(of))).reshape(len(of), -1)
        return found

    return work


SIMPLE: Final[Mapping[str, Aggregation]] = {
    "sum": _sum,
    "avg": _average,
    "min": _least,
    "max": _greatest,
    "count": _counts,
    "group": _group,
    "stdvar": _variance,
    "stddev": _deviation,
}
