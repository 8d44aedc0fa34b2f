"""A WAL file's samples: all at once, a stretch of the file after the other, or a range of metrics of several files together.

Until a piece is asked for, its samples stay in the file: what is known of a row is its time and where it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Final, NamedTuple, Protocol, Self

import numpy as np

from storage.columns import Columns, Slab, from_loose, keep, take
from storage.merge import merge, merge_named, unify
from storage.passes import Mask, Numbers, Places, edges_of, gathered, group_starts, order_by, pieces, spread, windows
from storage.types import ABSENT_BITS, Labels, Matrix, Meta, Shape, Times, Vector
from storage.wal_names import Layouts

LEAST_CELLS: Final = 64  # rows of a layout with fewer values in the file are handled as loose samples
PIECE_SAMPLES: Final = 1 << 20  # 8 MiB: every pass over it finds it in memory that the pass before it had
WIDE: Final = 64  # values side by side, from which on they are copied as one
LONG_STRIP: Final = 2048  # samples of a strip in a piece, on average, from which on strips are taken one by one


@dataclass(slots=True)
class Vectors:
    """Vectors of one length."""

    def where(self, wanted: Places | Mask | slice) -> Self:
        return replace(self, **{f.name: getattr(self, f.name)[wanted] for f in fields(self)})

    def between(self, start_ms: int, end_ms: int) -> Self:
        """Those with start_ms <= time < end_ms. REQUIRES: a vector of times."""
        time: Times = self.time  # type: ignore[attr-defined]
        return self.where((start_ms <= time) & (time < end_ms))


@dataclass(slots=True)
class Rows(Vectors):
    """Rows of known sets, in the order of writing."""

    layout: Places  # place of the set
    frame: Places  # number of the frame
    time: Times
    start: Places  # of the first value, in f64 from the file's beginning


@dataclass(slots=True)
class Loose(Vectors):
    """Single samples, in the order of writing."""

    owner: Numbers  # places of names
    shape: Numbers
    time: Times
    value: Vector
    frame: Places


class Content(Protocol):
    """A file: names, layouts, rows, loose samples, all of its bytes as f64."""

    owners: list[Labels]
    shapes: list[Shape]
    metas: dict[str, Meta]
    layouts: Layouts
    rows: Rows
    loose: Loose
    doubles: Vector

    def forget(self) -> None:
        """What of `doubles` was read need not stay in memory."""


@dataclass(slots=True)
class Strips:
    """Rows of K strips: of each, one owner and list of shapes, and strictly ascending times.

    `columns` has no values, vector k is strip k's times, and `start` is a series' place in its strip's rows.
    """

    columns: Columns
    rows: Places  # (T,): where in `doubles` the row of each time begins
    doubles: Vector  # the file's

    def filled(self, series: Places) -> Columns:
        """Some of the series, with their samples. Not in the order that is asked for. int64, (any,), none twice."""
        order = np.lexsort((self.columns.start[series], self.columns.vector[series]))
        columns = take(self.columns, series[order])
        strip, place, counts = columns.vector, columns.start, columns.counts
        edges = edges_of(counts)
        heads = [*group_starts(strip).tolist(), len(strip)]
        if int(edges[-1]) < LONG_STRIP * len(heads):
            rows = gathered(self.rows, self.columns.edges[:-1][strip], counts)
            values = self.doubles[rows + np.repeat(place, counts)]
        else:
            values = np.empty(int(edges[-1]))
            for first, last in pairwise(heads):
                rows = self.rows[self.columns.edges[strip[first]] : self.columns.edges[strip[first] + 1]]
                out = values[edges[first] : edges[last]].reshape(last - first, len(rows))
                self._transpose(rows, place[first:last], out)
        filled = replace(columns, start=edges[:-1], values=values)
        return keep(filled, values.view(np.int64) != ABSENT_BITS)

    def _transpose(self, rows: Places, places: Places, out: Matrix) -> None:
        """out[i, r] = the value at places[i] (ascending) of row r."""
        low, width = int(places[0]), len(places)
        if width < WIDE or int(places[-1]) - low >= width:
            np.take(
                self.doubles, rows + places[:, None], out=out, mode="clip"
            )  # no place is outside: "raise" would copy
            return
        side_by_side = windows(self.doubles, width)
        for some in pieces(np.full(len(rows), width)):
            out[:, some] = side_by_side[rows[some] + low].T

    def slabs(self) -> Iterator[Slab]:
        """Each strip's rows with their samples."""
        columns = self.columns
        for first, last in pairwise([*group_starts(columns.vector).tolist(), columns.series]):
            strip = slice(*columns.edges[columns.vector[first] :][:2].tolist())
            values = windows(self.doubles, last - first)[self.rows[strip]]
            yield Slab(int(columns.owner[first]), columns.shape[first:last], columns.times[strip], values)


class Piece(NamedTuple):
    """Of a file: rows, and samples that belong to none."""

    strips: Strips
    loose: Columns

    @property
    def samples(self) -> int:
        """How many there are. Reads all of them."""
        return self.loose.samples + sum(
            int(np.count_nonzero(slab.values.view(np.int64) != ABSENT_BITS)) for slab in self.strips.slabs()
        )


def whole(content: Content) -> Columns:
    """All that a file holds, in canonical order."""
    strips, loose = divided(content, content.rows, content.loose)
    return merge([strips.filled(np.arange(strips.columns.series)), loose])


def stretches(content: Content) -> Iterator[Piece]:
    """One stretch of the file after the other, of about PIECE_SAMPLES each."""
    rows, loose = content.rows, content.loose
    edges = [rows.frame[piece.stop - 1] + 1 for piece in pieces(content.layouts.width[rows.layout], PIECE_SAMPLES)]
    edges = edges or [0]
    edges[-1] = max(int(edges[-1]), int(loose.frame[-1]) + 1 if len(loose.frame) else 0)
    row = sample = 0
    for frame in dict.fromkeys(edges):
        row_end, sample_end = int(np.searchsorted(rows.frame, frame)), int(np.searchsorted(loose.frame, frame))
        yield divided(content, rows.where(slice(row, row_end)), loose.where(slice(sample, sample_end)))
        content.forget()
        row, sample = row_end, sample_end


def span_of(contents: Sequence[Content]) -> tuple[int, int] | None:
    """The smallest and the greatest time in these files; None when there is none."""
    times = [times for content in contents for times in (content.rows.time, content.loose.time) if len(times)]
    return (min(int(t.min()) for t in times), max(int(t.max()) for t in times)) if times else None


def merged(contents: Sequence[Content], start_ms: int, end_ms: int) -> Iterator[Columns]:
    """What several files have with start_ms <= time < end_ms, a later one's samples counting before an earlier one's.

    Pieces of about PIECE_SAMPLES or of one shape, that follow each other in the order of (shape, owner).
    """
    strips: dict[int, Strips] = {}
    parts: list[Columns] = []
    for content in contents:
        rows, loose = content.rows, content.loose
        some = divided(content, rows.between(start_ms, end_ms), loose.between(start_ms, end_ms))
        if some.strips.columns.series:
            strips[len(parts)] = some.strips
            parts.append(some.strips.columns)
        if some.loose.series:
            parts.append(some.loose)
    if not parts:
        return
    parts = unify(parts)
    shapes = parts[0].shapes
    samples = sum(np.bincount(p.shape, p.counts, len(shapes)).astype(np.int64) for p in parts)
    by_shape = [np.argsort(part.shape, kind="stable") for part in parts]
    begins = [edges_of(np.bincount(part.shape, minlength=len(shapes))) for part in parts]
    for piece in pieces(np.asarray(samples), PIECE_SAMPLES):
        found = []
        for i, part in enumerate(parts):
            series = by_shape[i][begins[i][piece.start] : begins[i][piece.stop]]
            if len(series):
                named = replace(part, shapes=shapes[piece], shape=part.shape - np.int32(piece.start))
                rows_of = strips.get(i)
                found.append(replace(rows_of, columns=named).filled(series) if rows_of else take(named, series))
        yield merge_named(found)


# Rows and loose samples


def divided(content: Content, rows: Rows, loose: Loose, shapes: Mask | None = None) -> Piece:
    """Most rows as strips, one for each owner and list of shapes; what is small or out of the ordinary as loose samples, of
    these shapes alone.
    """
    strip, sets = _numbered(content.layouts, rows)
    large = np.bincount(strip, content.layouts.width[rows.layout], len(sets)) >= LEAST_CELLS
    apart = ~large[strip]
    apart |= _tangled(content, rows, strip, sets, large, _together(content, rows, loose, apart))
    singles = _together(content, rows, loose, apart)
    if shapes is not None:
        singles = singles.where(shapes[singles.shape])
    return Piece(_strips(content, rows.where(~apart), strip[~apart], sets), _columns(content, singles))


def _columns(content: Content, loose: Loose) -> Columns:
    if not len(loose.time):
        return Columns()
    (owners, owner), (shapes, shape) = (np.unique(n, return_inverse=True) for n in (loose.owner, loose.shape))
    names = [content.owners[i] for i in owners.tolist()], [content.shapes[i] for i in shapes.tolist()]
    return from_loose(*names, owner.astype(np.int32), shape.astype(np.int32), loose.time, loose.value, content.metas)


def _numbered(layouts: Layouts, rows: Rows) -> tuple[Places, Places]:
    """For each row the number of its strip, and for each strip a set: others that say the same are in that strip too."""
    used = np.unique(rows.layout)
    first = np.arange(len(used))  # in `used`, with the same owner and shapes
    owner = layouts.owner[used]
    known: dict[tuple[int, bytes], int] = {}
    for i in np.flatnonzero(np.bincount(owner)[owner] > 1).tolist():
        first[i] = known.setdefault((int(owner[i]), layouts.shapes(used[i]).tobytes()), i)
    firsts, strip = np.unique(first, return_inverse=True)
    number = np.zeros(len(layouts.width), np.int64)
    number[used] = strip
    return number[rows.layout], used[firsts]


def _together(content: Content, rows: Rows, loose: Loose, apart: Mask) -> Loose:
    """These rows' samples and the loose ones, in the order of writing."""
    if not apart.any():
        return loose
    parts = [_singly(content, rows.where(apart)), loose]  # in one frame rows come first
    both = Loose(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Loose)))
    return both.where(np.argsort(both.frame, kind="stable"))


def _singly(content: Content, rows: Rows) -> Loose:
    """Rows as single samples, ABSENT ones included."""
    layouts, width = content.layouts, content.layouts.width[rows.layout]
    return Loose(
        np.repeat(layouts.owner[rows.layout], width).astype(np.int32),
        layouts.shape[spread(layouts.start[rows.layout], width)],
        np.repeat(rows.time, width),
        content.doubles[spread(rows.start, width)],
        np.repeat(rows.frame, width),
    )


def _tangled(content: Content, rows: Rows, strip: Places, sets: Places, large: Mask, loose: Loose) -> Mask:
    """Rows with a sample that stands, for the same series and time, in another row or among the loose ones too.

    Which of them counts is a matter of their order in the file, which strips do not know. strip: of each row; sets: of each
    strip; large: whether it is to be one.
    """
    layouts, owners = content.layouts, content.layouts.owner[sets]
    tangled = np.zeros(len(strip), np.bool_)
    in_large = np.flatnonzero(large[strip])
    order = in_large[order_by(strip[in_large], rows.time[in_large])]
    twice = (strip[order][1:] == strip[order][:-1]) & (rows.time[order][1:] == rows.time[order][:-1])
    tangled[order[1:][twice]] = tangled[order[:-1][twice]] = True
    suspect = np.bincount(owners[large], minlength=len(content.owners)) > 1
    suspect[loose.owner] = True
    some = sets[suspect[owners] & large]
    if not len(some):
        return tangled
    width = layouts.width[some]
    key = np.sort(np.repeat(layouts.owner[some] << 32, width) + layouts.shape[spread(layouts.start[some], width)])
    singles = loose.where(np.isin(loose.shape + (loose.owner.astype(np.int64) << 32), key))
    suspect[:] = False
    suspect[key[1:][key[1:] == key[:-1]] >> 32] = True
    several = suspect[owners[strip]] & large[strip]
    if several.any() or len(singles.time):
        times, rank = np.unique(np.concatenate((rows.time, singles.time)), return_inverse=True)
        # An owner and a time.
        moment = np.concatenate((owners[strip], singles.owner.astype(np.int64))) * len(times) + rank
        of_rows, of_singles = moment[: len(strip)], moment[len(strip) :]
        pairs = np.unique(of_rows[several] * len(sets) + strip[several]) // len(sets)
        tangled |= np.isin(of_rows, np.concatenate((pairs[1:][pairs[1:] == pairs[:-1]], of_singles)))
    return tangled


def _strips(content: Content, rows: Rows, strip: Places, sets: Places) -> Strips:
    """strip: of each row; sets: of each strip. Those without a row drop out."""
    order = order_by(strip, rows.time)
    strip, time = strip[order], rows.time[order]
    heads = group_starts(strip)
    layouts, of = content.layouts, sets[strip[heads]]
    width = layouts.width[of]
    columns = Columns(
        owners=content.owners,
        shapes=content.shapes,
        metas=content.metas,
        owner=np.repeat(layouts.owner[of], width).astype(np.int32),
        shape=gathered(layouts.shape, layouts.start[of], width),
        vector=np.repeat(np.arange(len(of), dtype=np.int32), width),
        start=spread(np.zeros_like(width), width),
        edges=np.append(heads, len(strip)),
        times=time,
    )
    return Strips(columns, rows.start[order], content.doubles)
