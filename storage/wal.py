"""The write-ahead log as the store keeps it: the file that is written now, and those that wait to become segments.

    loop                                       writer thread
    append, received: into the tick's lists
    take: encode, a Commit           ------>   Commit.write: one write, one fdatasync
    committed: acknowledge           <------
    failed: its ticks wait, a new file will take them

One commit is under way at a time, so what was appended later is never safe before what was appended earlier. A file is closed
at a `take`, when no tick is half in it; the head is told at the same moment, so that its marks and the files agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from storage.files import Files
from storage.head import Plan
from storage.index import SeriesIndex
from storage.sequences import Sequences
from storage.types import Labels, Meta, Shape, Vector
from storage.wal_writer import Tick, WalWriter

RECURRING_USES = 3  # from this use on a plan is declared as a set; before, its samples go in loose
FIRST_RECEIVER = 1 << 31  # numbers of instances as receivers of acks, apart from the index's numbers of owners
ROW_BYTES, LOOSE_BYTES, RANGE_BYTES = 12, 24, 20  # in the file, besides a row's values

Receipt = tuple[int, int, int]
"""A receiver's number, first and last sequence."""


def wal_path(directory: Path, number: int) -> Path:
    """The name of a WAL file in a data directory."""
    return directory / "wal" / f"{number:016d}.wal"


@dataclass(slots=True)
class Commit:
    """Everything until now, on its way to the disk: the ticks of commits that failed, in their order, and the newest."""

    ticks: list[Tick]
    writer: WalWriter
    buffers: list[bytearray]
    closes: bool = False  # the writer's file ends with this
    written_bytes: int = 0

    def write(self) -> None:
        """On any thread: after this the tick is safe. Raises OSError or StorageError when it is not."""
        self.written_bytes = self.writer.write(self.buffers)
        if self.closes:
            self.writer.close()
            self.writer.bequeath()


@dataclass(slots=True)
class Receivers:
    """The instances that get acks: numbers for the WAL, and what of each is safe."""

    safe: dict[Labels, Sequences] = field(default_factory=dict)
    labels: dict[int, Labels] = field(default_factory=dict)
    numbers: dict[Labels, int] = field(default_factory=dict)
    greatest: int = FIRST_RECEIVER - 1

    def number(self, labels: Labels) -> int:
        """The number of an instance, made if new."""
        known = self.numbers.get(labels)
        if known is None:
            self.greatest += 1
            known = self.numbers[labels] = self.greatest
            self.labels[known] = labels
            self.safe.setdefault(labels, Sequences())
        return known

    def forget(self, labels: Labels) -> None:
        """This instance will not come back. Its number is not used again."""
        self.safe.pop(labels, None)
        number = self.numbers.pop(labels, None)
        if number is not None:
            del self.labels[number]

    def ranges(self) -> list[Receipt]:
        """All that is safe, for a checkpoint."""
        return [
            (self.number(labels), first, last)
            for labels, sequences in list(self.safe.items())
            for first, last in sequences
        ]


class Names:
    """What the WAL's writer asks about numbers."""

    def __init__(self, index: SeriesIndex, receivers: Receivers) -> None:
        self._index = index
        self._receivers = receivers

    def owner_labels(self, number: int) -> Labels:
        """Of an owner of series, or of a receiver of acks."""
        if number >= FIRST_RECEIVER:
            return self._receivers.labels[number]
        return self._index.owner_labels(number)

    def shape(self, number: int) -> tuple[Shape, Meta]:
        """Of a series."""
        return self._index.shape(number)


class Wal:
    """Everything but the bytes. `next_number` numbers files; `on_roll` is called when a file is closed."""

    def __init__(
        self,
        files: Files,
        directory: Path,
        index: SeriesIndex,
        next_number: Callable[[], int],
        on_roll: Callable[[], None],
    ) -> None:
        self.receivers = Receivers()
        self.closed: list[Path] = []  # wait to become segments, oldest first
        self.closed_bytes = 0
        self.roll_wanted = False
        self.began_ms = 0  # when the first tick of the open file was taken; 0: nothing in it yet
        self.commits = 0
        self.failures = 0
        self.written_bytes = 0
        self._files = files
        self._directory = directory
        self._names = Names(index, self.receivers)
        self._index = index
        self._next_number = next_number
        self._on_roll = on_roll
        self._rows: list[tuple[Plan, int, Vector]] = []  # of the tick, until it is taken
        self._counted_rows = self._counted_bytes = 0  # of these
        self._tick = Tick()  # the rest of it
        self._tick_bytes = 0  # of the rest, and of those that failed
        self._failed: list[
            Tick
        ] = []  # written again before the tick, and apart: in a frame, rows stand before loose samples
        self._loose_at: set[tuple[int, int]] = set()  # owner and time of the tick's loose samples
        self._writer: WalWriter | None = None
        self._before: WalWriter | None = None  # the last one that was closed
        self._broken: list[Path] = []
        self._broken_bytes = 0
        self._under_way = False

    # Collecting

    def append(self, plan: Plan, time_ms: int, values: Vector) -> None:
        """One row, into the tick's lists. float64, shape (N,), in the plan's order."""
        plan.uses = uses = plan.uses + 1
        # A row that overwrites loose samples goes in as they do: see `_failed`.
        if uses >= RECURRING_USES and not (self._loose_at and (plan.owner, time_ms) in self._loose_at):
            self._rows.append((plan, time_ms, values))
        elif len(values):
            self._tick.add_loose(self._index.owners_of(plan.ids), plan.shapes, time_ms, values)
            self._loose_at.add((plan.owner, time_ms))
            self._tick_bytes += LOOSE_BYTES * len(values)

    def received(self, labels: Labels, first: int, last: int) -> None:
        """An instance's messages first..last are in this tick, or were in an earlier one."""
        self._tick.ranges.append((self.receivers.number(labels), first, last))
        self._tick_bytes += RANGE_BYTES

    @property
    def size_bytes(self) -> int:
        """Of all that is in no segment yet, the tick included."""
        rows = self._rows
        if len(rows) > self._counted_rows:  # asked for at every pong: each row is counted once
            self._counted_bytes += sum([ROW_BYTES + 8 * len(row[2]) for row in rows[self._counted_rows :]])
            self._counted_rows = len(rows)
        return self.closed_bytes + self.open_bytes + self._tick_bytes + self._counted_bytes

    @property
    def open_bytes(self) -> int:
        """Of the file that is written now, and of those before it that broke."""
        return self._broken_bytes + (self._writer.size_bytes if self._writer is not None else 0)

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be committed."""
        return not (self._rows or self._failed or self._tick_bytes)

    # Committing

    def take(self, now_ms: int) -> Commit | None:
        """The tick's lists as a commit; None when there is nothing, or one is under way."""
        if self._under_way or (self.empty and not self.roll_wanted):
            return None
        writer = self._writer or self._begin(now_ms)
        ticks = self._ticks()
        try:
            buffers = [buffer for tick in ticks for buffer in writer.encode(tick)]
        except BaseException:
            self._failed = ticks
            self._abandon()  # it may have declared what will never be written
            raise
        commit = Commit(ticks, writer, buffers, closes=self.roll_wanted)
        self._tick_bytes = 0
        self._under_way = True
        self.began_ms = self.began_ms or now_ms
        if commit.closes:
            self.roll_wanted = False
            self._on_roll()
        return commit

    def _ticks(self) -> list[Tick]:
        """All that waits; nothing does then."""
        tick = self._tick
        if self._rows:
            sets, times, values = zip(*self._rows, strict=True)
            tick.sets, tick.times, tick.values = list(sets), list(times), list(values)
        ticks, known = [*self._failed, tick], self.receivers.labels
        self._rows, self._tick, self._failed, self._loose_at = [], Tick(), [], set()
        self._counted_rows = self._counted_bytes = 0
        for tick in ticks:
            tick.ranges = [span for span in tick.ranges if span[0] in known]  # nobody forgot the instance meanwhile
        return ticks

    def _begin(self, now_ms: int) -> WalWriter:
        number = self._next_number()
        path = wal_path(self._directory, number)
        self._writer = writer = WalWriter(self._files, path, number, now_ms, self._names, self._before)
        writer.checkpoint(self.receivers.ranges())
        self._before = None
        return writer

    def committed(self, commit: Commit) -> None:
        """A commit is safe."""
        self._under_way = False
        self.commits += 1
        self.written_bytes += commit.written_bytes
        for number, first, last in (span for tick in commit.ticks for span in tick.ranges):
            labels = self.receivers.labels.get(number)
            if labels is not None:
                self.receivers.safe[labels].add_range(first, last)
        if commit.closes:
            self._close()

    def _close(self) -> None:
        paths = [*self._broken]
        if self._writer is not None:
            paths.append(self._writer.path)
            self._before = self._writer
        self.closed_bytes += self.open_bytes
        self._broken, self._broken_bytes, self._writer, self.began_ms = [], 0, None, 0
        self.closed = [*self.closed, *paths]

    def failed(self, commit: Commit) -> None:
        """A commit is not safe: its ticks wait for another file. What of it was written may be found, and does no harm."""
        self._under_way = False
        self.failures += 1
        self._failed = commit.ticks
        self._abandon()
        self._tick_bytes = max(self._tick_bytes, 1) + sum(len(buffer) for buffer in commit.buffers)
        if commit.closes:
            self.roll_wanted = True  # the head was told: its marks hold until the next file is done too

    def _abandon(self) -> None:
        """Nothing more goes into the open file. What there is of it stays, for what is safe in it."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.close()
        if writer.exists:
            self._broken.append(writer.path)
            self._broken_bytes += writer.size_bytes

    def flushed(self, paths: Iterable[Path]) -> None:
        """Segments hold what these closed files held, and they are gone."""
        gone = set(paths)
        self.closed = [path for path in self.closed if path not in gone]
        self.closed_bytes = sum(self._files.size(path) for path in self.closed)

    def close(self) -> None:
        """Nothing more will be written. What is in the tick's lists is lost: commit first."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
