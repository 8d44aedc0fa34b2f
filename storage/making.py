"""Making segments: of WAL files, of other segments, of raw samples as rollups. What to make is the keeper's to decide, and what
of it counts.

A task names files and numbers and holds nothing else, so that it can be done in another process: a `Maker` shares no memory
with whoever asks, and takes no interpreter lock from the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import TypeAlias

from storage.codec import BEST_LEVEL, FAST_LEVEL, Hint
from storage.columns import Columns
from storage.files import Files
from storage.format import TIERS, CorruptError, StorageError
from storage.merge import merge
from storage.rollup import roll_up
from storage.segment_reader import Segment
from storage.segment_writer import SegmentInfo, SegmentWriter
from storage.segments import segment_path
from storage.slices import slices
from storage.wal_names import Memory
from storage.wal_reader import WalFile, read_wal
from storage.wal_rows import merged, span_of

MOST_PARTITIONS = 8  # written apart by one flush; what is older goes into one segment across partitions
SLICE_SAMPLES = 2_000_000  # decoded at once while merging: some 50 MB
MOST_HINTS = 10_000  # metrics
PREDECESSOR_MS = 3_600_000  # how far before a bucket its counters' value before is looked for
FOREVER_MS = 1 << 62


class MakerLostError(StorageError):
    """Whoever was making something is gone; what there is of it counts for nothing."""


@dataclass(frozen=True, slots=True)
class Flush:
    """Closed WAL files, oldest first, to one segment for each partition. Nothing older than the horizon."""

    paths: tuple[Path, ...]
    numbers: range  # at least MOST_PARTITIONS + 1: the segments' own
    now_ms: int
    horizon_ms: int
    partition_ms: int

    @property
    def publishing(self) -> Sequence[int]:
        """Numbers in the order in which segments get their names: the last one says that all is done."""
        return self.numbers


@dataclass(frozen=True, slots=True)
class Merge:
    """Segments of one tier, ascending by (order, number), to one. Nothing older than the horizon."""

    tier: str
    paths: tuple[Path, ...]
    numbers: range  # one
    horizon_ms: int

    @property
    def publishing(self) -> Sequence[int]:
        """As of a flush."""
        return self.numbers


@dataclass(frozen=True, slots=True)
class RollUp:
    """Raw segments, ascending by (order, number), to buckets (start, end] of a tier.

    What comes first has `order`; what does not fit beside it has `later_order`.
    """

    tier: str
    paths: tuple[Path, ...]
    numbers: range
    start_ms: int
    end_ms: int
    order: int
    later_order: int

    @property
    def publishing(self) -> Sequence[int]:
        """The first number gets its name at last."""
        return self.numbers[::-1]


Task: TypeAlias = Flush | Merge | RollUp


@dataclass(slots=True)
class Made:
    """Segments under their names, not yet counted, in the order in which they are to be; and what was found on the way."""

    infos: list[SegmentInfo] = field(default_factory=list)
    losses: list[CorruptError] = field(default_factory=list)  # of WAL files that were read as far as they can be
    lost_samples: int = 0
    unreadable: list[tuple[Path, CorruptError | FileNotFoundError]] = field(default_factory=list)  # no WAL any more
    damaged: list[CorruptError] = field(default_factory=list)  # blocks of segments; what is whole of them was taken


class Maker:
    """Does tasks, one after the other. `directory`: of the segments."""

    def __init__(self, files: Files, directory: Path) -> None:
        self._files = files
        self._directory = directory
        self._memory = Memory()
        self._hints: dict[str, dict[str, Hint]] = {tier: {} for tier in TIERS}  # of values' encoding, by metric

    def make(self, task: Task) -> Made:
        """Does one. Raises CorruptError when a segment cannot be read at all, OSError; it leaves no file then."""
        match task:
            case Flush():
                return self._flush(task)
            case Merge():
                return self._merge(task)
            case RollUp():
                return self._roll_up(task)

    # Flush

    def _flush(self, task: Flush) -> Made:
        made, contents = Made(), []
        for path in task.paths:
            wal = self._read_wal(path, made)
            made.losses += wal.losses
            made.lost_samples += wal.lost_samples
            if wal.content is not None:
                contents.append(wal.content)
        numbers = iter(task.numbers)
        writers: list[SegmentWriter] = []
        try:
            for start_ms, end_ms in _partitions(span_of(contents), task):
                number = next(numbers)
                pieces = merged(contents, start_ms, end_ms)
                writers += self._filled("raw", pieces, number=number, order=number, level=FAST_LEVEL)
        except BaseException:
            for writer in writers:
                writer.abort()
            raise
        made.infos = self._finished(writers, wal=max(int(path.stem) for path in task.paths))
        return made

    def _read_wal(self, path: Path, made: Made) -> WalFile:
        """What is left of it: one that is no WAL any more, or is gone, must not keep the others from becoming segments."""
        try:
            return read_wal(self._files, path, self._memory)
        except (CorruptError, FileNotFoundError) as error:
            made.unreadable.append((path, error))
        return WalFile(int(path.stem))

    # Merge

    def _merge(self, task: Merge) -> Made:
        made = Made()
        with _opened(self._files, task.paths) as sources:
            infos = [segment.info for segment in sources]
            numbers = [info.number for info in infos] + [n for info in infos for n in info.replaces]
            read = slices(sources, task.horizon_ms, FOREVER_MS, SLICE_SAMPLES, lambda _, e: made.damaged.append(e))
            writers = self._filled(
                task.tier, map(merge, read), number=task.numbers[0], order=infos[-1].order, replaces=numbers
            )  # fmt: skip
            made.infos = self._finished(writers, wal=max(info.wal for info in infos))
        return made

    # Rollup

    def _roll_up(self, task: RollUp) -> Made:
        made, width_ms, numbers = Made(), TIERS[task.tier], iter(task.numbers)
        first_ms = task.start_ms - PREDECESSOR_MS + 1

        def pieces(sources: Sequence[Segment]) -> Iterator[tuple[int, Columns]]:
            """Rollups, and the number of the segment that they go into: a metric that is cut goes on in another one, because
            its first aggregate begins anew there.
            """
            read = slices(sources, first_ms, task.end_ms + 1, SLICE_SAMPLES, lambda _, e: made.damaged.append(e))
            number, metric = 0, ""
            for parts in read:
                rolled = roll_up(merge(parts), width_ms, task.start_ms, task.end_ms)
                if rolled.series:
                    number += rolled.shapes[0].metric == metric
                    metric = rolled.shapes[-1].metric
                    yield number, rolled

        writers: list[SegmentWriter] = []
        with _opened(self._files, task.paths) as sources:
            try:
                for _, run in groupby(pieces(sources), key=itemgetter(0)):
                    part = (rolled for _, rolled in run)
                    order = task.later_order if writers else task.order
                    writers += self._filled(task.tier, part, number=next(numbers), order=order)
            except BaseException:
                for writer in writers:
                    writer.abort()
                raise
            made.infos = self._finished(writers[::-1])  # the first at last: its order alone says that all this was done
        return made

    # Segments

    def _finished(self, writers: Sequence[SegmentWriter], *, wal: int = 0) -> list[SegmentInfo]:
        """All of them or none, in this order. `wal`: for the last, up to which WAL file all is in segments."""
        infos: list[SegmentInfo] = []
        try:
            for writer in writers:
                infos.append(writer.finish(wal=wal if writer is writers[-1] else 0))
        except BaseException:
            for writer in writers:
                writer.abort()
            with suppress(OSError):  # the one that says that all is done never got its name
                for info in infos:
                    self._files.unlink(segment_path(self._directory, info.number), missing_ok=True)
            raise
        return infos

    def _filled(
        self,
        tier: str,
        pieces: Iterator[Columns],
        *,
        number: int,
        order: int,
        replaces: Sequence[int] = (),
        level: int = BEST_LEVEL,
    ) -> list[SegmentWriter]:
        """One segment with all that goes into it; none when there was nothing to write."""
        path, hints = segment_path(self._directory, number), self._hints[tier]
        writer = SegmentWriter(
            self._files, path, number=number, order=order, tier=tier, replaces=replaces, level=level, hints=hints,
            like_together=level == BEST_LEVEL,
        )  # fmt: skip
        while len(hints) > MOST_HINTS:
            del hints[next(iter(hints))]
        samples = 0
        try:
            for piece in pieces:
                if piece.series:
                    writer.add(piece)
                    samples += piece.samples
            if not samples:
                writer.abort()
                return []
        except BaseException:
            writer.abort()
            raise
        return [writer]


def discard(files: Files, paths: Sequence[Path]) -> None:
    """Remove what does not count. The last first, durably, and none without it: it alone says that the others are done."""
    with suppress(OSError):
        for path in reversed(paths):
            files.unlink(path, missing_ok=True)
            if path is paths[-1]:
                files.sync_dir(path.parent)


@contextmanager
def _opened(files: Files, paths: Sequence[Path]) -> Iterator[list[Segment]]:
    segments = [Segment.open(files, path) for path in paths]
    try:
        yield segments
    finally:
        for segment in segments:
            segment.close()


def _partitions(span: tuple[int, int] | None, task: Flush) -> Iterator[tuple[int, int]]:
    """Times cut at partitions' borders, oldest first; what is older than the newest few, or still to come, is one piece.

    Nothing beyond the horizon.
    """
    if span is None:
        return
    width = task.partition_ms
    first, last = span[0] // width, span[1] // width
    newest = max(first, min(last, task.now_ms // width) - MOST_PARTITIONS + 2)
    last = min(last, newest + MOST_PARTITIONS - 1)
    edges = [span[0], *(partition * width for partition in range(newest, last + 1)), span[1] + 1]
    for start_ms, end_ms in pairwise(edges):
        if max(start_ms, task.horizon_ms) < end_ms:
            yield max(start_ms, task.horizon_ms), end_ms
