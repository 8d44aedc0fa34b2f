"""Reading beside the thread that appends: memory is captured there, at one moment, and files are read by whoever asks.

Memory first: what becomes a segment after the capture is in both, and counts once. Were files looked at first, what becomes a
segment meanwhile would be in neither.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from storage.columns import Columns
from storage.format import TIERS, CorruptError
from storage.head import RingRows
from storage.labels import LabelIndex, shape_labels, split
from storage.matchers import Matcher
from storage.merge import merge
from storage.passes import Mask, Numbers
from storage.resident import Resident
from storage.segment_reader import Segment
from storage.segments import SegmentSet
from storage.types import Ids, Labels, Shape

_Name = TypeVar("_Name", Labels, Shape)

MOST_LABEL_INDEXES = 32  # of segments, for matchers: some 100 bytes a label pair


class TooManyError(Exception):
    """More series or samples match than the reader wants to have. what: which of the two."""

    def __init__(self, what: str, found: int, most: int) -> None:
        super().__init__(f"found {found} {what}; expected at most {most}")
        self.what = what
        self.found = found
        self.most = most


Before = Callable[[int], None]
"""Called before a file is read, with the number of samples that will be read, more or less. May raise, to give up."""


@dataclass(frozen=True, slots=True)
class Captured:
    """What memory holds of the samples that are asked for, as it was at one moment: any thread may read it."""

    late: Columns | None
    rows: RingRows
    residents: tuple[Resident, ...]


@dataclass(frozen=True, slots=True)
class SeriesTable:
    """S series without samples: series i is owners[owner[i]] and shapes[shape[i]]. Numbers int32, shape (S,)."""

    owners: Sequence[Labels]
    shapes: Sequence[Shape]
    owner: Numbers
    shape: Numbers

    @classmethod
    def of(cls, columns: Columns) -> SeriesTable:
        """The series of these samples."""
        return cls(columns.owners, columns.shapes, columns.owner, columns.shape)


@dataclass(frozen=True, slots=True)
class CapturedSeries:
    """As `Captured`, of series without their samples."""

    tables: list[SeriesTable]
    residents: tuple[Resident, ...]


def go_on(_samples: int) -> None:
    """`Before` of a reader who never gives up."""


class FileReader:
    """What segments and WAL files hold. Any thread may read."""

    def __init__(self, on_damage: Callable[[CorruptError], None]) -> None:
        self.segments: SegmentSet | None = None
        self._on_damage = on_damage
        self._lock = threading.Lock()
        self._label_indexes: dict[Path, tuple[LabelIndex, LabelIndex]] = {}  # by file: owners, shapes

    def overlapping(self, tier: str, start_ms: int, end_ms: int) -> Sequence[Segment]:
        """The segments of a tier that may have samples with start_ms <= time < end_ms."""
        if tier not in TIERS:
            raise ValueError(f"got tier {tier!r}, expected one of {', '.join(TIERS)}")
        return self.segments.overlapping(tier, start_ms, end_ms) if self.segments is not None else ()

    def read(
        self,
        tier: str,
        matchers: Sequence[Matcher],
        start_ms: int,
        end_ms: int,
        before: Before = go_on,
    ) -> list[Columns]:
        """The samples with start_ms <= time < end_ms of the series that match, segment by segment, oldest first."""
        parts = []
        for segment in self.overlapping(tier, start_ms, end_ms):
            parts.append(self._read_segment(segment, matchers, start_ms, end_ms, before))
        return parts

    def read_residents(
        self,
        residents: Sequence[Resident],
        matchers: Sequence[Matcher],
        start_ms: int,
        end_ms: int,
        before: Before = go_on,
    ) -> list[Columns]:
        """The same of WAL files."""
        parts = []
        for resident in residents:
            if resident.overlaps(start_ms, end_ms):
                before(0)  # it is no longer than the WAL may be
                masks = self._masks(resident.path, resident.owners, resident.shapes, matchers)
                parts.append(resident.read(*masks, start_ms, end_ms))
        return parts

    def series(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, before: Before = go_on
    ) -> list[SeriesTable]:
        """The series that match, of segments that overlap this time."""
        tables = []
        for segment in self.overlapping("raw", start_ms, end_ms):
            before(0)
            try:
                places, known = self._find(segment, matchers), segment.tables()
            except CorruptError as error:
                self._on_damage(error)
                continue
            tables.append(
                SeriesTable(known.owners, known.shapes, known.series_owner[places], known.series_shape[places])
            )
        return tables

    def read_named(
        self, segment: Segment, owners: set[Labels], shapes: set[Shape], start_ms: int, end_ms: int
    ) -> Columns:
        """Of a segment what belongs to any of these owners and any of these shapes."""
        try:
            tables = segment.tables()
            places = segment.find(among(tables.owners, owners), among(tables.shapes, shapes))
            return segment.read(places, start_ms, end_ms, on_damage=self._on_damage) if len(places) else Columns()
        except CorruptError as error:
            self._on_damage(error)
            return Columns()

    def _read_segment(
        self, segment: Segment, matchers: Sequence[Matcher], start_ms: int, end_ms: int, before: Before
    ) -> Columns:
        try:
            places = self._find(segment, matchers)
            before(_expected(segment, places, start_ms, end_ms))
            return segment.read(places, start_ms, end_ms, on_damage=self._on_damage) if len(places) else Columns()
        except CorruptError as error:
            self._on_damage(error)
            return Columns()

    def _find(self, segment: Segment, matchers: Sequence[Matcher]) -> Ids:
        """Places of a segment's series that match."""
        tables = segment.tables()
        return segment.find(*self._masks(segment.path, tables.owners, tables.shapes, matchers))

    def _masks(
        self, path: Path, owners: list[Labels], shapes: list[Shape], matchers: Sequence[Matcher]
    ) -> tuple[Mask, Mask]:
        """Which of a file's owners and which of its shapes match."""
        with self._lock:
            known = self._label_indexes.get(path)
        if known is None:
            known = LabelIndex.of(owners), LabelIndex.of([shape_labels(shape) for shape in shapes])
            with self._lock:
                self._label_indexes[path] = known
                while len(self._label_indexes) > MOST_LABEL_INDEXES:
                    del self._label_indexes[next(iter(self._label_indexes))]
        of_owner, of_shape = split(matchers)
        masks = np.zeros(len(owners), dtype=bool), np.zeros(len(shapes), dtype=bool)
        masks[0][np.frombuffer(known[0].select(of_owner).to_array(), dtype=np.uint32)] = True
        masks[1][np.frombuffer(known[1].select(of_shape).to_array(), dtype=np.uint32)] = True
        return masks


def _expected(segment: Segment, places: Ids, start_ms: int, end_ms: int) -> int:
    """How many samples of these series lie in this time, if they lie evenly."""
    tables, info = segment.tables(), segment.info
    whole = int(np.diff(tables.edges)[tables.series_vector[places]].sum())
    asked_ms = min(end_ms, info.max_ms + 1) - max(start_ms, info.min_ms)
    return int(whole * max(asked_ms, 0) / (info.max_ms + 1 - info.min_ms))


def among(names: Sequence[_Name], wanted: set[_Name]) -> Mask:
    """Which of these names are wanted."""
    return np.array([name in wanted for name in names], dtype=bool)


def merged(parts: Sequence[Columns]) -> Columns:
    """Also of nothing."""
    parts = [part for part in parts if part.series]
    return merge(parts) if parts else Columns()
