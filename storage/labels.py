"""Label sets by number, and the numbers by label: postings as roaring bitmaps.

A regular expression is held against the distinct values of one label, never against the sets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from pyroaring import BitMap

from storage.matchers import Matcher
from storage.types import Labels, Shape

METRIC_NAME: Final = "__name__"
OWNER_LABELS: Final = ("instance", "job")  # an owner carries both and no other; a shape carries neither

Key = TypeVar("Key", bound=Hashable)


def shape_labels(shape: Shape) -> Labels:
    """A shape's own labels with the metric's name as one of them, as matchers see it."""
    return ((METRIC_NAME, shape.metric), *shape.labels)


def split(matchers: Iterable[Matcher]) -> tuple[list[Matcher], list[Matcher]]:
    """Those that ask for an owner's labels, and those that ask for a shape's."""
    of_owner: list[Matcher] = []
    of_shape: list[Matcher] = []
    for matcher in matchers:
        (of_owner if matcher.name in OWNER_LABELS else of_shape).append(matcher)
    return of_owner, of_shape


class Postings(Generic[Key]):
    """Key to the numbers that have it, uint32. A number alone is held bare: a bitmap for each takes 200 bytes."""

    def __init__(self, numbers: dict[Key, list[int]] | None = None) -> None:
        self._held: dict[Key, int | BitMap] = {}
        for key, found in (numbers or {}).items():
            self._held[key] = found[0] if len(found) == 1 else BitMap(found)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __iter__(self) -> Iterator[Key]:
        return iter(self._held)

    def add(self, key: Key, number: int) -> None:
        """REQUIRES: the key does not have the number."""
        held = self._held.get(key)
        if held is None:
            self._held[key] = number
        elif isinstance(held, int):
            self._held[key] = BitMap((held, number))
        else:
            held.add(number)

    def discard(self, key: Key, number: int) -> bool:
        """True when no number has the key any more. REQUIRES: the key has the number."""
        held = self._held[key]
        if not isinstance(held, int):
            held.remove(number)
            if held:
                return False
        del self._held[key]
        return True

    def count(self, key: Key) -> int:
        """How many numbers have the key."""
        held = self._held.get(key)
        return 0 if held is None else 1 if isinstance(held, int) else len(held)

    def get(self, key: Key) -> BitMap:
        """The numbers that have the key. The caller's own."""
        return self.union((key,))

    def union(self, keys: Iterable[Key]) -> BitMap:
        """The numbers that have one of the keys. The caller's own."""
        held = [self._held[key] for key in keys if key in self._held]
        alone = BitMap([number for number in held if isinstance(number, int)])
        return alone.union(*(numbers for numbers in held if not isinstance(numbers, int)))

    def among(self, numbers: BitMap) -> Iterator[Key]:
        """The keys that one of these numbers has."""
        for key, held in self._held.items():
            if held in numbers if isinstance(held, int) else held.intersect(numbers):
                yield key


class LabelIndex:
    """Numbered label sets, found by matchers. Numbers are the caller's, uint32."""

    def __init__(self) -> None:
        self._all = BitMap()
        self._postings: dict[str, Postings[str]] = {}

    @classmethod
    def of(cls, sets: Iterable[Labels]) -> LabelIndex:
        """Of sets numbered 0, 1, 2, ... at once."""
        found: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        number = -1
        for number, labels in enumerate(sets):
            for name, value in labels:
                found[name][value].append(number)
        index = cls()
        index._all = BitMap(range(number + 1))
        index._postings = {name: Postings(values) for name, values in found.items()}
        return index

    def __len__(self) -> int:
        return len(self._all)

    def add(self, number: int, labels: Labels) -> None:
        """REQUIRES: the number is free, no label's value is empty."""
        self._all.add(number)
        for name, value in labels:
            if name not in self._postings:
                self._postings[name] = Postings()
            self._postings[name].add(value, number)

    def remove(self, number: int, labels: Labels) -> None:
        """Forget a set, and the names and values that only it had. REQUIRES: `add` was called with the same."""
        self._all.remove(number)
        for name, value in labels:
            postings = self._postings[name]
            if postings.discard(value, number) and not postings:
                del self._postings[name]

    def select(self, matchers: Iterable[Matcher]) -> BitMap:
        """The numbers of the sets that match all of these; of all sets when there are none. The caller's own."""
        found: BitMap | None = None
        for matcher in matchers:
            matching = self._matching(matcher)
            found = matching if found is None else found & matching
            if not found:
                break
        return self._all.copy() if found is None else found

    def _matching(self, matcher: Matcher) -> BitMap:
        postings = self._postings.get(matcher.name) or Postings[str]()
        # A set without the label has the empty string, which has no posting: where that matches, look for what does not.
        wanted = not matcher.is_empty_matching
        if matcher.words is not None and wanted is not matcher.negative:
            numbers = postings.union(matcher.words)
        else:
            values = list(postings)
            hits = matcher.among(values)
            numbers = postings.union(value for value, hit in zip(values, hits, strict=True) if hit is wanted)
        return numbers if wanted else self._all - numbers

    def has(self, name: str, value: str) -> bool:
        """Whether some set has this label with this value."""
        return name in self._postings and value in self._postings[name]

    def names(self, among: BitMap | None = None) -> list[str]:
        """The names of labels, sorted; `among`: of these sets only."""
        if among is None:
            return sorted(self._postings)
        return sorted(name for name, postings in self._postings.items() if any(True for _ in postings.among(among)))

    def values(self, name: str, among: BitMap | None = None) -> list[str]:
        """The values that a label has, sorted; `among`: in these sets only."""
        postings = self._postings.get(name) or Postings[str]()
        return sorted(postings if among is None else postings.among(among))

    def value_counts(self) -> dict[str, int]:
        """By name of a label: how many values it has."""
        return {name: len(postings) for name, postings in self._postings.items()}

    def cardinality(self, name: str, most: int, weigh: Callable[[int], int] | None = None) -> list[tuple[str, int]]:
        """The values of a label that the most sets have, and how many, largest first, equal ones by value.

        weigh: what a set counts for, by its number, in place of 1.
        """
        postings = self._postings.get(name) or Postings[str]()
        if weigh is None:
            counted = [(value, postings.count(value)) for value in postings]
        else:
            counted = [(value, sum(map(weigh, postings.get(value)))) for value in postings]
        return largest(counted, most)


def largest(counted: Sequence[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    """The `most` largest, largest first, equal ones by name."""
    return sorted(counted, key=lambda pair: (-pair[1], pair[0]))[:most]
