"""All series of one agent: made once per name and labels, bounded in number, and which of them have changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent_stub import native, semconv, text
from agent_stub.instruments import (
    CLASSES,
    COUNTER,
    GAUGE,
    HISTOGRAM,
    UP_DOWN,
    Counter,
    Definition,
    Gauge,
    Handle,
    Histogram,
)
from agent_stub.problems import Problems

BOUNDS = 256
UNIT_BYTES = 32
DESCRIPTION_BYTES = 1024
OVERFLOW_METRICS = 1000  # how many metrics get an overflow series; the names themselves may be unbounded too

Labels = Mapping[Any, Any]


class Registry:
    """Makes handles and remembers them. Any thread may call it; recording itself never comes here but for `note`.

    `wake` is called when something changes while `sleeping` is true.
    """

    def __init__(self, max_series: int, problems: Problems, wake: Callable[[], None]) -> None:
        self.max_series = max_series
        self.problems = problems
        self.wake = wake
        self.sleeping = False
        self.handles: list[Handle] = []  # those that are sent, in the order of their refs
        self.changed: list[Handle] = []
        self.overflowed = 0  # look-ups that ended in an overflow series
        self.invalid = 0  # values, names and labels that could not be taken as they were
        self._cache: dict[Any, Handle] = {}
        self._kinds: dict[str, tuple[int, tuple[float, ...]]] = {}
        self._overflow: dict[str, Handle] = {}
        self._next_ref = 1
        self._lock = native.allocate_rlock()

    def get(
        self,
        kind: int,
        name: str,
        unit: str = "",
        labels: Labels | None = None,
        bounds: Sequence[float] | None = None,
        description: str = "",
    ) -> Handle:
        """The handle of this name and labels; made at the first call. Never fails: see `_detached`."""
        key: Any = None
        if not labels:
            key = (kind, name, ())
        elif all(type(value) is str for value in labels.values()):  # 1, 1.0 and True are one key but three texts
            key = (kind, name, tuple(labels.items()))
        try:
            handle = self._cache.get(key)
            if handle is not None:
                return handle
        except TypeError:  # a name that cannot be hashed is no name, and _make says so
            key = None
        with self._lock:
            return self._make(key, kind, name, unit, labels or {}, bounds, description)

    def take_changed(self) -> list[Handle]:
        """The handles changed since the last call, each once, ready to be read: what changes from here on is noted anew."""
        taken, self.changed = self.changed, []
        handles = list(dict.fromkeys(taken))
        for handle in handles:
            handle.dirty = False
        return handles

    def note(self, handle: Handle) -> None:
        """A handle's first change after a flush."""
        self.changed.append(handle)
        if self.sleeping:
            self.sleeping = False
            self.wake()

    def note_invalid(self, name: str, got: object, expected: str) -> None:
        """A value that cannot be taken: counted, and logged once a metric."""
        self.invalid += 1
        self.problems.warn(f"invalid {name:.100}", "%s: got %.100r, expected %s; ignored", name, Shown(got), expected)

    def reset(self, wake: Callable[[], None]) -> None:
        """For a forked child: every handle stays valid and starts from zero."""
        self._lock = native.allocate_rlock()
        self.wake, self.sleeping, self.changed = wake, True, []
        self.overflowed = self.invalid = 0
        for handle in self.handles:
            handle.zero()

    def _make(
        self,
        key: Any,
        kind: int,
        name: str,
        unit: str,
        labels: Labels,
        bounds: Sequence[float] | None,
        description: str,
    ) -> Handle:
        clean_name = text.clean(name, text.NAME_BYTES)
        pairs, altered = text.label_pairs(labels)
        if clean_name != name or altered:
            self.invalid += 1
            self.problems.warn(
                f"label {clean_name}", "%s: a name or label was not text within the limits; changed", clean_name
            )
        if not clean_name:
            return self._detached(kind, name, "a metric's name of 1 to 256 bytes")
        clean_key = (kind, clean_name, pairs)
        handle = self._cache.get(clean_key)
        if handle is None:
            edges = self._bounds(kind, clean_name, bounds)
            if edges is None:
                return self._detached(kind, clean_name, "the kind that this metric was first used with")
            if len(self.handles) >= self.max_series:
                return self._overflow_of(kind, clean_name, unit, edges)
            handle = self._new(kind, clean_name, pairs, unit, edges, description)
            self._cache[clean_key] = handle
        if (
            key is not None and len(self._cache) < 4 * self.max_series
        ):  # spellings of one series may be many: bounded too
            self._cache[key] = handle
        return handle

    def _new(
        self,
        kind: int,
        name: str,
        pairs: tuple[tuple[str, str], ...],
        unit: str,
        edges: tuple[float, ...],
        description: str,
    ) -> Handle:
        definition = Definition(
            self._next_ref,
            name,
            pairs,
            kind,
            text.clean(unit, UNIT_BYTES),
            edges,
            text.clean(description, DESCRIPTION_BYTES),
        )
        handle = CLASSES[kind](definition, self.note, self.note_invalid)
        self._next_ref += definition.width
        self.handles.append(handle)
        return handle

    def _bounds(self, kind: int, name: str, bounds: Sequence[float] | None) -> tuple[float, ...] | None:
        """The bucket bounds of this metric (empty but for histograms); None when the name is of another kind already."""
        known = self._kinds.get(name)
        if known is not None:
            return known[1] if known[0] == kind else None
        edges: tuple[float, ...] = ()
        if kind == HISTOGRAM:
            edges = semconv.BUCKETS.get(name, semconv.DEFAULT_BUCKETS)
            if bounds is not None:
                given = _usable_bounds(bounds)
                if given is None:
                    self.note_invalid(name, bounds, f"1 to {BOUNDS} finite bucket bounds; the defaults are used")
                edges = given or edges
        if len(self._kinds) < 4 * self.max_series:
            self._kinds[name] = (kind, edges)
        return edges

    def _overflow_of(self, kind: int, name: str, unit: str, edges: tuple[float, ...]) -> Handle:
        self.overflowed += 1
        self.problems.warn(
            "overflow", "%s: more than %d series; further ones are summed in an overflow series", name, self.max_series
        )
        handle = self._overflow.get(name)
        if handle is None:
            if len(self._overflow) >= OVERFLOW_METRICS:
                return self._detached(kind, name, f"at most {OVERFLOW_METRICS} metrics beyond {self.max_series} series")
            handle = self._overflow[name] = self._new(kind, name, (semconv.OVERFLOW_LABEL,), unit, edges, "")
        return handle

    def _detached(self, kind: int, name: object, expected: str) -> Handle:
        """A handle that works and is never sent; what is recorded into it counts as invalid."""
        self.note_invalid(text.clean(name, text.NAME_BYTES), name, expected)

        def note(handle: Handle) -> None:
            handle.dirty = False
            self.invalid += 1

        bounds = semconv.DEFAULT_BUCKETS if kind == HISTOGRAM else ()
        return CLASSES[kind](Definition(0, "", (), kind, "", bounds), note, self.note_invalid)

    def counter(self, name: str, unit: str = "", labels: Labels | None = None, description: str = "") -> Counter:
        return self.get(COUNTER, name, unit, labels, None, description)  # type: ignore[return-value]

    def gauge(self, name: str, unit: str = "", labels: Labels | None = None, description: str = "") -> Gauge:
        return self.get(GAUGE, name, unit, labels, None, description)  # type: ignore[return-value]

    def up_down(self, name: str, unit: str = "", labels: Labels | None = None, description: str = "") -> Gauge:
        return self.get(UP_DOWN, name, unit, labels, None, description)  # type: ignore[return-value]

    def histogram(
        self,
        name: str,
        unit: str = "",
        labels: Labels | None = None,
        bounds: Sequence[float] | None = None,
        description: str = "",
    ) -> Histogram:
        return self.get(HISTOGRAM, name, unit, labels, bounds, description)  # type: ignore[return-value]


class Shown:
    """Delays `repr` until a warning is really logged, and survives a `__repr__` that fails."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        try:
            return repr(self.value)
        except Exception:  # noqa: BLE001  a foreign __repr__ may raise anything
            return f"<{type(self.value).__name__}>"


def _usable_bounds(bounds: Sequence[float]) -> tuple[float, ...] | None:
    """Sorted, each once; None when they cannot be bucket bounds."""
    try:
        edges = tuple(sorted({float(b) for b in bounds}))
    except (TypeError, ValueError, OverflowError):
        return None
    return edges if 1 <= len(edges) <= BOUNDS and all(-1e308 < edge < 1e308 for edge in edges) else None
