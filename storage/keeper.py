"""The background: closed WAL files to segments, small segments to large ones, rollups, retention, free space.

`step` does one piece of work and says whether there was any; the daemon calls it in a thread of its own, tests and tools
wherever they are. It reads files that nobody writes any more and writes new ones, so it shares nothing with the event loop but
`Wal.closed` and the segment set, both of which are replaced, never changed.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from storage.files import Files
from storage.format import TIERS, CorruptError, StorageError
from storage.making import (
    MOST_PARTITIONS,
    PREDECESSOR_MS,
    Flush,
    Made,
    Maker,
    MakerLostError,
    Merge,
    RollUp,
    Task,
    discard,
)
from storage.recovery import unneeded_wal
from storage.segment_reader import Segment
from storage.segment_writer import SegmentInfo
from storage.segments import TMP_SUFFIX, SegmentSet, set_aside
from storage.settings import StoreSettings

MOST_ROLLUP_SEGMENTS = 1000  # of one rollup: one, and one more for each time that a metric is larger than a slice


class Keeper:
    """See the module. Whatever fails is counted, reported to `on_trouble` and tried again; nothing is lost by it."""

    def __init__(
        self,
        files: Files,
        directory: Path,
        segments: SegmentSet,
        settings: StoreSettings,
        closed: Callable[[], Sequence[Path]],
    ) -> None:
        """closed: WAL files that wait to become segments."""
        self.make: Callable[[Task], Made] = Maker(files, segments.directory).make
        """Who does the work: here, or in another process."""
        self.flushed: list[Path] = []  # closed WAL files that are in segments and gone; taken by the store
        self.counts: Counter[str] = (
            Counter()
        )  # flushes, merges, rollups, expired_segments, keeper_failures, makers_lost, lost_samples
        self.refusal = ""  # why nothing may be taken, or empty
        self.on_trouble: Callable[[str, Exception], None] = lambda _what, _error: None
        self._files = files
        self._directory = directory
        self._segments = segments
        self._settings = settings
        self._closed = closed
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
        done = set(self.flushed)  # looked at first: what leaves it meanwhile has left the closed ones before
        paths = tuple(path for path in self._closed() if path not in done)
        if not paths:
            return False
        settings, numbers = self._settings, self._segments.next_numbers(MOST_PARTITIONS + 1)
        made = self._made(Flush(paths, numbers, now_ms, now_ms - settings.retention_ms, settings.partition_ms))
        for loss in made.losses:
            self.on_trouble("wal", loss)
        self.counts["lost_samples"] += made.lost_samples
        self._publish(made)
        self.flushed += paths
        for path, error in made.unreadable:
            self._put_aside(path, error)
        self._remove_wal(max(int(path.stem) for path in paths))
        self.counts["flushes"] += 1
        return True

    def _put_aside(self, path: Path, error: Exception) -> None:
        """A closed file that is no WAL any more."""
        self.on_trouble("wal", error)
        if isinstance(error, CorruptError):
            try:
                set_aside(self._files, self._directory, path)
            except OSError as failure:
                self.on_trouble("quarantine", failure)

    def _remove_wal(self, done: int) -> None:
        """All files up to a number, but those that alone know what had been received."""
        for path in unneeded_wal(self._files, self._directory, done):
            with suppress(OSError):  # it does not count, and the next flush tries again
                self._files.unlink(path)

    # Segments

    def _made(self, task: Task) -> Made:
        try:
            return self.make(task)
        except MakerLostError:  # nobody else removes what it left behind
            self.counts["makers_lost"] += 1
            segments = [self._segments.path_of(number) for number in task.publishing]
            discard(self._files, [path for path in segments if self._files.exists(path)])
            with suppress(OSError):
                for path in segments:
                    self._files.unlink(path.with_name(path.name + TMP_SUFFIX), missing_ok=True)
            raise

    def _publish(self, made: Made) -> None:
        try:
            self._segments.publish(*made.infos)
        except (OSError, StorageError):  # they cannot be read back
            discard(self._files, [self._segments.path_of(info.number) for info in made.infos])
            raise

    # Merge

    def _merge(self, now_ms: int) -> bool:
        for tier in TIERS:
            for run in self._segments.merge_candidates(tier, now_ms):
                self._merge_run(tier, run, now_ms)
                return True
        return False

    def _merge_run(self, tier: str, run: Sequence[Segment], now_ms: int) -> None:
        horizon_ms = now_ms - self._settings.retention_of(tier)
        sources = _in_order(run)
        made = self._made(Merge(tier, _paths(sources), self._segments.next_numbers(1), horizon_ms))
        by_path = {segment.path: segment for segment in sources}
        for error in made.damaged:  # what is whole of it goes on; the file itself is kept aside
            self._segments.note_damage(by_path[error.path])
            self.on_trouble("merge", error)
        if made.infos:
            self._publish(made)
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
        numbers = self._segments.next_numbers(MOST_ROLLUP_SEGMENTS)
        made = self._made(
            RollUp(tier, _paths(_in_order(sources)), numbers, start_ms, end_ms, order, later_order=info.order - 1)
        )
        self._publish(made)
        self._tried.add((tier, info.order))  # nothing in it to roll up, or beyond retention: not again and again
        for error in made.damaged:
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


def _in_order(segments: Sequence[Segment]) -> list[Segment]:
    return sorted(segments, key=lambda segment: (segment.info.order, segment.info.number))


def _paths(segments: Sequence[Segment]) -> tuple[Path, ...]:
    return tuple(segment.path for segment in segments)


def _ceil(time_ms: int, width_ms: int) -> int:
    """The end of the bucket (t - width, t] that a time is in."""
    return -(-time_ms // width_ms) * width_ms
