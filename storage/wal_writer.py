"""Ticks to frames of one WAL file: FORMAT.md, section 1.

`encode` is for the thread that appends, and costs it little; `write` is for a thread that may wait for the disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, cast

import numpy as np
import numpy.typing as npt
import orjson
from crc32c import crc32c

from storage.files import AppendFile, Buffer, Files
from storage.format import (
    FRAME_ALIGN,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    KIND_CHECKPOINT,
    KIND_DECLARATIONS,
    KIND_SAMPLES,
    MOST_FRAME_BYTES,
    WAL_MAGIC,
    WAL_VERSION,
    StorageError,
)
from storage.types import ABSENT_BITS, ID, TIME, Labels, Meta, Shape, Times, Vector
from storage.wal_frames import BEFORE_AT, CRC_AT, FILE_HEADER, FRAME_HEADER, HEADER_CRC_AT, KIND_AT

Numbers = npt.NDArray[np.int32]
Range = tuple[int, int, int]
"""An owner's number, first and last sequence."""

SET_HEADER: Final = struct.Struct("<III")  # set, owner, width


_DECLARES: Final = struct.pack("<I", KIND_DECLARATIONS)
LEAST_LEGACY_BYTES: Final = 1 << 16
NO_LOOSE: Final = (np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, TIME), np.empty(0))


class WalBrokenError(StorageError):
    """A write to this file failed before: what comes next belongs in a new one."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: an earlier write failed, so nothing may be written behind it; begin a new file")
        self.path = path


class RowSet(Protocol):
    """A row's layout. REQUIRES: the same number, the same layout, for as long as a file is open; no shape twice."""

    number: int
    owner: int
    shapes: Numbers  # int32, (W,): one for each value


class Names(Protocol):
    """What the numbers of owners and shapes stand for."""

    def owner_labels(self, number: int) -> Labels: ...

    def shape(self, number: int) -> tuple[Shape, Meta]: ...


@dataclass(slots=True)
class Tick:
    """What came since the last tick: R rows, loose samples, received messages."""

    sets: list[RowSet] = field(default_factory=list)  # (R,)
    times: list[int] = field(default_factory=list)  # (R,), Unix ms
    values: list[Vector | bytes | memoryview] = field(
        default_factory=list
    )  # (R,): each the set's width of f64, contiguous
    loose: list[tuple[Numbers, Numbers, Times, Vector]] = field(
        default_factory=list
    )  # owners, shapes, times, values: (K,) each
    ranges: list[Range] = field(default_factory=list)

    def add_loose(self, owners: Numbers, shapes: Numbers, time_ms: int, values: Vector) -> None:
        """Samples of one time. int32 (K,), int32 (K,), float64 (K,); ABSENT cells are no samples."""
        self.loose.append((owners, shapes, np.full(len(values), time_ms, TIME), values))

    def extend(self, later: Tick) -> None:
        """Append what another tick holds."""
        self.sets += later.sets
        self.times += later.times
        self.values += later.values
        self.loose += later.loose
        self.ranges += later.ranges


class WalWriter:
    """One file, made by the first `write`. It declares what it uses, each owner, shape and set once.

    With `after`, a closed one, it begins with what that one declared: to say it anew would take the time of whoever appends.
    """

    def __init__(
        self, files: Files, path: Path, number: int, created_ms: int, names: Names, after: WalWriter | None = None
    ) -> None:
        self.path = path
        self.safe = False  # something in it is
        self._files = files
        self._names = names
        self._sets: set[int] = set()  # numbers of those that are declared
        self._owners: set[int] = set()  # likewise
        self._shapes = np.zeros(1024, dtype=bool)  # by number: whether it is declared
        self._declared: list[tuple[int, int]] = []  # offsets and bytes of the frames that say so
        self._idle: set[int] = set()  # numbers of sets that were declared by the file before, and not used since
        self._inherited: bytes = b""  # what the file before declared
        self._anew_bytes = 0  # of declarations, when they were last made from nothing: they may not grow for ever
        self._legacy: bytes = b""  # what this one did, once it is closed
        self._checkpoint: list[Range] | None = None
        self._broken = False
        fields = WAL_MAGIC, WAL_VERSION, number, created_ms, 0
        crc = crc32c(FILE_HEADER.pack(*fields, 0)[:HEADER_CRC_AT])
        self._header = FILE_HEADER.pack(*fields, crc)
        self._file: AppendFile | None = None
        if after is not None and after._legacy:
            self._inherit(after)

    def _inherit(self, after: WalWriter) -> None:
        self._sets, self._owners, self._shapes = after._sets, after._owners, after._shapes
        self._idle, self._inherited, after._legacy = set(self._sets), after._legacy, b""
        self._anew_bytes = after._anew_bytes

    @property
    def exists(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    @property
    def size_bytes(self) -> int:
        """Of the file as it is now; 0 before there is one."""
        return self._file.size if self._file is not None else 0

    def checkpoint(self, ranges: Iterable[Range]) -> None:
        """All that was received before this file: stands before the frames of the next `encode`."""
        self._checkpoint = list(ranges)

    def encode(self, tick: Tick) -> list[bytearray]:
        """The tick as frames, for `write`; none when there is nothing to write. REQUIRES: they are written, in this order.

        ValueError: a row has more or fewer values than its set; nothing is declared then.
        """
        if self._broken:
            raise WalBrokenError(self.path)
        declared = self._sets
        fresh = list({row.number: row for row in tick.sets if row.number not in declared}.values())
        if self._idle:
            self._idle.difference_update([row.number for row in tick.sets])
        loose = _loose(tick.loose)
        samples = self._samples(tick, loose)
        ranges = [*(self._checkpoint or ()), *tick.ranges]
        owners = {number for number, _, _ in ranges}.union(_distinct(loose[0]), [row.owner for row in fresh])
        frames = [*self._declare(fresh, owners, loose[1]), *self._checkpointed(), *samples]
        self._checkpoint = None
        before = len(self._inherited)
        for frame in frames:
            if (kind := FRAME_HEADER.unpack_from(frame)[3]) in BEFORE_AT:
                struct.pack_into("<I", frame, FRAME_HEADER_BYTES + BEFORE_AT[kind], before)
            before += len(frame)
        return frames

    def _samples(self, tick: Tick, loose: tuple[Numbers, Numbers, Times, Vector]) -> list[bytearray]:
        """A frame with rows, loose samples and ranges; none without any."""
        rows, ranges, singles = len(tick.sets), len(tick.ranges), len(loose[3])
        if not (rows or ranges or singles):
            return []
        parts = [
            struct.pack("<IIII", rows, ranges, singles, 0),
            *_column("I", [row.number for row in tick.sets]),
            *_column("q", tick.times),
            *_ranges(tick.ranges),
        ]
        if singles:
            parts += [part for column in loose for part in _padded(column.tobytes())]
        frame = self._frame(KIND_SAMPLES, [*parts, *tick.values])
        got = len(frame) - FRAME_HEADER_BYTES - sum(map(len, parts))
        expected = 8 * sum([len(row.shapes) for row in tick.sets])
        if got != expected or len(tick.times) != rows or len(tick.values) != rows:
            raise ValueError(
                f"{self.path}: {rows} rows with {len(tick.times)} times and {len(tick.values)} vectors of {got} bytes, "
                f"expected one of each a row, and {expected} bytes by their sets"
            )
        return [frame]

    def _checkpointed(self) -> list[bytearray]:
        if self._checkpoint is None:
            return []
        parts = [struct.pack("<II", len(self._checkpoint), 0), *_ranges(self._checkpoint)]
        return [self._frame(KIND_CHECKPOINT, parts)]

    def _declare(self, fresh: Sequence[RowSet], owners: set[int], shapes: Numbers) -> list[bytearray]:
        """A frame with these sets, and what of owners and shapes is not declared yet; none when all is."""
        new_owners = sorted(owners - self._owners)
        new_shapes = self._new_shapes([shapes, *(row.shapes for row in fresh)])
        if not (fresh or new_owners or len(new_shapes)):
            return []
        names = {
            "owners": [(number, self._names.owner_labels(number)) for number in new_owners],
            "shapes": [_described(number, *self._names.shape(number)) for number in new_shapes.tolist()],
        }
        text = orjson.dumps(names)
        sets = b"".join(
            SET_HEADER.pack(row.number, row.owner, len(row.shapes)) + np.asarray(row.shapes, np.int32).tobytes()
            for row in fresh
        )
        parts = [struct.pack("<II", len(text), len(sets) // 4), text, bytes(-len(text) % 4), sets]
        frame = self._frame(KIND_DECLARATIONS, parts)
        self._sets.update(row.number for row in fresh)
        self._owners.update(new_owners)
        self._shapes[new_shapes] = True
        return [frame]

    def _new_shapes(self, columns: Sequence[Numbers]) -> Numbers:
        numbers = np.concatenate(columns) if len(columns) > 1 else columns[0]
        if not len(numbers):
            return numbers
        if (top := int(numbers.max()) + 1) > len(self._shapes):
            self._shapes = np.concatenate([self._shapes, np.zeros(top, dtype=bool)])
        return np.unique(numbers[~self._shapes[numbers]])

    def _frame(self, kind: int, parts: Iterable[Buffer]) -> bytearray:
        """Without its CRC."""
        frame = bytearray().join((bytes(FRAME_HEADER_BYTES), *cast("Iterable[bytes]", parts)))
        length = len(frame) - FRAME_HEADER_BYTES
        if length > MOST_FRAME_BYTES:
            raise StorageError(
                f"{self.path}: a frame of {length} bytes, expected at most {MOST_FRAME_BYTES}; commit more often"
            )
        frame += bytes(-length % FRAME_ALIGN)
        FRAME_HEADER.pack_into(frame, 0, FRAME_MAGIC, length, 0, kind)
        return frame

    def write(self, frames: Sequence[bytearray]) -> int:
        """Put the frames on disk and wait until they are there; returns their bytes. Any thread, one at a time.

        OSError: any part of them may be on disk, and the writer is broken: WalBrokenError from now on. Nothing safe was in
        the file yet: then it is not there.
        """
        if self._broken:
            raise WalBrokenError(self.path)
        if not frames:
            return 0
        try:
            file = self._file = self._file or self._begun()
            for frame in frames:
                _, length, _, _ = FRAME_HEADER.unpack_from(frame)
                crc = crc32c(memoryview(frame)[KIND_AT : FRAME_HEADER_BYTES + length])
                struct.pack_into("<I", frame, CRC_AT, crc)
            written: list[bytes | bytearray] = [self._inherited, *frames]
            self._note_declared(file.size, written)
            file.write(written)
            file.sync()
        except BaseException:
            self._give_up()
            raise
        self.safe, self._inherited = True, b""
        return sum(map(len, written))

    def _begun(self) -> AppendFile:
        """The file with its header, durably: what is torn later is then known to be a WAL's."""
        file = self._file = self._files.create(self.path)
        file.write([self._header])
        file.sync()
        self._files.sync_dir(self.path.parent)
        return file

    def _note_declared(self, at: int, written: Sequence[bytes | bytearray]) -> None:
        for data in written:
            if len(data) and (data is self._inherited or data[KIND_AT : KIND_AT + 4] == _DECLARES):
                self._declared.append((at, len(data)))
            at += len(data)

    def _give_up(self) -> None:
        self._broken = True
        self.close()
        if self._file is not None and not self.safe:
            with suppress(OSError):
                self._files.unlink(self.path)
                self._file = None

    def close(self) -> None:
        """Nothing more will be written; twice is fine."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def bequeath(self) -> None:
        """Have ready for the next file what this one declared, unless most of it is used no more. REQUIRES: it is closed."""
        size_bytes = sum(size for _, size in self._declared)
        self._anew_bytes = self._anew_bytes or size_bytes
        if 2 * len(self._idle) <= len(self._sets) and size_bytes <= 2 * self._anew_bytes + LEAST_LEGACY_BYTES:
            with suppress(OSError):  # then the next one says it anew
                data = b"".join([self._files.read(self.path, at, size) for at, size in self._declared])
                self._legacy = data if _are_frames(data) else b""


def _are_frames(data: bytes) -> bool:
    """Whether these are valid frames, one after the other."""
    at = 0
    while at + FRAME_HEADER_BYTES <= len(data):
        magic, length, crc, _ = FRAME_HEADER.unpack_from(data, at)
        end = at + FRAME_HEADER_BYTES + length
        if magic != FRAME_MAGIC or crc32c(memoryview(data)[at + KIND_AT : end]) != crc:
            return False
        at = end + -length % FRAME_ALIGN
    return at == len(data)


def _described(number: int, shape: Shape, meta: Meta) -> list[object]:
    return [number, shape.metric, shape.labels, meta.kind, meta.unit, meta.description, meta.source_name]


def _loose(parts: Sequence[tuple[Numbers, Numbers, Times, Vector]]) -> tuple[Numbers, Numbers, Times, Vector]:
    """All loose samples as columns, without the ABSENT ones."""
    if not parts:
        return NO_LOOSE
    owners, shapes, times, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    present = values.view(ID) != ABSENT_BITS
    if present.all():
        return owners, shapes, times, values
    return owners[present], shapes[present], times[present], values[present]


def _distinct(owners: Numbers) -> set[int]:
    """Samples of an owner come together, so what is left after comparing neighbours is short."""
    return {int(owners[0]), *owners[1:][owners[1:] != owners[:-1]].tolist()} if len(owners) else set()


def _ranges(ranges: Sequence[Range]) -> list[bytes]:
    if not ranges:
        return []
    owners, firsts, lasts = zip(*ranges, strict=True)
    return [*_column("I", owners), *_column("Q", firsts), *_column("Q", lasts)]


def _column(item: str, numbers: Sequence[int]) -> list[bytes]:
    return _padded(struct.pack(f"<{len(numbers)}{item}", *numbers))


def _padded(column: bytes) -> list[bytes]:
    return [column, bytes(-len(column) % FRAME_ALIGN)]
