"""A segment, memory-mapped: what is asked for is decoded, block by block, each block once. FORMAT.md, part 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
from crc32c import crc32c

from storage.codec import DecodeError, decode_ints, decode_text, decode_values, open_block
from storage.columns import Columns, cut, take
from storage.files import Files
from storage.format import (
    BLOCK_HEADER_BYTES,
    BLOCK_NUMBERS,
    BLOCK_TEXT,
    BLOCK_TIMES,
    SEGMENT_HEADER_BYTES,
    SEGMENT_MAGIC,
    SEGMENT_VERSION,
    TIERS,
    TRAILER_BYTES,
    CorruptError,
    TooNewError,
)
from storage.passes import Numbers, Places, copy_rows, edges_of, gathered, in_use, spread
from storage.segment_writer import SegmentInfo, info_of
from storage.types import ABSENT_BITS, TIME, VALUE, Labels, Meta, Shape

FIRST_MS: Final = int(np.iinfo(np.int64).min)
LAST_MS: Final = int(np.iinfo(np.int64).max)

Mask = npt.NDArray[np.bool_]
OnDamage = Callable[[CorruptError], object]
Progress = Callable[[int, int], object]
"""Bytes done, and of how many."""

_Item = TypeVar("_Item", np.int64, np.float64)
_T = TypeVar("_T")

_NUMBER_BLOCKS: Final = ("series_shape", "series_owner", "series_vector", "vector_count", "time_blocks", "value_blocks")
_BLOCKS: Final = ("owners", "shapes", *_NUMBER_BLOCKS)
_INTEGERS: Final = ("number", "order", "min_ms", "max_ms", "series", "vectors", "samples", "wal")
_NAME_BYTES: Final = 400  # in memory, roughly: an owner or a shape with its labels


@dataclass(slots=True)
class Blocks:
    """Where one long column lies: block b is items[edges[b]:edges[b + 1]] of it."""

    offset: Places  # int64, (B,)
    length: Places  # int64, (B,), bytes with the header
    edges: Places  # int64, (B + 1,)


@dataclass(slots=True)
class Tables:
    """A segment's index: S series, ascending by (shape, owner), and V vectors of times, as in `Columns`."""

    owners: list[Labels]
    shapes: list[Shape]
    metas: dict[str, Meta]  # by metric
    series_shape: Numbers  # int32, (S,), ascending
    series_owner: Numbers  # int32, (S,)
    series_vector: Numbers  # int32, (S,)
    shape_edges: (
        Places  # int64, (shapes + 1,): the series of shape s are those from shape_edges[s] to shape_edges[s + 1]
    )
    edges: Places  # int64, (V + 1,), of vectors in the column of all times
    value_series: Places  # int64, (S,): series, in the order in which their values stand in the column of all values
    value_edges: Places  # int64, (S + 1,), of these there
    value_begin: Places  # int64, (S,): where the values of each series begin there
    time_blocks: Blocks
    value_blocks: Blocks

    @property
    def size_bytes(self) -> int:
        """Memory taken, roughly as to the names."""
        parts: list[Tables | Blocks] = [self, self.time_blocks, self.value_blocks]
        arrays = (getattr(part, field.name) for part in parts for field in fields(part))
        numbers_bytes = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
        return numbers_bytes + _NAME_BYTES * (len(self.owners) + len(self.shapes))


class Segment:
    """One segment, to be read on any thread. What is damaged raises CorruptError with file, offset and size."""

    def __init__(self, path: Path, data: memoryview, footer: dict[str, Any], footer_offset: int) -> None:
        """Use `open`."""
        self.path = path
        self.info: SegmentInfo = info_of(footer, len(data))
        self._data: memoryview | None = data
        self._footer = footer
        self._footer_offset = footer_offset
        self._tables: Tables | None = None

    @classmethod
    def open(cls, files: Files, path: Path, *, probe: bool = False) -> Segment:
        """Maps the file, and reads its footer alone. Raises CorruptError, and TooNewError for a later version's file.

        With `probe` a sector that cannot be read is an OSError here, and not a SIGBUS later: see `Files.map`.
        """
        data = files.map(path, probe=probe)
        footer_offset, footer = _read_footer(path, data)
        return cls(path, data, footer, footer_offset)

    def close(self) -> None:
        """Nothing can be read any more; what was read stays."""
        self._data = None
        self._tables = None

    # Tables

    @property
    def tables_bytes(self) -> int:
        """Memory that the loaded tables take; 0 when they are not loaded."""
        tables = self._tables
        return tables.size_bytes if tables else 0

    def forget(self) -> None:
        """Drops the tables; they are loaded again when they are asked for."""
        self._tables = None

    def tables(self) -> Tables:
        """The index, loaded at the first call."""
        tables = self._tables
        if tables is None:
            self._tables = tables = self._load()
        return tables

    def find(self, owners: Mask, shapes: Mask) -> Places:
        """The series with one of these owners and one of these shapes. Masks over the tables' lists. int64, ascending."""
        tables = self.tables()
        if shapes.all():
            return np.flatnonzero(owners[tables.series_owner])
        wanted = np.flatnonzero(shapes)
        first = tables.shape_edges[wanted]
        places = spread(first, tables.shape_edges[wanted + 1] - first)
        return places if owners.all() else places[owners[tables.series_owner[places]]]

    # Samples

    def read(
        self,
        series: Places | None = None,
        start_ms: int = FIRST_MS,
        end_ms: int = LAST_MS,
        on_damage: OnDamage | None = None,
    ) -> Columns:
        """The samples with start_ms <= time < end_ms of some series, or of all; series that have none are not in it.

        series: int64, shape (any,), places, none twice; ascending, or blocks are decoded more than once. With `on_damage`,
        a damaged block is told to it, and the series that are in it are left out. Owners and shapes are the tables' lists,
        whichever series are read.
        """
        tables = self.tables()
        if series is None:
            series = np.arange(len(tables.series_shape))
        if self.info.min_ms >= end_ms or self.info.max_ms < start_ms:
            series = series[:0]
        columns = cut(self._without_values(tables, series, on_damage), start_ms, end_ms)
        order = np.argsort(columns.start, kind="stable")
        values, begins, found = self._rows(
            tables.value_blocks, columns.start[order], columns.counts[order], VALUE, on_damage
        )
        start, whole = np.empty_like(begins), np.empty_like(found)
        start[order], whole[order] = begins, found
        columns = replace(columns, values=values, start=start)
        return columns if whole.all() else take(columns, np.flatnonzero(whole))

    def _without_values(self, tables: Tables, series: Places, on_damage: OnDamage | None) -> Columns:
        """With their times; `start` is where values begin in the column of all values."""
        used = in_use(tables.series_vector[series], len(tables.edges) - 1)
        vectors = np.flatnonzero(used)
        begins, counts = tables.edges[vectors], tables.edges[vectors + 1] - tables.edges[vectors]
        times, begins, whole = self._rows(tables.time_blocks, begins, counts, TIME, on_damage)
        if not whole.all():
            used[vectors[~whole]] = False
            series = series[used[tables.series_vector[series]]]
            begins, counts = begins[whole], counts[whole]
        number = np.cumsum(used, dtype=np.int32) - np.int32(1)
        return Columns(
            owners=tables.owners,
            shapes=tables.shapes,
            metas=tables.metas,
            owner=tables.series_owner[series],
            shape=tables.series_shape[series],
            vector=number[tables.series_vector[series]],
            start=tables.value_begin[series],
            edges=edges_of(counts),
            times=gathered(times, begins, counts),
        )

    def _rows(
        self, blocks: Blocks, begins: Places, counts: Places, dtype: np.dtype[_Item], on_damage: OnDamage | None
    ) -> tuple[npt.NDArray[_Item], Places, Mask]:
        """Rows column[begins[i]:begins[i] + counts[i]] of a long column, begins ascending, each row within one block.

        Returns items, where in them each row begins, and which rows are whole. A block of which at least half is wanted is
        decoded in place; so items may have stretches that belong to no row.
        """
        block = np.searchsorted(blocks.edges, begins, side="right") - 1
        is_first = np.diff(block, prepend=-1) != 0  # of the rows of a block
        heads, group = np.flatnonzero(is_first), np.cumsum(is_first) - 1
        numbers = block[heads]
        sizes = blocks.edges[numbers + 1] - blocks.edges[numbers]
        ends = np.cumsum(counts)
        wanted = np.diff(ends[np.append(heads[1:], len(block)) - 1], prepend=0) if len(heads) else sizes
        in_place = 2 * wanted >= sizes
        room = np.where(in_place, sizes, wanted)
        base = np.cumsum(room) - room
        packed = ends - counts
        to = base[group] + np.where(in_place[group], begins - blocks.edges[block], packed - packed[heads][group])
        items, whole = np.empty(int(room.sum()), dtype), np.ones(len(begins), np.bool_)
        scratch = np.empty(int(sizes[~in_place].max(initial=0)), dtype)
        for g, number in enumerate(numbers.tolist()):
            rows = slice(int(heads[g]), int(heads[g + 1]) if g + 1 < len(heads) else len(begins))
            try:
                if in_place[g]:
                    self._decode(blocks, number, items[base[g] : base[g] + sizes[g]])
                else:
                    column = self._decode(blocks, number, scratch[: sizes[g]])
                    _copy(items, to[rows], column, begins[rows] - blocks.edges[number], counts[rows])
            except CorruptError as error:
                if on_damage is None:
                    raise
                on_damage(error)
                whole[rows] = False
        return items, to, whole

    def _decode(self, blocks: Blocks, b: int, out: npt.NDArray[_Item]) -> npt.NDArray[_Item]:
        """Block b of a column into `out`, which has its length: of values if that is float64, else of times."""
        offset, length = int(blocks.offset[b]), int(blocks.length[b])
        try:
            kind, exponent, count, payload = open_block(self._bytes(offset, length))
            if count != len(out):
                raise DecodeError(f"got a block of {count}, expected {len(out)}")
            if out.dtype == VALUE:
                decode_values(kind, exponent, count, payload, out.view(VALUE))
            elif kind == BLOCK_TIMES:
                decode_ints(count, payload, out.view(TIME))
            else:
                raise DecodeError(f"got a block of kind {kind}, expected times, {BLOCK_TIMES}")
        except DecodeError as error:
            raise CorruptError(self.path, offset, length, str(error)) from None
        return out

    def _bytes(self, offset: int, length: int) -> memoryview:
        if self._data is None:
            raise ValueError(f"{self.path}: read after close")
        return self._data[offset : offset + length]

    # Loading

    def _load(self) -> Tables:
        footer = self._footer
        owners, shapes, metas = self._names()
        shape, owner, vector = (
            self._numbers(name, footer["series"], bound).astype(np.int32)
            for name, bound in (
                ("series_shape", len(shapes)),
                ("series_owner", len(owners)),
                ("series_vector", footer["vectors"]),
            )
        )
        edges = edges_of(self._numbers("vector_count", footer["vectors"], 1 << 32))
        order = self._order(footer["series"])
        value_edges = edges_of(np.diff(edges)[vector[order]])
        value_begin = np.empty(len(order), np.int64)
        value_begin[order] = value_edges[:-1]
        if (np.diff(shape) < 0).any() or (np.diff(edges) == 0).any() or value_edges[-1] != footer["samples"]:
            raise self._corrupt("its tables are out of order, or do not add up")
        time_blocks, value_blocks = self._blocks("time_blocks", edges), self._blocks("value_blocks", value_edges)
        shape_edges = np.searchsorted(shape, np.arange(len(shapes) + 1, dtype=np.int32))
        return Tables(
            owners, shapes, metas, shape, owner, vector, shape_edges, edges, order, value_edges, value_begin, time_blocks,
            value_blocks,
        )  # fmt: skip

    def _order(self, series: int) -> Places:
        if "value_order" not in self._footer:
            return np.arange(series)
        order = self._numbers("value_order", series, series)
        if (np.bincount(order, minlength=series) != 1).any():
            raise self._corrupt("value_order does not name every series once")
        return order

    def _names(self) -> tuple[list[Labels], list[Shape], dict[str, Meta]]:
        owners, shapes = (self._table(name, BLOCK_TEXT, decode_text) for name in ("owners", "shapes"))
        try:
            return (
                [_labels(owner) for owner in owners],
                [Shape(metric, _labels(labels)) for metric, labels, *_ in shapes],
                {metric: Meta(*known[:4]) for metric, _, *known in shapes if any(known)},
            )
        except (TypeError, ValueError) as error:
            raise self._corrupt(f"an owner or a shape is not as it must be: {error}") from None

    def _numbers(self, name: str, count: int | None, bound: int) -> Places:
        """A table of numbers from 0 to below `bound`; `count`: how many, where that is known."""
        numbers = self._table(name, BLOCK_NUMBERS, decode_ints, count)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < bound:
            raise self._corrupt(f"{name} has {numbers.min()} to {numbers.max()}, expected 0 to {bound - 1}")
        return numbers

    def _table(
        self, name: str, expected: int, decode: Callable[[int, memoryview], _T], entries: int | None = None
    ) -> _T:
        offset, length = self._footer[name]
        try:
            kind, _, count, payload = open_block(self._bytes(offset, length))
            if kind != expected or entries not in (None, count):
                raise DecodeError(f"got {count} of kind {kind}, expected {entries or 'some'} of kind {expected}")
            return decode(count, payload)
        except DecodeError as error:
            raise CorruptError(self.path, offset, length, f"{name}: {error}") from None

    def _blocks(self, name: str, rows: Places) -> Blocks:
        """The blocks of a column whose rows have these edges. No block may cut a row."""
        table = self._numbers(name, None, 1 << 62)
        if len(table) % 3:
            raise self._corrupt(f"{name} has {len(table)} numbers, expected a multiple of 3")
        offset, length, count = np.ascontiguousarray(table.reshape(-1, 3).T)
        edges = edges_of(count)
        inside = (offset >= SEGMENT_HEADER_BYTES) & (length >= BLOCK_HEADER_BYTES) & (count > 0)
        inside &= offset + length <= self._footer_offset
        if not inside.all() or edges[-1] != rows[-1] or (rows[np.searchsorted(rows, edges)] != edges).any():
            raise self._corrupt(f"{name} are not the blocks of its {len(rows) - 1} rows")
        return Blocks(offset, length, edges)

    def _corrupt(self, reason: str) -> CorruptError:
        return CorruptError(self.path, 0, self.info.size_bytes, reason)

    # Verifying

    def verify(self, progress: Progress | None = None) -> None:
        """Reads every block, and checks what FORMAT.md says of segments. Raises CorruptError for the first thing wrong."""
        self.forget()
        tables = self.tables()
        self._check_order(tables)
        self._check_gaps(tables)
        done_bytes, span = 0, [LAST_MS, FIRST_MS]
        for blocks in (tables.time_blocks, tables.value_blocks):
            for b, length in enumerate(blocks.length.tolist()):
                if blocks is tables.time_blocks:
                    self._check_times(tables, b, span)
                else:
                    self._check_values(tables, b)
                done_bytes += length
                if progress:
                    progress(done_bytes, self.info.size_bytes)
        if span != [self.info.min_ms, self.info.max_ms]:
            raise self._corrupt(
                f"times are from {span[0]} to {span[1]}, expected {self.info.min_ms} to {self.info.max_ms}"
            )
        if progress:
            progress(self.info.size_bytes, self.info.size_bytes)

    def _check_order(self, tables: Tables) -> None:
        key = tables.series_shape.astype(np.int64) * len(tables.owners) + tables.series_owner
        owners, shapes = (all(a < b for a, b in pairwise(names)) for names in (tables.owners, tables.shapes))
        if not (owners and shapes) or (np.diff(key) <= 0).any():
            raise self._corrupt("owners, shapes or series are not in strictly ascending order")

    def _check_gaps(self, tables: Tables) -> None:
        """Blocks follow each other without gaps, from the header to the footer."""
        places = [tuple(self._footer[name]) for name in _block_names(self._footer)]
        for blocks in (tables.time_blocks, tables.value_blocks):
            places += zip(blocks.offset.tolist(), blocks.length.tolist(), strict=True)
        at = SEGMENT_HEADER_BYTES
        for offset, length in sorted(places):
            if offset != at:
                raise CorruptError(self.path, at, abs(offset - at), f"a block begins at {offset}, expected {at}")
            at += length
        if at != self._footer_offset:
            raise CorruptError(self.path, at, self._footer_offset - at, "bytes that belong to no block")

    def _check_times(self, tables: Tables, b: int, span: list[int]) -> None:
        blocks = tables.time_blocks
        first, last = int(blocks.edges[b]), int(blocks.edges[b + 1])
        times = self._decode(blocks, b, np.empty(last - first, TIME))
        rising = times[1:] > times[:-1]
        begins = tables.edges[np.searchsorted(tables.edges, first) : np.searchsorted(tables.edges, last)] - first
        rising[begins[1:] - 1] = True
        if not rising.all():
            raise self._damaged(blocks, b, "times are not strictly ascending")
        span[:] = min(span[0], int(times.min())), max(span[1], int(times.max()))

    def _check_values(self, tables: Tables, b: int) -> None:
        blocks = tables.value_blocks
        first, last = int(blocks.edges[b]), int(blocks.edges[b + 1])
        values = self._decode(blocks, b, np.empty(last - first, VALUE))
        if (values.view(np.int64) == ABSENT_BITS).any():
            raise self._damaged(blocks, b, "a value says that there is none")
        begin, end = np.searchsorted(tables.value_edges, [first, last])
        used = np.unique(tables.series_shape[tables.value_series[begin:end]]).tolist()
        metrics = sorted({tables.shapes[shape].metric for shape in used})
        if len(metrics) > 1:
            raise self._damaged(blocks, b, f"has values of {metrics[0]} and of {metrics[1]}")

    def _damaged(self, blocks: Blocks, b: int, reason: str) -> CorruptError:
        return CorruptError(self.path, int(blocks.offset[b]), int(blocks.length[b]), reason)


def _copy(out: npt.NDArray[_Item], to: Places, column: npt.NDArray[_Item], begins: Places, counts: Places) -> None:
    """`copy_rows`, quicker for one row: what a block of long series mostly gives."""
    if len(to) == 1:
        at, begin, count = int(to[0]), int(begins[0]), int(counts[0])
        out[at : at + count] = column[begin : begin + count]
    else:
        copy_rows(out, to, column, begins, counts)


def _read_footer(path: Path, data: memoryview) -> tuple[int, dict[str, Any]]:
    """Where the footer is, and what it says."""
    size = len(data)
    if size < SEGMENT_HEADER_BYTES + TRAILER_BYTES:
        raise CorruptError(path, 0, size, f"got {size} bytes, expected at least {SEGMENT_HEADER_BYTES + TRAILER_BYTES}")
    _check_version(path, 0, size, data[:4], data[4:8])
    trailer = data[-TRAILER_BYTES:]
    _check_version(path, size - TRAILER_BYTES, size, trailer[28:], trailer[24:28])
    if data[4:8] != trailer[24:28]:
        raise CorruptError(path, 0, size, "header and trailer name different versions")
    if crc32c(trailer[:20]) != int.from_bytes(trailer[20:24], "little"):
        raise CorruptError(path, size - TRAILER_BYTES, size, "the trailer's crc32c is wrong")
    offset, length = int.from_bytes(trailer[:8], "little"), int.from_bytes(trailer[8:12], "little")
    if offset < SEGMENT_HEADER_BYTES or offset + length + TRAILER_BYTES != size:
        raise CorruptError(path, size - TRAILER_BYTES, size, f"got a footer from {offset} on, {length} bytes long")
    if crc32c(data[offset : offset + length]) != int.from_bytes(trailer[12:16], "little"):
        raise CorruptError(path, offset, size, "the footer's crc32c is wrong")
    try:
        footer = orjson.loads(data[offset : offset + length])
        reason = _wrong_field(footer, offset)
    except ValueError as error:
        reason = f"is no JSON: {error}"
    if not reason and ("value_order" in footer) != (data[4] > 1):
        reason = f"does not go with version {data[4]}: its value_order"
    if reason:
        raise CorruptError(path, offset, size, f"the footer {reason}")
    return offset, footer


def _check_version(path: Path, offset: int, size: int, magic: memoryview, version: memoryview) -> None:
    if bytes(magic) != SEGMENT_MAGIC:
        raise CorruptError(path, offset, size, f"got {bytes(magic)!r}, expected {SEGMENT_MAGIC!r}")
    number = int.from_bytes(version, "little")
    if number > SEGMENT_VERSION:
        raise TooNewError(
            f"{path}: got a segment of version {number}, expected at most {SEGMENT_VERSION}; use the newer collectord"
        )
    if number < 1:
        raise CorruptError(path, offset, size, f"got version {number}, expected 1 to {SEGMENT_VERSION}")


def _block_names(footer: dict[str, Any]) -> tuple[str, ...]:
    """Of the blocks that it must name; of the order of values in version 2 alone."""
    return (*_BLOCKS, "value_order") if "value_order" in footer else _BLOCKS


def _wrong_field(footer: object, end: int) -> str:
    """What is wrong with it; empty when nothing is."""
    if not isinstance(footer, dict):
        return "is not an object"
    for name in _INTEGERS:
        if not isinstance(footer.get(name), int):
            return f"has no integer {name!r}"
    replaces = footer.get("replaces")
    if not isinstance(replaces, list) or not all(isinstance(number, int) for number in replaces):
        return "has no list of numbers 'replaces'"
    if footer.get("tier") not in TIERS:
        return f"has tier {footer.get('tier')!r}, expected one of {', '.join(TIERS)}"
    for name in _block_names(footer):
        match footer.get(name):
            case [int(offset), int(length)] if SEGMENT_HEADER_BYTES <= offset <= offset + length <= end:
                continue
        return f"has no block {name!r} before {end}"
    return ""


def _labels(pairs: list[list[str]]) -> Labels:
    return tuple((sys.intern(name), value) for name, value in pairs)
