"""`LabelTable`: the label sets of many series, by number.

A set is made of parts, for example what the owner contributes and what the shape does. Each part lists its distinct
contents once, and has for each series a number in that list. Strings are looked at once for each distinct content, and only
when somebody asks for them; everything that is done for each series is done with integers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple

import numpy as np

from storage.columns import Columns
from storage.labels import shape_labels
from storage.passes import Places
from storage.types import Labels

METRIC_NAME: Final = "__name__"
METADATA: Final = frozenset({METRIC_NAME, "__type__", "__unit__"})  # what an operation that changes the meaning drops


class Column(NamedTuple):
    """One label of every series: words[codes[i]], the empty string where there is none."""

    codes: Places  # (N,)
    words: list[str]

    def tidy(self) -> Column:
        """The same with distinct words, each in use."""
        used, codes = np.unique(self.codes, return_inverse=True)
        words = [self.words[i] for i in used.tolist()]
        number = {word: i for i, word in enumerate(dict.fromkeys(words))}
        return Column(np.array([number[word] for word in words], np.int64)[codes], list(number))


class Sets:
    """A list of label sets. Which names occur is found once, when it is asked for."""

    def __init__(self, listed: list[Labels], names: frozenset[str] | None = None) -> None:
        self.listed = listed
        self._names = names

    @property
    def names(self) -> frozenset[str]:
        """The names that occur."""
        if self._names is None:
            self._names = frozenset({name for labels in self.listed for name, _ in labels})
        return self._names

    def word(self, name: str) -> list[str]:
        """The value of one label in each set."""
        if name not in self.names:
            return [""] * len(self.listed)
        place = [own for own, _ in self.listed[0]].index(name) if self.listed[0] and name in dict(self.listed[0]) else 0
        return [  # most sets have it where the first one has it
            labels[place][1] if place < len(labels) and labels[place][0] == name else dict(labels).get(name, "")
            for labels in self.listed
        ]


class Part(NamedTuple):
    """Series i has sets.listed[codes[i]]."""

    sets: Sets
    codes: Places  # (N,)

    def filtered(self, names: Collection[str], keep: bool) -> Part:
        """With only these names, or without them. The sets are distinct again."""
        affected = bool(self.sets.names - set(names)) if keep else not self.sets.names.isdisjoint(names)
        if not affected:
            return self
        if 2 * len(self.codes) < len(self.sets.listed):
            used, codes = np.unique(self.codes, return_inverse=True)
            few = Part(Sets([self.sets.listed[i] for i in used.tolist()]), codes.reshape(-1))
            return few.filtered(names, keep)
        number: dict[Labels, int] = {}
        of = [
            number.setdefault(tuple(pair for pair in labels if (pair[0] in names) == keep), len(number))
            for labels in self.sets.listed
        ]
        left = self.sets.names & set(names) if keep else self.sets.names - set(names)
        return Part(Sets(list(number), left), np.array(of, np.int64)[self.codes])


@dataclass(slots=True)
class LabelTable:
    """N label sets. No name stands in two parts for one series; no value is empty; the sets of a part are distinct."""

    count: int
    parts: tuple[Part, ...] = ()
    _dirty: bool = field(default=False, repr=False)

    @classmethod
    def of(cls, columns: Columns) -> LabelTable:
        """The names of the series. Looks at no string."""
        owner = Part(Sets(list(columns.owners)), columns.owner.astype(np.int64))
        shape = Part(
            Sets([tuple(sorted(shape_labels(shape))) for shape in columns.shapes]), columns.shape.astype(np.int64)
        )
        return cls(columns.series, (owner, shape), True)

    @classmethod
    def single(cls, labels: Iterable[tuple[str, str]] = ()) -> LabelTable:
        """One label set."""
        return cls(1, (Part(Sets([tuple(sorted(labels))]), np.zeros(1, np.int64)),))

    @classmethod
    def listed(cls, sets: Sequence[Labels]) -> LabelTable:
        """These label sets, which may repeat."""
        number: dict[Labels, int] = {}
        codes = np.array([number.setdefault(labels, len(number)) for labels in sets], np.int64)
        return cls(len(sets), (Part(Sets(list(number)), codes),))

    def clean(self) -> tuple[Part, ...]:
        """The parts without empty values, which count as no label. Done once."""
        if self._dirty:
            self.parts = tuple(map(_cleaned, self.parts))
            self._dirty = False
        return self.parts

    def take(self, rows: Places) -> LabelTable:
        """Some of the series, in the order that is asked for; a series may be asked for repeatedly."""
        parts = tuple(Part(part.sets, part.codes[rows]) for part in self.parts)
        return LabelTable(len(parts[0].codes) if parts else len(rows), parts, self._dirty)

    def column(self, name: str) -> Column:
        """The values of one label."""
        held = [part for part in self.clean() if name in part.sets.names]
        if not held:
            return Column(np.zeros(self.count, np.int64), [""])
        first = Column(held[0].codes, held[0].sets.word(name))
        for part in held[1:]:
            first = _either(first, Column(part.codes, part.sets.word(name)))
        return first

    def without(self, names: Collection[str]) -> LabelTable:
        """With these names taken away."""
        return LabelTable(self.count, tuple(part.filtered(names, keep=False) for part in self.clean()))

    def only(self, names: Collection[str]) -> LabelTable:
        """With all other names taken away."""
        return LabelTable(self.count, tuple(part.filtered(names, keep=True) for part in self.clean()))

    def with_column(self, name: str, column: Column) -> LabelTable:
        """With this label set; removed where the value is empty."""
        column = column.tidy()
        sets: list[Labels] = [((name, word),) if word else () for word in column.words]
        own = Part(Sets(sets, frozenset([name])), column.codes)
        rest = tuple(part.filtered((name,), keep=False) for part in self.clean())
        return LabelTable(self.count, (*rest, own))

    def codes(self) -> Places:
        """A number for each series; two are equal when the label sets are. int64, shape (N,)."""
        return joint_codes([self])[0]

    def texts(self) -> list[Labels]:
        """Every label set as pairs, sorted by name."""
        parts = self.clean()
        if not parts:
            return [()] * self.count
        if len(parts) == 1:
            listed = [tuple(sorted(labels)) for labels in parts[0].sets.listed]
            return [listed[i] for i in parts[0].codes.tolist()]
        return [tuple(sorted(chain.from_iterable(row))) for row in self._rows()]

    def dicts(self) -> list[dict[str, str]]:
        """Every label set, its names in no order."""
        return (
            [dict(chain.from_iterable(row)) for row in self._rows()]
            if self.clean()
            else [{} for _ in range(self.count)]
        )

    def _rows(self) -> Iterator[tuple[Labels, ...]]:
        """What the parts say of each series."""
        return zip(*([part.sets.listed[i] for i in part.codes.tolist()] for part in self.clean()), strict=True)

    def one(self, row: int) -> Labels:
        """The label set of one series."""
        return tuple(sorted(pair for part in self.clean() for pair in part.sets.listed[int(part.codes[row])]))

    def has_duplicates(self) -> bool:
        """Whether two series have the same label set."""
        if self.count < 2:
            return False
        codes = np.sort(self.codes())
        return bool((codes[1:] == codes[:-1]).any())


def _cleaned(part: Part) -> Part:
    listed = part.sets.listed
    if "" not in {value for labels in listed for _, value in labels}:
        return part
    number: dict[Labels, int] = {}
    of = [number.setdefault(tuple(pair for pair in labels if pair[1]), len(number)) for labels in listed]
    return Part(Sets(list(number)), np.array(of, np.int64)[part.codes])


def _either(first: Column, second: Column) -> Column:
    """The value of the one that has one."""
    empty = np.array([not word for word in first.words], np.bool_)[first.codes]
    codes = np.where(empty, second.codes + len(first.words), first.codes)
    return Column(codes, first.words + second.words)


def mixed(numbers: Sequence[Places]) -> Places:
    """One number for each row of numbers, equal when all are. Each int64, shape (N,), not below 0."""
    total = numbers[0]
    size = int(total.max(initial=0)) + 1
    for more in numbers[1:]:
        radix = int(more.max(initial=0)) + 1
        if size * radix >= 1 << 62:
            total = np.unique(total, return_inverse=True)[1].reshape(-1)
            size = int(total.max(initial=0)) + 1
        total = total * radix + more
        size *= radix
    return total


def joint_codes(tables: Sequence[LabelTable]) -> list[Places]:
    """A number for each series of each table; two are equal when the label sets are, also across tables."""
    cleaned = [table.clean() for table in tables]
    width = max((len(parts) for parts in cleaned), default=0)
    if not width:
        return [np.zeros(table.count, np.int64) for table in tables]
    aligned = [(*parts, *[None] * (width - len(parts))) for parts in cleaned]
    names = [frozenset().union(*(part.sets.names for part in column if part)) for column in zip(*aligned, strict=True)]
    if sum(map(len, names)) > len(frozenset().union(*names)):
        return _by_text(tables)  # a name stands in different parts: only the whole sets can be compared
    of_part = [
        _numbered(list(column), [t.count for t in tables], bool(own))
        for column, own in zip(zip(*aligned, strict=True), names, strict=True)
    ]
    sizes = np.cumsum([table.count for table in tables])[:-1]
    whole = mixed([np.concatenate(codes) for codes in of_part])
    return list(np.split(whole, sizes))


def _numbered(parts: Sequence[Part | None], counts: Sequence[int], named: bool) -> list[Places]:
    """The numbers of one part of every table in one numbering."""
    first = parts[0]
    if not named:
        return [np.zeros(count, np.int64) for count in counts]
    if first is not None and all(part is not None and part.sets is first.sets for part in parts):
        return [part.codes for part in parts if part is not None]
    number: dict[Labels, int] = {(): 0}
    codes = []
    for part, count in zip(parts, counts, strict=True):
        if part is None:
            codes.append(np.zeros(count, np.int64))
            continue
        of = np.array([number.setdefault(labels, len(number)) for labels in part.sets.listed], np.int64)
        codes.append(of[part.codes])
    return codes


def _by_text(tables: Sequence[LabelTable]) -> list[Places]:
    number: dict[Labels, int] = {}
    return [np.array([number.setdefault(labels, len(number)) for labels in t.texts()], np.int64) for t in tables]


def concatenated(first: LabelTable, second: LabelTable) -> LabelTable:
    """The series of both, one after the other."""
    left, right = first.clean(), second.clean()
    if len(left) == len(right) and all(a.sets is b.sets for a, b in zip(left, right, strict=True)):
        parts = tuple(Part(a.sets, np.concatenate((a.codes, b.codes))) for a, b in zip(left, right, strict=True))
        return LabelTable(first.count + second.count, parts)
    return LabelTable.listed(first.texts() + second.texts())
