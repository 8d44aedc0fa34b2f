"""Tasks a minute, error ratio, p95, tokens, CPU, memory of every instance, in a few vectorised passes a second.

Counters are read from `Head.latest` once a tick. What each grew by since the tick before is summed into the cells of an
array of shape (SLOTS, rows, columns): a row for each instance; columns for tasks, failed tasks, tokens and each latency
bucket; a slot for each five seconds. A window's rate is then a sum over slots, and nothing is kept for each series but
the value before. Python loops run over owners and shapes, which are few, and only when series came or went; never over
samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from storage.functions import histogram_quantile
from storage.head import Head
from storage.types import Ids, Matrix, Vector

SLOT_MS: Final = 5_000  # one point of a sparkline
SLOTS: Final = 12  # slots in the window: a minute, the running slot included
POINTS: Final = 60  # points of a sparkline: five minutes
SETTLED_MS: Final = 2_000  # a counter of an instance known for longer began at zero after the last tick
MOST_BOUNDS: Final = 64  # latency buckets; were there more, the most used are kept and the others merged into them
QUANTILE: Final = 0.95

_TASKS, _ERRORS, _TOKENS, _CPU, _BUCKETS = 0, 1, 2, 3, 4  # columns; buckets are the rest, by ascending bound

TASK_COUNT: Final = "agent_task_duration_seconds_count"
TASK_BUCKET: Final = "agent_task_duration_seconds_bucket"
TOKEN_COUNTERS: Final = (
    "gen_ai_client_inference_usage_input_tokens_total",
    "gen_ai_client_inference_usage_output_tokens_total",
)
CPU_TIME: Final = (
    "process_cpu_time_seconds_total"  # its rate is cores; the utilization gauge is of all that are available
)
SUMMED_GAUGES: Final = {"memory_bytes": "process_memory_usage_bytes"}
LARGEST_GAUGES: Final = {"context_ratio": "gen_ai_context_utilization_ratio", "loop_lag_s": "agent_loop_lag_seconds"}

FIGURES: Final = (
    "tasks_per_min",
    "error_ratio",
    "p95_s",
    "tokens_per_min",
    "cpu_ratio",
    "memory_bytes",
    "context_ratio",
    "loop_lag_s",
)

Rows = npt.NDArray[np.intp]


class FleetFigures:
    """The figures of all instances that have at least one of the series above. One `tick` a second keeps them."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._generation = -1
        self._slot = -1  # number of the running slot: now_ms // SLOT_MS

        self._row_of: dict[str, int] = {}  # instance to row
        self._instances: list[str | None] = []  # row to instance; None: free
        self._since_ms: Vector = np.empty(0)  # when the row was taken
        self._bounds: Vector = np.array([np.inf])

        # One entry for each counter and each cell that it counts in. shape (E,)
        self._ids: Ids = np.empty(0, dtype=np.int64)
        self._cells: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._entry_rows: Rows = np.empty(0, dtype=np.intp)
        self._gauges: dict[str, tuple[Ids, Rows]] = {}
        self._has: dict[int, npt.NDArray[np.bool_]] = {}  # column to which rows have a series for it

        # By series id: the value before, and which series it was, for an id is used again. shape (ids,)
        self._before: Vector = np.empty(0)
        self._key_before: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

        self._counts: npt.NDArray[np.float64] = np.zeros((SLOTS, 0, _BUCKETS + 1))
        self._spark: Matrix = np.empty((0, POINTS))
        self._latency: Matrix = np.empty((0, POINTS))
        self._values: Matrix = np.empty((len(FIGURES), 0))
        self._cached: dict[str, dict[str, Any]] | None = None
        self._spark_lists: tuple[list[Any], list[Any]] | None = None

    def tick(self, now_ms: int) -> None:
        """Take the newest values in. Called once a second; `now_ms`: Unix time, milliseconds."""
        if self._generation != self._head.index.generation:
            self._plan(now_ms)
            self._generation = self._head.index.generation
        self._advance(now_ms)
        self._count(now_ms)
        self._compute(now_ms)
        self._cached = None

    def row(self, instance: str) -> dict[str, Any]:
        """The figures of one instance as of the last tick; each None when unknown. Do not change what is returned."""
        return self.rows().get(instance) or unknown()

    def rows(self) -> Mapping[str, dict[str, Any]]:
        """The figures by instance, as of the last tick. Made at most once a tick; do not change what is returned."""
        if self._cached is None:
            values = _with_none(self._values.T)
            if self._spark_lists is None:
                self._spark_lists = (_with_none(self._spark.round(2)), _with_none(self._latency.round(4)))
            sparks, latencies = self._spark_lists
            self._cached = {
                instance: {
                    **dict(zip(FIGURES, values[r], strict=True)),
                    "spark": sparks[r],
                    "latency_spark": latencies[r],
                }
                for instance, r in self._row_of.items()
            }
        return self._cached

    @property
    def size_bytes(self) -> int:
        """Memory of all arrays; it follows the number of instances and series held, not what has been."""
        arrays = (self._ids, self._cells, self._entry_rows, self._before, self._key_before, self._counts)
        return sum(a.nbytes for a in (*arrays, self._spark, self._latency, self._values))

    # -- what is counted where ----------------------------------------------------------------------------------------

    def _plan(self, now_ms: int) -> None:
        head = self._head
        tasks, buckets = head.select(TASK_COUNT), head.select(TASK_BUCKET)
        tokens = np.concatenate([head.select(name) for name in TOKEN_COUNTERS])
        cpu = head.select(CPU_TIME)
        failed = tasks[self._of_shape(tasks, lambda labels: labels.get("outcome") == "error") == 1]
        gauges = {figure: head.select(name) for figure, name in (SUMMED_GAUGES | LARGEST_GAUGES).items()}

        self._place_rows([tasks, buckets, tokens, cpu, *gauges.values()], now_ms)
        bounds = self._of_shape(buckets, lambda labels: _bound(labels.get("le", "")))
        self._place_bounds(bounds)

        at = np.minimum(np.searchsorted(self._bounds, bounds), len(self._bounds) - 1)
        kept = self._bounds[at] == bounds
        buckets, column = buckets[kept], _BUCKETS + at[kept]
        fixed = [(tasks, _TASKS), (failed, _ERRORS), (tokens, _TOKENS), (cpu, _CPU)]
        parts: list[tuple[Ids, Any]] = [*fixed, (buckets, column)]
        columns = np.concatenate([np.broadcast_to(c, ids.shape) for ids, c in parts])
        self._ids = np.concatenate([ids for ids, _ in parts])
        self._entry_rows = self._rows_of(self._ids)
        self._cells = self._entry_rows * self._counts.shape[2] + columns
        self._gauges = {figure: (ids, self._rows_of(ids)) for figure, ids in gauges.items()}
        self._has = {
            c: np.bincount(self._entry_rows[columns == c], minlength=self._width) > 0 for c in (_TASKS, _TOKENS, _CPU)
        }
        self._forget_changed()

    @property
    def _width(self) -> int:
        return len(self._instances)

    def _of_shape(self, ids: Ids, what: Callable[[Mapping[str, str]], float]) -> Vector:
        """A number that follows from the series' own labels. float64, shape (N,)."""
        index = self._head.index
        shapes, inverse = _distinct(index.shapes_of(ids))
        numbers = np.array([what(dict(index.shape_labels(int(s)))) for s in shapes], dtype=np.float64)
        return numbers[inverse]

    def _rows_of(self, ids: Ids) -> Rows:
        index = self._head.index
        owners, inverse = _distinct(index.owners_of(ids))
        rows = np.array([self._row_of[_instance(index.owner_labels(int(o)))] for o in owners], dtype=np.intp)
        return rows[inverse]

    def _place_rows(self, selections: list[Ids], now_ms: int) -> None:
        """Give new instances a row, and take it from those that have no series left."""
        index = self._head.index
        owners, _ = _distinct(index.owners_of(np.concatenate(selections)))
        present = {_instance(index.owner_labels(int(o))): None for o in owners}
        for instance in [i for i in self._row_of if i not in present]:
            self._clear(self._row_of.pop(instance))
        new = [i for i in present if i not in self._row_of]
        free = [r for r, taken in enumerate(self._instances) if taken is None]
        self._widen(len(self._instances) + max(len(new) - len(free), 0))
        free = [r for r, taken in enumerate(self._instances) if taken is None]
        for instance, row in zip(new, free, strict=False):
            self._row_of[instance] = row
            self._instances[row] = instance
            self._since_ms[row] = now_ms
        self._spark_lists = None

    def _clear(self, row: int) -> None:
        self._instances[row] = None
        self._since_ms[row] = np.nan
        self._counts[:, row] = 0.0
        self._spark[row] = self._latency[row] = np.nan

    def _widen(self, width: int) -> None:
        missing = width - self._width
        if missing <= 0:
            return
        self._instances += [None] * missing
        self._since_ms = np.concatenate((self._since_ms, np.full(missing, np.nan)))
        self._counts = np.concatenate((self._counts, np.zeros((SLOTS, missing, self._counts.shape[2]))), axis=1)
        empty = np.full((missing, POINTS), np.nan)
        self._spark, self._latency = np.concatenate((self._spark, empty)), np.concatenate((self._latency, empty))

    def _place_bounds(self, bounds: Vector) -> None:
        """The union of all bounds, at most MOST_BOUNDS, +Inf last. Instances may differ: see histogram_quantile."""
        distinct, used = np.unique(bounds[np.isfinite(bounds)], return_counts=True)
        if len(distinct) >= MOST_BOUNDS:
            distinct = np.sort(distinct[np.argsort(-used, kind="stable")[: MOST_BOUNDS - 1]])
        wanted = np.append(distinct, np.inf)
        if np.array_equal(wanted, self._bounds):
            return
        counts = np.zeros((SLOTS, self._width, _BUCKETS + len(wanted)))
        counts[..., :_BUCKETS] = self._counts[..., :_BUCKETS]
        stays = np.flatnonzero(np.isin(self._bounds, wanted))
        counts[..., _BUCKETS + np.searchsorted(wanted, self._bounds[stays])] = self._counts[..., _BUCKETS + stays]
        self._bounds, self._counts = wanted, counts

    def _forget_changed(self) -> None:
        """An id that names another series than before has no value before."""
        size = len(self._head.latest)
        if len(self._before) < size:
            missing = size - len(self._before)
            self._before = np.concatenate((self._before, np.full(missing, np.nan)))
            self._key_before = np.concatenate((self._key_before, np.full(missing, -1, dtype=np.int64)))
        index = self._head.index
        keys = index.owners_of(self._ids).astype(np.int64) << 32 | index.shapes_of(self._ids)
        self._before[self._ids[self._key_before[self._ids] != keys]] = np.nan
        self._key_before[self._ids] = keys

    # -- every second -------------------------------------------------------------------------------------------------

    def _advance(self, now_ms: int) -> None:
        """Close the slots that have passed: their sums become points of the sparklines."""
        slot = now_ms // SLOT_MS
        if self._slot < 0:
            self._slot = slot
        steps = slot - self._slot
        if steps < 0:  # the clock was set back: go on in the running slot until it has caught up
            return
        for _ in range(min(steps, POINTS)):
            self._close(self._slot)
            self._slot += 1
            self._counts[self._slot % SLOTS] = 0.0
        if self._slot != slot:
            self._slot = slot
            self._counts[:] = 0.0

    def _close(self, slot: int) -> None:
        counts = self._counts[slot % SLOTS]
        known = self._since_ms < (slot + 1) * SLOT_MS
        tasks = counts[:, _TASKS] * (60_000 / SLOT_MS)
        self._spark[:, :-1] = self._spark[:, 1:]
        self._spark[:, -1] = np.where(known & self._has[_TASKS], tasks, np.nan)
        self._latency[:, :-1] = self._latency[:, 1:]
        self._latency[:, -1] = self._quantile(counts)
        self._spark_lists = None

    def _count(self, now_ms: int) -> None:
        values, before = self._head.latest[self._ids], self._before[self._ids]
        # The first value of an instance that is itself new may be years of work done under another daemon; the first of
        # one that is known began at zero. A fall is a reset, from zero as well.
        first = np.isnan(before)
        settled = now_ms - self._since_ms[self._entry_rows] > SETTLED_MS
        start = np.where(first, np.where(settled, 0.0, values), before)
        with np.errstate(invalid="ignore"):
            growth = np.where(values < start, values, values - start)
        present = np.isfinite(values)
        self._before[self._ids[present]] = values[present]
        grown = np.flatnonzero(present & (growth > 0))
        shape = self._counts.shape[1:]
        sums = np.bincount(self._cells[grown], weights=growth[grown], minlength=shape[0] * shape[1])
        self._counts[self._slot % SLOTS] += sums.reshape(shape)

    def _compute(self, now_ms: int) -> None:
        counts = self._counts.sum(axis=0)
        window_s = (SLOTS - 1) * SLOT_MS / 1000 + (now_ms % SLOT_MS) / 1000
        age_s = np.clip((now_ms - self._since_ms) / 1000, 1.0, window_s)
        tasks = counts[:, _TASKS]
        some = np.where(tasks > 0, tasks, np.nan)
        figures = {
            "tasks_per_min": np.where(self._has[_TASKS], tasks * 60 / age_s, np.nan),
            "error_ratio": np.minimum(counts[:, _ERRORS] / some, 1.0),
            "p95_s": self._quantile(counts),
            "tokens_per_min": np.where(self._has[_TOKENS], counts[:, _TOKENS] * 60 / age_s, np.nan),
            "cpu_ratio": np.where(self._has[_CPU], counts[:, _CPU] / age_s, np.nan),
        }
        figures |= {name: self._sum(*self._gauges[name]) for name in SUMMED_GAUGES}
        figures |= {name: self._largest(*self._gauges[name]) for name in LARGEST_GAUGES}
        self._values = np.stack([figures[name] for name in FIGURES])

    def _quantile(self, counts: Matrix) -> Vector:
        return histogram_quantile(QUANTILE, self._bounds, counts[:, _BUCKETS:].T)

    def _sum(self, ids: Ids, rows: Rows) -> Vector:
        values = self._head.latest[ids]
        known = np.isfinite(values)
        sums = np.bincount(rows[known], weights=values[known], minlength=self._width)
        return np.where(np.bincount(rows[known], minlength=self._width) > 0, sums, np.nan)

    def _largest(self, ids: Ids, rows: Rows) -> Vector:
        values = self._head.latest[ids]
        largest = np.full(self._width, np.nan)
        np.fmax.at(largest, rows, np.where(np.isfinite(values), values, np.nan))
        return largest


def unknown() -> dict[str, Any]:
    """The figures of an instance of which nothing is known: every one None."""
    return {**dict.fromkeys(FIGURES), "spark": [None] * POINTS, "latency_spark": [None] * POINTS}


def _distinct(numbers: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The distinct numbers, ascending, and where each of `numbers` is among them. They are small: no sorting."""
    present = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=bool)
    present[numbers] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[numbers]


def _bound(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # a label of someone else's making: no bound, so it is left out
        return float("nan")


def _instance(labels: Iterable[tuple[str, str]]) -> str:
    return dict(labels).get("instance", "")


def _with_none(values: Matrix) -> list[Any]:
    """As nested lists, with None for every NaN."""
    objects = values.astype(object)
    objects[np.isnan(values)] = None
    lists: list[Any] = objects.tolist()
    return lists
