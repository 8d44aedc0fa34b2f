"""`Store`: the head, the WAL and the segments as one. What the daemon appends to, and what everybody reads from.

One thread (the daemon's event loop) appends, commits and selects from the rings; `Commit.write` and `Keeper.step` run in
threads of their own, and so may a read after its `capture`. The order of events for one sample:

    append -> ring, tick's lists    take -> frame    Commit.write -> disk    committed -> may be acknowledged
    ... the file is closed, Keeper.step -> segment, file removed    settle -> the ring may forget it
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.columns import Columns
from storage.files import Files
from storage.format import CorruptError
from storage.head import Head, Plan
from storage.keeper import Keeper
from storage.matchers import Matcher
from storage.merge import steps
from storage.reading import (
    Before,
    Captured,
    CapturedSeries,
    FileReader,
    SeriesTable,
    TooManyError,
    among,
    go_on,
    merged,
)
from storage.recovery import DataDir, Recovered, open_data_dir, unusable
from storage.resident import Resident
from storage.rings import NEVER_MS
from storage.rollup import approximate
from storage.segments import SEGMENTS_DIR, WAL_DIR, SegmentSet
from storage.sequences import Sequences
from storage.settings import StoreSettings
from storage.types import Ids, Labels, Matrix, Shape, Times, Vector
from storage.wal import Commit, Wal
from storage.wal_reader import WalFile, read_wal

NEWEST_MS = 3_600_000
FOREVER_MS = 1 << 62
MOST_DAMAGE = 100  # places remembered


@dataclass(slots=True)
class Selection:
    """N series and their values at T steps."""

    owners: list[Labels]  # (N,)
    shapes: list[Shape]  # (N,)
    steps_ms: Times  # int64, (T,)
    matrix: Matrix  # float64, (N, T), NaN where there is no sample

    def labels(self, series: int) -> dict[str, str]:
        """All labels of one of them, the metric's name included."""
        shape = self.shapes[series]
        return {"__name__": shape.metric, **dict(self.owners[series]), **dict(shape.labels)}


class Store:
    """See the module. Made by `open` or, without a disk, by `in_memory`."""

    def __init__(self, settings: StoreSettings, *, durable: bool) -> None:
        self.settings = settings
        self.head = Head(settings.memory_bytes, settings.slots, settings.series_limit, durable=durable)
        self.recovered = Recovered()
        self.damage: list[CorruptError] = []  # the newest, whoever found it
        self.wal: Wal | None = None
        self.keeper: Keeper | None = None
        self.segments: SegmentSet | None = None
        self.reader = FileReader(self._damaged)
        self.on_trouble: Callable[[str, Exception], None] = lambda _what, _error: None
        self._safe: dict[Labels, Sequences] = {}  # of a store without a WAL
        self._idle_since: dict[Labels, int] = {}
        self._data: DataDir | None = None
        self._residents: tuple[Resident, ...] = ()  # oldest first

    @classmethod
    def in_memory(cls, settings: StoreSettings | None = None) -> Store:
        """Rings only: nothing survives, and what is taken may be acknowledged at once."""
        return cls(settings or StoreSettings(), durable=False)

    @classmethod
    def open(
        cls,
        directory: Path,
        settings: StoreSettings,
        files: Files | None = None,
        on_trouble: Callable[[str, Exception], None] = lambda _what, _error: None,
    ) -> Store:
        """A data directory, made if it is not there. Raises StorageError when it cannot be used: newer, locked, foreign."""
        files = files or Files()
        store = cls(settings, durable=True)
        store.on_trouble = on_trouble
        data = store._data = open_data_dir(files, directory)
        try:
            store._recover(files, directory, data)
        except BaseException as error:
            data.close(clean=data.was_clean)
            if isinstance(error, OSError):
                raise unusable(directory, error) from error
            raise
        return store

    def _recover(self, files: Files, directory: Path, data: DataDir) -> None:
        found = self.recovered
        found.fresh, found.unclean = data.fresh, not data.fresh and not data.was_clean
        if found.unclean:  # what the process before did not live to sync is about to count
            for name in (SEGMENTS_DIR, WAL_DIR):
                files.sync_dir(directory / name)
        segments = self.segments = self.reader.segments = SegmentSet(files, directory, self.settings)
        found.damage += segments.load()
        self._look_at_segments()
        wal = self.wal = Wal(files, directory, self.head.index, segments.next_number, self.head.roll)
        for path in data.wal_files(segments.wal_done):
            try:
                self._replay(files, data, path, wal)
            except CorruptError as error:  # not a WAL file at all
                found.damage.append(error)
                data.quarantine(path)
                continue
            wal.closed.append(path)
        wal.closed_bytes = found.wal_bytes
        for path in data.older_wal_files(segments.wal_done):
            try:
                self._remember(read_wal(files, path), wal)
            except CorruptError as error:
                found.damage.append(error)
                data.quarantine(path)
        self._look_at_segments()
        self.keeper = Keeper(files, directory, segments, self.settings, lambda: wal.closed)
        self.keeper.on_trouble = self._note
        self.damage += found.damage
        self.keeper.check_space()

    def _replay(self, files: Files, data: DataDir, path: Path, wal: Wal) -> None:
        """A WAL file is checked, and read from where it lies until it is a segment."""
        found = self.recovered
        file = read_wal(files, path)
        if file.torn_bytes and path == data.newest_wal:
            torn, file.content = file, None  # mapped until here; now its tail may be cut
            data.cut_tail(path, torn)
            file = read_wal(files, path)
            file.torn_bytes, file.losses, file.lost_samples = torn.torn_bytes, torn.losses, torn.lost_samples
        if found.unclean:
            with files.append(path) as unsynced:
                unsynced.sync()
        found.wal_files += 1
        found.wal_bytes += files.size(path)
        found.torn_bytes += file.torn_bytes
        found.lost_samples += file.lost_samples
        found.damage += file.losses
        self._remember(file, wal)
        if file.content is not None:
            found.wal_samples += file.most_samples
            self._residents = (*self._residents, Resident(path, file.content))

    @staticmethod
    def _remember(file: WalFile, wal: Wal) -> None:
        """What a WAL file says has been received."""
        for labels, ranges in file.received.items():
            wal.receivers.number(labels)
            for first, last in ranges:
                wal.receivers.safe[labels].add_range(first, last)

    @property
    def lock(self) -> int:
        """The descriptor that holds the data directory's lock, -1 without one: who inherits it holds it too."""
        return self._data.lock.fileno() if self._data is not None else -1

    @property
    def durable(self) -> bool:
        """Whether there is a disk behind it."""
        return self.wal is not None

    # Writing

    def append(self, plan: Plan, time_ms: int, values: Vector) -> int:
        """Put a batch in: float64, shape (N,), in the plan's order. Returns how many samples were too late for it."""
        if self.wal is not None:
            self.wal.append(plan, time_ms, values)
        return self.head.append(plan, time_ms, values)

    def append_own(self, plan: Plan, time_ms: int, values: Vector) -> None:
        """As `append`, for what nobody waits to see acknowledged: while nothing may be taken it goes into the rings only."""
        if self.wal is not None and not (self.refusal or self.is_full):
            self.wal.append(plan, time_ms, values)
        self.head.append(plan, time_ms, values)

    def end(self, labels: Labels, time_ms: int) -> None:
        """Every series of an instance ends here: stale markers."""
        for plan, at_ms, markers in self.head.ends(labels, time_ms):
            self.append_own(plan, at_ms, markers)

    def safe(self, labels: Labels) -> Sequences:
        """Which durable messages of an instance are on disk. Kept up to date; do not change it."""
        if self.wal is None:
            return self._safe.setdefault(labels, Sequences())
        self.wal.receivers.number(labels)
        return self.wal.receivers.safe[labels]

    def received(self, labels: Labels, first: int, last: int) -> None:
        """An instance's messages first..last are appended: they are safe when the next commit is."""
        if self.wal is None:
            self.safe(labels).add_range(first, last)
        else:
            self.wal.received(labels, first, last)

    def forget_idle(self, known: Collection[Labels], now_ms: int, idle_ms: int) -> None:
        """Called now and then: what an instance sent need not be remembered when it was not among `known` for `idle_ms`."""
        safe = self.wal.receivers.safe if self.wal is not None else self._safe
        for labels in [labels for labels in safe if labels not in known]:
            if now_ms - self._idle_since.setdefault(labels, now_ms) > idle_ms:
                self._safe.pop(labels, None)
                if self.wal is not None:
                    self.wal.receivers.forget(labels)
        self._idle_since = {
            labels: at for labels, at in self._idle_since.items() if labels in safe and labels not in known
        }

    def take(self, now_ms: int) -> Commit | None:
        """What was appended since the last time, to be written. None: nothing, or a commit is under way. Raises OSError."""
        return self.wal.take(now_ms) if self.wal is not None else None

    def committed(self, commit: Commit) -> None:
        """REQUIRES: `commit.write` returned."""
        if self.wal is not None:
            self.wal.committed(commit)

    def failed(self, commit: Commit) -> None:
        """REQUIRES: `commit.write` raised. What was in it will be in the next one."""
        if self.wal is not None:
            self.wal.failed(commit)

    def commit(self, now_ms: int) -> None:
        """Take, write, committed: for tools and tests. Raises what `write` raised."""
        commit = self.take(now_ms)
        if commit is None:
            return
        try:
            commit.write()
        except Exception:
            self.failed(commit)
            raise
        self.committed(commit)

    def settle(self, now_ms: int) -> None:
        """Now and then: what the background has done, and whether it is time to close the WAL's file."""
        wal, keeper = self.wal, self.keeper
        if wal is None or keeper is None:
            return
        if keeper.flushed:
            done = list(keeper.flushed)
            wal.flushed(done)
            del keeper.flushed[: len(done)]  # not before: until then the background takes none of them twice
            self._residents = tuple(resident for resident in self._residents if resident.path not in done)
            self._look_at_segments()
            if not wal.closed:
                self.head.saved()
        elif self._crowded and not wal.began_ms and not wal.closed and wal.empty:
            self.head.roll()  # of rows appended while nothing could be taken: no segment will ever have them
            self.head.saved()
        old = wal.began_ms and now_ms - wal.began_ms >= self.settings.flush_ms
        large = wal.open_bytes >= self.settings.wal_file_bytes or (wal.began_ms and self._crowded)
        if not wal.closed and (old or large):
            wal.roll_wanted = True

    def _look_at_segments(self) -> None:
        raw = self.segments.all("raw") if self.segments is not None else ()
        last_ms = [segment.info.max_ms for segment in raw] + [r.span[1] for r in self._residents if r.span is not None]
        self.head.segments_ms = max(last_ms) + 1 if last_ms else int(NEVER_MS)

    @property
    def refusal(self) -> str:
        """Why nothing can be taken now, or empty."""
        return self.keeper.refusal if self.keeper is not None else ""

    @property
    def is_full(self) -> bool:
        """Whether the background is so far behind that appending must wait."""
        wal = self.wal
        return wal is not None and (
            wal.size_bytes > self.settings.wal_bytes or (self._crowded and bool(wal.began_ms or wal.closed))
        )

    @property
    def fullness(self) -> float:
        """How much of the WAL's bound is taken: from 1 on appending must wait, and before that it does well to slow down."""
        return self.wal.size_bytes / self.settings.wal_bytes if self.wal is not None else 0.0

    @property
    def _crowded(self) -> bool:
        """Whether the WAL's bound does not hold the rings: a row takes the whole width of its group, whatever is in it."""
        return self.head.ring_bytes > self.settings.memory_bytes + self.settings.wal_bytes

    def flush(self, now_ms: int) -> None:
        """Everything into segments, now: for tools, benches and tests."""
        if self.wal is None or self.keeper is None:
            return
        self.commit(now_ms)
        for _ in range(2):  # the second time for what the first found closed already
            self.wal.roll_wanted = bool(self.wal.began_ms)
            self.commit(now_ms)
            while self.wal.closed and self.keeper.step(now_ms):
                self.settle(now_ms)
            self.settle(now_ms)

    def compact(self, now_ms: int) -> None:
        """All background work there is: for tools, benches and tests."""
        if self.keeper is not None:
            self.keeper.finish(now_ms)
            self.settle(now_ms)

    def close(self, *, clean: bool = True) -> None:
        """Let go of the directory. `clean`: everything was committed."""
        if self.wal is not None:
            self.wal.close()
        if self.segments is not None:
            self.segments.close()
        if self._data is not None:
            self._data.close(clean=clean)

    # Reading

    def read(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, tier: str = "raw") -> Columns:
        """Every sample with start_ms <= time < end_ms of the series that match: of segments, WAL and rings, each once."""
        if tier != "raw":
            return merged(self.reader.read(tier, matchers, start_ms, end_ms))
        return self.complete(self.capture(matchers, start_ms, end_ms), matchers, start_ms, end_ms)

    def capture(
        self,
        matchers: Sequence[Matcher],
        start_ms: int,
        end_ms: int,
        most_series: int | None = None,
        most_samples: int | None = None,
    ) -> Captured:
        """The part of `read` that is in memory. Raises TooManyError, before more than that is copied.

        REQUIRES: the thread that appends.
        """
        ids = self.head.index.match(matchers)
        if most_series is not None and len(ids) > most_series:
            raise TooManyError("series", len(ids), most_series)
        # What segments have need not be found twice: weaving the two together would cost more than reading either.
        cells = self.head.cells(ids, start_ms, end_ms, unsaved=self.durable) if most_samples is not None else 0
        if most_samples is not None and cells > most_samples:
            raise TooManyError("samples", cells, most_samples)
        late = self.head.read_late(ids, start_ms, end_ms)
        rows = self.head.rows(ids, start_ms, end_ms, unsaved=self.durable)
        return Captured(late, rows, self._residents)

    def complete(
        self,
        captured: Captured,
        matchers: Sequence[Matcher],
        start_ms: int,
        end_ms: int,
        before: Before = go_on,
    ) -> Columns:
        """The rest of `read`, on any thread. The matchers and times are those of the capture. `before` may raise."""
        parts = self.reader.read("raw", matchers, start_ms, end_ms, before)
        parts += self.reader.read_residents(captured.residents, matchers, start_ms, end_ms, before)
        before(0)
        parts += [part for part in (captured.late, captured.rows.columns()) if part is not None]
        return merged(parts)

    def capture_series(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> CapturedSeries:
        """The series in memory that match and have rows of this time. REQUIRES: the thread that appends."""
        ids = self.head.index.match(matchers)
        late = self.head.read_late(ids, start_ms, end_ms)
        tables = [SeriesTable(*self.head.tables(self.head.among(ids, start_ms, end_ms)))]
        return CapturedSeries(tables + ([SeriesTable.of(late)] if late is not None else []), self._residents)

    def complete_series(
        self,
        captured: CapturedSeries,
        matchers: Sequence[Matcher],
        start_ms: int,
        end_ms: int,
        before: Before = go_on,
    ) -> list[SeriesTable]:
        """Those, and the ones of files, on any thread. A series may stand in several tables."""
        older = self.reader.read_residents(captured.residents, matchers, start_ms, end_ms, before)
        return [
            *captured.tables,
            *map(SeriesTable.of, older),
            *self.reader.series(matchers, start_ms, end_ms, before),
        ]

    def select(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, step_ms: int, lookback_ms: int = 300_000
    ) -> Selection:
        """The newest sample of each series at or before each step (start, start + step ... up to end) and within lookback.

        Before the raw samples' retention, what the rollups say: of counters the greatest value of a bucket, else its mean.
        """
        if step_ms <= 0 or end_ms < start_ms:
            raise ValueError(
                f"got start {start_ms}, end {end_ms}, step {step_ms}; expected start <= end and a step above 0"
            )
        at = np.arange(start_ms, end_ms + 1, step_ms, dtype=np.int64)
        first_ms, last_ms = start_ms - lookback_ms + 1, end_ms + 1
        found = self.with_older(self.read(matchers, first_ms, last_ms), matchers, first_ms, last_ms)
        owners = [found.owners[o] for o in found.owner.tolist()]
        shapes = [found.shapes[s] for s in found.shape.tolist()]
        return Selection(owners, shapes, at, steps(found, at, lookback_ms))

    def newest(self, matchers: Sequence[Matcher], now_ms: int) -> list[tuple[dict[str, str], float, int]]:
        """The newest sample of each series that matches: labels without the metric's name, value, time. Of those in memory
        whenever it was, of others in the last hour.
        """
        ids = self.head.index.match(matchers)
        in_memory = _newest(self.head.read(ids, -FOREVER_MS, FOREVER_MS))
        newest = in_memory | _newest(self.read(matchers, now_ms - NEWEST_MS, now_ms + NEWEST_MS))
        return [({**dict(o), **dict(s.labels)}, value, time_ms) for (o, s), (value, time_ms) in newest.items()]

    def matrix(self, ids: Ids, steps_ms: Times, lookback_ms: int) -> Matrix:
        """As `Head.matrix`, and from segments what the rings no longer hold, or never held. float64, shape (N, T)."""
        if not len(steps_ms):
            return self.head.matrix(ids, steps_ms, lookback_ms)
        start_ms, end_ms = int(steps_ms[0]) - lookback_ms + 1, int(steps_ms[-1]) + 1
        before_ms = min(int(self.head.since_ms(ids).max(initial=NEVER_MS)), end_ms)
        residents = [resident for resident in self._residents if resident.overlaps(start_ms, before_ms)]
        older = self.reader.overlapping("raw", start_ms, before_ms)
        late = self.head.read_late(ids, start_ms, end_ms) if start_ms < before_ms else None
        if not older and not residents and late is None:
            return self.head.matrix(ids, steps_ms, lookback_ms)
        names = self.head.names(ids)
        owners, shapes = {owner for owner, _ in names}, {shape for _, shape in names}
        parts = [self.reader.read_named(segment, owners, shapes, start_ms, before_ms) for segment in older]
        parts += [r.read(among(r.owners, owners), among(r.shapes, shapes), start_ms, before_ms) for r in residents]
        parts += [part for part in (late, self.head.read(ids, start_ms, end_ms)) if part is not None]
        found = merged(parts)
        row_of = {name: row for row, name in enumerate(names)}
        pairs = zip(found.owner.tolist(), found.shape.tolist(), strict=True)
        rows = np.array([row_of.get((found.owners[o], found.shapes[s]), -1) for o, s in pairs], dtype=np.int64)
        matrix = np.full((len(ids), len(steps_ms)), np.nan)
        matrix[rows[rows >= 0]] = steps(found, steps_ms, lookback_ms)[rows >= 0]
        return matrix

    def with_older(
        self, found: Columns, matchers: Sequence[Matcher], start_ms: int, end_ms: int, before: Before = go_on
    ) -> Columns:
        """What was read of raw samples, and what rollups say of the time before the oldest of them. Any thread may ask."""
        raw = self.segments.all("raw") if self.segments is not None else ()
        end_ms = min(end_ms, min((s.info.min_ms for s in raw), default=end_ms))
        parts = []
        for tier in ("1h", "1m"):
            if end_ms > start_ms and self.reader.overlapping(tier, start_ms, end_ms):
                parts.append(approximate(merged(self.reader.read(tier, matchers, start_ms, end_ms, before))))
        return merged([*parts, found]) if parts else found

    def _damaged(self, error: CorruptError) -> None:
        self._note("read", error)

    def _note(self, what: str, error: Exception) -> None:
        """Trouble: told each time, remembered once."""
        if isinstance(error, CorruptError):
            same = any(d.path == error.path and d.offset_bytes == error.offset_bytes for d in self.damage)
            if same:
                return
            self.damage = [*self.damage[-MOST_DAMAGE + 1 :], error]
        self.on_trouble(what, error)


def _newest(found: Columns) -> dict[tuple[Labels, Shape], tuple[float, int]]:
    """Value and time of each series' newest sample, by owner and shape."""
    owners = [found.owners[o] for o in found.owner.tolist()]
    shapes = [found.shapes[s] for s in found.shape.tolist()]
    values = found.values[found.start + found.counts - 1].tolist()
    times = found.times[found.edges[found.vector + 1] - 1].tolist()
    return dict(zip(zip(owners, shapes, strict=True), zip(values, times, strict=True), strict=True))
