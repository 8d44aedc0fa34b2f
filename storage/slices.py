"""Several segments side by side, in pieces of bounded size: for each piece of the series, in their common order, what each
segment has of them. What merging and rolling up read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np

from storage.columns import Columns
from storage.format import CorruptError
from storage.segment_reader import Segment
from storage.types import Ids, Labels, Shape, Vector

_Name = TypeVar("_Name", Labels, Shape, str)


@dataclass(slots=True)
class _Source:
    """One segment's series on the common numbers of shapes and owners."""

    segment: Segment
    key: Ids  # int64 (S,), strictly ascending: shape << 32 | owner
    samples: Ids  # int64 (S,)


def slices(
    segments: Sequence[Segment],
    start_ms: int,
    end_ms: int,
    most_samples: int,
    on_damage: Callable[[Segment, CorruptError], object],
) -> Iterator[list[Columns]]:
    """Lists with one `Columns` a segment that has something, in the segments' order; together at most some `most_samples`.

    Only samples with start_ms <= time < end_ms. Pieces follow each other in the order of (shape, owner). A metric is cut only
    when it has more than `most_samples` by itself.
    """
    sources, metrics = _sources(segments)
    if not sources:
        return
    keys, inverse = np.unique(np.concatenate([source.key for source in sources]), return_inverse=True)
    weights = np.concatenate([source.samples for source in sources]).astype(np.float64)
    samples = np.bincount(inverse, weights=weights, minlength=len(keys)).astype(np.float64)
    for first, last in pairwise(_edges(metrics[keys >> 32], samples, most_samples)):
        low, high = keys[first], keys[last - 1]
        parts = []
        for source in sources:
            places = np.arange(np.searchsorted(source.key, low), np.searchsorted(source.key, high, side="right"))
            if len(places):
                segment = source.segment
                parts.append(segment.read(places, start_ms, end_ms, partial(on_damage, segment)))
        parts = [part for part in parts if part.series]
        if parts:
            yield parts


def _edges(metric: Ids, samples: Vector, most_samples: int) -> list[int]:
    """Where to cut: before a metric, or within one that is too large. metric: ascending, (K,); samples: (K,)."""
    begins = [*np.flatnonzero(np.diff(metric, prepend=-1)).tolist(), len(metric)]
    sums = np.concatenate(([0.0], np.cumsum(samples)))
    edges = [0]
    for begin, end in pairwise(begins):
        if sums[end] - sums[edges[-1]] <= most_samples:
            continue
        if begin > edges[-1]:
            edges.append(begin)
        while sums[end] - sums[edges[-1]] > most_samples:
            fitting = int(np.searchsorted(sums, sums[edges[-1]] + most_samples, side="right")) - 1
            edges.append(max(fitting, edges[-1] + 1))
    if edges[-1] < len(metric):
        edges.append(len(metric))
    return edges


def _sources(segments: Sequence[Segment]) -> tuple[list[_Source], Ids]:
    """The segments, and the number of each common shape's metric, ascending."""
    tables = [segment.tables() for segment in segments]
    owners = _numbers({labels for table in tables for labels in table.owners})
    shapes = _numbers({shape for table in tables for shape in table.shapes})
    sources = []
    for segment, table in zip(segments, tables, strict=True):
        shape_number = np.array([shapes[shape] for shape in table.shapes], dtype=np.int64)
        owner_number = np.array([owners[labels] for labels in table.owners], dtype=np.int64)
        key = shape_number[table.series_shape] << 32 | owner_number[table.series_owner]
        sources.append(_Source(segment, key, np.diff(table.edges)[table.series_vector]))
    metrics = _numbers({shape.metric for shape in shapes})
    return sources, np.array([metrics[shape.metric] for shape in shapes], dtype=np.int64)


def _numbers(names: set[_Name]) -> dict[_Name, int]:
    return {name: number for number, name in enumerate(sorted(names))}
