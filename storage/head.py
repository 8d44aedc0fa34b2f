"""The head: series index and rings as one. What the daemon appends to and what every reader selects from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from storage.index import SeriesIndex
from storage.rings import FIRST_SLOTS, Columns, RingGroup
from storage.types import ABSENT_BITS, ID, STALE_BITS, TIME, VALUE, Ids, Labels, Matrix, Meta, Shape, Times, Vector

OPEN_WIDTH = 32  # columns of an instance's first open group; a cohort of this many or more gets a group of its own
LEAST_SLOTS = 16  # a ring is never shortened below this
REFUSED = -1  # in the ids that `declare` returns: over a limit

Part = tuple[RingGroup, Columns, "slice | Ids | None", "slice | Ids"]
"""A group, which of its columns, which of the batch's samples they take (None: all of them, in order), and the ids."""


@dataclass(slots=True)
class Plan:
    """Where the samples of one recurring set of series go. Made once, used for every batch with the same series."""

    ids: Ids
    parts: list[Part]


@dataclass(slots=True)
class _Owner:
    groups: list[RingGroup] = field(default_factory=list)
    open: RingGroup | None = None


class Head:
    """All series in memory.

    memory_bytes bounds the rings: new rings are short and double while the budget allows; when it is used up, the longest
    rings are halved to make room for new series. series_limit bounds the number of series.
    """

    def __init__(self, memory_bytes: int, slots: int, series_limit: int) -> None:
        self.index = SeriesIndex()
        self.memory_bytes = memory_bytes
        self.ring_bytes = 0
        self.late_samples = 0  # refused because older than a full ring
        self.evicted_series = 0
        self._most_slots = slots
        self._series_limit = series_limit
        self._owners: dict[Labels, _Owner] = {}
        self._groups: list[RingGroup | None] = []
        self._free_numbers: list[int] = []  # places in _groups
        self._group_of: npt.NDArray[np.int32] = np.full(1024, -1, dtype=np.int32)
        self._free: dict[int, list[int]] = {}  # width -> first ids of free ranges of that width
        self._ids = 0  # ids ever reserved
        self.latest: Vector = np.full(1024, np.nan, dtype=VALUE)

    # Declaring

    def declare(self, labels: Labels, series: Sequence[tuple[Shape, Meta]], limit: int, *, apart: bool = False) -> Ids:
        """Ids of an instance's series, int64, shape (N,), REFUSED where `limit` (of this instance) or the head's is reached.

        labels: the instance's. Series that are known keep their ids; new ones that come together share a group. `apart`:
        with nothing else, because their rows have times of their own.
        """
        known = self.index.find(labels, [shape for shape, _ in series])
        ids = np.array([REFUSED if i is None else i for i in known], dtype=ID)
        new: dict[Shape, list[int]] = {}  # positions in `series`
        room = min(limit - self.index.series_of(labels), self._series_limit - self.index.series)
        for at, (shape, _) in enumerate(series):
            if known[at] is not None:
                continue
            if shape in new:
                new[shape].append(at)
            elif len(new) < room:
                new[shape] = [at]
        placed = self._place(labels, len(new), apart)
        places = list(new.values())[: len(placed)]
        self.index.add(labels, [series[p[0]] for p in places], np.array(placed, dtype=ID))
        for series_id, positions in zip(placed, places, strict=True):
            ids[positions] = series_id
        return ids

    def _place(self, owner: Labels, count: int, apart: bool) -> list[int]:
        """Ids for `count` new series of an owner; fewer when memory does not allow more."""
        ids: list[int] = []
        if not count:
            return ids
        book = self._owners.setdefault(owner, _Owner())
        if count < OPEN_WIDTH and book.open is not None and not apart:
            ids = self._take(book.open, count)
        while len(ids) < count:
            missing = count - len(ids)
            closed = apart or missing >= OPEN_WIDTH
            in_open = book.open.width if book.open is not None else OPEN_WIDTH // 2
            group = self._new_group(owner, missing if closed else 2 * in_open)
            if group is None:
                break
            book.groups.append(group)
            if not closed:
                book.open = group
            ids += self._take(group, missing)
        return ids

    def _take(self, group: RingGroup, count: int) -> list[int]:
        first = group.base + group.used
        taken = min(count, group.width - group.used)
        group.used += taken
        return list(range(first, first + taken))

    def _new_group(self, owner: Labels, width: int) -> RingGroup | None:
        slots = min(FIRST_SLOTS, self._most_slots)
        if not self._make_room(8 * slots * (width + 1)):
            return None
        free = self._free.get(width)
        if free:
            base = free.pop()
        else:
            base = self._ids
            self._ids += width
            self._reserve(self._ids)
        group = RingGroup(owner, base, width, slots)
        if self._free_numbers:
            number = self._free_numbers.pop()
            self._groups[number] = group
        else:
            number = len(self._groups)
            self._groups.append(group)
        self._group_of[base : base + width] = number
        self.ring_bytes += group.size_bytes
        return group

    def _reserve(self, ids: int) -> None:
        if ids <= len(self.latest):
            return
        size = max(ids, 2 * len(self.latest))
        latest, group_of = np.full(size, np.nan), np.full(size, -1, dtype=np.int32)
        latest[: len(self.latest)] = self.latest
        group_of[: len(self._group_of)] = self._group_of
        self.latest, self._group_of = latest, group_of

    def _make_room(self, size_bytes: int) -> bool:
        """Halve the longest rings until `size_bytes` fit; False when all are as short as they may be."""
        while self.ring_bytes + size_bytes > self.memory_bytes:
            longest = max((g.slots for g in self._groups if g is not None), default=0)
            if longest // 2 < LEAST_SLOTS:
                return False
            for group in self._groups:
                if group is not None and group.slots == longest:
                    self.ring_bytes -= group.size_bytes
                    group.shorten(longest // 2)
                    self.ring_bytes += group.size_bytes
        return True

    # Appending

    def plan(self, ids: Ids) -> Plan:
        """Where samples of these series go. REQUIRES: every id was returned by `declare` and its group is held."""
        numbers = self._group_of[ids]
        parts: list[Part] = []
        for number in np.unique(numbers):
            group = self._group(int(number))
            places = np.flatnonzero(numbers == number)
            samples = None if len(places) == len(ids) else _columns(places)
            parts.append((group, _columns(ids[places] - group.base), samples, _columns(ids[places])))
        return Plan(ids, parts)

    def append(self, plan: Plan, time_ms: int, values: Vector) -> int:
        """Put a batch in: values float64, shape (N,), in the plan's order. Returns how many samples were too late."""
        bits = values.view(ID)
        # As integers, ABSENT is above every number and infinity: the largest cell answers for all of them.
        whole = not len(bits) or bits[bits.argmax()] < ABSENT_BITS or not (bits == ABSENT_BITS).any()
        late = 0
        for group, columns, samples, ids in plan.parts:
            part = values if samples is None else values[samples]
            if time_ms < group.last_ms:
                if group.append(time_ms, columns, part):
                    self._remember_late(group, time_ms, columns, part)
                else:
                    late += len(part)
                continue
            if not group.room:
                self._lengthen(group)
            group.append(time_ms, columns, part)
            self.latest[ids] = part if whole else _overlaid(self.latest[ids], part)
        self.late_samples += late
        return late

    def _remember_late(self, group: RingGroup, time_ms: int, columns: Columns, values: Vector) -> None:
        """A row that is not its group's newest may still hold the newest samples of some series."""
        newest = ~group.has_after(time_ms, columns) & (values.view(ID) != ABSENT_BITS)
        ids = np.arange(group.base, group.base + group.width)[columns][newest]
        self.latest[ids] = values[newest]

    def _lengthen(self, group: RingGroup) -> None:
        """Double a full ring while the budget allows; else it goes round."""
        slots = min(2 * group.slots, self._most_slots)
        if slots > group.slots and self.ring_bytes + group.size_bytes <= self.memory_bytes:
            self.ring_bytes -= group.size_bytes
            group.lengthen(slots)
            self.ring_bytes += group.size_bytes

    def _group(self, number: int) -> RingGroup:
        group = self._groups[number]
        if group is None:
            raise LookupError(f"group {number} was evicted; series must be declared again before they are planned")
        return group

    # Holding and leaving

    def groups_of(self, ids: Ids) -> list[RingGroup]:
        """The groups these series are in."""
        return [self._group(int(number)) for number in np.unique(self._group_of[ids])]

    def evict_idle(self, now_ms: int, idle_ms: int) -> int:
        """Forget groups that no stream holds and that got nothing for `idle_ms`; returns how many series left."""
        left = 0
        for number, group in enumerate(self._groups):
            if group is None or group.holders or group.last_ms > now_ms - idle_ms:
                continue
            left += group.used
            self.index.remove(group.base, group.used)
            self._groups[number] = None
            self._free_numbers.append(number)
            self._group_of[group.base : group.base + group.width] = -1
            self.latest[group.base : group.base + group.width] = np.nan
            self._free.setdefault(group.width, []).append(group.base)
            self.ring_bytes -= group.size_bytes
            book = self._owners[group.owner]
            book.groups.remove(group)
            if book.open is group:
                book.open = None
            if not book.groups:
                del self._owners[group.owner]
        self.evicted_series += left
        return left

    def end(self, labels: Labels, time_ms: int) -> None:
        """Put a stale marker behind every series of an instance: they end here (Prometheus does so when a target goes)."""
        book = self._owners.get(labels)
        for group in book.groups if book is not None else ():
            if group.used:
                markers = np.full(group.used, STALE_BITS, dtype=np.int64).view(VALUE)
                group.append(max(time_ms, group.last_ms + 1), slice(0, group.used), markers)
                self.latest[group.base : group.base + group.used] = np.nan

    # Reading

    def select(self, metric: str, equal: Mapping[str, str] | None = None) -> Ids:
        """Ids of the metric's series with these labels: int64, shape (N,), ascending."""
        return self.index.select(metric, equal or {})

    def labels(self, series_id: int) -> dict[str, str]:
        """A series' labels, without the metric's name."""
        return self.index.labels(series_id)

    def latest_ms(self, ids: Ids) -> Times:
        """When the newest row with these series came, Unix ms, int64, shape (N,); 0 for none."""
        groups = [self._groups[number] if number >= 0 else None for number in self._group_of[ids].tolist()]
        return np.array([max(g.last_ms, 0) if g is not None else 0 for g in groups], dtype=TIME)

    def matrix(self, ids: Ids, steps_ms: Times, lookback_ms: int) -> Matrix:
        """The newest sample of each series at or before each step and within lookback; NaN where there is none.

        ids: int64, shape (N,). steps_ms: int64, shape (T,), ascending. Returns float64, shape (N, T).
        """
        out = np.full((len(ids), len(steps_ms)), np.nan)
        numbers = self._group_of[ids]
        for number in np.unique(numbers[numbers >= 0]):
            group = self._group(int(number))
            places = np.flatnonzero(numbers == number)
            out[places] = group.at(_columns(ids[places] - group.base), steps_ms, lookback_ms)
        return out


def _overlaid(old: Vector, new: Vector) -> Vector:
    return np.where(new.view(np.int64) != ABSENT_BITS, new, old)


def _columns(numbers: Ids) -> Columns:
    """Numbers as a slice where they are consecutive, for then nothing has to be looked up."""
    count = len(numbers)
    if count and int(numbers[-1]) - int(numbers[0]) == count - 1 and (count == 1 or (np.diff(numbers) == 1).all()):
        return slice(int(numbers[0]), int(numbers[0]) + count)
    return numbers
