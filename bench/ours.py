"""collectord's store without the daemon: opened in this process, and filled row by row as agents fill it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from agent_stub.wire import stream_pb2 as pb
from bench.cases import STEP_MS, Samples
from bench.machine import BenchError
from bench.peers import Stored
from bench.workload import SeriesName, agent_name
from storage.head import Plan
from storage.segments import SegmentSet
from storage.settings import DAY_MS, StoreSettings
from storage.store import Store
from storage.types import Labels, Meta, Shape, Vector, labels_of

Row = tuple[int, Plan, Vector]
"""Time (Unix ms), where it goes, and its values."""


@contextlib.contextmanager
def opened(directory: Path, settings: StoreSettings) -> Iterator[Store]:
    """A store; closed at the end of the block."""
    store = Store.open(directory, settings)
    try:
        yield store
    finally:
        store.close()


def segments_of(store: Store) -> SegmentSet:
    """Its segments. Raises BenchError for a store in memory."""
    if store.segments is None:
        raise BenchError("store: got one in memory, expected one with a directory")
    return store.segments


def owner_of(index: int) -> Labels:
    """The labels that an agent's series have in common."""
    job, instance, _ = agent_name(index)
    return labels_of({"job": job, "instance": instance})


def series_of(names: Sequence[SeriesName]) -> list[tuple[Shape, Meta]]:
    """What is declared."""
    out = []
    for name in names:
        kind = pb.MetricKind.Name(name.kind).removeprefix("METRIC_KIND_").lower().replace("_", "")
        out.append((Shape(name.prometheus, labels_of(dict(name.labels))), Meta(kind, name.unit, "", name.otel)))
    return out


def fill(store: Store, fleet: Sequence[Samples], committed: Callable[[], None], commit_ms: int = STEP_MS) -> int:
    """Everything of a fleet through the store's own write path: a commit each `commit_ms` of simulated time, the background
    in between.

    Calls `committed` after each commit. Returns the newest time, Unix ms.
    """
    ticks: dict[int, list[Row]] = {}
    for index, samples in enumerate(fleet):
        for row in rows(store, index, samples):
            ticks.setdefault(row[0] // commit_ms, []).append(row)
    last_ms = 0
    for tick in sorted(ticks):
        for time_ms, plan, values in ticks.pop(tick):
            store.append(plan, time_ms, values)
            last_ms = max(last_ms, time_ms)
        commit(store, last_ms)
        committed()
    return last_ms


def commit(store: Store, now_ms: int) -> None:
    """One commit, and what the background has to do by now."""
    store.commit(now_ms)
    store.settle(now_ms)
    while store.wal is not None and store.wal.closed and store.keeper is not None and store.keeper.step(now_ms):
        store.settle(now_ms)


def rows(store: Store, index: int, samples: Samples) -> Iterator[Row]:
    """An agent's samples as it would send them, ascending in time for each series."""
    series = series_of(samples.names)
    if samples.times.ndim == 2:
        yield from _alone(store, owner_of(index), series, samples)
        return
    ids = store.head.declare(owner_of(index), series, len(series))
    by_time = np.ascontiguousarray(samples.values.T)
    there = ~np.isnan(by_time)
    whole = store.head.plan(ids, recurring=True)
    counts = there.sum(axis=1).tolist()
    for at, time_ms in enumerate(samples.times.tolist()):
        if counts[at] == len(ids):
            yield time_ms, whole, by_time[at]
        elif counts[at]:
            yield time_ms, store.head.plan(ids[there[at]]), by_time[at][there[at]]


def _alone(store: Store, owner: Labels, series: list[tuple[Shape, Meta]], samples: Samples) -> Iterator[Row]:
    """Every series by itself: none shares a time with another."""
    for i, one in enumerate(series):
        plan = store.head.plan(store.head.declare(owner, [one], len(series), apart=True), recurring=True)
        for at, time_ms in enumerate(samples.times[i].tolist()):
            yield time_ms, plan, samples.values[i, at : at + 1]


def stored(store: Store, last_ms: int) -> tuple[Stored, int]:
    """Flushes and merges everything, long after the last sample. Raw segments, and the bytes of the rollups beside them."""
    store.flush(last_ms)
    settings = store.settings
    store.compact(last_ms + settings.partition_ms + settings.seal_ms + DAY_MS)
    segments = segments_of(store)
    samples = sum(segment.info.samples for segment in segments.all("raw"))
    sizes = segments.size_bytes
    return Stored(samples, sizes["raw"]), sum(sizes.values()) - sizes["raw"]
