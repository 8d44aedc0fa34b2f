"""`Result`: what a query gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from storage.passes import Mask, Places, edges_of, spread
from storage.promql.form import Piece, Rows, Scalar, Value, Windows
from storage.promql.query import Stats
from storage.types import Labels, Times, Vector


@dataclass(frozen=True, slots=True)
class Result:
    """kind: scalar, vector, matrix or string.

    Series i has `labels[i]` and the samples times_ms[edges[i]:edges[i + 1]] and values[edges[i]:edges[i + 1]]. A value may be
    NaN; a sample that is absent is not listed. Of a vector each series has one sample, at the time that was asked for; of
    a scalar there is one series without labels. A matrix is in the order of labels; a vector in that of the query.
    """

    kind: str
    labels: list[dict[str, str]] = field(default_factory=list)
    edges: Places = field(default_factory=lambda: np.zeros(1, np.int64))  # (N + 1,)
    times_ms: Times = field(default_factory=lambda: np.empty(0, np.int64))
    values: Vector = field(default_factory=lambda: np.empty(0, np.float64))
    text: str = ""  # of a string
    time_ms: int = 0  # that of an instant query, or the end of a range
    warnings: list[str] = field(default_factory=list)
    infos: list[str] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)

    def series(self) -> Iterator[tuple[dict[str, str], Times, Vector]]:
        """Labels, times and values of one series after the other."""
        edges = self.edges.tolist()
        for labels, start, end in zip(self.labels, edges, edges[1:], strict=False):
            yield labels, self.times_ms[start:end], self.values[start:end]


Parts = tuple[list[dict[str, str]], Places, Times, Vector]


def parts_of(value: Value, steps_ms: Times, ordered: bool) -> Parts:
    """Labels, edges, times and values of a result. ordered: series in the order of labels."""
    if isinstance(value, Scalar):
        values = np.array(np.broadcast_to(value.values, len(steps_ms)))
        return [{}], np.array([0, len(steps_ms)], np.int64), steps_ms, values
    if isinstance(value, Windows):
        return _of_windows(value)
    if isinstance(value, Rows):
        return _of_rows(value.nonempty(), steps_ms, ordered)
    raise TypeError(f"got a value of type {type(value).__name__}; expected one with samples")


def _of_rows(rows: Rows, steps_ms: Times, ordered: bool) -> Parts:
    if ordered:
        texts = rows.labels.texts()
        rows = rows.take(np.array(sorted(range(len(texts)), key=texts.__getitem__), np.int64))
    mask: Mask = np.ascontiguousarray(rows.mask)
    edges = edges_of(mask.sum(axis=1))
    times = np.broadcast_to(steps_ms, mask.shape)[mask]
    return rows.labels.dicts(), edges, times, np.array(rows.values[mask])


def _of_windows(windows: Windows) -> Parts:
    """The samples of an instant query for a range vector: each series' one window."""
    texts: list[Labels] = windows.labels.texts()
    if not len(windows.values) or not texts:
        return [], np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0)
    low, counts = np.zeros((2, len(texts)), np.int64)
    for piece in windows.pieces():
        low[piece.rows], counts[piece.rows] = _first_window(piece)
    order = np.array(sorted(np.flatnonzero(counts).tolist(), key=texts.__getitem__), np.int64)
    places = spread(low[order], counts[order])
    times = windows.times[places]
    values = windows.values[places + np.repeat(windows.shift[order], counts[order])]
    return [dict(texts[i]) for i in order.tolist()], edges_of(counts[order]), times, values


def _first_window(piece: Piece) -> tuple[Places, Places]:
    return piece.low[piece.row_of, 0], piece.counts[piece.row_of, 0]
