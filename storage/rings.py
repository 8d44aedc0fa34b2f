"""Rings: the newest rows of each group of series, with the times stored once per group."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from storage.types import ABSENT_BITS, STALE_BITS, TIME, VALUE, Bits, Ids, Labels, Matrix, Times, Vector

FIRST_SLOTS = 16  # a quarter of a minute at 1 s, for instances that come and go; rings that need more double
MAPPED_BYTES = 1 << 20  # from this size on values lie in a mapping of their own, which grows without being copied
NEVER_MS = np.iinfo(np.int64).min
SAVED_MS = np.iinfo(np.int64).max  # no row is at or after this: everything is in a segment

Columns = slice | Ids
"""Which columns of a group a batch fills: a slice where they are consecutive (no index array to read), else indices."""


class RingGroup:
    """The rows of `width` series that arrive together, oldest overwritten first.

    `times`: int64, shape (slots,), `values`: float64, shape (slots, width); row i of both belongs together. Rows
    are in ascending order of time from `_rows % slots` on once the ring is full, around the end. No time stands twice.

    Rows from `open_ms` on may be in the WAL's open file only, rows from `closing_ms` on in the files that are being made
    into segments: such rows are not overwritten. `roll` and `saved` move these marks, and so does a row that comes late.
    """

    __slots__ = (
        "_bits",
        "_mapping",
        "_rows",
        "base",
        "closing_ms",
        "holders",
        "last_ms",
        "late_in",
        "open_ms",
        "owner",
        "room",
        "times",
        "used",
        "values",
        "whole_ms",
        "width",
    )

    def __init__(
        self,
        owner: Labels,
        base: int,
        width: int,
        slots: int = FIRST_SLOTS,
        *,
        durable: bool = False,
        whole_ms: int = int(NEVER_MS),
    ) -> None:
        self.owner = owner  # the labels of the instance all these series belong to
        self.base = base  # id of column 0; column i has id base + i
        self.width = width  # columns reserved
        self.used = 0  # columns given to series so far
        self.holders = 0  # open streams that declared series in here: not evicted while above 0
        self.last_ms: int = int(NEVER_MS)
        self._rows = 0  # rows ever appended; the newest is at (_rows - 1) % slots
        self.room = slots  # rows that may be appended before somebody must see to more: see `make_room`
        self.open_ms: int = int(NEVER_MS) if durable else int(SAVED_MS)
        self.closing_ms: int = int(SAVED_MS)
        self.late_in = -1  # the WAL's generation in which a sample came that is too old for the ring; -1: none
        self.whole_ms = (
            whole_ms  # from this time on no sample of these series was ever elsewhere only, but see `since_ms`
        )
        self.times: Times = np.empty(slots, dtype=TIME)
        self._place(slots)

    def _place(self, slots: int) -> None:
        """Values of so many rows, all of them anew."""
        size_bytes = 8 * slots * self.width
        if size_bytes < MAPPED_BYTES:
            self._mapping: mmap.mmap | None = None
            self._hold(np.empty((slots, self.width), dtype=VALUE))
        else:
            self._mapping = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._look()

    def _look(self) -> None:
        """At the mapping."""
        assert self._mapping is not None
        self._hold(np.frombuffer(self._mapping, dtype=VALUE).reshape(-1, self.width))

    def _hold(self, values: Matrix) -> None:
        self.values: Matrix = values
        self._bits: Bits = values.view(np.int64)

    @property
    def slots(self) -> int:
        """Rows that fit."""
        return len(self.times)

    @property
    def rows(self) -> int:
        """Rows that are there."""
        return min(self._rows, len(self.times))

    @property
    def since_ms(self) -> int:
        """From this time on every sample of these series is here: none was dropped, refused, or there before the ring."""
        if self._rows <= len(self.times):
            return self.whole_ms
        return max(self.whole_ms, int(self.times[self._rows % len(self.times)]))

    @property
    def span_ms(self) -> tuple[int, int]:
        """The times of the oldest and the newest row. REQUIRES: there are rows."""
        oldest = self._rows % len(self.times) if self._rows > len(self.times) else 0
        return int(self.times[oldest]), self.last_ms

    def overlaps(self, start_ms: int, end_ms: int) -> bool:
        """Whether its rows reach into start_ms <= time < end_ms."""
        return self._rows > 0 and self.last_ms >= start_ms and self.span_ms[0] < end_ms

    def rows_between(self, start_ms: int, end_ms: int) -> int:
        """How many rows have start_ms <= time < end_ms."""
        times = self.times[: self.rows]
        return int(np.count_nonzero((times >= start_ms) & (times < end_ms)))

    @property
    def size_bytes(self) -> int:
        """What the ring's arrays take."""
        return self.times.nbytes + self.values.nbytes

    def append(self, time_ms: int, columns: Columns, values: Vector) -> bool:
        """Put one row's samples in. `values`: float64, shape (len(columns),); ABSENT cells leave what is there.

        A time that a row has already is merged into that row, the later call winning. False, and nothing stored, when
        the ring is full and the time is older than its oldest row. REQUIRES: `room`, unless the time has a row.
        """
        if time_ms > self.last_ms:
            at = self._rows % len(self.times)
            self._rows += 1
            if self.room:
                self.room -= 1
            self.times[at] = self.last_ms = time_ms
            if len(values) < self.width or columns.__class__ is not slice:  # only a slice names no column twice
                self._bits[at] = ABSENT_BITS
            self.values[at, columns] = values
            return True
        row = self._row_for(time_ms)
        if row < 0:
            return False
        _merge(self.values[row], columns, values)
        return True

    def _row_for(self, time_ms: int) -> int:
        """The row of a time at or before the newest, made if there is none; -1 when it is older than a full ring."""
        slots = len(self.times)
        newest = (self._rows - 1) % slots
        if time_ms == self.last_ms:
            return newest
        self._unroll()
        count = self.rows
        at = int(np.searchsorted(self.times[:count], time_ms))
        if self.times[at] == time_ms:
            return at
        if count == slots:
            if at == 0:
                self.whole_ms = max(self.whole_ms, int(self.times[0]))
                return -1
            self.whole_ms = max(self.whole_ms, int(self.times[0]) + 1)
            at -= 1  # the oldest row makes room
            self.times[:at] = self.times[1 : at + 1]
            self._bits[:at] = self._bits[1 : at + 1]
        else:
            self.times[at + 1 : count + 1] = self.times[at:count]
            self._bits[at + 1 : count + 1] = self._bits[at:count]
            self._rows += 1
        if self.room:
            self.room -= 1
        self.times[at] = time_ms
        self._bits[at] = ABSENT_BITS
        return at

    def _unroll(self) -> None:
        """Rotate the rows so that the oldest is at index 0; late rows are rare enough to pay for it."""
        slots = len(self.times)
        if self._rows > slots:
            self.whole_ms = self.since_ms
            shift = -(self._rows % slots)
            if shift:
                self.times[:] = np.roll(self.times, shift)
                self._bits[:] = np.roll(self._bits, shift, axis=0)
            self._rows = slots

    @property
    def unsaved_ms(self) -> int:
        """Rows from this time on may be in no segment yet."""
        return min(self.open_ms, self.closing_ms)

    @property
    def unsaved_rows(self) -> int:
        """How many rows may be in no segment yet."""
        if self.unsaved_ms > self.last_ms:
            return 0
        return int(np.count_nonzero(self.times[: self.rows] >= self.unsaved_ms))

    def roll(self) -> None:
        """The WAL goes on in a new file: what came so far is being made into segments."""
        self.closing_ms = self.unsaved_ms
        self.open_ms = self.last_ms + 1 if self.last_ms > NEVER_MS else int(NEVER_MS)

    def saved(self) -> None:
        """What came before the last `roll` is in segments."""
        self.closing_ms = int(SAVED_MS)

    def make_room(self) -> bool:
        """Give the oldest rows of a full ring free, as far as they are in segments; False when none is."""
        self.room = len(self.times) - (self.unsaved_rows if self._rows >= len(self.times) else self._rows)
        return self.room > 0

    def lengthen(self, slots: int) -> None:
        """Make room for more rows."""
        self._unroll()
        count, times = self.rows, np.empty(slots, dtype=TIME)
        times[:count] = self.times[:count]
        if not self._stretch(slots):
            values = self.values[:count]
            self._place(slots)
            self.values[:count] = values
        self.times = times
        self._rows, self.room = count, slots - count

    def _stretch(self, slots: int) -> bool:
        """Have the kernel make the mapping longer, which copies nothing. False where it cannot, and where there is none."""
        if self._mapping is None:
            return False
        self._hold(np.empty((0, self.width), dtype=VALUE))  # nothing may point into it meanwhile
        try:
            with suppress(BufferError, OSError, SystemError, ValueError):
                self._mapping.resize(8 * slots * self.width)
                return True
            return False
        finally:
            self._look()

    def shorten(self, slots: int) -> None:
        """Keep only the newest rows."""
        times, values = self.read(slice(0, self.width))
        keep = min(len(times), slots)
        self.whole_ms = max(self.since_ms, int(times[-keep])) if keep < len(times) else self.since_ms
        self.times = np.empty(slots, dtype=TIME)
        self._place(slots)
        self.times[:keep] = times[-keep:] if keep else times[:0]
        self._bits[:keep] = values.view(np.int64)[-keep:] if keep else values[:0].view(np.int64)
        self._rows = keep
        self.room = slots - keep

    def read(self, columns: Columns) -> tuple[Times, Matrix]:
        """Copies of the times, int64 (R,), ascending, and the values, float64 (R, columns), ABSENT where none."""
        slots = len(self.times)
        if self._rows <= slots:
            return self.times[: self._rows].copy(), _contiguous(self.values[: self._rows, columns])
        first = self._rows % slots
        times = np.concatenate((self.times[first:], self.times[:first]))
        return times, np.concatenate((self.values[first:, columns], self.values[:first, columns]))

    def has_after(self, time_ms: int, columns: Columns) -> npt.NDArray[np.bool_]:
        """Which of these columns have a sample in a row after this time. bool, shape (columns,)."""
        self._unroll()
        first = int(np.searchsorted(self.times[: self.rows], time_ms, side="right"))
        found: npt.NDArray[np.bool_] = (self._bits[first : self.rows, columns] != ABSENT_BITS).any(axis=0)
        return found

    def between(self, start_ms: int, end_ms: int, columns: Columns) -> tuple[Times, Matrix]:
        """Copies of the rows with start_ms <= time < end_ms, as `read` gives them."""
        self._unroll()
        times = self.times[: self.rows]
        first, last = np.searchsorted(times, (start_ms, end_ms))
        return times[first:last].copy(), _contiguous(self.values[first:last, columns])

    def at(self, columns: Columns, steps_ms: Times, lookback_ms: int) -> Matrix:
        """The newest sample at or before each step and within lookback. float64, shape (columns, T), NaN where none.

        A stale marker ends a series: NaN from there to its next sample.
        """
        times, values = self.read(columns)
        width = values.shape[1]
        if not len(times) or not width:
            return np.full((width, len(steps_ms)), np.nan)
        bits = values.view(np.int64)
        rows = np.where(bits != ABSENT_BITS, np.arange(len(times))[:, None], -1)
        np.maximum.accumulate(rows, axis=0, out=rows)
        step_rows = np.searchsorted(times, steps_ms, side="right") - 1
        newest = np.where(step_rows[:, None] >= 0, rows[np.maximum(step_rows, 0)], -1)  # (T, columns)
        known = newest >= 0
        newest[~known] = 0
        known &= steps_ms[:, None] - times[newest] < lookback_ms
        column = np.arange(width)[None, :]
        known &= bits[newest, column] != STALE_BITS
        return np.where(known, values[newest, column], np.nan).T


def _merge(row: Vector, columns: Columns, values: Vector) -> None:
    present = values.view(np.int64) != ABSENT_BITS
    row[columns] = np.where(present, values, row[columns])


def _contiguous(values: Matrix) -> Matrix:
    return np.array(values, dtype=VALUE, order="C", copy=True)
