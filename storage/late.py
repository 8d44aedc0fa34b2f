"""Samples that are older than their ring reaches: kept here until a segment has them, so that reads find them."""

from __future__ import annotations

import numpy as np

from storage.types import ABSENT_BITS, ID, Ids, Times, Vector

_Row = tuple[Ids, int, Vector]


class LateSamples:
    """Rows in the order of their arrival, in two generations: of the WAL's open file, and of those being made into segments.

    Bounded by the WAL's bound: each sample in here stands in the WAL too.
    """

    def __init__(self) -> None:
        self.samples = 0  # taken in, ever
        self._open: list[_Row] = []
        self._closing: list[_Row] = []

    def add(self, ids: Ids, time_ms: int, values: Vector) -> None:
        """One row. int64 (N,), float64 (N,); ABSENT cells are no samples."""
        present = values.view(ID) != ABSENT_BITS
        self._open.append((ids[present], time_ms, values[present]))
        self.samples += int(present.sum())

    def roll(self) -> None:
        """The WAL goes on in a new file."""
        self._closing += self._open
        self._open = []

    def saved(self) -> None:
        """What came before the last `roll` is in segments."""
        self._closing = []

    def __len__(self) -> int:
        return len(self._closing) + len(self._open)

    def among(self, ids: Ids, start_ms: int, end_ms: int) -> tuple[Ids, Times, Vector] | None:
        """Samples of these series with start_ms <= time < end_ms, oldest arrival first; None where there are none."""
        rows = [row for row in self._closing + self._open if start_ms <= row[1] < end_ms]
        if not rows:
            return None
        late_ids = np.concatenate([row[0] for row in rows])
        times = np.repeat(np.array([row[1] for row in rows], dtype=np.int64), [len(row[0]) for row in rows])
        wanted = np.isin(late_ids, ids)
        if not wanted.any():
            return None
        return late_ids[wanted], times[wanted], np.concatenate([row[2] for row in rows])[wanted]
