"""Compensated sums, as Prometheus adds (util/kahansum; Neumaier 1974), along one axis while the others are vectors.

The rounding error of an addition is computed without a comparison (Knuth, TAOCP 2, 4.2.2, theorem B): it is the same number,
exact, whichever summand is greater.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from storage.types import Matrix, Vector


def add(total: Vector, rest: Vector, more: Vector) -> None:
    """total + rest, with `more` added to it. In place. A total that overflows has no rest."""
    after = total + more
    part = after - total
    error = total - (after - part)
    error += more - part
    rest += error
    endless = np.isinf(after)
    if endless.any():
        rest[endless] = 0.0
    total[...] = after


def summed(cells: int, terms: Iterable[Vector]) -> tuple[Vector, Vector]:
    """Total and rest of `cells` sums. Each of the terms is of the first so many of the cells."""
    total, rest = np.zeros(cells), np.zeros(cells)
    for more in terms:
        add(total[: len(more)], rest[: len(more)], more)
    return total, rest


def finished(total: Vector, rest: Vector) -> Vector:
    """The sums. Infinity stays what it is."""
    return np.where(np.isinf(total), total, total + rest)


def mean(cells: int, terms: Iterable[Vector]) -> Vector:
    """Means of `cells` lists: of the sum while it does not overflow, then of what is left, step by step.

    funcAvgOverTime of promql/functions.go; the aggregation avg is the same.
    """
    total, rest = np.zeros(cells), np.zeros(cells)
    counts = np.zeros(cells)
    stepwise = np.zeros(cells, np.bool_)
    for more in terms:
        m = len(more)
        counts[:m] += 1
        if counts[0] == 1:
            total[:m] = more
            continue
        over = stepwise[:m]
        overflows = ~over & np.isinf(total[:m] + more)
        if not overflows.any() and not over.any():
            add(total[:m], rest[:m], more)
            continue
        _mean_step(total[:m], rest[:m], more, counts[:m], over, overflows)
    with np.errstate(all="ignore"):
        return np.where(stepwise, total + rest, total / counts + rest / counts)


def _mean_step(
    total: Vector, rest: Vector, more: Vector, counts: Vector, over: np.ndarray, overflows: np.ndarray
) -> None:
    """One more term where some of the sums overflow: those become means, and the term counts by its share."""
    before = counts - 1
    total[overflows] /= before[overflows]
    rest[overflows] /= before[overflows]
    over |= overflows
    share = np.where(over, before / counts, 1.0)
    total *= share
    rest *= share
    add(total, rest, np.where(over, more / counts, more))


def whole(terms: Matrix) -> tuple[Vector, Vector]:
    """Totals and rests of sums along the first axis. float64, shape (K, M). Returns shapes (M,)."""
    return tree(terms, np.zeros_like(terms))


def tree(total: Matrix, rest: Matrix) -> tuple[Vector, Vector]:
    """The sum along the first axis, by halves: as exact as one after the other, with a loop over its logarithm.

    total, rest: float64, shape (K, M). Returns shapes (M,).
    """
    while len(total) > 1:
        half = len(total) // 2
        left, carried = total[:half].copy(), rest[:half] + rest[half : 2 * half]
        add(left, carried, total[half : 2 * half])
        if len(total) % 2:
            left, carried = np.concatenate((left, total[-1:])), np.concatenate((carried, rest[-1:]))
        total, rest = left, carried
    return total[0], rest[0]
