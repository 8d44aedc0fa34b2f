"""WAL files that a start found, read where they lie until they are segments: nothing is replayed, and nothing is held twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.columns import Columns
from storage.merge import merge
from storage.passes import Mask
from storage.wal_rows import Content, divided, span_of


class Resident:
    """One file's samples. Any thread may read."""

    def __init__(self, path: Path, content: Content) -> None:
        self.path = path
        self.owners = content.owners
        self.shapes = content.shapes
        self.span = span_of([content])  # the smallest and the greatest time; None when there is no sample
        self._content = content

    def overlaps(self, start_ms: int, end_ms: int) -> bool:
        """Whether there may be samples with start_ms <= time < end_ms."""
        return self.span is not None and self.span[0] < end_ms and self.span[1] >= start_ms

    def read(self, owners: Mask, shapes: Mask, start_ms: int, end_ms: int) -> Columns:
        """Samples with start_ms <= time < end_ms of series with one of these owners and one of these shapes. Masks over the
        two lists.
        """
        content, layouts = self._content, self._content.layouts
        hits = np.concatenate((np.zeros(1, np.int64), np.cumsum(shapes[layouts.shape])))
        wanted = owners[layouts.owner] & (hits[layouts.start + layouts.width] > hits[layouts.start])
        rows, loose = content.rows.between(start_ms, end_ms), content.loose.between(start_ms, end_ms)
        rows = rows.where(wanted[rows.layout])
        loose = loose.where(owners[loose.owner] & shapes[loose.shape])
        strips, rest = divided(content, rows, loose, shapes)
        parts = [rest] if rest.series else []
        series = np.flatnonzero(shapes[strips.columns.shape])
        if len(series):
            parts.insert(0, strips.filled(series))
        return merge(parts) if parts else Columns()
