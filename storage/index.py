"""The series index: a series is an owner (an instance's labels) and a shape (metric and own labels).

A fleet has many instances with the same few hundred shapes, so a selection looks at owners and shapes, which are few, before it
looks at series. A series costs two 32-bit numbers by its id, two more in its owner's list, and two bytes or so in its shape's
bitmap: at 1,000,000 series (5,000 owners, 200 shapes) some 11 bytes besides the first two.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from storage.labels import METRIC_NAME, OWNER_LABELS, LabelIndex, Postings, largest, shape_labels, split
from storage.matchers import Matcher
from storage.types import ID, Ids, Labels, Meta, Shape

_NUMBER = np.dtype(np.int32)
Numbers = npt.NDArray[np.int32]
Thing = TypeVar("Thing", bound=Hashable)


class _Register(Generic[Thing]):
    """Owners or shapes: each has a number, which is given once and never again, and is found by its labels."""

    def __init__(self, labels: Callable[[Thing], Labels]) -> None:
        self.numbers: dict[Thing, int] = {}
        self.things: dict[int, Thing] = {}
        self.labels = LabelIndex()
        self._labels_of = labels
        self._next = itertools.count()

    def __len__(self) -> int:
        return len(self.things)

    def number(self, thing: Thing) -> int:
        known = self.numbers.get(thing)
        if known is None:
            known = self.numbers[thing] = next(self._next)
            self.things[known] = thing
            self.labels.add(known, self._labels_of(thing))
        return known

    def forget(self, number: int) -> Thing:
        thing = self.things.pop(number)
        del self.numbers[thing]
        self.labels.remove(number, self._labels_of(thing))
        return thing


class SeriesIndex:
    """Maps (owner, shape) to series ids and back, and labels to ids. Ids are small, dense and used again after `remove`.

    Numbers of owners and shapes only grow, so that a number never stands for two; what has no series left is forgotten.
    An owner carries the OWNER_LABELS and no other, a shape none of them.
    """

    def __init__(self) -> None:
        self.generation = 0  # grows whenever a series is added or removed
        self.series = 0
        self.meta: dict[str, Meta] = {}
        self._owners: _Register[Labels] = _Register(lambda labels: labels)
        self._shapes: _Register[Shape] = _Register(shape_labels)
        self._held: dict[int, Numbers] = {}  # owner -> shapes, ascending, and their ids: int32, shape (2, series)
        self._ids: Postings[int] = Postings()  # shape -> ids
        self._shape_of: Numbers = np.full(1024, -1, dtype=_NUMBER)
        self._owner_of: Numbers = np.full(1024, -1, dtype=_NUMBER)

    # Series

    def find(self, owner: Labels, shapes: Sequence[Shape]) -> list[int | None]:
        """The id of each of an owner's series, None for those that there are not."""
        held = self._held.get(self._owners.numbers.get(owner, -1))
        if held is None:
            return [None] * len(shapes)
        number = self._shapes.numbers.get
        wanted = np.array([number(shape, -1) for shape in shapes], dtype=_NUMBER)
        at = np.minimum(held[0].searchsorted(wanted), _count(held) - 1)
        ids = np.where(held[0][at] == wanted, held[1][at], -1).tolist()
        return [None if series_id < 0 else series_id for series_id in ids]

    def add(self, owner: Labels, series: Sequence[tuple[Shape, Meta]], ids: Ids) -> None:
        """New series of one owner. REQUIRES: no pair is known, no id taken. A metric's first `meta` stays."""
        if not len(ids):
            return
        self._reserve(int(ids.max()) + 1)
        owner_number = self._owners.number(owner)
        numbers = [self._shapes.number(shape) for shape, _ in series]
        for (shape, meta), number, series_id in zip(series, numbers, ids.tolist(), strict=True):
            self._ids.add(number, series_id)
            self.meta.setdefault(shape.metric, meta)
        held = np.empty((2, len(ids)), dtype=_NUMBER)
        held[0], held[1] = numbers, ids
        self._shape_of[ids], self._owner_of[ids] = held[0], owner_number
        if owner_number in self._held:
            held = np.concatenate((self._held[owner_number], held), axis=1)
        if (held[0][:-1] > held[0][1:]).any():
            held = held.take(held[0].argsort(), axis=1)
        self._held[owner_number] = held
        self.series += len(ids)
        self.generation += 1

    def _reserve(self, ids: int) -> None:
        if ids > len(self._shape_of):
            grown = max(ids, 2 * len(self._shape_of))
            self._shape_of = _grow(self._shape_of, grown)
            self._owner_of = _grow(self._owner_of, grown)

    def remove(self, first: int, count: int) -> None:
        """Forget the series with ids first .. first + count - 1; ids that are free already are passed over."""
        ids = first + np.flatnonzero(self._shape_of[first : first + count] >= 0)
        for owner in set(self._owner_of[ids].tolist()):
            self._take_from(owner, first, first + count)
        for number, series_id in zip(self._shape_of[ids].tolist(), ids.tolist(), strict=True):
            if self._ids.discard(number, series_id):
                metric = self._shapes.forget(number).metric
                if not self._shapes.labels.has(METRIC_NAME, metric):
                    del self.meta[metric]
        self._shape_of[ids] = self._owner_of[ids] = -1
        self.series -= len(ids)
        self.generation += 1

    def _take_from(self, owner: int, first: int, end: int) -> None:
        held = self._held[owner]
        left = held.compress((held[1] < first) | (held[1] >= end), axis=1)
        if _count(left):
            self._held[owner] = left
        else:
            del self._held[owner]
            self._owners.forget(owner)

    def series_of(self, owner: Labels) -> int:
        """How many series an owner has."""
        number = self._owners.numbers.get(owner)
        return 0 if number is None else _count(self._held[number])

    def labels(self, series_id: int) -> dict[str, str]:
        """The labels of a series, the owner's included, without the metric's name."""
        owner, shape = int(self._owner_of[series_id]), int(self._shape_of[series_id])
        return dict(self._owners.things[owner] + self._shapes.things[shape].labels)

    def metric(self, series_id: int) -> str:
        """The name of a series' metric."""
        return self._shapes.things[int(self._shape_of[series_id])].metric

    # Owners and shapes by number

    def owners_of(self, ids: Ids) -> Numbers:
        """The owner's number of each series, -1 where the id is free. int32, shape (N,)."""
        return self._owner_of[ids]

    def shapes_of(self, ids: Ids) -> Numbers:
        """The shape's number of each series, -1 where the id is free. int32, shape (N,)."""
        return self._shape_of[ids]

    def owner_labels(self, owner: int) -> Labels:
        """The labels of an owner, by its number. Raises KeyError where it has no series any more."""
        return self._owners.things[owner]

    def shape_labels(self, shape: int) -> Labels:
        """The own labels of a shape, by its number. Raises KeyError where it has no series any more."""
        return self._shapes.things[shape].labels

    def shape(self, number: int) -> tuple[Shape, Meta]:
        """A shape and what is known of its metric, by its number. Raises KeyError where it has no series any more."""
        shape = self._shapes.things[number]
        return shape, self.meta[shape.metric]

    def owner_number(self, owner: Labels) -> int | None:
        """The number of an owner; None for one without series."""
        return self._owners.numbers.get(owner)

    def shape_number(self, shape: Shape) -> int | None:
        """The number of a shape; None for one without series."""
        return self._shapes.numbers.get(shape)

    # Selecting

    def select(self, metric: str, equal: Mapping[str, str]) -> Ids:
        """Ids, ascending, int64, shape (N,), of the metric's series that have all these labels with these values.

        An empty value asks that the label be absent, as in PromQL.
        """
        return self.match([Matcher(METRIC_NAME, "=", metric), *(Matcher(n, "=", v) for n, v in equal.items())])

    def match(self, matchers: Iterable[Matcher]) -> Ids:
        """Ids, ascending, int64, shape (N,), of the series that match all of these; of all series when there are none."""
        of_owner, of_shape = split(matchers)
        owners, shapes = self._owners.labels.select(of_owner), self._shapes.labels.select(of_shape)
        every_shape = len(shapes) == len(self._shapes)
        if len(owners) == len(self._owners):
            return np.flatnonzero(self._shape_of >= 0).astype(ID) if every_shape else _ids(self._ids.union(shapes))
        held = [self._held[owner] for owner in owners]
        if not every_shape and sum(map(_count, held)) > sum(map(self._ids.count, shapes)):
            ids = _ids(self._ids.union(shapes))
            return ids[np.isin(self._owner_of[ids], _ids(owners))]
        numbers, own = np.concatenate([np.empty((2, 0), dtype=_NUMBER), *held], axis=1)
        return np.sort(own if every_shape else own[np.isin(numbers, _ids(shapes))]).astype(ID)

    # What there is

    def metrics(self) -> list[str]:
        """The names of all metrics that have a series, sorted."""
        return self._shapes.labels.values(METRIC_NAME)

    def label_names(self, matchers: Sequence[Matcher] = ()) -> list[str]:
        """The names of all labels, __name__ too, of the series that match, sorted."""
        if not matchers:
            return sorted(self._shapes.labels.names() + self._owners.labels.names())
        ids = self.match(matchers)
        names = self._shapes.labels.names(_distinct(self._shape_of[ids]))
        return sorted(names + self._owners.labels.names(_distinct(self._owner_of[ids])))

    def label_values(self, name: str, matchers: Sequence[Matcher] = ()) -> list[str]:
        """The values that a label has in the series that match, sorted."""
        numbers_of, labels = self._side(name)
        if not matchers:
            return labels.values(name)
        return labels.values(name, _distinct(numbers_of[self.match(matchers)]))

    def _side(self, name: str) -> tuple[Numbers, LabelIndex]:
        if name in OWNER_LABELS:
            return self._owner_of, self._owners.labels
        return self._shape_of, self._shapes.labels

    def cardinality(self, label: str | None = None, most: int = 10) -> list[tuple[str, int]]:
        """The values of a label (None: the metrics) with the most series, and how many, largest first."""
        name = METRIC_NAME if label is None else label
        if name in OWNER_LABELS:
            return self._owners.labels.cardinality(name, most, lambda owner: _count(self._held[owner]))
        return self._shapes.labels.cardinality(name, most, self._ids.count)

    def cardinality_by_label_name(self, most: int = 10) -> list[tuple[str, int]]:
        """The labels with the most values, and how many values, largest first."""
        counts = self._shapes.labels.value_counts() | self._owners.labels.value_counts()
        return largest(list(counts.items()), most)


def _count(held: Numbers) -> int:
    return len(held[0])


def _ids(numbers: BitMap) -> Ids:
    return np.frombuffer(numbers.to_array(), dtype=np.uint32).astype(ID)


def _distinct(numbers: Numbers) -> BitMap:
    return BitMap(array("I", numbers.tobytes()))


def _grow(old: Numbers, size: int) -> Numbers:
    new = np.full(size, -1, dtype=_NUMBER)
    new[: len(old)] = old
    return new
