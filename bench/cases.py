"""Fleets beside the realistic one, agent by agent: what a store is filled with to see how small it gets.

| case | series | values |
|---|---|---|
| `realistic` | the mix of `workload.py` | |
| `gauges` | all gauges | a random walk from 50, steps N(0, 2), clipped to 0..100, one decimal |
| `random` | all random floats | log-normal, mu -1, sigma 0.7 |
| `sparse` | the realistic mix | each series has a sample in one of 20 rows, at random |
| `irregular` | the realistic mix | each series has times of its own, exponential gaps of 10 s in the mean |
| `histograms` | latency histograms: 12 buckets, sum, count | a Poisson number of log-normal latencies a step |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent_stub.wire import stream_pb2 as pb
from bench.machine import BenchError
from bench.workload import SeriesName, Values, agent_name, make_values, series_names

Times = npt.NDArray[np.int64]

STEP_MS = 10_000
SPARSE = 20  # rows of which one has a sample
BOUNDS = ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10")  # and +Inf: 12 buckets
HISTOGRAM_SERIES = len(BOUNDS) + 1 + 2
SEED = 17


@dataclass(frozen=True, slots=True)
class Samples:
    """One agent's series and all their samples.

    times: int64 Unix ms, shape (points,) when the series share them, else (series, points); ascending.
    values: float64, shape (series, points); NaN where a series has no sample.
    """

    names: Sequence[SeriesName]
    times: Times
    values: Values

    @property
    def count(self) -> int:
        """How many samples there are."""
        return int(np.count_nonzero(~np.isnan(self.values)))


def make(case: str, index: int, series: int, points: int, start_ms: int) -> Samples:
    """Agent `index` of a case's fleet: about `series` series (whole histograms only), the same for the same arguments.

    Raises BenchError for a case that is not there.
    """
    if case not in CASES:
        raise BenchError(f"case: got {case!r}, expected one of {', '.join(CASES)}")
    return CASES[case](index, series, points, start_ms)


def fleet(case: str, agents: int, series: int, points: int, start_ms: int) -> list[Samples]:
    """Every agent's samples."""
    return [make(case, index, series, points, start_ms) for index in range(agents)]


def _steps(points: int, start_ms: int) -> Times:
    return start_ms + STEP_MS * np.arange(points, dtype=np.int64)


def _mix(index: int, series: int, points: int) -> Values:
    return np.ascontiguousarray(make_values(1, series, points, (SEED, index))[0].T)


def _region(index: int) -> str:
    return agent_name(index)[2]


def _realistic(index: int, series: int, points: int, start_ms: int) -> Samples:
    return Samples(series_names(series, _region(index)), _steps(points, start_ms), _mix(index, series, points))


def _plain(index: int, series: int, metric: str) -> list[SeriesName]:
    return [
        SeriesName(
            f"bench.{metric}.{i:02}", f"bench_{metric}_{i:02}", "", pb.METRIC_KIND_GAUGE, (("region", _region(index)),)
        )
        for i in range(series)
    ]


def _gauges(index: int, series: int, points: int, start_ms: int) -> Samples:
    steps = np.random.default_rng((SEED, index)).normal(0, 2, (series, points))
    values = np.clip(50 + steps.cumsum(axis=1), 0, 100).round(1)
    return Samples(_plain(index, series, "load"), _steps(points, start_ms), values)


def _random(index: int, series: int, points: int, start_ms: int) -> Samples:
    values = np.random.default_rng((SEED, index)).lognormal(-1, 0.7, (series, points))
    return Samples(_plain(index, series, "level"), _steps(points, start_ms), values)


def _sparse(index: int, series: int, points: int, start_ms: int) -> Samples:
    whole = _realistic(index, series, points, start_ms)
    there = np.random.default_rng((SEED, index, SPARSE)).random((series, points)) < 1 / SPARSE
    return Samples(whole.names, whole.times, np.where(there, whole.values, np.nan))


def _irregular(index: int, series: int, points: int, start_ms: int) -> Samples:
    whole = _realistic(index, series, points, start_ms)
    gaps_ms = np.random.default_rng((SEED, index, STEP_MS)).exponential(STEP_MS, (series, points))
    # Whole milliseconds, and never the same one twice.
    return Samples(whole.names, start_ms + np.maximum(gaps_ms.astype(np.int64), 1).cumsum(axis=1), whole.values)


def _histograms(index: int, series: int, points: int, start_ms: int) -> Samples:
    rng = np.random.default_rng((SEED, index))
    names: list[SeriesName] = []
    columns: list[Values] = []
    for number in range(max(1, series // HISTOGRAM_SERIES)):
        names += _histogram_names(number, _region(index))
        columns.append(_histogram(rng, points))
    return Samples(names, _steps(points, start_ms), np.concatenate(columns))


def _histogram_names(number: int, region: str) -> list[SeriesName]:
    otel, metric = f"bench.latency.{number:02}", f"bench_latency_{number:02}_seconds"
    own: Sequence[tuple[str, tuple[tuple[str, str], ...]]] = (
        *((f"{metric}_bucket", (("le", bound),)) for bound in (*BOUNDS, "+Inf")),
        (f"{metric}_sum", ()),
        (f"{metric}_count", ()),
    )
    return [
        SeriesName(otel, name, "s", pb.METRIC_KIND_HISTOGRAM, (*labels, ("region", region))) for name, labels in own
    ]


def _histogram(rng: np.random.Generator, points: int) -> Values:
    """One histogram: cumulative buckets with +Inf last, sum, count. float64, shape (HISTOGRAM_SERIES, points)."""
    calls = rng.poisson(rng.uniform(1, 20), points)
    seconds = rng.lognormal(np.log(rng.uniform(0.02, 0.5)), 0.8, int(calls.sum()))
    at = np.repeat(np.arange(points), calls)
    buckets = len(BOUNDS) + 1
    bucket = np.searchsorted(np.array(BOUNDS, dtype=np.float64), seconds)
    counts = np.bincount(bucket * points + at, minlength=buckets * points).reshape(buckets, points)
    sums = np.bincount(at, weights=seconds, minlength=points).cumsum()
    cumulative = counts.cumsum(axis=0).cumsum(axis=1).astype(np.float64)
    return np.concatenate([cumulative, sums[None], cumulative[-1:]])


CASES: dict[str, Callable[[int, int, int, int], Samples]] = {
    "realistic": _realistic,
    "gauges": _gauges,
    "random": _random,
    "sparse": _sparse,
    "irregular": _irregular,
    "histograms": _histograms,
}
