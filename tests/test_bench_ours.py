"""A fleet through the store's own write path: what is read back is what went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import cases, ours
from bench.machine import BenchError
from storage.matchers import Matcher
from storage.settings import StoreSettings
from storage.store import Store

START_MS = 1_700_000_000_000
AGENTS, SERIES, POINTS = 2, 28, 40


@pytest.mark.parametrize("case", cases.CASES)
def test_every_sample_is_in_segments_with_its_time_and_value(case: str, tmp_path: Path) -> None:
    fleet = cases.fleet(case, AGENTS, SERIES, POINTS, START_MS)
    commits = []
    with ours.opened(tmp_path / "data", StoreSettings()) as store:
        last_ms = ours.fill(store, fleet, lambda: commits.append(1))
        found, rollup_bytes = ours.stored(store, last_ms)
        assert found.samples == sum(samples.count for samples in fleet)
        assert last_ms == max(int(samples.times.max()) for samples in fleet if samples.count)
        assert len(commits) >= POINTS / 2
        files = sum(path.stat().st_size for path in (tmp_path / "data" / "segments").iterdir())
        assert found.size_bytes + rollup_bytes == files
        for index, samples in enumerate(fleet):
            assert_holds(store, index, samples)


def assert_holds(store: Store, index: int, samples: cases.Samples) -> None:
    instance = dict(ours.owner_of(index))["instance"]
    read = store.read([Matcher("instance", "=", instance)], START_MS, 1 << 62)
    got = {}
    for i in range(read.series):
        shape, at = read.shapes[read.shape[i]], slice(*read.edges[read.vector[i] :][:2])
        count = at.stop - at.start
        got[shape] = (read.times[at], read.values[read.start[i] : read.start[i] + count])
    for (shape, _), times, values in zip(
        ours.series_of(samples.names), np.broadcast_to(samples.times, samples.values.shape), samples.values, strict=True
    ):
        there = np.isfinite(values)
        if there.any():
            assert np.array_equal(got[shape][0], times[there])
            assert np.array_equal(got[shape][1], values[there])
        else:
            assert shape not in got


def test_a_store_is_closed_behind_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with ours.opened(tmp_path / "data", StoreSettings()):
            raise ZeroDivisionError

    for _ in range(2):  # the second one finds the directory unlocked
        with pytest.raises(ZeroDivisionError):
            fail()


def test_a_store_in_memory_has_no_segments_to_count() -> None:
    with pytest.raises(BenchError, match="expected one with a directory"):
        ours.segments_of(Store.in_memory())
