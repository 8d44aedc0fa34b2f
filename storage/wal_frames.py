"""The frames of a WAL file: which are valid, and what lies between them. FORMAT.md, section 1."""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from crc32c import crc32c

from storage.files import Files
from storage.format import (
    FRAME_ALIGN,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    KIND_CHECKPOINT,
    KIND_SAMPLES,
    MOST_FRAME_BYTES,
    WAL_HEADER_BYTES,
    WAL_MAGIC,
    WAL_VERSION,
    CorruptError,
    TooNewError,
)
from storage.passes import Places

FILE_HEADER: Final = struct.Struct("<4sIQqII")  # magic, version, number, created_ms, zero, crc32c
FRAME_HEADER: Final = struct.Struct("<4sIII")  # magic, length, crc32c, kind
HEADER_CRC_AT: Final = WAL_HEADER_BYTES - 4  # in a file
CRC_AT, KIND_AT = 8, 12  # in a frame
BEFORE_AT: Final = {KIND_SAMPLES: 12, KIND_CHECKPOINT: 4}
"""Where in a payload of this kind it stands how many bytes before its frame were written together with it, u32."""
MAGIC_WORD: Final = int.from_bytes(FRAME_MAGIC, "little")
MOST_TRIED: Final = 64  # times a file's size: what the search for frames behind damage may read, whatever lies there
TRY_BYTES: Final = 1 << 12  # what a try costs besides its bytes, in bytes
TOUCHED_BYTES: Final = 8 << 20  # of a mapped file, that stay in memory while it is looked through
PIECE_BYTES, PAGE_BYTES = 1 << 20, 1 << 12  # of a disk that fails to read


class Header(NamedTuple):
    """Of a file."""

    number: int
    created_ms: int


class Frame(NamedTuple):
    """A valid one: its kind, where its payload begins, and the payload's bytes without the padding."""

    kind: int
    at: int
    length: int


def iter_frames(files: Files, path: Path) -> Iterator[tuple[Frame, memoryview]]:
    """The valid frames of a file and their payloads, in order. CorruptError, TooNewError, OSError: see `read_wal`."""
    data, unreadable = load(files, path)
    if header_of(path, data) is not None:
        for frame in frames_of(path, data, unreadable, [])[0]:
            yield frame, data[frame.at : frame.at + frame.length]


def load(files: Files, path: Path) -> tuple[memoryview, list[range]]:
    """The file, mapped. Where the disk cannot be read, zeros, and which bytes those are. OSError: none of it can be."""
    try:
        return files.map(path, probe=True), []
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        cause = error
    data = bytearray(files.size(path))
    pages: list[range] = []
    for piece in _cut(range(len(data)), PIECE_BYTES):
        if not _read(files, path, data, piece):
            pages += [page for page in _cut(piece, PAGE_BYTES) if not _read(files, path, data, page)]
    if sum(map(len, pages)) == len(data):
        raise cause
    return memoryview(data), pages


def forget(data: memoryview) -> None:
    """What was touched of a mapped file leaves this process's memory; the operating system may keep it for the next touch."""
    if isinstance(data.obj, mmap.mmap):
        data.obj.madvise(mmap.MADV_DONTNEED)


def _cut(stretch: range, size_bytes: int) -> list[range]:
    return [range(at, min(at + size_bytes, stretch.stop)) for at in range(stretch.start, stretch.stop, size_bytes)]


def _read(files: Files, path: Path, data: bytearray, piece: range) -> bool:
    """False when the disk does not give it."""
    try:
        data[piece.start : piece.stop] = files.read(path, piece.start, len(piece))
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    return True


def header_of(path: Path, data: memoryview) -> Header | None:
    """None: a file whose making was cut off, with nothing in it that anybody was told is safe."""
    if len(data) >= WAL_HEADER_BYTES:
        magic, version, number, created_ms, _, crc = FILE_HEADER.unpack_from(data)
        if magic == WAL_MAGIC and version and crc == crc32c(data[:HEADER_CRC_AT]):
            if version > WAL_VERSION:
                raise TooNewError(f"{path}: WAL of version {version}, expected {WAL_VERSION}; use a later collectord")
            return Header(number, created_ms)
    begin = bytes(data[: len(WAL_MAGIC)])
    if len(data) <= WAL_HEADER_BYTES and WAL_MAGIC.startswith(begin.rstrip(b"\0")):
        return None
    reason = f"no header of a WAL: got {begin!r}, expected {WAL_MAGIC!r} and what its CRC says"
    raise CorruptError(path, 0, len(data), reason)


def frames_of(
    path: Path, data: memoryview, unreadable: Sequence[range], losses: list[CorruptError]
) -> tuple[list[Frame], int]:
    """The valid frames, and where the torn tail begins. What is damaged before that is added to `losses`."""
    scan = _Scan(path, data, unreadable)
    frames = list(scan)
    end = scan.end_bytes
    if frames and not unreadable:
        # The sectors of one write reach the disk in any order: its last frame may be there, and not its first.
        last = frames[-1].at - FRAME_HEADER_BYTES
        begin = last - _written_before(data, frames[-1])
        begins = {frame.at - FRAME_HEADER_BYTES for frame in frames} | {loss.offset_bytes for loss in scan.losses}
        if begin in begins and any(begin <= loss.offset_bytes < last for loss in scan.losses):
            end = begin
    if scan.losses and not any(frame.kind in BEFORE_AT for frame in frames) and not unreadable:
        end = WAL_HEADER_BYTES  # the first write of all: nobody was told that any of it is safe
    losses += [loss for loss in scan.losses if loss.offset_bytes < end]
    return [frame for frame in frames if frame.at < end], end


def _written_before(data: memoryview, frame: Frame) -> int:
    """Bytes directly before a frame that were written together with it."""
    at = BEFORE_AT.get(frame.kind, frame.length)
    return int.from_bytes(data[frame.at + at : frame.at + at + 4], "little") if at + 4 <= frame.length else 0


class _Scan:
    """The valid frames, one by one, and what lies between them."""

    def __init__(self, path: Path, data: memoryview, unreadable: Sequence[range]) -> None:
        self.losses: list[CorruptError] = []
        self.end_bytes = WAL_HEADER_BYTES
        self._path = path
        self._data = data
        self._unreadable = unreadable
        self._magics: Places | None = None
        self._left_bytes = MOST_TRIED * len(data)

    def __iter__(self) -> Iterator[Frame]:
        at, size = WAL_HEADER_BYTES, len(self._data)
        touched = at
        while at < size:
            frame = self._frame(at)
            if at - touched > TOUCHED_BYTES:
                forget(self._data)
                touched = at
            if frame is not None:
                yield frame
                at = frame.at + padded(frame.length)
                self.end_bytes = at
                continue
            begin, at = at, self._next(at)
            reason = self._damage(begin, at)
            if reason:
                self.losses.append(CorruptError(self._path, begin, at - begin, reason))
                self.end_bytes = at

    def _damage(self, begin: int, end: int) -> str:
        """Why these bytes are no frames; empty when they are a torn tail."""
        if any(page.start < end and begin < page.stop for page in self._unreadable):
            return "no valid frame, where the disk cannot be read"
        if self._left_bytes < 0:
            return "no valid frame, and too much that looks like one"
        return "no valid frame" if end < len(self._data) else ""

    def _frame(self, at: int) -> Frame | None:
        data, payload = self._data, at + FRAME_HEADER_BYTES
        if payload > len(data):
            return None
        magic, length, crc, kind = FRAME_HEADER.unpack_from(data, at)
        if magic != FRAME_MAGIC or length > MOST_FRAME_BYTES or payload + padded(length) > len(data):
            return None
        if crc32c(data[at + KIND_AT : payload + length]) != crc:
            self._left_bytes -= length + TRY_BYTES
            return None
        return Frame(kind, payload, length)

    def _next(self, at: int) -> int:
        """Where the next valid frame begins; the file's end when there is none."""
        if self._magics is None:
            words = np.frombuffer(self._data, "<u4", len(self._data) // FRAME_ALIGN * 2).reshape(-1, 2)
            places = np.flatnonzero(words[:, 0] == MAGIC_WORD)
            ends = FRAME_ALIGN * places + FRAME_HEADER_BYTES + words[places, 1]
            self._magics = FRAME_ALIGN * places[ends <= len(self._data)]
        for i in range(int(np.searchsorted(self._magics, at, side="right")), len(self._magics)):
            if self._left_bytes < 0:
                break
            if self._frame(place := int(self._magics[i])) is not None:
                return place
        return len(self._data)


def padded(size_bytes: int) -> int:
    """Bytes that a payload of so many takes."""
    return size_bytes + -size_bytes % FRAME_ALIGN
