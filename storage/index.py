"""The series index: a series is an owner (an instance's labels) and a shape (metric and own labels).

A fleet has many instances with the same few hundred shapes, so a series costs two 32-bit numbers and a dictionary
entry, and a selection looks at shapes and owners, which are few, before it looks at series.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from storage.types import ID, Ids, Labels, Meta, Shape

_NO_SHAPE = (1 << 32) - 1
_OWNER_SHIFT = 32  # a series' key: owner << 32 | shape
FEW_PAIRS = 4096


class SeriesIndex:
    """Maps (owner, shape) to series ids and back. Ids are small, dense and used again after `remove`.

    Numbers of owners and shapes only grow, so that a number never stands for two; what has no series left is forgotten.
    """

    def __init__(self) -> None:
        self.generation = 0  # grows whenever a series is added or removed
        self.series = 0
        self.meta: dict[str, Meta] = {}
        self._numbers = itertools.count()
        self._shapes: dict[int, Shape] = {}
        self._shape_ids: dict[Shape, int] = {}
        self._series_of_shape: Counter[int] = Counter()
        self._metrics: dict[str, dict[int, None]] = {}  # metric -> its shapes
        self._owners: dict[int, Labels] = {}
        self._owner_ids: dict[Labels, int] = {}
        self._series_of_owner: Counter[int] = Counter()
        self._by_key: dict[int, int] = {}
        self._shape_of: npt.NDArray[np.int32] = np.full(1024, -1, dtype=np.int32)
        self._owner_of: npt.NDArray[np.int32] = np.full(1024, -1, dtype=np.int32)

    def find(self, owner: Labels, shapes: Sequence[Shape]) -> list[int | None]:
        """The id of each of an owner's series, None for those that there are not."""
        owner_id = self._owner_ids.get(owner)
        if owner_id is None:
            return [None] * len(shapes)
        base, numbers, ids = owner_id << _OWNER_SHIFT, self._shape_ids.get, self._by_key.get
        return [ids(base | numbers(shape, _NO_SHAPE)) for shape in shapes]

    def add(self, owner: Labels, series: Sequence[tuple[Shape, Meta]], ids: Ids) -> None:
        """New series of one owner. REQUIRES: no pair is known, no id taken. A metric's first `meta` stays."""
        if not len(ids):
            return
        if ids.max() >= len(self._shape_of):
            grown = max(int(ids.max()) + 1, 2 * len(self._shape_of))
            self._shape_of = _grow(self._shape_of, grown)
            self._owner_of = _grow(self._owner_of, grown)
        owner_id = self._owner(owner)
        numbers = [self._shape(shape, meta) for shape, meta in series]
        base = owner_id << _OWNER_SHIFT
        self._by_key.update(zip([base | number for number in numbers], ids.tolist(), strict=True))
        self._shape_of[ids] = numbers
        self._owner_of[ids] = owner_id
        for number in numbers:
            self._series_of_shape[number] += 1
        self._series_of_owner[owner_id] += len(ids)
        self.series += len(ids)
        self.generation += 1

    def _owner(self, labels: Labels) -> int:
        known = self._owner_ids.get(labels)
        if known is None:
            known = self._owner_ids[labels] = next(self._numbers)
            self._owners[known] = labels
        return known

    def _shape(self, shape: Shape, meta: Meta) -> int:
        known = self._shape_ids.get(shape)
        if known is None:
            known = self._shape_ids[shape] = next(self._numbers)
            self._shapes[known] = shape
            self._metrics.setdefault(shape.metric, {})[known] = None
            self.meta.setdefault(shape.metric, meta)
        return known

    def remove(self, first: int, count: int) -> None:
        """Forget the series with ids first .. first + count - 1; ids that are free already are passed over."""
        for series_id in range(first, min(first + count, len(self._shape_of))):
            shape_id, owner_id = int(self._shape_of[series_id]), int(self._owner_of[series_id])
            if shape_id < 0:
                continue
            del self._by_key[owner_id << _OWNER_SHIFT | shape_id]
            self._shape_of[series_id] = self._owner_of[series_id] = -1
            self.series -= 1
            self._series_of_shape[shape_id] -= 1
            if not self._series_of_shape[shape_id]:
                self._forget_shape(shape_id)
            self._series_of_owner[owner_id] -= 1
            if not self._series_of_owner[owner_id]:
                del self._series_of_owner[owner_id]
                del self._owner_ids[self._owners.pop(owner_id)]
        self.generation += 1

    def _forget_shape(self, shape_id: int) -> None:
        shape = self._shapes.pop(shape_id)
        del self._shape_ids[shape], self._series_of_shape[shape_id], self._metrics[shape.metric][shape_id]
        if not self._metrics[shape.metric]:
            del self._metrics[shape.metric], self.meta[shape.metric]

    def series_of(self, owner: Labels) -> int:
        """How many series an owner has."""
        return self._series_of_owner[self._owner_ids.get(owner, -1)]

    def metrics(self) -> list[str]:
        """The names of all metrics that have a series, sorted."""
        return sorted(self._metrics)

    def labels(self, series_id: int) -> dict[str, str]:
        """The labels of a series, the owner's included, without the metric's name."""
        return dict(self._owners[int(self._owner_of[series_id])] + self._shapes[int(self._shape_of[series_id])].labels)

    def metric(self, series_id: int) -> str:
        """The name of a series' metric."""
        return self._shapes[int(self._shape_of[series_id])].metric

    def owners_of(self, ids: Ids) -> npt.NDArray[np.int32]:
        """The owner's number of each series, -1 where the id is free. int32, shape (N,)."""
        return self._owner_of[ids]

    def shapes_of(self, ids: Ids) -> npt.NDArray[np.int32]:
        """The shape's number of each series, -1 where the id is free. int32, shape (N,)."""
        return self._shape_of[ids]

    def owner_labels(self, owner: int) -> Labels:
        """The labels of an owner, by its number."""
        return self._owners[owner]

    def shape_labels(self, shape: int) -> Labels:
        """The own labels of a shape, by its number."""
        return self._shapes[shape].labels

    def select(self, metric: str, equal: Mapping[str, str]) -> Ids:
        """Ids, ascending, int64, shape (N,), of the metric's series that have all these labels with these values.

        An empty value asks that the label be absent, as in PromQL.
        """
        owner_names = {name for name, _ in next(iter(self._owners.values()), ())}
        of_owner = {name: value for name, value in equal.items() if name in owner_names}
        of_shape = {name: value for name, value in equal.items() if name not in owner_names}
        shapes = [s for s in self._metrics.get(metric, ()) if _has(self._shapes[s].labels, of_shape)]
        if not of_owner:
            return np.flatnonzero(np.isin(self._shape_of, shapes)).astype(ID) if shapes else np.empty(0, dtype=ID)
        owners = [number for number, labels in self._owners.items() if _has(labels, of_owner)]
        if len(owners) * len(shapes) <= FEW_PAIRS:  # ask for each instead of looking at every series
            found = (self._by_key.get(o << _OWNER_SHIFT | s) for o in owners for s in shapes)
            return np.sort(np.fromiter((i for i in found if i is not None), dtype=ID))
        return np.flatnonzero(np.isin(self._shape_of, shapes) & np.isin(self._owner_of, owners)).astype(ID)


def _has(labels: Labels, equal: Mapping[str, str]) -> bool:
    own = dict(labels)
    return all(own.get(name, "") == value for name, value in equal.items())


def _grow(old: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int32]:
    new = np.full(size, -1, dtype=np.int32)
    new[: len(old)] = old
    return new
