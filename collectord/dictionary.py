"""A stream's dictionary: what the agent's numbers stand for, and where the samples of a batch go."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from agent_stub.wire import stream_pb2 as wire
from collectord.derived import DERIVED_SERIES
from collectord.naming import label_name, le_value, metric_name
from storage.head import REFUSED, Head, Plan
from storage.rings import RingGroup
from storage.types import ID, VALUE, Ids, Labels, Meta, Shape, Vector

UNKNOWN, INVALID, OVERFLOW = -1, -2, -3  # in place of a series id
REFS_PER_SERIES = 64  # refs may be sparse, but not without bound: their tables are arrays
MOST_LAYOUT = 65_535
MOST_LABELS, NAME_BYTES, VALUE_BYTES, UNIT_BYTES, MOST_BOUNDS = 32, 256, 1024, 32, 256  # as the contract says
MOST_RECENT_ROUTES = 64  # of batches with refs of their own; a stub's changing sets are not worth keeping
MOST_OVERFLOW_SERIES = 100  # of one instance: one a metric
MOST_REFUSED_REFS = 1000  # named in one LimitNotice

_KINDS = {
    wire.METRIC_KIND_COUNTER: "counter",
    wire.METRIC_KIND_UP_DOWN_COUNTER: "updowncounter",
    wire.METRIC_KIND_GAUGE: "gauge",
    wire.METRIC_KIND_HISTOGRAM: "histogram",
}
_OVERFLOW_LABEL: Labels = (("otel_metric_overflow", "true"),)


class BadBatchError(Exception):
    """A batch that cannot be used; `kind` is the contract's VIOLATION_KIND_..."""

    def __init__(self, kind: wire.ViolationKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class BadSeriesError(ValueError):
    """A declaration that breaks the contract's limits; the text says which, got and expected."""


@dataclass(slots=True)
class Overflow:
    """The samples of a batch whose series were refused: where they stand, and the overflow series that takes each."""

    places: Ids
    refs: Ids
    ids: Ids


@dataclass(slots=True)
class Route:
    """Where the samples of one set of refs go. Made once for a layout."""

    count: int
    plan: Plan
    kept: Ids | None = None  # places of the samples that the plan takes; None: all
    overflow: Overflow | None = None
    invalid: int = 0


@dataclass(slots=True)
class Declared:
    """What came of a Declare."""

    violations: list[tuple[wire.ViolationKind, str]] = field(default_factory=list)
    notice: wire.LimitNotice | None = None
    refused: int = 0


class Dictionary:
    """Refs and layouts of one stream, and the series of one instance behind them."""

    def __init__(self, head: Head, labels: Labels, series_limit: int) -> None:
        self._head = head
        self.labels = labels
        self._series_limit = series_limit
        self._ids: Ids = np.full(256, UNKNOWN, dtype=ID)
        self._marks = array("q", bytes(8 * 256))  # by ref: hash of the series that it was declared as, 0 for none
        self.layouts: dict[int, Route] = {}
        self._recent: dict[bytes, Route] = {}
        self._groups: set[RingGroup] = set()
        self._overflow_ids: dict[str, int] = {}  # metric -> overflow series
        self._overflow_of: dict[int, int] = {}  # ref -> overflow series
        self._overflow_last: dict[int, float] = {}  # ref of a counter -> its newest value
        self.series = 0

    # Declaring

    def declare(self, message: wire.Declare) -> Declared:
        """Take a declaration in: each wrong series is a violation of its own, the others count."""
        done = Declared()
        refs: list[int] = []
        shapes: list[tuple[Shape, Meta]] = []
        for series in message.series:
            try:
                parts = self._check(series)
            except BadSeriesError as error:
                done.violations.append((wire.VIOLATION_KIND_NAME, str(error)))
                self._refuse_ref(series.ref)
                continue
            except BadBatchError as error:
                done.violations.append((error.kind, str(error)))
                continue
            refs += range(series.ref, series.ref + len(parts))
            shapes += parts
        ids = self._head.declare(self.labels, shapes, self._series_limit + DERIVED_SERIES)
        self._ids[refs] = ids
        accepted = ids[ids != REFUSED]
        self.series += len(accepted)
        self._hold(accepted)
        if len(accepted) < len(ids):
            self._overflow(
                [(ref, *shape) for ref, shape, i in zip(refs, shapes, ids, strict=True) if i == REFUSED], done
            )
        for layout in message.layouts:
            self._declare_layout(layout, done)
        self._recent.clear()
        return done

    def _check(self, series: wire.Series) -> Sequence[tuple[Shape, Meta]]:
        """The shapes of a series that may be declared now; none when it is declared already, and equal."""
        count = len(series.bucket_bounds) + 3 if series.kind == wire.METRIC_KIND_HISTOGRAM else 1
        first, last = series.ref, series.ref + count - 1
        most = self._series_limit * REFS_PER_SERIES
        if not 1 <= first <= last <= most:
            raise BadBatchError(
                wire.VIOLATION_KIND_TOO_LARGE, f"ref {first} of {series.name[:64]!r}: expected 1 to {most}"
            )
        self._reserve(last)
        data = series.SerializeToString()
        mark = hash(data) or 1
        marks = self._marks
        if marks[first] == mark:
            return ()
        if any(marks[first : last + 1]):
            raise BadBatchError(
                wire.VIOLATION_KIND_REF_CONFLICT,
                f"ref {first} ({series.name[:64]!r}) is declared already, otherwise; expected a ref of its own",
            )
        parts = _expanded(data)
        marks[first : last + 1] = array("q", [mark]) * count
        return parts

    def _reserve(self, ref: int) -> None:
        if ref >= len(self._ids):
            size = max(ref + 1, 2 * len(self._ids))
            ids = np.full(size, UNKNOWN, dtype=ID)
            ids[: len(self._ids)] = self._ids
            self._ids = ids
            self._marks.frombytes(bytes(8 * (size - len(self._marks))))

    def _refuse_ref(self, ref: int) -> None:
        if 1 <= ref <= self._series_limit * REFS_PER_SERIES:
            self._reserve(ref)
            if self._ids[ref] == UNKNOWN:
                self._ids[ref] = INVALID

    def _hold(self, ids: Ids) -> None:
        for group in self._head.groups_of(ids):
            if group not in self._groups:
                self._groups.add(group)
                group.holders += 1

    def _overflow(self, refused: list[tuple[int, Shape, Meta]], done: Declared) -> None:
        """Give refused series to their metric's overflow series, so that sums over a metric stay whole."""
        for ref, shape, meta in refused:
            self._ids[ref] = OVERFLOW
            series = self._overflow_ids.get(shape.metric)
            if series is None and len(self._overflow_ids) < MOST_OVERFLOW_SERIES:
                ids = self._head.declare(
                    self.labels,
                    [(Shape(shape.metric, _OVERFLOW_LABEL), meta)],
                    self._series_limit + DERIVED_SERIES + MOST_OVERFLOW_SERIES,
                )
                self._hold(ids[ids != REFUSED])
                series = self._overflow_ids[shape.metric] = int(ids[0])
            self._overflow_of[ref] = REFUSED if series is None else series
            if meta.kind in ("counter", "histogram"):
                self._overflow_last[ref] = 0.0
        done.refused = len(refused)
        done.notice = wire.LimitNotice(
            series_limit=self._series_limit,
            series_used=self.series,
            refused_refs=[ref for ref, _, _ in refused[:MOST_REFUSED_REFS]],
            refused_total=len(self._overflow_of),
            text=f"{len(refused)} series refused: got {self.series + len(self._overflow_of)} of this instance, expected at "
            f"most {self._series_limit} (limits.series_per_agent) or what rings.memory_bytes holds; their samples go to "
            f'the series {{otel_metric_overflow="true"}} of their metric. Use fewer label values, or raise the limit',
        )

    def _declare_layout(self, layout: wire.Layout, done: Declared) -> None:
        refs = np.array(layout.refs, dtype=ID)
        if not 1 <= layout.layout <= MOST_LAYOUT:
            text = f"layout {layout.layout}: expected 1 to {MOST_LAYOUT}"
            done.violations.append((wire.VIOLATION_KIND_TOO_LARGE, text))
        elif len(np.unique(refs)) < len(refs):
            text = f"layout {layout.layout} names a ref twice, expected each once"
            done.violations.append((wire.VIOLATION_KIND_REF_CONFLICT, text))
        else:
            try:
                self.layouts[layout.layout] = self._route(refs, recurring=True)
            except BadBatchError as error:
                done.violations.append((error.kind, f"layout {layout.layout}: {error}"))

    # Routing

    def layout(self, number: int) -> Route:
        """Where a layout's samples go. Raises BadBatchError when it was not declared on this stream."""
        try:
            return self.layouts[number]
        except KeyError:
            raise BadBatchError(
                wire.VIOLATION_KIND_UNKNOWN_REF, f"layout {number} is not declared on this stream; declare it first"
            ) from None

    def refs(self, packed: bytes) -> Route:
        """Where the samples of these refs (packed fixed32) go. Raises BadBatchError when one was not declared."""
        route = self._recent.get(packed)
        if route is None:
            route = self._route(np.frombuffer(packed, dtype="<u4").astype(ID))
            if len(self._recent) >= MOST_RECENT_ROUTES:
                self._recent.clear()
            self._recent[packed] = route
        return route

    def _route(self, refs: Ids, *, recurring: bool = False) -> Route:
        known = (refs < len(self._ids)) & (refs > 0)
        ids = np.where(known, self._ids[np.where(known, refs, 0)], UNKNOWN)
        if (ids == UNKNOWN).any():
            first = refs[np.argmax(ids == UNKNOWN)]
            raise BadBatchError(
                wire.VIOLATION_KIND_UNKNOWN_REF, f"ref {first} is not declared on this stream; declare it first"
            )
        if (ids >= 0).all():
            return Route(len(refs), self._head.plan(ids, recurring=recurring))
        kept = np.flatnonzero(ids >= 0)
        places = np.flatnonzero(ids == OVERFLOW)
        takers = np.array([self._overflow_of[int(ref)] for ref in refs[places]], dtype=ID)
        overflow = Overflow(places, refs[places], takers) if len(places) else None
        return Route(
            len(refs), self._head.plan(ids[kept], recurring=recurring), kept, overflow, int((ids == INVALID).sum())
        )

    def overflowed(self, overflow: Overflow, values: Vector) -> tuple[Plan, Vector, int]:
        """What the overflow series become by these samples: a counter grows by what each refused counter grew, a
        gauge takes the last value. Returns a plan, its values, and how many samples no series took.
        """
        new: dict[int, float] = {}
        for ref, taker, value in zip(overflow.refs.tolist(), overflow.ids.tolist(), values.tolist(), strict=True):
            last = self._overflow_last.get(ref)
            if taker == REFUSED:
                continue
            if last is None:
                new[taker] = value
            elif math.isfinite(value):
                before = new.get(taker, float(self._head.latest[taker]))
                grown = value - last if value >= last else value
                new[taker] = (0.0 if math.isnan(before) else before) + grown
                self._overflow_last[ref] = value
        ids = np.array(sorted(new), dtype=ID)
        lost = int((overflow.ids == REFUSED).sum())
        return self._head.plan(ids), np.array([new[int(i)] for i in ids], dtype=VALUE), lost

    def release(self) -> None:
        """The stream ended: its series may be evicted once they are idle."""
        for group in self._groups:
            group.holders -= 1
        self._groups.clear()


@lru_cache(maxsize=16384)
def _expanded(data: bytes) -> tuple[tuple[Shape, Meta], ...]:
    """`_expand` by the series' bytes: the instances of a fleet declare the same series under the same refs."""
    return tuple(_expand(wire.Series.FromString(data)))


def _expand(series: wire.Series) -> Iterator[tuple[Shape, Meta]]:
    """A declared series as PromQL's: one, or a histogram's buckets, sum and count."""
    kind = _KINDS.get(series.kind)
    if kind is None:
        raise BadSeriesError(f"series {series.name[:64]!r}: got kind {series.kind}, expected one of {sorted(_KINDS)}")
    labels = _labels(series)
    meta = Meta(kind, series.unit, series.description[:1024], series.name)
    metric = metric_name(series.name, series.unit, kind)
    if not metric.strip("_"):
        raise BadSeriesError(f"series {series.name[:64]!r}: expected a name with at least one letter or digit of ASCII")
    if kind != "histogram":
        yield Shape(metric, labels), meta
        return
    bounds = list(series.bucket_bounds)
    if len(bounds) > MOST_BOUNDS or any(not math.isfinite(b) for b in bounds) or sorted(set(bounds)) != bounds:
        raise BadSeriesError(
            f"histogram {series.name!r}: expected at most {MOST_BOUNDS} finite bounds, ascending, got {bounds[:8]}"
        )
    for le in [*map(le_value, bounds), "+Inf"]:
        yield Shape(metric + "_bucket", tuple(sorted((*labels, ("le", le))))), meta
    yield Shape(metric + "_sum", labels), meta
    yield Shape(metric + "_count", labels), meta


def _labels(series: wire.Series) -> Labels:
    name_bytes, unit_bytes = len(series.name.encode()), len(series.unit.encode())
    if not 1 <= name_bytes <= NAME_BYTES or unit_bytes > UNIT_BYTES:
        raise BadSeriesError(
            f"series {series.name[:64]!r}: got a name of {name_bytes} bytes and a unit of {unit_bytes}, expected a name of "
            f"1 to {NAME_BYTES} and a unit of at most {UNIT_BYTES}"
        )
    if len(series.labels) > MOST_LABELS:
        raise BadSeriesError(f"series {series.name!r}: got {len(series.labels)} labels, expected at most {MOST_LABELS}")
    pairs: dict[str, str] = {}
    for label in series.labels:
        name, value = label_name(label.name), label.value
        name = f"exported_{name}" if name in ("job", "instance") else name
        if not 1 <= len(label.name.encode()) <= NAME_BYTES or len(value.encode()) > VALUE_BYTES:
            raise BadSeriesError(
                f"series {series.name!r}, label {label.name[:64]!r}: expected a name of 1 to {NAME_BYTES} bytes and a value "
                f"of at most {VALUE_BYTES}, got {len(label.name.encode())} and {len(value.encode())}"
            )
        if name in pairs:
            raise BadSeriesError(f"series {series.name!r}: label {name!r} is given twice, expected once")
        if value:  # PromQL: an empty value is no label
            pairs[name] = value
    return tuple(sorted(pairs.items()))
