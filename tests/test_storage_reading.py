"""A read in two halves, memory and files: together they have everything once, whatever happens in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.columns import Columns
from storage.head import Plan
from storage.matchers import Matcher, settled
from storage.reading import TooManyError
from storage.settings import StoreSettings
from storage.store import Store
from storage.types import Meta, Shape
from tests.store_model import HOUR_MS, NOW_MS

METRIC = Matcher("__name__", "=", "m")
SECOND_MS = 1000
LATER_MS = NOW_MS + HOUR_MS
OWNER = (("instance", "i"), ("job", "j"))
SETTINGS = StoreSettings(memory_bytes=1 << 20, slots=64, least_free_bytes=0)


class Writer:
    """Appends to one series of a store on disk: of each second its number."""

    def __init__(self, folder: Path, settings: StoreSettings = SETTINGS) -> None:
        self.folder, self.settings = folder / "data", settings
        self.store = Store.open(self.folder, settings)
        self.plan = self._plan()

    def _plan(self) -> Plan:
        head = self.store.head
        return head.plan(head.declare(OWNER, [(Shape("m", ()), Meta("gauge", "", "", ""))], 10))

    def append(self, seconds: range) -> None:
        for second in seconds:
            self.store.append(self.plan, NOW_MS + second * SECOND_MS, np.array([float(second)]))

    def restart(self) -> None:
        self.store.commit(LATER_MS)
        self.store.close()
        self.store = Store.open(self.folder, self.settings)
        self.plan = self._plan()


def values_of(columns: Columns) -> list[float]:
    return columns.values[: columns.samples].tolist() if columns.series else []


def whole(store: Store) -> list[float]:
    captured = store.capture([METRIC], NOW_MS, LATER_MS)
    return values_of(store.complete(captured, [METRIC], NOW_MS, LATER_MS))


def test_what_becomes_a_segment_between_the_halves_is_found_once(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    store = writer.store
    writer.append(range(10))
    captured = store.capture([METRIC], NOW_MS, LATER_MS)
    store.flush(LATER_MS)
    assert store.segments is not None
    assert len(store.segments.all("raw")) == 1
    assert values_of(store.complete(captured, [METRIC], NOW_MS, LATER_MS)) == list(range(10))
    assert not store.capture([METRIC], NOW_MS, LATER_MS).rows.slabs
    assert whole(store) == list(range(10))
    store.close()


def test_a_wal_file_that_becomes_a_segment_between_the_halves_is_found_once(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(range(10))
    writer.restart()
    writer.append(range(10, 20))
    captured = writer.store.capture([METRIC], NOW_MS, LATER_MS)
    assert len(captured.residents) == 1
    writer.store.flush(LATER_MS)
    assert values_of(writer.store.complete(captured, [METRIC], NOW_MS, LATER_MS)) == list(range(20))
    assert whole(writer.store) == list(range(20))
    writer.store.close()


def test_what_is_written_between_the_halves_does_not_show(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(range(10))
    captured = writer.store.capture([METRIC], NOW_MS, LATER_MS)
    writer.append(range(10, 200))  # the ring goes round, or grows
    assert values_of(writer.store.complete(captured, [METRIC], NOW_MS, LATER_MS)) == list(range(10))
    writer.store.close()


def test_too_much_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(range(10))
    with pytest.raises(TooManyError, match="found 1 series; expected at most 0"):
        writer.store.capture([METRIC], NOW_MS, LATER_MS, most_series=0)
    with pytest.raises(TooManyError, match="found 10 samples; expected at most 9"):
        writer.store.capture([METRIC], NOW_MS, LATER_MS, most_samples=9)
    writer.store.capture([METRIC], NOW_MS + 5 * SECOND_MS, LATER_MS, most_samples=5)
    writer.store.capture([METRIC], NOW_MS, LATER_MS, most_samples=10)
    writer.store.close()


def test_a_reader_hears_of_each_file_before_it_is_read(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    writer = Writer(tmp_path)
    for begin in (0, 100):
        writer.append(range(begin, begin + 100))
        writer.store.flush(LATER_MS)
    told: list[int] = []
    captured = writer.store.capture([METRIC], NOW_MS, LATER_MS)
    writer.store.complete(captured, [METRIC], NOW_MS, LATER_MS, told.append)
    assert told == [100, 100, 0]
    told.clear()
    half_ms = NOW_MS + 50 * SECOND_MS
    writer.store.complete(captured, [METRIC], NOW_MS, half_ms, told.append)
    assert [about // 5 * 5 for about in told] == [50, 0]

    def stop(_samples: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        writer.store.complete(captured, [METRIC], NOW_MS, LATER_MS, stop)
    writer.store.close()


def test_series_are_found_in_rings_wal_files_and_segments_of_that_time(tmp_path: Path) -> None:
    def names(start_ms: int, end_ms: int) -> set[str]:
        captured = writer.store.capture_series([METRIC], start_ms, end_ms)
        tables = writer.store.complete_series(captured, [METRIC], start_ms, end_ms)
        return {table.shapes[shape].metric for table in tables for shape in table.shape.tolist()}

    writer = Writer(tmp_path)
    writer.append(range(10))
    inside, before = (NOW_MS, NOW_MS + 10 * SECOND_MS), (NOW_MS - HOUR_MS, NOW_MS)
    for step in (lambda: None, writer.restart, lambda: writer.store.flush(LATER_MS), writer.restart):
        step()
        assert names(*inside) == {"m"}
        assert names(*before) == set()
    writer.store.close()


def test_rollups_go_on_where_raw_samples_end(tmp_path: Path) -> None:
    settings = replace(SETTINGS, retention_ms=3 * HOUR_MS, partition_ms=HOUR_MS, seal_ms=60_000, slots=16)
    writer = Writer(tmp_path, settings)
    writer.append(range(0, 3600, 10))
    writer.store.flush(NOW_MS + 2 * HOUR_MS)
    writer.store.compact(NOW_MS + 2 * HOUR_MS)
    writer.store.compact(NOW_MS + 5 * HOUR_MS)
    assert writer.store.segments is not None
    assert not writer.store.segments.all("raw")
    nothing = writer.store.complete(writer.store.capture([METRIC], NOW_MS, LATER_MS), [METRIC], NOW_MS, LATER_MS)
    assert values_of(nothing) == []
    told: list[int] = []
    found = writer.store.with_older(nothing, [METRIC], NOW_MS, LATER_MS, told.append)
    assert values_of(found)[:3] == [0.0, 35.0, 95.0]  # means of the minutes that end at 0, 60 and 120 s
    assert sum(told) > 0
    writer.store.close()


@pytest.mark.parametrize("op", ["=", "!=", "=~", "!~"])
@pytest.mark.parametrize("pattern", ["a.c", "a|b", "", ".*", ".+", "[a-c]+x?", "x{0,3}"])
def test_a_settled_matcher_has_the_same_verdict(op: str, pattern: str) -> None:
    values = ["abc", "a", "b", "axc", "cab", "x", ""]
    matcher = Matcher("n", op, pattern)
    quick = settled(matcher, values)
    assert quick.among(values) == matcher.among(values)
    assert (quick.negative, quick.is_empty_matching) == (matcher.negative, matcher.is_empty_matching)
    assert quick.words is not None
    assert quick == matcher
