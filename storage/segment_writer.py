"""`Columns` to a segment, piece by piece: blocks are written as they fill, the tables at the end. FORMAT.md, part 2.

In memory stay, besides the values and times of one unfinished block each, three numbers a series and three a vector.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
from crc32c import crc32c

from storage.codec import BEST_LEVEL, Hint, block, encode_ints, encode_text, encode_values
from storage.columns import Columns
from storage.files import Files
from storage.format import (
    BLOCK_NUMBERS,
    BLOCK_TEXT,
    BLOCK_TIMES,
    SEGMENT_MAGIC,
    TIERS,
    VALUES_IN_BLOCK,
    StorageError,
)
from storage.passes import Numbers, Places, edges_of, gathered, in_use, pieces
from storage.types import Labels, Meta, Shape, Times, Vector

SYNC_BYTES: Final = 4 << 20  # all of a large file at once would keep the WAL's next commit waiting
_UNKNOWN: Final = Meta("", "", "", "")

_Item = TypeVar("_Item", bound=np.generic)
_Name = TypeVar("_Name", Labels, Shape, str)
_Digests = npt.NDArray[np.uint64]
_Place = tuple[int, int, int]
"""Of a block: offset, bytes with its header, how many entries it holds."""


class EmptySegmentError(StorageError):
    """A segment without a sample was to be finished; there is no such file."""


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """What a segment's footer says of it. Times in Unix milliseconds."""

    number: int
    order: int
    tier: str
    min_ms: int
    max_ms: int
    series: int
    samples: int
    size_bytes: int  # of the file
    replaces: tuple[int, ...]
    wal: int


def info_of(footer: dict[str, Any], size_bytes: int) -> SegmentInfo:
    """What a footer says of its file of this size. Raises KeyError for a field that is missing."""
    fields = {field: footer[field] for field in SegmentInfo.__slots__ if field != "size_bytes"}
    return SegmentInfo(**fields | {"replaces": tuple(footer["replaces"])}, size_bytes=size_bytes)


class SegmentWriter:
    """Writes beside `path`, and under this name only when all of it is on disk.

    REQUIRES: each call's series are in canonical order (`columns.in_order`) and come after the last call's. What is not so
    raises ValueError, at the latest from `finish`. After any error only `abort` is left to do; OSErrors are the disk's.
    """

    def __init__(
        self,
        files: Files,
        path: Path,
        *,
        number: int,
        order: int,
        tier: str,
        replaces: Sequence[int] = (),
        level: int = BEST_LEVEL,
        hints: dict[str, Hint] | None = None,
        like_together: bool = False,
    ) -> None:
        """hints: by metric, what was found good in other segments; changed by this one. like_together: of each metric, the
        values of series that move alike stand side by side, which takes a twentieth less, and more time.
        """
        if tier not in TIERS:
            raise ValueError(f"got tier {tier!r}, expected one of {', '.join(TIERS)}")
        self._files = files
        self._path = path
        self._temporary = path.with_name(path.name + ".tmp")
        self._head: dict[str, Any] = {
            "number": number,
            "order": order,
            "tier": tier,
            "replaces": list(replaces),
        }
        self._level = level
        self._version = 2 if like_together else 1
        self._order: list[Places] = []  # of version 2: places of series, as their values stand
        self._added = 0  # series
        self._hints = hints if hints is not None else {}
        self._owners: _Numbered[Labels] = _Numbered()
        self._shapes: list[Shape] = []  # as they come, which is ascending
        self._metas: dict[str, Meta] = {}
        self._metric: str | None = None  # whose values wait for their block to be full
        self._series: list[tuple[Numbers, Numbers, Numbers]] = []  # shape, owner, vector
        self._vectors = _Vectors()
        self._times: _Blocks[np.int64] = _Blocks(self._write_times)
        self._values: _Blocks[np.float64] = _Blocks(self._write_values)
        self._min_ms, self._max_ms = 1 << 63, -1 << 63
        self._open = True
        self._synced = 0  # bytes of the file that are on disk
        self._file = files.create(self._temporary)
        try:
            self._file.write([SEGMENT_MAGIC, self._version.to_bytes(4, "little")])
        except BaseException:
            self.abort()
            raise

    def add(self, columns: Columns) -> None:
        """More series. Those without samples are left out."""
        if not self._open:
            raise ValueError(f"{self._path}: add after finish or abort")
        counts = columns.counts
        some = np.flatnonzero(counts)
        if not len(some):
            return
        counts = counts[some]
        shape, owner, vector = columns.shape[some], columns.owner[some], columns.vector[some]
        self._series.append(
            (
                self._shape_numbers(columns.shapes, shape),
                self._owners.numbers(columns.owners, owner),
                self._add_vectors(columns, vector),
            )
        )
        metric_of, metrics = _metrics(columns.shapes, shape)
        self._metas |= {metric: columns.metas[metric] for metric in metrics if metric in columns.metas}
        values = gathered(columns.values, columns.start[some], counts)
        edges = edges_of(counts)
        cuts = [0, *(np.flatnonzero(metric_of[1:] != metric_of[:-1]) + 1).tolist(), len(some)]
        for first, last in pairwise(cuts):
            metric = metrics[metric_of[first]]
            if metric != self._metric:
                self._values.close()
                self._metric = metric
            if self._version > 1:
                self._values.add(*self._by_likeness(values, edges[first : last + 1], self._added + first))
            else:
                self._values.add(values, edges[first : last + 1])
        self._added += len(some)

    def _by_likeness(self, values: Vector, edges: Places, first: int) -> tuple[Vector, Places]:
        """Rows of a metric, with their edges, those that move by little first. first: the first row's series."""
        counts = np.diff(edges)
        order = np.argsort(_moves(values[edges[0] : edges[-1]], counts), kind="stable")
        self._order.append(first + order)
        return gathered(values, edges[:-1][order], counts[order]), edges_of(counts[order])

    def finish(self, *, wal: int = 0) -> SegmentInfo:
        """The tables, and the file under its name, durably. Raises EmptySegmentError when there was no sample.

        wal: all of the WAL's files up to this one are in segments once this segment is there.
        """
        if not self._open:
            raise ValueError(f"{self._path}: finish after finish or abort")
        if not self._series:
            raise EmptySegmentError(f"{self._path}: got no sample, expected at least one")
        self._values.close()
        self._times.close()
        owners, shapes, series = self._sorted_tables()
        samples = sum(count for _, _, count in self._values.places)
        self._head["wal"] = wal
        footer = self._footer(owners, shapes, series, samples)
        self._write_end(footer)
        self._file.sync()
        size_bytes = self._file.size
        self._file.close()
        self._publish()
        return info_of(footer, size_bytes)

    def abort(self) -> None:
        """Leaves nothing behind, but for what a failing disk does not let go. After `finish`: nothing happens."""
        if self._open:
            self._open = False
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._files.unlink(self._temporary, missing_ok=True)

    def _publish(self) -> None:
        self._files.rename(self._temporary, self._path)
        self._open = False
        try:
            self._files.sync_dir(self._path.parent)
        except BaseException:
            with suppress(OSError):
                self._files.unlink(self._path, missing_ok=True)
            raise

    def _add_vectors(self, columns: Columns, vector: Numbers) -> Numbers:
        """Each series' vector by its number here; the times of those not seen before go to their blocks."""
        used = in_use(vector, len(columns.edges) - 1)
        places = np.flatnonzero(used)
        counts = columns.edges[places + 1] - columns.edges[places]
        times = gathered(columns.times, columns.edges[places], counts)
        numbers, fresh = self._vectors.numbers(times, counts)
        if len(fresh):
            times, counts = gathered(times, (np.cumsum(counts) - counts)[fresh], counts[fresh]), counts[fresh]
            edges = edges_of(counts)
            self._min_ms = min(self._min_ms, int(times[edges[:-1]].min()))
            self._max_ms = max(self._max_ms, int(times[edges[1:] - 1].max()))
            self._times.add(times, edges)
        of_vector = np.zeros(len(used), np.int32)
        of_vector[places] = numbers
        renumbered: Numbers = of_vector[vector]
        return renumbered

    def _shape_numbers(self, shapes: list[Shape], used: Numbers) -> Numbers:
        """The numbers here of shapes[used[i]]. int32, like `used`."""
        places = np.flatnonzero(in_use(used, len(shapes)))
        new = [shapes[i] for i in places.tolist()]
        goes_on = bool(self._shapes) and new[0] == self._shapes[-1]
        table = np.zeros(len(shapes), np.int32)
        table[places] = np.arange(len(new)) + (len(self._shapes) - goes_on)
        self._shapes += new[goes_on:]
        numbers: Numbers = table[used]
        return numbers

    def _sorted_tables(self) -> tuple[list[Labels], list[Shape], tuple[Numbers, Numbers, Numbers]]:
        shapes = self._shapes
        owners, owner_rank = self._owners.ranked()
        shape, owner, vector = (np.concatenate(parts) for parts in zip(*self._series, strict=True))
        owner = owner_rank[owner]
        key = shape.astype(np.int64) * len(owners) + owner
        falls = {at for at, pair in enumerate(pairwise(shapes)) if pair[0] >= pair[1]}
        wrong = np.flatnonzero(key[1:] <= key[:-1]).tolist()
        wrong += np.flatnonzero(np.isin(shape[:-1], list(falls)) & (shape[1:] != shape[:-1])).tolist()
        if wrong:
            at = min(wrong)
            before, after = ((shapes[shape[i]], owners[owner[i]]) for i in (at, at + 1))
            raise ValueError(
                f"{self._path}: series {at + 1}, {after}, comes after {before}; expected ascending, each once"
            )
        return owners, shapes, (shape, owner, vector)

    def _footer(
        self, owners: list[Labels], shapes: list[Shape], series: tuple[Numbers, Numbers, Numbers], samples: int
    ) -> dict[str, Any]:
        shape, owner, vector = series
        described = [(*name, *_described(self._metas.get(name.metric, _UNKNOWN))) for name in shapes]
        counts = self._vectors.counts()
        return self._head | {
            "min_ms": self._min_ms,
            "max_ms": self._max_ms,
            "series": len(shape),
            "vectors": len(counts),
            "samples": samples,
            "owners": self._write_text(owners),
            "shapes": self._write_text(described),
            "series_shape": self._write_numbers(shape),
            "series_owner": self._write_numbers(owner),
            "series_vector": self._write_numbers(vector),
            "vector_count": self._write_numbers(counts),
            "time_blocks": self._write_numbers(np.array(self._times.places).ravel()),
            "value_blocks": self._write_numbers(np.array(self._values.places).ravel()),
            **({"value_order": self._write_numbers(np.concatenate(self._order))} if self._version > 1 else {}),
        }

    def _write_end(self, footer: dict[str, Any]) -> None:
        data = orjson.dumps(footer)
        where = self._file.size.to_bytes(8, "little") + len(data).to_bytes(4, "little")
        where += crc32c(data).to_bytes(4, "little") + bytes(4)
        version = self._version.to_bytes(4, "little")
        self._file.write([data, where, crc32c(where).to_bytes(4, "little"), version, SEGMENT_MAGIC])

    def _write_times(self, times: Times) -> _Place:
        return self._write(BLOCK_TIMES, 0, len(times), encode_ints(times))

    def _write_values(self, values: Vector) -> _Place:
        hint = self._hints.setdefault(self._metric or "", Hint())
        kind, exponent, payload = encode_values(values, self._level, hint)
        return self._write(kind, exponent, len(values), payload)

    def _write_numbers(self, numbers: npt.NDArray[Any]) -> tuple[int, int]:
        return self._write(BLOCK_NUMBERS, 0, len(numbers), encode_ints(numbers.astype(np.int64)))[:2]

    def _write_text(self, entries: Sequence[Any]) -> tuple[int, int]:
        return self._write(BLOCK_TEXT, 0, len(entries), encode_text(entries, self._level))[:2]

    def _write(self, kind: int, exponent: int, count: int, payload: bytes) -> _Place:
        offset_bytes = self._file.size
        self._file.write(block(kind, exponent, count, payload))
        if self._file.size - self._synced > SYNC_BYTES:
            self._file.sync()
            self._synced = self._file.size
        return offset_bytes, self._file.size - offset_bytes, count


def _moves(values: Vector, counts: Places) -> Vector:
    """How far each row goes from a value to the next, on average; infinite where that is no number."""
    with np.errstate(all="ignore"):
        steps = np.abs(np.diff(values, append=0.0))
        ends = np.cumsum(counts)
        steps[ends - 1] = 0.0
        moves: Vector = np.add.reduceat(steps, ends - counts) / counts
    moves[~np.isfinite(moves)] = np.inf
    return moves


class _Blocks(Generic[_Item]):
    """One long column, in blocks of whole rows: up to VALUES_IN_BLOCK items together, or one longer row."""

    def __init__(self, write: Callable[[npt.NDArray[_Item]], _Place]) -> None:
        self.places: list[_Place] = []
        self._write = write
        self._held: list[npt.NDArray[_Item]] = []  # rows that wait for their block to be full
        self._count = 0

    def add(self, items: npt.NDArray[_Item], edges: Places) -> None:
        """Rows items[edges[i]:edges[i + 1]]. edges: int64, shape (rows + 1,)."""
        first, rows = 0, len(edges) - 1
        while first < rows:
            fitting = int(np.searchsorted(edges, edges[first] + VALUES_IN_BLOCK - self._count, side="right")) - 1
            if fitting <= first and self._count:
                self.close()
                continue
            last = max(fitting, first + 1)
            self._held.append(items[edges[first] : edges[last]])
            self._count += len(self._held[-1])
            if last < rows:
                self.close()
            first = last
        self._held = [np.concatenate(self._held)]  # or a view would keep all of the caller's array

    def close(self) -> None:
        """What waits becomes a block."""
        if self._count:
            self.places.append(self._write(np.concatenate(self._held) if len(self._held) > 1 else self._held[0]))
        self._held, self._count = [], 0


class _Numbered(Generic[_Name]):
    """Owners or shapes, numbered as they first come."""

    def __init__(self) -> None:
        self._number: dict[_Name, int] = {}

    def numbers(self, names: list[_Name], used: Numbers) -> Numbers:
        """The numbers here of names[used[i]]. int32, like `used`."""
        places = np.flatnonzero(in_use(used, len(names))).tolist()
        table = np.zeros(len(names), np.int32)
        table[places] = [self._number.setdefault(names[i], len(self._number)) for i in places]
        numbers: Numbers = table[used]
        return numbers

    def names(self) -> list[_Name]:
        """By their numbers."""
        return list(self._number)

    def ranked(self) -> tuple[list[_Name], Numbers]:
        """All of them sorted, and the place there of each number."""
        names = self.names()
        order = sorted(range(len(names)), key=names.__getitem__)
        rank = np.empty(len(names), np.int32)
        rank[order] = np.arange(len(names))
        return [names[i] for i in order], rank


class _Vectors:
    """Vectors of times by their content, numbered as they first come. Of each, 128 bits of a keyed sum are remembered.

    The key makes two vectors with equal sums something that happens to nobody, even if somebody wants it to.
    """

    def __init__(self) -> None:
        self._key = [np.uint64(secrets.randbits(64) | 1) for _ in range(4)]
        self._counts: list[Places] = []
        self._total = 0
        # Ascending by digests each, and each at most half as long as the one before it.
        self._known: list[tuple[_Digests, _Digests, Numbers]] = []
        # Times, counts and numbers of the last call: one metric after the other mostly has the same.
        self._last: tuple[Times, Places, Numbers] = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32)

    def counts(self) -> Places:
        """Times of each vector. int64, shape (V,)."""
        return np.concatenate(self._counts)

    def numbers(self, times: Times, counts: Places) -> tuple[Numbers, Places]:
        """The numbers of vectors that lie one after the other, and which of these places are new: numbered in this order."""
        last_times, last_counts, numbers = self._last
        if np.array_equal(counts, last_counts) and np.array_equal(times, last_times):
            return numbers, np.empty(0, np.int64)
        first, second = self._digests(times, counts)
        order = np.lexsort((second, first))
        first, second = first[order], second[order]
        heads = np.append(True, (first[1:] != first[:-1]) | (second[1:] != second[:-1]))
        first, second = first[heads], second[heads]
        found, example = self._find(first, second), order[heads]
        new = found < 0
        fresh = np.sort(example[new])
        found[new] = self._total + np.searchsorted(fresh, example[new])
        if len(fresh):
            self._counts.append(counts[fresh])
            self._total += len(fresh)
            self._remember(first[new], second[new], found[new])
        numbers = np.empty(len(order), np.int32)
        numbers[order] = found[np.cumsum(heads) - 1]
        self._last = times, counts, numbers
        return numbers, fresh

    def _digests(self, times: Times, counts: Places) -> tuple[_Digests, _Digests]:
        first, second = np.empty(len(counts), np.uint64), np.empty(len(counts), np.uint64)
        edges = edges_of(counts)
        for rows in pieces(counts):
            begin, end = edges[rows.start], edges[rows.stop]
            mixed = times[begin:end].view(np.uint64) * self._key[0]
            mixed += self._key[3]  # or time 0 would add nothing
            sums = np.zeros(len(mixed) + 1, np.uint64)
            for digests, key in ((first, self._key[1]), (second, self._key[2])):
                mixed ^= mixed >> np.uint64(32)
                mixed *= key
                np.cumsum(mixed, out=sums[1:])
                digests[rows] = np.diff(sums[edges[rows.start : rows.stop + 1] - begin])
        return first, second

    def _find(self, first: _Digests, second: _Digests) -> Numbers:
        """The numbers of these digests; -1 of those that are not known. int32, shape (D,)."""
        found = np.full(len(first), -1, np.int32)
        for known_first, known_second, number in self._known:
            at = np.searchsorted(known_first, first)
            at[at == len(known_first)] = 0
            same = (known_first[at] == first) & (known_second[at] == second)
            found[same] = number[at[same]]
        return found

    def _remember(self, first: _Digests, second: _Digests, number: Numbers) -> None:
        while self._known and len(self._known[-1][0]) <= 2 * len(first):
            other_first, other_second, other_number = self._known.pop()
            first = np.concatenate([first, other_first])
            order = np.argsort(first)
            first = first[order]
            second = np.concatenate([second, other_second])[order]
            number = np.concatenate([number, other_number])[order]
        self._known.append((first, second, number))


def _metrics(shapes: list[Shape], used: Numbers) -> tuple[Numbers, list[str]]:
    """The metric of each of shapes[used[i]], as a place in a list of them. int32, like `used`."""
    numbered: _Numbered[str] = _Numbered()
    return numbered.numbers([shape.metric for shape in shapes], used), numbered.names()


def _described(meta: Meta) -> tuple[str, str, str, str]:
    return meta.kind, meta.unit, meta.description, meta.source_name
