"""The segments that count: opened at start, published, replaced, removed; and which of them to merge next.

One background thread publishes and removes; readers on any thread take a tuple that never changes. A reader goes on with the
segments that it holds, also when their files are gone: they are memory-mapped.
"""

from __future__ import annotations

import errno
import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storage.files import Files
from storage.format import TIERS, CorruptError
from storage.segment_reader import Segment
from storage.segment_writer import SegmentInfo
from storage.settings import StoreSettings

SEGMENTS_DIR: Final = "segments"
WAL_DIR: Final = "wal"
QUARANTINE_DIR: Final = "quarantine"
SEGMENT_SUFFIX: Final = ".seg"
WAL_SUFFIX: Final = ".wal"
TMP_SUFFIX: Final = ".tmp"

_NUMBERED = re.compile(r"(\d{16})\.")


def numbered(files: Files, directory: Path, suffix: str) -> dict[int, Path]:
    """The files of a directory with a number for their name, ascending. Empty when there is no such directory."""
    found = {}
    for name in names_in(files, directory):
        match = _NUMBERED.match(name)
        if match and name == f"{match[1]}{suffix}":
            found[int(match[1])] = directory / name
    return dict(sorted(found.items()))


def segment_path(directory: Path, number: int) -> Path:
    """The name of a segment in the directory of segments."""
    return directory / f"{number:016d}{SEGMENT_SUFFIX}"


def names_in(files: Files, directory: Path) -> list[str]:
    """What lies in a directory, sorted; nothing when there is none."""
    try:
        return files.listdir(directory)
    except FileNotFoundError:
        return []


def set_aside(files: Files, root: Path, path: Path) -> Path:
    """Moves a damaged file of the data directory `root` into its quarantine; returns where it lies now. Nothing is deleted."""
    quarantine = root / QUARANTINE_DIR
    files.mkdir(quarantine)
    taken = set(files.listdir(quarantine))
    moved, again = quarantine / path.name, 1
    while moved.name in taken:
        moved, again = quarantine / f"{path.name}.{again}", again + 1
    files.rename(path, moved)
    files.sync_dir(quarantine)
    files.sync_dir(path.parent)
    return moved


@dataclass(frozen=True, slots=True)
class MergeRules:
    """When segments become one.

    A segment belongs to the partitions of time of its first and of its last sample. Only segments that agree in both are
    merged, so that none grows beyond its partitions. A partition that ended `seal_ms` ago is sealed: all its segments become
    one. Before that, some of similar size do.
    """

    partition_ms: int
    seal_ms: int
    fewest: int = 8  # in a partition that is not sealed: each sample is written again every time that eight become one
    least_share: float = (
        1 / 16
    )  # of the largest: what all others must have before a sealed partition is rewritten for them
    most_samples: int = 256_000_000
    most_series: int = 16_000_000  # as if no two segments had one in common

    def partitions(self, info: SegmentInfo) -> tuple[int, int]:
        """Numbers of the partitions of a segment's first and last sample. A rollup's sample stands for the time before it."""
        shift_ms = 1 if TIERS[info.tier] else 0
        return (info.min_ms - shift_ms) // self.partition_ms, (info.max_ms - shift_ms) // self.partition_ms

    def is_sealed(self, last_partition: int, now_ms: int) -> bool:
        """Whether its end is long enough ago."""
        return (last_partition + 1) * self.partition_ms + self.seal_ms <= now_ms

    def fits(self, infos: Sequence[SegmentInfo]) -> bool:
        """Whether these may become one segment."""
        samples, series = sum(i.samples for i in infos), sum(i.series for i in infos)
        return samples <= self.most_samples and series <= self.most_series


def merge_runs(infos: Sequence[SegmentInfo], rules: MergeRules, now_ms: int) -> list[list[SegmentInfo]]:
    """Runs of a tier's segments that should become one each, ascending by (order, number), the one with fewest samples first.

    A merged segment takes the place of its last part in the order of writing. So no run goes across another segment that was
    written between its parts and has samples of the time of one that was written before.
    """
    ordered = sorted(infos, key=_place)
    partitions: dict[tuple[int, int], list[SegmentInfo]] = {}
    for info in ordered:
        partitions.setdefault(rules.partitions(info), []).append(info)
    runs = []
    for (_, last), members in partitions.items():
        if len(members) > 1:
            sealed = rules.is_sealed(last, now_ms)
            for stretch in _stretches(members, ordered):
                run = (_whole(stretch, rules) if sealed else []) or _similar(stretch, rules)
                if run:
                    runs.append(run)
    return sorted(runs, key=lambda run: sum(info.samples for info in run))


def _stretches(members: Sequence[SegmentInfo], ordered: Sequence[SegmentInfo]) -> Iterator[list[SegmentInfo]]:
    """Cuts a partition's segments where another one, written between, overlaps what was written before it."""
    place = {info.number: i for i, info in enumerate(ordered)}
    stretch = [members[0]]
    for before, member in itertools.pairwise(members):
        between = ordered[place[before.number] + 1 : place[member.number]]
        if any(_overlap(info, other) for info in between for other in stretch):
            yield stretch
            stretch = []
        stretch.append(member)
    yield stretch


def _overlap(one: SegmentInfo, other: SegmentInfo) -> bool:
    return one.min_ms <= other.max_ms and other.min_ms <= one.max_ms


def _whole(stretch: Sequence[SegmentInfo], rules: MergeRules) -> list[SegmentInfo]:
    """As many together as may be, the oldest first, where that is worth the writing."""
    first = 0
    while first < len(stretch):
        last = first + 1
        while last < len(stretch) and rules.fits(stretch[first : last + 1]):
            last += 1
        run = list(stretch[first:last])
        largest = max(info.samples for info in run)
        if len(run) > 1 and sum(info.samples for info in run) - largest >= rules.least_share * largest:
            return run
        first = last
    return []


def _similar(stretch: Sequence[SegmentInfo], rules: MergeRules) -> list[SegmentInfo]:
    """Neighbours of which none is larger than all the others together; of several such runs the smallest."""
    for i in sorted(range(len(stretch)), key=lambda i: stretch[i].samples):
        most = stretch[i].samples
        first, last = i, i + 1
        while last < len(stretch) and stretch[last].samples <= most and rules.fits(stretch[first : last + 1]):
            last += 1
        while first and stretch[first - 1].samples <= most and rules.fits(stretch[first - 1 : last]):
            first -= 1
        run = list(stretch[first:last])
        if len(run) >= rules.fewest and 2 * most <= sum(info.samples for info in run):
            return run
    return []


def _place(info: SegmentInfo) -> tuple[int, int]:
    return info.order, info.number


@dataclass(slots=True)
class _Use:
    """A segment that was handed out. `loaded_bytes` of its tables, measured once: who asks for many asks often."""

    segment: Segment
    loaded_bytes: int = 0

    def measured_bytes(self) -> int:
        if not self.loaded_bytes:
            self.loaded_bytes = self.segment.tables_bytes
        return self.loaded_bytes


class SegmentSet:
    """All segments that count, in the order of writing, and the counter that numbers segments and WAL files.

    `directory` is the data directory. REQUIRES: `load()` before anything else.
    """

    def __init__(self, files: Files, directory: Path, settings: StoreSettings | None = None) -> None:
        settings = settings or StoreSettings()
        self.rules = MergeRules(settings.partition_ms, settings.seal_ms)
        self.wal_done = 0
        """Every WAL file up to this number is in a segment."""
        self.leftovers: list[Path] = []
        """Files that should be gone, and which the disk did not let go so far. They do not count."""
        self._files = files
        self._root = directory
        self.directory = directory / SEGMENTS_DIR
        self._all: tuple[Segment, ...] = ()
        self._greatest = 0
        self._damaged: set[Path] = set()
        self._table_bytes = settings.table_bytes
        self._recent: OrderedDict[int, _Use] = OrderedDict()  # whose tables may be loaded, the last used at the end
        self._lock = threading.Lock()  # of the two above that readers change: _recent and _greatest

    def load(self, thorough: bool = False) -> list[CorruptError]:
        """Opens what is there; with `thorough` reads every block. Returns what is damaged.

        It lies in quarantine now, but for what the disk could not read: that stays, for the disk may be able to again.
        Raises TooNewError, and has then touched nothing.
        """
        opened, damaged, unreadable = self._open_all(thorough)
        self.number_after(self._taken(opened.values()))
        for error in damaged:
            set_aside(self._files, self._root, error.path)
        replaced = {n for segment in opened.values() for n in segment.info.replaces}
        self._set_all(segment for number, segment in opened.items() if number not in replaced)
        self.wal_done = max((s.info.wal for s in opened.values()), default=0)
        unfinished = [name for name in names_in(self._files, self.directory) if name.endswith(TMP_SUFFIX)]
        self._remove_files([self.directory / name for name in unfinished])
        self._remove_files([self.path_of(number) for number in opened if number in replaced])
        return damaged + unreadable

    def _open_all(self, thorough: bool) -> tuple[dict[int, Segment], list[CorruptError], list[CorruptError]]:
        opened: dict[int, Segment] = {}
        damaged, unreadable = [], []
        present = numbered(self._files, self.directory, SEGMENT_SUFFIX)
        for number in present:
            try:
                segment = self._open(number)
                # What a segment replaces is removed: not before every block of it was found to be whole.
                if thorough or present.keys() & set(segment.info.replaces):
                    segment.verify()
                opened[number] = segment
            except CorruptError as error:
                damaged.append(error)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                reason = f"cannot be read: {error.strerror}"
                unreadable.append(CorruptError(self.path_of(number), 0, self._files.size(self.path_of(number)), reason))
        return opened, damaged, unreadable

    def _open(self, number: int) -> Segment:
        path = self.path_of(number)
        segment = Segment.open(self._files, path)
        if segment.info.number != number:
            reason = f"says that it is number {segment.info.number}, expected {number} from its name"
            raise CorruptError(path, 0, segment.info.size_bytes, reason)
        return segment

    def _taken(self, opened: Iterable[Segment]) -> Iterator[int]:
        """Every number that a file has, or is known by to another file."""
        for name in (SEGMENTS_DIR, WAL_DIR, QUARANTINE_DIR):
            for file in names_in(self._files, self._root / name):
                if match := _NUMBERED.match(file):
                    yield int(match[1])
        for segment in opened:
            yield from (segment.info.wal, segment.info.order, *segment.info.replaces)

    # Reading: any thread

    def all(self, tier: str | None = None) -> tuple[Segment, ...]:
        """The segments of a tier, or of all, ascending by (order, number)."""
        return self._all if tier is None else tuple(s for s in self._all if s.info.tier == tier)

    def overlapping(self, tier: str, start_ms: int, end_ms: int) -> list[Segment]:
        """Those that may have samples with start_ms <= time < end_ms, ascending by (order, number). Counts as their use."""
        found = [s for s in self._all if s.info.tier == tier and s.info.min_ms < end_ms and s.info.max_ms >= start_ms]
        with self._lock:
            for segment in found:
                self._recent.setdefault(segment.info.number, _Use(segment))
                self._recent.move_to_end(segment.info.number)
        self.trim()
        return found

    def trim(self) -> None:
        """Drops the tables of segments that were used least recently, until the others' fit their bound.

        Whoever is reading from one of them goes on; it only loads them again.
        """
        with self._lock:
            loaded_bytes = sum(use.measured_bytes() for use in self._recent.values())
            while loaded_bytes > self._table_bytes:
                _, oldest = self._recent.popitem(last=False)
                loaded_bytes -= oldest.loaded_bytes
                oldest.segment.forget()

    @property
    def tables_bytes(self) -> int:
        """Memory that the tables of segments take."""
        with self._lock:
            return sum(use.measured_bytes() for use in self._recent.values())

    @property
    def size_bytes(self) -> dict[str, int]:
        """Bytes on disk by tier."""
        sizes = dict.fromkeys(TIERS, 0)
        for segment in self._all:
            sizes[segment.info.tier] += segment.info.size_bytes
        return sizes

    def expired(self, tier: str, horizon_ms: int) -> list[Segment]:
        """Those whose samples are all older than the horizon."""
        return [s for s in self._all if s.info.tier == tier and s.info.max_ms < horizon_ms]

    def oldest_first(self, tier: str | None = None) -> list[Segment]:
        """Ascending by their newest sample: the order in which retention by bytes removes them."""
        return sorted(self.all(tier), key=lambda segment: (segment.info.max_ms, *_place(segment.info)))

    def merge_candidates(self, tier: str, now_ms: int) -> list[tuple[Segment, ...]]:
        """Runs of segments that should become one each, ascending by (order, number), the smallest run first.

        No other segment's samples would change their place in the order of writing by it.
        """
        segments = {segment.info.number: segment for segment in self.all(tier)}
        runs = merge_runs([segment.info for segment in segments.values()], self.rules, now_ms)
        return [tuple(segments[info.number] for info in run) for run in runs]

    # Changing: one thread at a time

    def next_number(self) -> int:
        """A number that no segment, WAL file or quarantined file has or had. On any thread."""
        return self.next_numbers(1)[0]

    def next_numbers(self, count: int) -> range:
        """So many of them."""
        with self._lock:
            self._greatest += count
            return range(self._greatest - count + 1, self._greatest + 1)

    def number_after(self, numbers: Iterable[int]) -> None:
        """These are taken: `next_number` goes on above them."""
        greatest = max(numbers, default=0)
        with self._lock:
            self._greatest = max(self._greatest, greatest)

    def path_of(self, number: int) -> Path:
        """Where the segment of a number lies."""
        return segment_path(self.directory, number)

    def publish(self, *infos: SegmentInfo) -> None:
        """Finished segments count from here on, all at once, and what they replace does not, and is unlinked.

        Raises CorruptError when one cannot be read back: nothing has changed then.
        """
        new = [self._open(info.number) for info in infos]
        replaced = {number for segment in new for number in segment.info.replaces}
        self._replace(replaced, new)

    def remove(self, segments: Iterable[Segment]) -> None:
        """These count no longer, and are unlinked. Those that are not in the set are passed over."""
        self._replace({segment.info.number for segment in segments}, [])

    def note_damage(self, segment: Segment) -> None:
        """When this segment leaves the set, replaced or removed, its file goes to quarantine and is not unlinked."""
        self._damaged.add(self.path_of(segment.info.number))

    def quarantine(self, segment: Segment) -> None:
        """This segment counts no longer, and its file goes to quarantine."""
        self.note_damage(segment)
        self.remove([segment])

    def close(self) -> None:
        """Nothing counts any more. REQUIRES: nobody reads."""
        for segment in self._all:
            segment.close()
        self._all = ()
        with self._lock:
            self._recent.clear()

    def _replace(self, gone: set[int], new: Sequence[Segment]) -> None:
        dropped = [segment for segment in self._all if segment.info.number in gone]
        self._set_all([*(segment for segment in self._all if segment.info.number not in gone), *new])
        self.wal_done = max([self.wal_done, *(segment.info.wal for segment in new)])
        with self._lock:
            for segment in dropped:
                self._recent.pop(segment.info.number, None)
        self._remove_files(self.path_of(segment.info.number) for segment in dropped)

    def _set_all(self, segments: Iterable[Segment]) -> None:
        self._all = tuple(sorted(segments, key=lambda segment: _place(segment.info)))

    def _remove_files(self, paths: Iterable[Path]) -> None:
        """Now or, where the disk does not let us, with the next ones, or at the next start: they do not count anyhow."""
        wanted = [*self.leftovers, *paths]
        self.leftovers = [path for path in wanted if not self._remove_file(path)]
        if len(self.leftovers) < len(wanted):
            # Before anything else is removed: what these replaced should not come back without them.
            with suppress(OSError):
                self._files.sync_dir(self.directory)

    def _remove_file(self, path: Path) -> bool:
        try:
            if path in self._damaged:
                set_aside(self._files, self._root, path)
                self._damaged.discard(path)
            else:
                self._files.unlink(path, missing_ok=True)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True
