"""The forms in which values flow between nodes: `Scalar`, `Rows`, `Windows`, and text as `str`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from storage.passes import PIECE, Places, edges_of, first_at_or_after, group_starts
from storage.promql.errors import SAME_LABELSET, failed
from storage.promql.labels import LabelTable
from storage.types import Matrix, Times, Vector

_Item = TypeVar("_Item", bound=np.generic)

FEW_STEPS = 4  # so many steps are searched one by one; more are counted, in one pass over the samples


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number at each step. float64, shape (T,)."""

    values: Vector


@dataclass(frozen=True, slots=True)
class Rows:
    """An instant vector at each step.

    values: float64, shape (N, T). present: bool, shape (N, T): where there is a sample, which may be NaN; None where there is
    one everywhere. What stands where there is none means nothing. Arrays may be views that repeat: nobody writes to them.
    """

    labels: LabelTable
    values: Matrix
    present: npt.NDArray[np.bool_] | None = None

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Where there is a sample. bool, shape (N, T)."""
        return np.broadcast_to(np.True_, self.values.shape) if self.present is None else self.present

    def take(self, rows: Places) -> Rows:
        """Some of the series, in this order."""
        present = None if self.present is None else self.present[rows]
        return Rows(self.labels.take(rows), self.values[rows], present)

    def nonempty(self) -> Rows:
        """The series that have a sample at any step."""
        if self.present is None:
            return self
        there = self.present.any(axis=1)
        kept = self if there.all() else self.take(np.flatnonzero(there))
        return replace(kept, present=None) if kept.present is not None and kept.present.all() else kept

    def repeated(self, steps: int) -> Rows:
        """Of one step, the same at so many steps. Copies nothing."""
        if self.values.shape[1] == steps:
            return self
        shape = (len(self.values), steps)
        present = None if self.present is None else np.broadcast_to(self.present, shape)
        return Rows(self.labels, np.broadcast_to(self.values, shape), present)


def empty_rows(steps: int) -> Rows:
    """No series."""
    return Rows(LabelTable(0), np.empty((0, steps)))


def merged(rows: Rows) -> Rows:
    """Series that have the same labels as one, if no two of them have a sample at the same step.

    Raises QueryError where two have: rangeEval and mergeSeriesWithSameLabelset of promql/engine.go.
    """
    if not rows.labels.has_duplicates():
        return rows
    rows = rows.nonempty()
    codes = rows.labels.codes()
    order = np.argsort(codes, kind="stable")
    heads = group_starts(codes[order])
    if len(heads) == len(codes):
        return rows
    mask = rows.mask[order]
    if (np.add.reduceat(mask, heads, axis=0, dtype=np.int64) > 1).any():
        raise failed(SAME_LABELSET)
    which = np.maximum.reduceat(np.where(mask, np.arange(len(order))[:, None], -1), heads, axis=0)
    values = np.take_along_axis(rows.values[order], np.maximum(which, 0), axis=0)
    firsts = order[heads]
    back = np.argsort(firsts, kind="stable")
    return Rows(rows.labels.take(firsts[back]), values[back], which[back] >= 0)


def counted(times: Times, edges: Places, steps_ms: Times) -> Places:
    """Behind which place of `times` each step stands: as many times of the vector, and of all before, lie at or before it.

    edges: int64, shape (V + 1,), of the vectors in `times`. steps_ms: int64, shape (T,), at equal distances, ascending.
    Returns int64, shape (V, T).
    """
    width_ms = int(steps_ms[1] - steps_ms[0]) if len(steps_ms) > 1 else 0
    if len(steps_ms) <= FEW_STEPS or width_ms <= 0:
        found = [first_at_or_after(times, edges, int(step) + 1) for step in steps_ms]
        return np.stack(found, axis=1) if found else np.empty((len(edges) - 1, 0), np.int64)
    low = int(edges[0])
    step = times[low : edges[-1]] - (int(steps_ms[0]) - width_ms + 1)
    step //= width_ms
    np.clip(step, 0, len(steps_ms), out=step)
    vectors = len(edges) - 1
    step += np.repeat(np.arange(vectors) * (len(steps_ms) + 1), np.diff(edges))
    passed = np.cumsum(np.bincount(step, minlength=vectors * (len(steps_ms) + 1)))
    passed += low
    return passed.reshape(vectors, -1)[:, :-1]


@dataclass(frozen=True, slots=True)
class Windows:
    """A range vector at each step: flat samples of N series, and where each series' window begins and ends.

    Series i has the times times[edges[v]:edges[v + 1]] with v = vector[i], which other series may share, and the sample at
    place p of `times` has its value at place p + shift[i] of `values`. The window of step j is open on the left:
    ends_ms[j] - range_ms < time <= ends_ms[j]. No sample is a stale marker.
    """

    labels: LabelTable
    times: Times
    values: Vector
    edges: Places  # (V + 1,)
    vector: Places  # (N,)
    shift: Places  # (N,)
    ends_ms: Times  # (T,)
    range_ms: int

    def pieces(self, room: int = PIECE) -> Iterator[Piece]:
        """All series, some at a time: about `room` cells, those with the same times together."""
        order = np.argsort(self.vector, kind="stable")
        wide = max(room // max(len(self.ends_ms), 1), 1)
        for first in range(0, len(order), wide):
            rows = order[first : first + wide]
            of = self.vector[rows]
            heads = group_starts(of)
            row_of = np.repeat(np.arange(len(heads)), np.diff(heads, append=len(rows)))
            low, high = self._places(of[heads])
            yield Piece(self, rows, row_of, low, high)

    def _places(self, vectors: Places) -> tuple[Places, Places]:
        begins, ends = self.edges[vectors], self.edges[vectors + 1]
        if (begins[1:] == ends[:-1]).all():
            edges = np.append(begins, ends[-1:])
            return self._counted(self.times, edges)
        counts = ends - begins
        edges = edges_of(counts)
        places = np.repeat(begins - edges[:-1], counts) + np.arange(int(edges[-1]))
        low, high = self._counted(self.times[places], edges)
        back = (begins - edges[:-1])[:, None]
        return low + back, high + back

    def _counted(self, times: Times, edges: Places) -> tuple[Places, Places]:
        return counted(times, edges, self.ends_ms - self.range_ms), counted(times, edges, self.ends_ms)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some series of `Windows`, n of them with v different vectors of times. Places are places in `times`."""

    windows: Windows
    rows: Places  # (n,): which series of the whole
    row_of: Places  # (n,): which of the v vectors
    low: Places  # (v, T): the first sample of each window
    high: Places  # (v, T): behind the last

    @property
    def counts(self) -> Places:
        """Samples in each window. int64, shape (v, T)."""
        return self.high - self.low

    @property
    def shift(self) -> Places:
        """From a place in `times` to that in `values`. int64, shape (n, 1)."""
        return self.windows.shift[self.rows][:, None]

    def each(self, of_vectors: npt.NDArray[_Item]) -> npt.NDArray[_Item]:
        """What is known of the vectors, (v, T), for every series, (n, T)."""
        return of_vectors if len(of_vectors) == len(self.row_of) else of_vectors[self.row_of]

    def first_places(self) -> Places:
        """The place in `values` of each window's first sample; any place where the window is empty. int64, (n, T)."""
        return self._value_places(np.minimum(self.low, len(self.windows.times) - 1))

    def last_places(self) -> Places:
        """The same of the last sample."""
        return self._value_places(np.maximum(self.high - 1, 0))

    def _value_places(self, places: Places) -> Places:
        wide: Places = places[self.row_of] + self.shift
        return np.clip(wide, 0, len(self.windows.values) - 1, out=wide)

    def first_ms(self) -> Times:
        """The time of each window's first sample; any time where the window is empty. int64, shape (v, T)."""
        return self.windows.times[np.minimum(self.low, len(self.windows.times) - 1)]

    def last_ms(self) -> Times:
        """The same of the last sample."""
        return self.windows.times[np.maximum(self.high - 1, 0)]


Value = Scalar | Rows | Windows | str
