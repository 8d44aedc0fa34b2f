"""The background: closed WAL files to segments, small segments to large ones, rollups, retention, free space.

`step` does one piece of work and says whether there was any; the daemon calls it in a thread of its own, tests and tools
wherever they are. It reads files that nobody writes any more and writes new ones, so it shares nothing with the event loop but
`Wal.closed` and the segment set, both of which are replaced, never changed.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

from storage.codec import BEST_LEVEL, FAST_LEVEL, Hint
from storage.columns import Columns
from storage.files import Files
from storage.format import TIERS, CorruptError, StorageError
from storage.merge import merge
from storage.recovery import unneeded_wal
from storage.rollup import roll_up
from storage.segment_reader import Segment
from storage.segment_writer import SegmentInfo, SegmentWriter
from storage.segments import SegmentSet, set_aside
from storage.settings import StoreSettings
from storage.slices import slices
from storage.wal_names import Known
from storage.wal_reader import WalFile, read_wal
from storage.wal_rows import merged, span_of

MOST_PARTITIONS = 8  # written apart by one flush; what is older goes into one segment across partitions
SLICE_SAMPLES = 2_000_000  # decoded at once while merging: some 50 MB
MOST_HINTS = 10_000  # metrics
PREDECESSOR_MS = 3_600_000  # how far before a bucket its counters' value before is looked for


class Keeper:
    """See the module. Whatever fails is counted, reported to `on_trouble` and tried again; nothing is lost by it."""

    def __init__(
        self,
        files: Files,
        directory: Path,
        segments: SegmentSet,
        settings: StoreSettings,
        closed: Callable[[], Sequence[Path]],
        known: Callable[[Path], Known] = lambda _path: {},
    ) -> None:
        """closed: WAL files that wait to become segments; known: what is remembered of the names in one."""
        self.flushed: list[Path] = []  # closed WAL files that are in segments and gone; taken by the store
        self.counts: Counter[str] = (
            Counter()
        )  # flushes, merges, rollups, expired_segments, keeper_failures, lost_samples
        self.refusal = ""  # why nothing may be taken, or empty
        self.on_trouble: Callable[[str, Exception], None] = lambda _what, _error: None
        self._files = files
        self._directory = directory
        self._segments = segments
        self._settings = settings
        self._closed = closed
        self._known = known
        self._hints: dict[str, dict[str, Hint]] = {tier: {} for tier in TIERS}  # of values' encoding, by metric
        self._tried: set[tuple[str, int]] = set()  # tier and order of segments that left nothing to roll up
        self._lock = threading.Lock()

    def step(self, now_ms: int) -> bool:
        """One piece of work, the most urgent first. False when there was none, or it failed."""
        with self._lock:
            try:
                self.check_space()
                return self._flush(now_ms) or self._expire(now_ms) or self._merge(now_ms) or self._roll_up(now_ms)
            except (OSError, StorageError) as error:
                self.counts["keeper_failures"] += 1
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    self.refusal = (
                        f"no space left on the device of {self._directory}; free some, or lower storage.retention"
                    )
                self.on_trouble("background", error)
                if isinstance(error, CorruptError):
                    self._set_aside(error.path)
                return False

    def finish(self, now_ms: int) -> None:
        """All there is to do now."""
        while self.step(now_ms):
            pass

    def check_space(self) -> None:
        """Whether there is room for more."""
        free, least = self._files.free_bytes(self._directory), self._settings.least_free_bytes
        self.refusal = (
            f"got {free >> 20} MiB of free space in {self._directory}, expected at least {least >> 20} MiB "
            "(storage.least_free_bytes); free some, or lower storage.retention"
            if free < least
            else ""
        )

    def _set_aside(self, path: Path) -> None:
        """A segment of which not even the tables can be read would be in the way of its partition's merging for ever."""
        for segment in self._segments.all():
            if segment.path == path:
                self._segments.quarantine(segment)

    # Flush

    def _flush(self, now_ms: int) -> bool:
        paths = [path for path in self._closed() if path not in self.flushed]
        if not paths:
            return False
        contents = []
        for path in paths:
            wal = self._read_wal(path)
            for loss in wal.losses:
                self.on_trouble("wal", loss)
            self.counts["lost_samples"] += wal.lost_samples
            if wal.content is not None:
                contents.append(wal.content)
        writers: list[SegmentWriter] = []
        try:
            for start_ms, end_ms in self._partitions(span_of(contents), now_ms):
                writers += self._filled("raw", merged(contents, start_ms, end_ms), order=0, level=FAST_LEVEL)
        except BaseException:
            for writer in writers:
                writer.abort()
            raise
        del contents
        done = max(int(path.stem) for path in paths)
        self._publish(self._finished(writers, wal=done))
        self.flushed += paths
        self._remove_wal(done)
        self.counts["flushes"] += 1
        return True

    def _read_wal(self, path: Path) -> WalFile:
        """What is left of it: one that is no WAL any more, or is gone, must not keep the others from becoming segments."""
        try:
            return read_wal(self._files, path, self._known(path))
        except CorruptError as error:
            self.on_trouble("wal", error)
            set_aside(self._files, self._directory, path)
        except FileNotFoundError as error:
            self.on_trouble("wal", error)
        return WalFile(int(path.stem))

    def _remove_wal(self, done: int) -> None:
        """All files up to a number, but those that alone know what had been received."""
        for path in unneeded_wal(self._files, self._directory, done):
            with suppress(OSError):  # it does not count, and the next flush tries again
                self._files.unlink(path)

    def _partitions(self, span: tuple[int, int] | None, now_ms: int) -> Iterator[tuple[int, int]]:
        """Times cut at partitions' borders, oldest first; what is older than the newest few, or still to come, is one piece.

        Nothing beyond retention.
        """
        if span is None:
            return
        width = self._settings.partition_ms
        first, last = span[0] // width, span[1] // width
        newest = max(first, min(last, now_ms // width) - MOST_PARTITIONS + 2)
        last = min(last, newest + MOST_PARTITIONS - 1)
        edges = [span[0], *(partition * width for partition in range(newest, last + 1)), span[1] + 1]
        horizon_ms = now_ms - self._settings.retention_ms
        for start_ms, end_ms in pairwise(edges):
            if max(start_ms, horizon_ms) < end_ms:
                yield max(start_ms, horizon_ms), end_ms

    # Segments

    def _written(
        self,
        tier: str,
        pieces: Iterator[Columns],
        *,
        order: int = 0,
        replaces: Sequence[int] = (),
        wal: int = 0,
        level: int,
    ) -> list[SegmentInfo]:
        """One segment, finished and not published; none when there was nothing to write."""
        return self._finished(self._filled(tier, pieces, order=order, replaces=replaces, level=level), wal=wal)

    def _finished(self, writers: Sequence[SegmentWriter], *, wal: int = 0) -> list[SegmentInfo]:
        """All of them or none, in this order. `wal`: for the last, up to which WAL file all is in segments."""
        infos: list[SegmentInfo] = []
        try:
            for writer in writers:
                infos.append(writer.finish(wal=wal if writer is writers[-1] else 0))
        except BaseException:
            for writer in writers:
                writer.abort()
            self._discard(infos)
            raise
        return infos

    def _filled(
        self,
        tier: str,
        pieces: Iterator[Columns],
        *,
        order: int,
        replaces: Sequence[int] = (),
        level: int,
    ) -> list[SegmentWriter]:
        """One segment with all that goes into it; none when there was nothing to write."""
        number = self._segments.next_number()
        path = self._segments.path_of(number)
        writer = SegmentWriter(
            self._files, path, number=number, order=order or number, tier=tier, replaces=replaces, level=level,
            hints=self._hints[tier],
        )  # fmt: skip
        while len(self._hints[tier]) > MOST_HINTS:
            del self._hints[tier][next(iter(self._hints[tier]))]
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

    def _publish(self, infos: Sequence[SegmentInfo]) -> None:
        try:
            self._segments.publish(*infos)
        except (OSError, StorageError):  # they cannot be read back
            self._discard(infos)
            raise

    def _discard(self, infos: Sequence[SegmentInfo]) -> None:
        """Remove what was not published. The last first, and none without it: it alone says that the WAL is done."""
        with suppress(OSError):
            for info in reversed(infos):
                self._files.unlink(self._segments.path_of(info.number), missing_ok=True)

    # Merge

    def _merge(self, now_ms: int) -> bool:
        for tier in TIERS:
            for run in self._segments.merge_candidates(tier, now_ms):
                self._merge_run(tier, run, now_ms)
                return True
        return False

    def _merge_run(self, tier: str, run: Sequence[Segment], now_ms: int) -> None:
        horizon_ms = now_ms - self._settings.retention_of(tier)
        sources = sorted(run, key=lambda segment: (segment.info.order, segment.info.number))

        def on_damage(segment: Segment, error: CorruptError) -> None:
            self._segments.note_damage(segment)  # what is whole of it goes on; the file itself is kept aside
            self.on_trouble("merge", error)

        def pieces() -> Iterator[Columns]:
            for parts in slices(sources, horizon_ms, 1 << 62, SLICE_SAMPLES, on_damage):
                yield merge(parts)

        infos = [segment.info for segment in sources]
        numbers = [info.number for info in infos] + [n for info in infos for n in info.replaces]
        written = self._written(
            tier, pieces(), order=infos[-1].order, replaces=numbers, wal=max(i.wal for i in infos), level=BEST_LEVEL
        )
        if written:
            self._publish(written)
        else:
            self._segments.remove(sources)
        self.counts["merges"] += 1

    # Rollup

    def _roll_up(self, now_ms: int) -> bool:
        for tier, width_ms in TIERS.items():
            if tier != "raw":
                for segment in self._segments.all("raw"):
                    if self._needs_rollup(segment, tier, width_ms, now_ms):
                        self._roll_up_around(segment, tier, width_ms, now_ms - self._settings.retention_ms)
                        return True
        return False

    def _needs_rollup(self, segment: Segment, tier: str, width_ms: int, now_ms: int) -> bool:
        info = segment.info
        sealed_ms = _ceil(info.max_ms, self._settings.partition_ms) + self._settings.seal_ms
        if sealed_ms > now_ms or (tier, info.order) in self._tried:
            return False
        first, last = _ceil(info.min_ms, width_ms), _ceil(info.max_ms, width_ms)
        done = any(
            other.info.order >= info.order and other.info.min_ms <= first and other.info.max_ms >= last
            for other in self._segments.overlapping(tier, first, last + 1)
        )
        return not done or self._end_of_effect(info, tier, width_ms) > last

    def _roll_up_around(self, segment: Segment, tier: str, width_ms: int, horizon_ms: int) -> None:
        """All buckets that a raw segment has samples in, from all raw segments that have samples in them. A bucket of which
        raw samples have expired is left as it is.
        """
        info = segment.info
        start_ms = _ceil(max(info.min_ms - width_ms, horizon_ms), width_ms)
        end_ms = self._end_of_effect(info, tier, width_ms)
        sources = self._segments.overlapping("raw", start_ms - PREDECESSOR_MS, end_ms + 1)
        order = max((s.info.order for s in sources if s.info.max_ms > start_ms), default=info.order)
        damaged: list[CorruptError] = []

        def pieces() -> Iterator[tuple[int, Columns]]:
            """Rollups, and the number of the segment that they go into: a metric that is cut goes on in another one, because
            its first aggregate begins anew there.
            """
            read = slices(
                sources, start_ms - PREDECESSOR_MS + 1, end_ms + 1, SLICE_SAMPLES, lambda _, e: damaged.append(e)
            )
            number, metric = 0, ""
            for parts in read:
                rolled = roll_up(merge(parts), width_ms, start_ms, end_ms)
                if rolled.series:
                    number += rolled.shapes[0].metric == metric
                    metric = rolled.shapes[-1].metric
                    yield number, rolled

        writers: list[SegmentWriter] = []
        try:
            for _, run in groupby(pieces(), key=itemgetter(0)):
                part = (rolled for _, rolled in run)
                writers += self._filled(tier, part, order=info.order - 1 if writers else order, level=BEST_LEVEL)
        except BaseException:
            for writer in writers:
                writer.abort()
            raise
        self._publish(self._finished(writers[::-1]))  # the first at last: its order alone says that all this was done
        self._tried.add((tier, info.order))  # nothing in it to roll up, or beyond retention: not again and again
        for error in damaged:
            self.on_trouble("segment", error)
        self.counts["rollups"] += 1

    def _end_of_effect(self, info: SegmentInfo, tier: str, width_ms: int) -> int:
        """The end of the last bucket that a raw segment's samples have a say in: the samples after them have grown from
        them, and may have been rolled up before they came.
        """
        end_ms, last_ms = _ceil(info.max_ms, width_ms), _ceil(info.max_ms + PREDECESSOR_MS, width_ms)
        later = [segment.info for segment in self._segments.overlapping(tier, end_ms + 1, last_ms + 1)]
        ends_ms = [end_ms]
        for before in (other for other in later if other.order < info.order):
            first, last = max(before.min_ms, end_ms + 1), min(before.max_ms, last_ms)
            if not any(o.order >= info.order and o.min_ms <= first and o.max_ms >= last for o in later):
                ends_ms.append(last)
        return max(ends_ms)

    # Retention

    def _expire(self, now_ms: int) -> bool:
        """Whole segments: beyond their tier's age, and the oldest while all take more than they may."""
        gone: list[Segment] = []
        for tier in TIERS:
            gone += self._segments.expired(tier, now_ms - self._settings.retention_of(tier))
        most = self._settings.retention_bytes
        if most:
            left = sorted(
                (s for t in TIERS for s in self._segments.all(t) if s not in gone), key=lambda s: s.info.max_ms
            )
            size = sum(s.info.size_bytes for s in left)
            while size > most and len(left) > 1:
                oldest = left.pop(0)
                size -= oldest.info.size_bytes
                gone.append(oldest)
        if not gone:
            return False
        self._segments.remove(gone)
        self.counts["expired_segments"] += len(gone)
        return True


def _ceil(time_ms: int, width_ms: int) -> int:
    """The end of the bucket (t - width, t] that a time is in."""
    return -(-time_ms // width_ms) * width_ms
