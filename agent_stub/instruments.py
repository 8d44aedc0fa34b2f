"""What an agent records into: bound handles that aggregate in place.

Recording is a few bytecodes, no queue and no lock. CPython hands the GIL over only at calls and at backward jumps, and
there is neither between the load and the store of `self.value += amount`; so no increment is lost among threads. Where
that does not hold (before 3.10, and without a GIL) the same classes take a lock: see `ExactCounter`.

A handle tells the registry of its first change after a flush, and of no other until the next flush.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent_stub import native
from agent_stub.wire import stream_pb2 as pb

COUNTER, UP_DOWN, GAUGE, HISTOGRAM = 1, 2, 3, 4  # pb.MetricKind
BEYOND = 1e300  # amounts from here on are refused, so that sums stay finite
SMALL_INT = (1 << 30) - 1  # integers below are one digit of CPython's, and cheap to compare; others take the long way
BEYOND_INT = 1 << 900  # the same for integers: comparing an int with a float costs more than the whole addition

LOCKS_NEEDED = sys.version_info < (3, 10) or not getattr(sys, "_is_gil_enabled", lambda: True)()


Note = Callable[[Any], None]
"""Called with the handle at its first change after a flush."""

Invalid = Callable[[str, Any, str], None]
"""Called with the metric's name, what was got, and what was expected."""


@dataclass(frozen=True)
class Definition:
    """A series as it is declared; `ref` is its first."""

    ref: int
    name: str
    labels: tuple[tuple[str, str], ...]
    kind: int
    unit: str
    bounds: tuple[float, ...] = ()
    description: str = ""

    @property
    def width(self) -> int:
        """How many refs it takes."""
        return len(self.bounds) + 3 if self.kind == HISTOGRAM else 1

    def to_wire(self) -> pb.Series:
        labels = [pb.Label(name=name, value=value) for name, value in self.labels]
        return pb.Series(
            ref=self.ref, name=self.name, labels=labels, kind=self.kind, unit=self.unit,  # type: ignore[arg-type]
            bucket_bounds=self.bounds, description=self.description,
        )  # fmt: skip


def _number(value: object) -> float | None:
    """`value` as a float if it is a number of any kind (numpy's, Decimal, bool ...), else None."""
    if isinstance(value, (str, bytes, bytearray)) or value is None:
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001  a foreign type's __float__ may raise anything
        return None


class Handle:
    """One series of the agent. `dirty` is true while the registry knows of an unsent change."""

    __slots__ = ("definition", "dirty", "invalid", "note", "value")

    def __init__(self, definition: Definition, note: Note, invalid: Invalid) -> None:
        self.definition = definition
        self.note = note
        self.invalid = invalid
        self.zero()

    def zero(self) -> None:
        """As new: what a forked child starts from."""
        self.value = 0.0
        self.dirty = False

    def values(self) -> tuple[float, ...]:
        """The values to send, one a ref."""
        return (self.value,)

    def total(self, value: float) -> None:
        """Takes the sum or the level that the operating system, or the stub itself, keeps."""
        self.value = float(value)
        self._changed()

    def _changed(self) -> None:
        if not self.dirty:
            self.dirty = True
            self.note(self)


class Counter(Handle):
    """A sum that only grows."""

    __slots__ = ()

    def add(self, amount: float = 1.0) -> None:
        """Adds a finite number, 0 or more. Anything else is ignored, counted, and logged once."""
        kind = amount.__class__
        if (kind is int and 0 <= amount < SMALL_INT) or (kind is float and 0.0 <= amount < BEYOND):
            self.value += amount
            if not self.dirty:
                self._changed()
        else:
            number = _number(amount)
            if number is not None and 0 <= number < BEYOND:
                self.add(number)
            else:
                self.invalid(self.definition.name, amount, "a finite number, 0 or more, to add")


class Gauge(Handle):
    """A value that goes up and down."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Any number, NaN and infinities too. What is no number is ignored, counted, and logged once."""
        if type(value) is float:
            self.value = value
        else:
            number = _number(value)
            if number is None:
                self.invalid(self.definition.name, value, "a number to set")
                return
            self.value = number
        if not self.dirty:
            self._changed()


class Histogram(Handle):
    """A distribution: counts by bucket, and the sum."""

    __slots__ = ("bounds", "buckets")

    def __init__(self, definition: Definition, note: Note, invalid: Invalid) -> None:
        self.bounds = definition.bounds
        super().__init__(definition, note, invalid)

    def zero(self) -> None:
        self.buckets = [0] * (len(self.bounds) + 1)
        super().zero()

    def record(self, value: float) -> None:
        """A finite number, 0 or more. Anything else is ignored, counted, and logged once."""
        if (type(value) is float and 0.0 <= value < BEYOND) or (type(value) is int and 0 <= value < BEYOND_INT):
            self.buckets[bisect_left(self.bounds, value)] += 1
            self.value += value
            if not self.dirty:
                self._changed()
        else:
            number = _number(value)
            if number is not None and 0 <= number < BEYOND:
                self.record(number)
            else:
                self.invalid(self.definition.name, value, "a finite number, 0 or more, to record")

    def values(self) -> tuple[float, ...]:
        """Cumulative counts by bound, the count of all, the sum, the count of all once more."""
        cumulative, so_far = [], 0
        for bucket in self.buckets:
            so_far += bucket
            cumulative.append(so_far)
        return (*cumulative, self.value, so_far)


class ExactCounter(Counter):
    """A counter for interpreters in which `+=` is not atomic."""

    __slots__ = ("lock",)

    def zero(self) -> None:
        self.lock = native.allocate_rlock()  # another thread may have held the old one when this process was forked
        super().zero()

    def add(self, amount: float = 1.0) -> None:
        with self.lock:
            super().add(amount)


class ExactHistogram(Histogram):
    """A histogram for interpreters in which `+=` is not atomic."""

    __slots__ = ("lock",)

    def zero(self) -> None:
        self.lock = native.allocate_rlock()  # as in ExactCounter
        super().zero()

    def record(self, value: float) -> None:
        with self.lock:
            super().record(value)


CLASSES: dict[int, type[Handle]] = {
    COUNTER: ExactCounter if LOCKS_NEEDED else Counter,
    UP_DOWN: Gauge,
    GAUGE: Gauge,
    HISTOGRAM: ExactHistogram if LOCKS_NEEDED else Histogram,
}
