"""A WAL file into the rings, at a start: a stretch of it after the other, so that it takes little more memory than they do."""

from __future__ import annotations

from typing import Final

import numpy as np

from storage.columns import Columns, Slab, to_rows
from storage.head import REFUSED, Head, Plan
from storage.passes import group_starts
from storage.types import ABSENT_BITS, Ids, Labels, Meta, Shape
from storage.wal_rows import Content, stretches

CLUSTER: Final = 8  # loose series with the same times: from this many on, a group of their own
MOST_HOLES: Final = 8  # cells a sample that the group of all others may take, if all their times differ
NO_LIMIT: Final = 1 << 31  # the agents' limits were applied when they declared their series
UNKNOWN: Final = Meta("gauge", "", "", "")


class Loader:
    """Loads one file: the newest rows of each series, not yet in a segment."""

    def __init__(self, head: Head, content: Content) -> None:
        self.samples = 0  # in the file, one that is written again later included
        self.missing = 0  # of them, those that found no room in memory
        self._head = head
        self._content = content
        self._plans: dict[
            tuple[int, bytes], tuple[Plan, Ids]
        ] = {}  # by owner and shapes, as places in the file's lists

    def load(self) -> None:
        """All of it."""
        for strips, loose in stretches(self._content):
            for slab in strips.slabs():
                self._load_slab(slab)
            self.samples += loose.samples
            order = np.argsort(loose.owner, kind="stable")
            for series in np.split(order, group_starts(loose.owner[order])[1:]) if len(order) else ():
                self._load_loose(loose, series)

    def _load_slab(self, slab: Slab) -> None:
        plan, kept = self._plan(slab)
        holes = slab.values.view(np.int64) == ABSENT_BITS
        self.samples += slab.values.size - int(holes.sum())
        if len(kept) < len(slab.shapes):
            refused = np.delete(np.arange(len(slab.shapes)), kept)
            self.missing += int((~holes[:, refused]).sum())
        if len(kept):
            values = slab.values if len(kept) == len(slab.shapes) else slab.values[:, kept]
            self._head.append_rows(plan, slab.times, values)

    def _plan(self, slab: Slab) -> tuple[Plan, Ids]:
        """Where this slab's series go, and which of them found room."""
        key = slab.owner, slab.shapes.tobytes()
        if key not in self._plans:
            shapes = [self._content.shapes[i] for i in slab.shapes.tolist()]
            self._plans[key] = self._declared(self._content.owners[slab.owner], shapes)
        return self._plans[key]

    def _declared(self, labels: Labels, shapes: list[Shape]) -> tuple[Plan, Ids]:
        pairs = [(shape, self._content.metas.get(shape.metric, UNKNOWN)) for shape in shapes]
        ids = self._head.declare(labels, pairs, limit=NO_LIMIT, apart=True)
        kept = np.flatnonzero(ids != REFUSED)
        return self._head.plan(ids[kept]), kept

    def _load_loose(self, columns: Columns, series: Ids) -> None:
        """One owner's. Series with the same times share a group."""
        labels = columns.owners[columns.owner[series[0]]]
        for together in _clusters(columns, series):
            plan, kept = self._declared(labels, [columns.shapes[s] for s in columns.shape[together].tolist()])
            self.missing += int(np.delete(columns.counts[together], kept).sum())
            if len(kept):
                self._head.append_rows(plan, *to_rows(columns, together[kept]))


def _clusters(columns: Columns, series: Ids) -> list[Ids]:
    """Some series by what they share a group with: those with the same times, and what is left if it has times in common."""
    order = np.argsort(columns.vector[series], kind="stable")
    vectors, first, sizes = np.unique(columns.vector[series[order]], return_index=True, return_counts=True)
    clusters = np.split(series[order], first[1:])
    small = np.flatnonzero(sizes < CLUSTER)
    counts = np.diff(columns.edges)[vectors[small]]
    if int(counts.sum()) * int(sizes[small].sum()) > MOST_HOLES * int((counts * sizes[small]).sum()):
        return clusters
    rest = [clusters[c] for c in small.tolist()]
    large = [clusters[c] for c in np.flatnonzero(sizes >= CLUSTER).tolist()]
    return [np.sort(np.concatenate(rest)), *large] if rest else large
