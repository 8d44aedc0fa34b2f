"""The head: series index and rings as one. What the daemon appends to and what every reader selects from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from storage import columns as forms
from storage.index import SeriesIndex
from storage.late import LateSamples
from storage.passes import Mask, Numbers
from storage.rings import FIRST_SLOTS, NEVER_MS, SAVED_MS, Columns, RingGroup
from storage.types import ABSENT_BITS, ID, STALE_BITS, TIME, VALUE, Ids, Labels, Matrix, Meta, Shape, Times, Vector

OPEN_WIDTH = 32  # columns of an instance's first open group; a cohort of this many or more gets a group of its own
LEAST_SLOTS = 16  # a ring is never shortened below this
REFUSED = -1  # in the ids that `declare` returns: over a limit
LEAST_FREED = 8  # a full ring of rows that are in no segment yet grows when less than this part of it can be given free

Part = tuple[RingGroup, Columns, "slice | Ids | None", "slice | Ids"]
"""A group, which of its columns, which of the batch's samples they take (None: all of them, in order), and the ids."""


@dataclass(slots=True)
class Plan:
    """Where the samples of one recurring set of series go. Made once, used for every batch with the same series.

    For the WAL it is a set: `number` is its own for as long as the process lives, `owner` and `shapes` are the index's.
    """

    ids: Ids
    parts: list[Part]
    number: int
    owner: int
    shapes: npt.NDArray[np.int32]
    uses: int  # batches so far; a set that is not recurring, or names a series twice, is never declared in the WAL


@dataclass(frozen=True, slots=True)
class RingRows:
    """Rows copied out of rings: any thread may go on with them."""

    owners: list[Labels]
    shapes: list[Shape]
    slabs: list[forms.Slab]
    metas: dict[str, Meta]

    def columns(self) -> forms.Columns:
        """The same samples, series by series."""
        return forms.from_slabs(self.owners, self.shapes, self.slabs, self.metas)


@dataclass(slots=True)
class _Owner:
    groups: list[RingGroup] = field(default_factory=list)
    open: RingGroup | None = None


class Head:
    """All series in memory.

    memory_bytes bounds the rings: new rings are short and double while the budget allows; when it is used up, the longest
    rings are halved to make room for new series. series_limit bounds the number of series. `durable`: what is appended goes
    to a WAL too, and stays here until `saved` says that segments have it.
    """

    def __init__(self, memory_bytes: int, slots: int, series_limit: int, *, durable: bool = False) -> None:
        self.index = SeriesIndex()
        self.memory_bytes = memory_bytes
        self.ring_bytes = 0
        self.late_samples = 0  # refused because older than a full ring, and there are no segments to take them
        self.evicted_series = 0
        self.durable = durable
        self.late = LateSamples()
        self.segments_ms = int(
            NEVER_MS
        )  # after the newest sample in any segment: older ones of new series may be there
        self._plans = 0
        self._generation = 0  # how often `roll` was called
        self._saved_generation = 0
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
        group = RingGroup(owner, base, width, slots, durable=self.durable, whole_ms=self.segments_ms)
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
            halvable = [
                g for g in self._groups if g is not None and g.slots > LEAST_SLOTS and _half(g) >= g.unsaved_rows
            ]
            longest = max((g.slots for g in halvable), default=0)
            if not longest:
                return False
            for group in halvable:
                if group.slots == longest:
                    self.ring_bytes -= group.size_bytes
                    group.shorten(_half(group))
                    self.ring_bytes += group.size_bytes
        return True

    # Appending

    def plan(self, ids: Ids, *, recurring: bool = False) -> Plan:
        """Where samples of these series go. `recurring`: known to come again and again.

        REQUIRES: every id was returned by `declare` for one and the same owner, and its group is held.
        """
        numbers = self._group_of[ids]
        parts: list[Part] = []
        for number in np.unique(numbers):
            group = self._group(int(number))
            places = np.flatnonzero(numbers == number)
            samples = None if len(places) == len(ids) else _columns(places)
            parts.append((group, _columns(ids[places] - group.base), samples, _columns(ids[places])))
        self._plans += 1
        owner = int(self.index.owners_of(ids[:1])[0]) if len(ids) else -1
        uses = (2 if recurring else 0) if len(np.unique(ids)) == len(ids) > 0 else -(1 << 62)
        return Plan(ids, parts, self._plans, owner, self.index.shapes_of(ids), uses)

    def append(self, plan: Plan, time_ms: int, values: Vector) -> int:
        """Put a batch in: values float64, shape (N,), in the plan's order. Returns how many samples were too late."""
        whole = _has_no_holes(values)
        late = 0
        for group, columns, samples, ids in plan.parts:
            part = values if samples is None else values[samples]
            if not group.room:
                self._make_room_in(group)
            if time_ms <= group.last_ms:
                late += self._append_behind(group, time_ms, columns, part)
                continue
            group.append(time_ms, columns, part)
            self.latest[ids] = part if whole else _overlaid(self.latest[ids], part)
        self.late_samples += late
        return late

    def _append_behind(self, group: RingGroup, time_ms: int, columns: Columns, values: Vector) -> int:
        """A row that is not after its group's newest. It may still hold the newest samples of some series."""
        if group.append(time_ms, columns, values):
            if self.durable and time_ms < group.open_ms:
                group.open_ms = time_ms
                group.make_room()  # it may lie among rows that had been given free
            newest = ~group.has_after(time_ms, columns) & (values.view(ID) != ABSENT_BITS)
            ids = np.arange(group.base, group.base + group.width)[columns][newest]
            self.latest[ids] = values[newest]
            return 0
        if not self.durable:
            return len(values)
        ids = np.arange(group.base, group.base + group.width)[columns]
        self.late.add(ids, time_ms, values)
        group.late_in = self._generation
        return 0

    def _make_room_in(self, group: RingGroup) -> None:
        """Double a full ring while the budget allows; else it goes round, as far as its rows are in segments."""
        slots = min(2 * group.slots, self._most_slots)
        fits = slots > group.slots and self.ring_bytes + group.size_bytes <= self.memory_bytes
        if not fits and group.make_room() and group.room * LEAST_FREED >= group.slots:
            return
        self.ring_bytes -= group.size_bytes
        group.lengthen(slots if fits else 2 * group.slots)  # beyond the budget: the WAL's bound holds this too
        self.ring_bytes += group.size_bytes

    # With a WAL

    def roll(self) -> None:
        """The WAL goes on in a new file; what came so far is being made into segments."""
        self._generation += 1
        self.late.roll()
        for group in self._groups:
            if group is not None:
                group.roll()

    def saved(self) -> None:
        """Segments have what came before the last `roll`."""
        self._saved_generation = self._generation
        self.late.saved()
        for group in self._groups:
            if group is not None:
                group.saved()
        self._make_room(0)  # rings that had to grow beyond the budget

    def read(self, ids: Ids, start_ms: int, end_ms: int, *, unsaved: bool = False) -> forms.Columns:
        """The samples of these series with start_ms <= time < end_ms. Every id stands once in `ids`.

        unsaved: only rows that may be in no segment yet.
        """
        return self.rows(ids, start_ms, end_ms, unsaved=unsaved).columns()

    def rows(self, ids: Ids, start_ms: int, end_ms: int, *, unsaved: bool = False) -> RingRows:
        """As `read`, but only copied out of the rings: the rest of the work any thread may do."""
        owners, shapes, owner_at, shape_at = self.tables(ids)
        slabs: list[forms.Slab] = []
        numbers = self._group_of[ids]
        order = np.argsort(numbers, kind="stable")
        edges = np.flatnonzero(np.diff(numbers[order], prepend=-2))
        for places in np.split(order, edges[1:]):
            if len(places):
                group = self._group(int(numbers[places[0]]))
                first_ms = max(start_ms, group.unsaved_ms) if unsaved else start_ms
                times, values = group.between(first_ms, end_ms, _columns(ids[places] - group.base))
                if len(times):
                    slabs.append(forms.Slab(int(owner_at[places[0]]), shape_at[places], times, values))
        metas = {shape.metric: self.index.meta[shape.metric] for shape in shapes}
        return RingRows(owners, shapes, slabs, metas)

    def cells(self, ids: Ids, start_ms: int, end_ms: int, *, unsaved: bool = False) -> int:
        """How many cells `rows` would copy."""
        numbers, counts = np.unique(self._group_of[ids], return_counts=True)
        total = 0
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            group = self._group(number)
            total += count * group.rows_between(max(start_ms, group.unsaved_ms) if unsaved else start_ms, end_ms)
        return total

    def tables(self, ids: Ids) -> tuple[list[Labels], list[Shape], Numbers, Numbers]:
        """Owners and shapes of these series, and each series' places in the two lists: int32, shape (N,)."""
        index = self.index
        owners, owner_at = np.unique(index.owners_of(ids), return_inverse=True)
        shapes, shape_at = np.unique(index.shapes_of(ids), return_inverse=True)
        return (
            [index.owner_labels(owner) for owner in owners.tolist()],
            [index.shape(shape)[0] for shape in shapes.tolist()],
            owner_at.astype(np.int32),
            shape_at.astype(np.int32),
        )

    def among(self, ids: Ids, start_ms: int, end_ms: int) -> Ids:
        """Those of these series whose ring has rows with start_ms <= time < end_ms."""
        numbers, inverse = np.unique(self._group_of[ids], return_inverse=True)
        groups = [self._groups[number] if number >= 0 else None for number in numbers.tolist()]
        there = [group is not None and group.overlaps(start_ms, end_ms) for group in groups]
        wanted: Mask = np.array(there, dtype=bool)[inverse]
        return ids[wanted]

    def read_late(self, ids: Ids, start_ms: int, end_ms: int) -> forms.Columns | None:
        """Samples of these series that came too late for the rings and are in no segment yet; None where there are none."""
        found = self.late.among(ids, start_ms, end_ms)
        if found is None:
            return None
        late_ids, times, values = found
        return forms.from_loose(*self.tables(late_ids), times, values)

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
            if group.unsaved_ms <= group.last_ms or group.late_in >= self._saved_generation:
                continue  # it, or a late sample of it, is in no segment yet
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

    def ends(self, labels: Labels, time_ms: int) -> list[tuple[Plan, int, Vector]]:
        """What to append to end every series of an instance: stale markers (Prometheus does so when a target goes)."""
        book = self._owners.get(labels)
        rows = []
        for group in book.groups if book is not None else ():
            if group.used:
                plan = self.plan(np.arange(group.base, group.base + group.used, dtype=ID))
                markers = np.full(group.used, STALE_BITS, dtype=np.int64).view(VALUE)
                rows.append((plan, max(time_ms, group.last_ms + 1), markers))
        return rows

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

    def names(self, ids: Ids) -> list[tuple[Labels, Shape]]:
        """Owner and shape of each series."""
        index = self.index
        pairs = zip(index.owners_of(ids).tolist(), index.shapes_of(ids).tolist(), strict=True)
        return [(index.owner_labels(owner), index.shape(shape)[0]) for owner, shape in pairs]

    def span_ms(self) -> tuple[int, int]:
        """The times of the oldest and the newest row in any ring; zeros where there is none."""
        spans = [group.span_ms for group in self._groups if group is not None and group.rows]
        return (min(first for first, _ in spans), max(last for _, last in spans)) if spans else (0, 0)

    def since_ms(self, ids: Ids) -> Times:
        """From which time on the ring of each series holds all of its samples, int64, shape (N,); of no series: never."""
        numbers, inverse = np.unique(self._group_of[ids], return_inverse=True)
        groups = [self._groups[number] if number >= 0 else None for number in numbers.tolist()]
        since = [g.since_ms if g is not None else SAVED_MS for g in groups]
        return np.array(since, dtype=TIME)[inverse]

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


def _has_no_holes(values: Vector) -> bool:
    bits = values.view(ID)
    # As integers, ABSENT is above every number and infinity: the largest cell answers for all of them.
    return not len(bits) or bool(bits[bits.argmax()] < ABSENT_BITS) or not (bits == ABSENT_BITS).any()


def _half(group: RingGroup) -> int:
    return max(group.slots // 2, LEAST_SLOTS)


def _overlaid(old: Vector, new: Vector) -> Vector:
    return np.where(new.view(np.int64) != ABSENT_BITS, new, old)


def _columns(numbers: Ids) -> Columns:
    """Numbers as a slice where they are consecutive, for then nothing has to be looked up."""
    count = len(numbers)
    if count and int(numbers[-1]) - int(numbers[0]) == count - 1 and (count == 1 or (np.diff(numbers) == 1).all()):
        return slice(int(numbers[0]), int(numbers[0]) + count)
    return numbers
