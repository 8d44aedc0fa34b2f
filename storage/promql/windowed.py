"""How a function of a range vector is run: piece by piece, and within a piece one sample of every window after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from storage.passes import Mask, Places
from storage.promql.errors import SAME_LABELSET, failed
from storage.promql.form import Piece, Rows, Windows, empty_rows
from storage.promql.labels import METADATA
from storage.promql.query import Context
from storage.types import Matrix, Vector

LONG_WINDOW = 16  # a window with so many times more samples than there are windows; a step in Python costs that much
WHOLE_ROOM = 1 << 20  # samples taken at a time

Found = tuple[npt.NDArray[Any], Mask]
"""Values, float64, shape (n, T), and where there is one, bool, shape (v, T)."""

Work = Callable[[Piece], Found]
Prepare = Callable[[Windows], Work]
"""Makes of the whole what all pieces share, and gives back what is done with each."""


def over_windows(windows: Windows, prepare: Prepare, context: Context, keep_name: bool = False) -> Rows:
    """The function at every step. Raises QueryError where two series of the result have the same labels."""
    series, steps = len(windows.vector), len(windows.ends_ms)
    if not len(windows.values) or not steps:
        return empty_rows(context.count)
    context.query.charge(series, steps)
    work = prepare(windows)
    values, present = np.empty((series, steps)), np.ones((series, steps), np.bool_)
    for piece in windows.pieces():
        context.query.check()
        found, there = work(piece)
        values[piece.rows] = found
        if not there.all():
            present[piece.rows] = piece.each(there)
    rows = Rows(windows.labels, values, present).nonempty()
    if not keep_name:
        rows = Rows(rows.labels.without(METADATA), rows.values, rows.present)
    if rows.labels.has_duplicates():
        raise failed(SAME_LABELSET)
    return rows.repeated(context.count) if steps != context.count else rows


class Cells(NamedTuple):
    """The windows of a piece that are not empty, the longest first, so that those that still have a sample come first."""

    low: Places  # (M,): the place in `values` of the first sample
    counts: Places  # (M,), descending
    where: Places  # (M,): which cell of the piece
    shape: tuple[int, int]  # (n, T)

    def each(self, values: Vector) -> Iterator[Vector]:
        """The first sample of all, then the second of those that have two, and so on."""
        left = np.searchsorted(-self.counts, -np.arange(1, int(self.counts[:1].sum()) + 1), side="right")
        for k, many in enumerate(left.tolist()):
            yield values[self.low[:many] + k]

    @property
    def are_long(self) -> bool:
        """Whether the windows are few and long: then they are worked on whole, not sample by sample."""
        return len(self.low) * LONG_WINDOW < int(self.counts[:1].sum())

    def wholes(self) -> Iterator[tuple[slice, Places, Mask]]:
        """Some of the windows at a time: which, the places of their samples, and where there is one, both (W, m)."""
        size = int(self.counts[0])
        within = np.arange(size)[:, None]
        wide = max(WHOLE_ROOM // size, 1)
        for first in range(0, len(self.low), wide):
            some = slice(first, first + wide)
            yield some, self.low[some] + np.minimum(within, self.counts[some] - 1), within < self.counts[some]

    def spread(self, found: Vector) -> Matrix:
        """What was found for each, where it belongs. float64, shape (n, T)."""
        out = np.zeros(self.shape)
        out.reshape(-1)[self.where] = found
        return out


def cells(piece: Piece) -> Cells:
    """The windows of a piece."""
    low = piece.first_places()
    counts = np.broadcast_to(piece.each(piece.counts), low.shape).reshape(-1)
    most, least = int(counts.max(initial=0)), int(counts.min(initial=0))
    if most == least > 0:
        return Cells(low.reshape(-1), counts, np.arange(low.size), (low.shape[0], low.shape[1]))
    small = counts.astype(np.uint16) if most < 1 << 16 else counts
    order = np.argsort(most - small, kind="stable")[: int(np.count_nonzero(counts))]
    return Cells(low.reshape(-1)[order], counts[order], order, (low.shape[0], low.shape[1]))
