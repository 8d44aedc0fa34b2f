"""A WAL file to `Columns` and received ranges: FORMAT.md, section 1.

One step of Python for each frame and each set; the rows and samples of all frames are handled at once, as vectors that are
gathered from the file's words by their places.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

import numpy as np

from storage.columns import Columns
from storage.files import Files
from storage.format import (
    FRAME_ALIGN,
    FRAME_HEADER_BYTES,
    KIND_CHECKPOINT,
    KIND_DECLARATIONS,
    KIND_SAMPLES,
    CorruptError,
)
from storage.passes import Mask, Numbers, Places, spread
from storage.types import Labels
from storage.wal_frames import Frame, forget, frames_of, header_of, load, padded
from storage.wal_names import Declared, Memory
from storage.wal_rows import Content, Loose, Rows, Vectors, stretches, whole

MOST_ROUNDS: Final = 100  # of finding out the widths of sets whose declarations are lost


@dataclass(slots=True)
class WalFile:
    """What a file holds. Its samples are still there: it stays mapped for as long as this lives."""

    number: int
    created_ms: int = 0
    content: Content | None = None
    received: dict[Labels, list[tuple[int, int]]] = field(
        default_factory=dict
    )  # inclusive; ascending, with gaps between
    losses: list[CorruptError] = field(default_factory=list)
    valid_bytes: int = 0  # what is behind is a torn tail
    torn_bytes: int = 0
    lost_samples: int = 0  # in valid frames, but nothing says of which series they are

    @property
    def columns(self) -> Columns:
        """All of its samples, in canonical order."""
        return whole(self.content) if self.content is not None else Columns()

    @property
    def most_samples(self) -> int:
        """How many there are at most: with the cells of rows that hold none."""
        if self.content is None:
            return 0
        return int(self.content.layouts.width[self.content.rows.layout].sum()) + len(self.content.loose.time)

    @property
    def samples(self) -> int:
        """How many there are. Reads all of them."""
        return sum(piece.samples for piece in stretches(self.content)) if self.content is not None else 0


def read_wal(files: Files, path: Path, memory: Memory | None = None) -> WalFile:
    """All of a file. `memory`: of files before it that may declare the same.

    CorruptError: its header is not a WAL's. TooNewError: a later version's. OSError: it cannot be read.
    """
    data, unreadable = load(files, path)
    header = header_of(path, data)
    if header is None:
        return WalFile(int(path.stem) if path.stem.isdecimal() else 0, torn_bytes=len(data))
    losses: list[CorruptError] = []
    frames, valid_bytes = frames_of(path, data, unreadable, losses)
    content = _Content(path, data, frames, losses, memory or Memory())
    return WalFile(
        number=header.number,
        created_ms=header.created_ms,
        content=content,
        received=_received(content),
        losses=sorted(losses, key=lambda loss: loss.offset_bytes),
        valid_bytes=valid_bytes,
        torn_bytes=len(data) - valid_bytes,
        lost_samples=content.lost_samples,
    )


@dataclass(slots=True)
class _Frames(Vectors):
    """Frames of samples. Counts, and where in the file, in bytes, their columns begin."""

    at: Places
    length: Places
    rows: Places
    ranges: Places
    loose: Places
    times_at: Places
    ranges_at: Places
    loose_at: Places
    values_at: Places
    cells: Places  # values of all rows


@dataclass(slots=True)
class _Ranges(Vectors):
    """Received messages: where a frame's column of owners begins, and how many ranges it has."""

    at: Places  # of the frame
    owners_at: Places
    count: Places


class _Content:
    """All frames of a file together."""

    def __init__(
        self, path: Path, data: memoryview, frames: Sequence[Frame], losses: list[CorruptError], memory: Memory
    ) -> None:
        self.lost_samples = 0
        self.names = Declared(memory)
        self.words = np.frombuffer(data, "<u4", len(data) // 4)
        self.longs = np.frombuffer(data, "<i8", len(data) // 8)
        self.doubles = self.longs.view("<f8")
        self._data = data
        self._path = path
        self._losses = losses
        self._incomplete: list[int] = []  # numbers of frames with samples that are lost
        for frame in frames:
            if frame.kind == KIND_DECLARATIONS:
                self._declare(data, frame)
            elif frame.kind not in (KIND_SAMPLES, KIND_CHECKPOINT):
                self._damaged(frame.at, frame.length, f"a frame of the unknown kind {frame.kind}")
        self.layouts = self.names.layouts(self.words)
        self.owners, self.shapes, self.metas = self.names.owners, self.names.shapes, self.names.metas
        checkpoints = self._checkpoints([frame for frame in frames if frame.kind == KIND_CHECKPOINT])
        sampled = self._sampled([frame for frame in frames if frame.kind == KIND_SAMPLES])
        sampled, self.rows = self._rows(sampled)
        self.loose = self._loose(sampled)
        # Who sent what is lost must not be told that it has arrived.
        complete = ~np.isin(np.arange(len(sampled.at)), self._incomplete)
        self.ranges = [checkpoints, _Ranges(sampled.at, sampled.ranges_at, sampled.ranges).where(complete)]

    def forget(self) -> None:
        """What of the file was read need not stay in memory."""
        forget(self._data)

    def _damaged(self, at: int, length: int, reason: str) -> None:
        """A frame whose payload makes no sense, though its CRC is right."""
        size_bytes = FRAME_HEADER_BYTES + padded(length)
        self._losses.append(CorruptError(self._path, at - FRAME_HEADER_BYTES, size_bytes, reason))

    def _checked(self, at: Places, length: Places, right: Mask) -> Mask:
        for i in np.flatnonzero(~right).tolist():
            self._damaged(int(at[i]), int(length[i]), "a payload whose counts and length do not agree")
        return right

    def _declare(self, data: memoryview, frame: Frame) -> None:
        try:
            self.names.add(data, frame)
        except (ValueError, TypeError, KeyError, struct.error) as error:
            self._damaged(frame.at, frame.length, f"declarations that cannot be read ({error})")

    def _counts(self, frames: Sequence[Frame], counts: int) -> list[Places]:
        """Where payloads begin, their lengths, and the numbers that they begin with."""
        at, length = np.array([(frame.at, frame.length) for frame in frames], np.int64).reshape(-1, 2).T
        whole = self._checked(at, length, length >= 4 * counts)
        at, length = at[whole], length[whole]
        return [at, length, *(self.words[at // 4 + i].astype(np.int64) for i in range(counts))]

    def _checkpoints(self, frames: Sequence[Frame]) -> _Ranges:
        at, length, count, _ = self._counts(frames, 2)
        right = self._checked(at, length, 8 + _column_bytes(count) + 16 * count == length)
        return _Ranges(at, at + 8, count).where(right)

    def _sampled(self, frames: Sequence[Frame]) -> _Frames:
        at, length, rows, ranges, loose, _ = self._counts(frames, 4)
        times_at = at + 16 + _column_bytes(rows)
        ranges_at = times_at + 8 * rows
        loose_at = ranges_at + _column_bytes(ranges) + 16 * ranges
        values_at = loose_at + 2 * _column_bytes(loose) + 16 * loose
        left = at + length - values_at
        found = _Frames(at, length, rows, ranges, loose, times_at, ranges_at, loose_at, values_at, left // 8)
        return found.where(self._checked(at, length, (left >= 0) & (left % 8 == 0)))

    def _rows(self, frames: _Frames) -> tuple[_Frames, Rows]:
        """The frames that are right, and those of their rows whose place and set are known."""
        frame = np.repeat(np.arange(len(frames.at)), frames.rows)
        sets = self.words[spread((frames.at + 16) // 4, frames.rows)]
        layout = self.names.set_numbers.find(sets, frames.at[frame])
        width = np.append(self.layouts.width, -1)[layout]
        if (width < 0).any():
            _find_widths(width, sets, frame, frames.cells)
        start, located, right = _located(width, frames.rows, frame, frames.cells)
        self._checked(frames.at, frames.length, right)
        kept = located & right[frame] & np.append(self.layouts.usable, False)[layout]
        self.lost_samples += int(frames.cells[right].sum() - width[kept].sum())
        time = self.longs[spread(frames.times_at // 8, frames.rows)]
        number = np.where(right, np.cumsum(right, dtype=np.int64) - 1, -1)[frame]
        self._incomplete += number[~kept].tolist()
        rows = Rows(layout, number, time, frames.values_at[frame] // 8 + start)
        return frames.where(right), rows.where(kept)

    def _loose(self, frames: _Frames) -> Loose:
        counts = frames.loose
        shapes_at = frames.loose_at + _column_bytes(counts)
        times_at = shapes_at + _column_bytes(counts)
        since = np.repeat(frames.at, counts)
        owner = self.names.owner_numbers.find(self.words[spread(frames.loose_at // 4, counts)], since)
        shape = self.names.shape_numbers.find(self.words[spread(shapes_at // 4, counts)], since)
        time = self.longs[spread(times_at // 8, counts)]
        value = self.doubles[spread(times_at // 8 + counts, counts)]
        frame = np.repeat(np.arange(len(counts)), counts)
        known = (owner >= 0) & (shape >= 0)
        self.lost_samples += int((~known).sum())
        self._incomplete += frame[~known].tolist()
        return Loose(owner.astype(np.int32), shape.astype(np.int32), time, value, frame).where(known)


def _column_bytes(counts: Places) -> Places:
    """What columns of so many u32 take."""
    return (4 * counts + FRAME_ALIGN - 1) // FRAME_ALIGN * FRAME_ALIGN


def _find_widths(width: Places, sets: Numbers, frame: Places, cells: Places) -> None:
    """Fill in the widths (-1) of undeclared sets, as far as frames tell them in which all others are known.

    width, sets, frame: of each row; cells: of each frame. Without that, a damaged declaration would lose the rows of all
    who share frames with it.
    """
    for _ in range(MOST_ROUNDS):
        blind = np.flatnonzero(width < 0)
        if not len(blind):
            return
        heads = np.flatnonzero(np.diff(frame[blind], prepend=-1))
        of, count = frame[blind[heads]], np.diff(np.append(heads, len(blind)))
        left = (cells - np.bincount(frame, np.maximum(width, 0), len(cells)).astype(np.int64))[of]
        only = np.minimum.reduceat(sets[blind], heads)
        clear = (only == np.maximum.reduceat(sets[blind], heads)) & (left >= 0) & (left % count == 0)
        if not clear.any():
            return
        found, first = np.unique(only[clear], return_index=True)
        near = np.minimum(np.searchsorted(found, sets[blind]), len(found) - 1)
        hit = found[near] == sets[blind]
        width[blind[hit]] = (left // count)[clear][first][near[hit]]


def _located(width: Places, rows: Places, frame: Places, cells: Places) -> tuple[Places, Mask, Mask]:
    """Where each row's values begin in its frame's, whether that is known, and which frames' rows and values agree.

    width (-1: not known), frame: of each row; rows, cells: of each frame. A row is found from the frame's beginning or its end.
    """
    first, end = np.cumsum(rows) - rows, np.cumsum(rows)
    sums = np.append(np.int64(0), np.cumsum(np.maximum(width, 0)))
    blind = np.append(np.int64(0), np.cumsum(width < 0))
    known, unknown = sums[end] - sums[first], blind[end] - blind[first]
    right = np.where(unknown > 0, known <= cells, known == cells)
    from_begin = sums[:-1] - sums[first][frame]
    from_end = (cells - sums[end])[frame] + sums[:-1]
    before, behind = blind[:-1] == blind[first][frame], blind[1:] == blind[end][frame]
    return np.where(before, from_begin, from_end), (width >= 0) & (before | behind), right


# Received


def _received(content: _Content) -> dict[Labels, list[tuple[int, int]]]:
    """Ranges of all frames, merged."""
    words, quads = content.words, content.longs.view("<u8")
    at, owners_at, count = (
        np.concatenate([getattr(ranges, f.name) for ranges in content.ranges]) for f in fields(_Ranges)
    )
    firsts_at = owners_at + _column_bytes(count)
    owner = content.names.owner_numbers.find(words[spread(owners_at // 4, count)], np.repeat(at, count))
    first, last = quads[spread(firsts_at // 8, count)], quads[spread(firsts_at // 8 + count, count)]
    known = (owner >= 0) & (first <= last)
    owner, first, last = owner[known], first[known], last[known]
    order = np.lexsort((last, first, owner))
    owner, first, last = owner[order], first[order], last[order]
    # Messages come one after the other: most ranges go on where the one before ended.
    goes_on = (owner[1:] == owner[:-1]) & (first[1:] > last[:-1]) & (first[1:] - last[:-1] == 1)
    begin, end = np.append(True, ~goes_on)[: len(owner)], np.append(~goes_on, True)[: len(owner)]
    received: dict[Labels, list[tuple[int, int]]] = {}
    names = content.owners
    for place, low, high in zip(owner[begin].tolist(), first[begin].tolist(), last[end].tolist(), strict=True):
        merged = received.setdefault(names[place], [])
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], high)
        else:
            merged.append((low, high))
    return received
