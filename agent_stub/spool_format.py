"""The bytes of a spool file and of its bookmark, as README.md describes them. Bytes in, messages out; no files.

    file  = magic "CDSPOOL" 0x01 | frame*
    frame = magic "FRAM" | length u32 | crc32 u32 | samples u32 | events u32 | logs u32 | payload (an AgentMessage)

`crc32` covers all of a frame behind it. The three totals, modulo 2^32, count what was ever written to this folder, this
frame included: where frames are damaged, the next one tells how much they held.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agent_stub.durable import Counts, Durable, counts_of
from agent_stub.wire import stream_pb2 as pb

FILE_MAGIC = b"CDSPOOL\x01"  # the last byte is the version
FRAME_MAGIC = b"FRAM"
HEADER = struct.Struct("<4sII3I")
CRC_FROM = 4 + 4 + 4  # magic, length, the CRC itself
SEARCH = 16  # bytes checked for every byte of a file, at most, in the search for whole frames behind damage
BOOKMARK_HEAD = "collectord bookmark 1"

Sums = tuple[int, int, int]
"""Samples, events and logs ever written to a folder, each modulo 2^32."""

NOTHING: Sums = (0, 0, 0)


def plus(sums: Sums, counts: Counts, sign: int = 1) -> Sums:
    """The sums after (or, with sign -1, before) a message that counts this."""
    samples, events, logs = sums
    return (
        samples + sign * counts.samples & 0xFFFFFFFF,
        events + sign * counts.events & 0xFFFFFFFF,
        logs + sign * counts.logs & 0xFFFFFFFF,
    )


def minus(sums: Sums, earlier: Sums) -> Counts:
    """What was written between the two."""
    return Counts(*((a - b) & 0xFFFFFFFF for a, b in zip(sums, earlier)))  # noqa: B905  Python 3.9 knows no strict


def frame(payload: bytes, sums: Sums) -> bytes:
    """One frame; `sums` with what the payload counts."""
    crc = zlib.crc32(payload, zlib.crc32(struct.pack("<3I", *sums)))
    return HEADER.pack(FRAME_MAGIC, len(payload), crc, *sums) + payload


@dataclass(frozen=True)
class Gap:
    """What was lost between two sequences, neither of them included."""

    after: int
    before: int
    counts: Counts


@dataclass
class Contents:
    """What is whole in a file."""

    hello: pb.Hello | None = None
    report: pb.SelfReport | None = None
    series: list[pb.Series] = field(default_factory=list)
    messages: list[Durable] = field(default_factory=list)
    begin: Sums | None = None  # before the first message
    end: Sums | None = None  # after the last
    gaps: list[Gap] = field(default_factory=list)
    tail: Counts = field(default_factory=Counts)  # of a damaged last frame, as far as can be guessed
    damage: str = ""  # where, for people; empty: none


def read_file(data: bytes) -> Contents:
    """Reads a whole file. Never fails: what is not whole is left out, and named in `damage` unless it is a torn tail."""
    contents = Contents()
    layouts: dict[int, tuple[int, ...]] = {}
    damage: list[tuple[int, int]] = []
    for sums, payload in _frames(data, damage):
        message = _parsed(payload)
        body = message.WhichOneof("body") if message is not None else None
        if message is None or body is None:
            continue  # whole, but written by nobody who follows the contract
        if message.sequence:
            _take_durable(contents, message, payload, sums, layouts)
        elif body == "hello":
            contents.hello = message.hello
            contents.begin = contents.end = sums
        elif body == "declare":
            contents.series.extend(message.declare.series)
            layouts.update((layout.layout, tuple(layout.refs)) for layout in message.declare.layouts)
        elif body == "self_report":
            contents.report = message.self_report
    contents.damage = ", ".join(f"{size} bytes at offset {at}" for at, size in damage[:10])
    if damage and sum(damage[-1]) == len(data):
        contents.tail = _guess(data[damage[-1][0] :])
    return contents


def _take_durable(
    contents: Contents, message: pb.AgentMessage, payload: bytes, sums: Sums, layouts: dict[int, tuple[int, ...]]
) -> None:
    last = contents.messages[-1].sequence if contents.messages else 0
    if message.sequence <= last:
        return  # no writer does this
    counts, layout = counts_of(message), message.batch.layout
    if (
        layout and layout not in layouts
    ):  # declared in a frame that was damaged: of no use, and counted as a part of the gap
        contents.tail.add(counts)
        return
    before = plus(sums, counts, -1)
    if contents.end is None:
        contents.begin = before
    elif before != contents.end:
        contents.gaps.append(Gap(last, message.sequence, minus(before, contents.end)))
    contents.end, contents.tail = sums, Counts()
    contents.messages.append(Durable(message.sequence, payload, counts, layout, layouts.get(layout, ())))


def _frames(data: bytes, damage: list[tuple[int, int]]) -> Iterator[tuple[Sums, bytes]]:
    """(sums, payload) of every whole frame; `damage` gets (offset, bytes) of what lies between them."""
    view, at = memoryview(data), len(FILE_MAGIC) if data.startswith(FILE_MAGIC) else 0
    budget_bytes = SEARCH * len(data)
    while at < len(data):
        end = _end_of_frame(view, at)
        if end:
            yield HEADER.unpack_from(data, at)[3:], data[at + HEADER.size : end]
            at = end
            continue
        bad_at, at = at, data.find(FRAME_MAGIC, at + 1)
        while at >= 0 and not _end_of_frame(view, at):
            budget_bytes -= HEADER.size + min(_length(view, at), len(data) - at)
            at = data.find(FRAME_MAGIC, at + 1) if budget_bytes > 0 else -1
        if at < 0:
            if not _is_torn(view[bad_at:]):
                damage.append((bad_at, len(data) - bad_at))
            return
        damage.append((bad_at, at - bad_at))


def _length(view: memoryview, at: int) -> int:
    return int(HEADER.unpack_from(view, at)[1]) if at + HEADER.size <= len(view) else 0


def _end_of_frame(view: memoryview, at: int) -> int:
    """Where the whole frame that begins here ends; 0 when none does."""
    if at + HEADER.size > len(view):
        return 0
    magic, length, crc, *_ = HEADER.unpack_from(view, at)
    end = at + HEADER.size + int(length)
    if magic != FRAME_MAGIC or end > len(view) or zlib.crc32(view[at + CRC_FROM : end]) != crc:
        return 0
    return end


def _is_torn(rest: memoryview) -> bool:
    """Whether a file may simply end like this: its writer was killed in a write, or the machine lost its power."""
    if not any(rest):
        return True
    if len(rest) < HEADER.size:
        return FILE_MAGIC.startswith(rest) or FRAME_MAGIC.startswith(rest[: len(FRAME_MAGIC)])
    return rest[: len(FRAME_MAGIC)] == FRAME_MAGIC and HEADER.size + _length(rest, 0) > len(rest)


def _parsed(payload: bytes) -> pb.AgentMessage | None:
    try:
        return pb.AgentMessage.FromString(payload)
    except Exception:  # noqa: BLE001  DecodeError's home differs among protobuf's versions
        return None


def _guess(rest: bytes) -> Counts:
    """What a damaged last frame held: what its bytes still say, else one sample, so that it is not passed over."""
    message = _parsed(rest[HEADER.size :])
    return (counts_of(message) if message is not None else Counts()) or Counts(samples=1)


def bookmark(ranges: Iterable[tuple[int, int]]) -> bytes:
    """The bookmark's bytes: inclusive ranges of sequences that are acknowledged, or given up and counted."""
    text = "".join([f"{BOOKMARK_HEAD}\n", *(f"done {first} {last}\n" for first, last in ranges)])
    return f"{text}crc32 {zlib.crc32(text.encode()):08x}\n".encode()


def read_bookmark(data: bytes) -> list[tuple[int, int]] | None:
    """The ranges; None when it is damaged: then everything is sent again, and the collector knows it already."""
    text, separator, crc = data.rpartition(b"crc32 ")
    lines = text.decode("ascii", "replace").splitlines()
    if not separator or not lines or lines[0] != BOOKMARK_HEAD or crc != b"%08x\n" % zlib.crc32(text):
        return None
    return [(int(first), int(last)) for _, first, last in (line.split() for line in lines[1:])]
