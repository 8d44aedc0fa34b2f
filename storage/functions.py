"""Vectorised passes over matrices of samples: no Python loop over samples or series."""

from __future__ import annotations

import numpy as np

from storage.types import Matrix, Vector


def increase(matrix: Matrix) -> Matrix:
    """From each step to the next, by how much a counter grew. float64, (N, T) -> (N, T-1); NaN where either is NaN.

    A fall is a reset: the counter began again at zero, so the growth is its new value (Prometheus does the same,
    promql/functions.go extrapolatedRate, without the extrapolation).
    """
    before, after = matrix[..., :-1], matrix[..., 1:]
    return np.where(after < before, after, after - before)


def histogram_quantile(q: float, bounds: Vector, buckets: Matrix) -> Vector:
    """The q-quantile of cumulative bucket counts, interpolated linearly inside its bucket, as PromQL does.

    bounds: float64, shape (B,), ascending, the last +Inf. buckets: float64, shape (B, ...), cumulative along the first axis.
    Returns float64, shape (...): NaN where there are no observations; the last finite bound where the quantile lies
    in the +Inf bucket.
    """
    counts = np.maximum.accumulate(np.nan_to_num(buckets), axis=0)
    total = counts[-1]
    rank = q * total
    at = np.argmax(counts >= rank, axis=0)  # first bucket that reaches the rank
    at = np.minimum(at, len(bounds) - 1)
    lower_count = np.where(at > 0, np.take_along_axis(counts, np.maximum(at - 1, 0)[None], axis=0)[0], 0.0)
    upper_count = np.take_along_axis(counts, at[None], axis=0)[0]
    finite = bounds[:-1]
    upper = np.where(at < len(finite), bounds[np.minimum(at, len(finite) - 1)], finite[-1] if len(finite) else np.nan)
    lower = np.where(at > 0, bounds[np.maximum(at - 1, 0)], np.minimum(0.0, upper))
    inside = np.maximum(upper_count - lower_count, 1e-300)
    value = lower + (upper - lower) * (rank - lower_count) / inside
    value = np.where(at >= len(finite), upper, value)
    return np.where(total > 0, value, np.nan)
