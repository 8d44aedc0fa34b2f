"""What a WAL file declares: owners, shapes and sets, whose numbers are the file's own. FORMAT.md, section 1, kind 1."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from storage.passes import Mask, Numbers, Places, spread
from storage.types import Labels, Meta, Shape
from storage.wal_frames import Frame

MOST_REMEMBERED = 100_000  # shapes: some 80 MB
_Described: TypeAlias = tuple[int, Shape, Meta]
"""What is declared of a shape, and its number."""


class Table:
    """From numbers to places, and from which byte of the file on."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[int, int]] = {}  # place, declared at
        self._sorted: tuple[Places, Places, Places] | None = None

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def add(self, number: int, place: int, at: int) -> None:
        """A number that is not there yet. REQUIRES: `find` was not called yet."""
        self._places[number] = place, at

    def find(self, numbers: npt.NDArray[np.integer[Any]], at: Places) -> Places:
        """Places, -1 for what is not declared before that byte. Both of shape (N,), as is the result, int64."""
        if not self._places:
            return np.full(len(numbers), -1)
        if self._sorted is None:
            known = np.array(list(self._places), np.int64)
            place, since = np.array(list(self._places.values()), np.int64).T
            order = np.argsort(known)
            self._sorted = known[order], place[order], since[order]
        known, place, since = self._sorted
        near = np.minimum(np.searchsorted(known, numbers.astype(np.int64)), len(known) - 1)
        return np.where((known[near] == numbers) & (since[near] <= at), place[near], -1)


@dataclass(slots=True)
class Layouts:
    """S sets. Owners and shapes are places in the lists of names."""

    owner: Places  # (S,)
    width: Places  # (S,)
    start: Places  # (S,): of the set's shapes in `shape`
    shape: Numbers  # (sum of widths,)
    usable: Mask  # (S,): its owner and all of its shapes are declared, and there are some

    def shapes(self, place: int) -> Numbers:
        """One set's. int32, shape (its width,)."""
        return self.shape[self.start[place] : self.start[place] + self.width[place]]


class Declared:
    """All that a file declares. Of a number that is declared twice the first declaration counts."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.owner_numbers, self.shape_numbers, self.set_numbers = Table(), Table(), Table()
        self.metas: dict[str, Meta] = {}  # by metric
        self._owners: dict[Labels, int] = {}
        self._shapes: dict[Shape, int] = {}
        self._sets: list[tuple[int, int, int, int]] = []  # owner's number, width, word of the first shape, declared at

    @property
    def owners(self) -> list[Labels]:
        """By place, none twice."""
        return list(self._owners)

    @property
    def shapes(self) -> list[Shape]:
        """By place, none twice."""
        return list(self._shapes)

    def add(self, data: memoryview, frame: Frame) -> None:
        """A frame of declarations. ValueError, TypeError, KeyError, struct.error: it is none, and nothing of it is taken."""
        payload = data[frame.at : frame.at + frame.length]
        text_bytes, words = struct.unpack_from("<II", payload)
        first = 8 + text_bytes + -text_bytes % 4
        if first + 4 * words != frame.length:
            raise ValueError(f"{text_bytes} bytes and {words} words do not make {frame.length} bytes")
        owners, shapes = _parsed(payload[8 : 8 + text_bytes], self._memory)
        sets = list(_sets(payload[first:].cast("I"), (frame.at + first) // 4))
        for number, labels in owners:
            if number not in self.owner_numbers:
                self.owner_numbers.add(number, self._owners.setdefault(labels, len(self._owners)), frame.at)
        metas: dict[str, Meta] = {}
        for number, shape, meta in shapes:
            if number not in self.shape_numbers:
                self.shape_numbers.add(number, self._shapes.setdefault(shape, len(self._shapes)), frame.at)
                metas[shape.metric] = meta
        self.metas |= metas
        for number, owner, width, word in sets:
            if number not in self.set_numbers:
                self.set_numbers.add(number, len(self._sets), frame.at)
                self._sets.append((owner, width, word, frame.at))

    def layouts(self, words: npt.NDArray[np.uint32]) -> Layouts:
        """The sets, by place. words: the file's, uint32."""
        number, width, word, since = np.array(self._sets, np.int64).reshape(-1, 4).T
        owner = self.owner_numbers.find(number, since)
        shape = self.shape_numbers.find(words[spread(word, width)], np.repeat(since, width))
        ends = np.cumsum(width)
        unknown = np.concatenate((np.zeros(1, np.int64), np.cumsum(shape < 0)))
        usable = (owner >= 0) & (unknown[ends] == unknown[ends - width]) & (width > 0)
        return Layouts(owner, width, ends - width, shape.astype(np.int32), usable)


def _sets(words: memoryview, word: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, owner, width, and the word of the file at which the shapes begin."""
    at = 0
    while at < len(words):
        if at + 3 > len(words) or at + 3 + words[at + 2] > len(words):
            raise ValueError("a set goes beyond its frame")
        yield words[at], words[at + 1], words[at + 2], word + at + 3
        at += 3 + words[at + 2]


class Memory:
    """Shapes that were declared before, by their JSON: file after file says the same, and parsing it is half of reading one."""

    def __init__(self) -> None:
        self._shapes: dict[bytes, _Described] = {}

    def described(self, entries: Sequence[Sequence[Any]]) -> list[_Described]:
        """In this order. ValueError, TypeError: they are not what declares a shape."""
        shapes, texts = self._shapes, list(map(orjson.dumps, entries))
        new = {text: entry for text, entry in zip(texts, entries, strict=True) if text not in shapes}
        if len(shapes) + len(new) > MOST_REMEMBERED:
            self._shapes = shapes = {}
            new = dict(zip(texts, entries, strict=True))
        shapes.update(zip(new, _described(list(new.values())), strict=True))
        return [shapes[text] for text in texts]


def _parsed(text: memoryview, memory: Memory) -> tuple[list[tuple[int, Labels]], list[_Described]]:
    """ValueError, TypeError, KeyError: it is not the JSON of names."""
    found = orjson.loads(text)
    owners = [(number, _labels(labels)) for number, labels in found["owners"]]
    _check([number for number, _ in owners], [labels for _, labels in owners], [])
    return owners, memory.described(found["shapes"])


def _described(entries: Sequence[Sequence[Any]]) -> list[_Described]:
    shapes = [
        (number, Shape(metric, _labels(labels)), (kind, unit, description, source_name))
        for number, metric, labels, kind, unit, description, source_name in entries
    ]
    texts = chain((shape.metric for _, shape, _ in shapes), chain.from_iterable(meta for _, _, meta in shapes))
    _check([number for number, _, _ in shapes], [shape.labels for _, shape, _ in shapes], texts)
    metas = {meta: Meta(*meta) for _, _, meta in shapes}
    return [(number, shape, metas[meta]) for number, shape, meta in shapes]


def _labels(pairs: Sequence[tuple[str, str]]) -> Labels:
    return tuple([(name, value) for name, value in pairs])


def _check(numbers: Sequence[int], labels: Sequence[Labels], texts: Iterable[str]) -> None:
    """ValueError where the JSON has something else than numbers and text."""
    if set(map(type, numbers)) - {int} or not all(0 <= number < 1 << 32 for number in numbers):
        raise ValueError("a number that is none of 32 bits")
    if set(map(type, chain(chain.from_iterable(chain.from_iterable(labels)), texts))) - {str}:
        raise ValueError("a name that is no text")
