"""Which sequence numbers of an instance have been received: ascending, disjoint, inclusive ranges."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

MOST_RANGES = 4096  # 64 KiB; an agent that leaves more gaps than this has the oldest of them closed


class Sequences:
    """Ranges with an `add` that is a comparison and a store when numbers come in order."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)

    def __len__(self) -> int:
        return len(self._firsts)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    def add(self, number: int) -> bool:
        """False when it was in already."""
        lasts = self._lasts
        if lasts and number == lasts[-1] + 1:
            lasts[-1] = number
            return True
        if number in self:
            return False
        self._insert(number, number)
        return True

    def add_range(self, first: int, last: int) -> None:
        """All of first..last, inclusive, whether they were in or not."""
        lasts = self._lasts
        if lasts and first == lasts[-1] + 1:
            lasts[-1] = last
        else:
            self._insert(first, last)

    def discard(self, number: int) -> None:
        """Take one number out again."""
        at = bisect_right(self._firsts, number) - 1
        if at < 0 or number > self._lasts[at]:
            return
        first, last = self._firsts[at], self._lasts[at]
        left = [(a, b) for a, b in ((first, number - 1), (number + 1, last)) if a <= b]
        self._firsts[at : at + 1] = [a for a, _ in left]
        self._lasts[at : at + 1] = [b for _, b in left]

    def copy(self) -> Sequences:
        """The same ranges, on their own from now on."""
        other = Sequences()
        other._firsts, other._lasts = list(self._firsts), list(self._lasts)
        return other

    def add_below(self, number: int) -> None:
        """Everything from 1 up to and without `number` counts as received: its sender no longer has it."""
        if number > 1:
            self._insert(1, number - 1)

    def clear(self) -> None:
        """Empty again."""
        self._firsts.clear()
        self._lasts.clear()

    def _insert(self, first: int, last: int) -> None:
        low = bisect_right(self._firsts, first)
        if low and self._lasts[low - 1] >= first - 1:  # touches the range before
            low -= 1
            first = self._firsts[low]
        high = bisect_right(self._firsts, last + 1)
        if high > low:
            last = max(last, self._lasts[high - 1])
        self._firsts[low:high] = [first]
        self._lasts[low:high] = [last]
        if len(self._firsts) > MOST_RANGES:
            del self._firsts[1], self._lasts[0]
