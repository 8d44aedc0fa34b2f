"""The store without gRPC: what a sample costs on its way to the disk, stage by stage, and a day read back as one matrix."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import ours, workload
from bench.cases import SEED, STEP_MS, Samples
from bench.harness import Figure, Session
from bench.machine import BenchError
from storage.codec import FAST_LEVEL
from storage.files import Files
from storage.head import Plan
from storage.matchers import Matcher
from storage.segment_writer import SegmentWriter
from storage.settings import DAY_MS, StoreSettings
from storage.store import Store
from storage.types import Vector
from storage.wal_reader import read_wal
from storage.wal_rows import merged

STAGES = {
    name: Figure(f"{name}_ns_per_sample", "ns", higher_is_better=False)
    for name in ("rings", "wal_lists", "wal_encode", "wal_sync", "wal_read", "order", "segment", "whole")
}
SELECT = Figure("select_ms", "ms", higher_is_better=False)
BUILD = Figure("build_ns_per_sample", "ns", higher_is_better=False)

ROUNDS = 5
ROWS = 100  # of each agent in a round
AGENTS_BY_WIDTH = {100: 200, 1000: 20}  # series of an agent: how many agents
DAY0_MS = 1_700_006_400_000 // DAY_MS * DAY_MS
PARTS = 6  # of the day, written one after the other, with the same values
COMMIT_MS = 60_000  # of the day, by its own time: what syncing costs is among the stages
READS = 15
SERIES, METRIC = 100, "bench_size_25_bytes"
NOTES = (
    "stages: 200 agents of 100 series (20 of 1,000), a commit each 10 s of simulated time; wal_sync is time that the disk took",
    "select: 24 h at 10 s of 100 of 20,000 series, merged, in the page cache: 100 x 8,640 cells; `metric`: one, of 100 agents; "
    "`agent`: all of one",
)


def run(session: Session) -> None:
    """Writing, then reading."""
    for text in NOTES:
        session.note(text)
    for width, agents in AGENTS_BY_WIDTH.items():
        for number in session.rounds(ROUNDS, f"writing, {width} series an agent"):
            _write(session, width, 2 if session.quick else agents, number)
    _read(session)


# Writing


@dataclass(slots=True)
class Clock:
    """Time by stage, seconds."""

    stages: dict[str, float]

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - begin


def _write(session: Session, width: int, agents: int, number: int) -> None:
    fleet = [_samples(index, width, ROWS, DAY0_MS, number) for index in range(agents)]
    samples, case = agents * width * ROWS, f"write {width}"
    clock = Clock({})
    with _store() as store:
        ticks = _ticks(store, fleet)
        _stages(store, ticks, clock)
    with _store() as store:
        ticks = _ticks(store, fleet)
        with clock("whole"):
            for time_ms, rows in ticks:
                for plan, values in rows:
                    store.append(plan, time_ms, values)
                store.commit(time_ms)
            store.flush(time_ms)
        written = sum(segment.info.samples for segment in ours.segments_of(store).all("raw"))
        if written != samples:
            raise BenchError(f"{case}: {written:,} samples in segments, expected {samples:,}")
    for stage, figure in STAGES.items():
        session.add(case, figure, 1e9 * clock.stages[stage] / samples)


Tick = tuple[int, list[tuple[Plan, Vector]]]


def _ticks(store: Store, fleet: Sequence[Samples]) -> list[Tick]:
    """By time: every agent's row."""
    ticks: dict[int, list[tuple[Plan, Vector]]] = {}
    for index, samples in enumerate(fleet):
        for time_ms, plan, values in ours.rows(store, index, samples):
            ticks.setdefault(time_ms, []).append((plan, values))
    return sorted(ticks.items())


def _stages(store: Store, ticks: Sequence[Tick], clock: Clock) -> None:
    """What `Store.append`, `Store.commit` and the keeper's flush do, each part by itself."""
    wal, files = store.wal, Files()
    if wal is None:
        raise BenchError("store: got one in memory, expected one with a directory")
    for number, (time_ms, rows) in enumerate(ticks):
        with clock("rings"):
            for plan, values in rows:
                store.head.append(plan, time_ms, values)
        with clock("wal_lists"):
            for plan, values in rows:
                wal.append(plan, time_ms, values)
        wal.roll_wanted = number == len(ticks) - 1
        with clock("wal_encode"):
            commit = store.take(time_ms)
        if commit is None:
            raise BenchError("store: got nothing to commit, expected a tick's rows")
        with clock("wal_sync"):
            commit.write()
        store.committed(commit)
    with clock("wal_read"):
        content = read_wal(files, wal.closed[0]).content
    if content is None:
        raise BenchError(f"{wal.closed[0]}: got no samples, expected what was written")
    with clock("order"):
        pieces = list(merged([content], DAY0_MS, DAY0_MS + DAY_MS))
    path = wal.closed[0].parent.parent / "segments" / "9999999999999999.seg"
    with clock("segment"):
        writer = SegmentWriter(files, path, number=9_999_999_999_999_999, order=1, tier="raw", level=FAST_LEVEL)
        for columns in pieces:
            writer.add(columns)
        writer.finish()


def _samples(index: int, width: int, points: int, start_ms: int, part: int) -> Samples:
    """The realistic mix; `part` is a seed of its own."""
    values = workload.make_values(1, width, points, (SEED, index, part))[0]
    times = start_ms + STEP_MS * np.arange(points, dtype=np.int64)
    return Samples(workload.series_names(width, workload.agent_name(index)[2]), times, np.ascontiguousarray(values.T))


@contextlib.contextmanager
def _store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as name, ours.opened(Path(name) / "data", _settings()) as store:
        yield store


def _settings() -> StoreSettings:
    return StoreSettings(retention_ms=36_500 * DAY_MS)


# Reading


def _read(session: Session) -> None:
    """A day through the store's own write path, merged as it is when the day is over, then read."""
    agents, points = (8, 720) if session.quick else (200, DAY_MS // STEP_MS)
    with _store() as store:
        _build(session, store, agents, points)
        last_ms = DAY0_MS + (points - 1) * STEP_MS
        for _ in session.rounds(READS, "reading"):
            for case, (matchers, series) in _queries(agents).items():
                begin = time.perf_counter()
                matrix = store.select(matchers, DAY0_MS, last_ms, STEP_MS).matrix
                session.add(case, SELECT, 1e3 * (time.perf_counter() - begin))
                if matrix.shape != (series, points) or not np.isfinite(matrix).all():
                    raise BenchError(f"{case}: got shape {matrix.shape}, expected {series} series of {points} values")


def _queries(agents: int) -> dict[str, tuple[list[Matcher], int]]:
    """By case: matchers, and how many series they find."""
    _, instance, _ = workload.agent_name(1)
    by_metric = [Matcher("__name__", "=", METRIC), Matcher("region", "=~", "eu-.*")]
    return {"day, metric": (by_metric, agents // 2), "day, agent": ([Matcher("instance", "=", instance)], SERIES)}


def _build(session: Session, store: Store, agents: int, points: int) -> None:
    begin, length = time.perf_counter(), points // PARTS
    fleet = [_samples(i, SERIES, length, DAY0_MS, 0) for i in range(agents)]
    for part in session.steps(PARTS, "a day written"):
        later = [replace(samples, times=samples.times + part * length * STEP_MS) for samples in fleet]
        ours.fill(store, later, lambda: None, COMMIT_MS)
    found, _ = ours.stored(store, DAY0_MS + points * STEP_MS)
    if found.samples != agents * SERIES * points:
        raise BenchError(f"day: {found.samples:,} samples in segments, expected {agents * SERIES * points:,}")
    session.add("day, built", BUILD, 1e9 * (time.perf_counter() - begin) / found.samples)
