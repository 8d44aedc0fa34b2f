"""A store driven by verbs, and the dictionary that it is compared with, bit by bit.

What was committed must be there after every start; what was not may be there or not, but never otherwise. While it runs, the
store shows all that was appended.
"""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from storage.files import Files
from storage.head import REFUSED, Plan
from storage.matchers import Matcher
from storage.settings import StoreSettings
from storage.store import Store
from storage.types import ABSENT_BITS, ID, STALE_BITS, VALUE, Labels, Meta, Shape, labels_of
from storage.wal import Commit
from tests.columns_model import METAS, OWNERS, SHAPES, Model, bits_of, float_of, to_model
from tests.faulty_files import FailingFiles

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
NOW_MS = 472_223 * HOUR_MS  # 14 November 2023, where a partition begins
ALWAYS = -(1 << 62), 1 << 62
SETTINGS = StoreSettings(
    memory_bytes=1 << 20, slots=64, wal_file_bytes=4096, flush_ms=10 * MINUTE_MS, least_free_bytes=0,
    partition_ms=HOUR_MS, seal_ms=10 * MINUTE_MS,
)  # fmt: skip
TIGHT = replace(SETTINGS, memory_bytes=4300, slots=16)  # one ring, of 16 rows
UNKNOWN = Meta("gauge", "", "", "")
CHANGING = {"create", "write", "sync", "rename", "link", "unlink", "rmdir", "mkdir", "sync_dir", "truncate"}
READING = {"append", "map", "read", "listdir", "size", "lock", "free_bytes"}


class Killed(BaseException):
    """The process ends here: nothing in the program under test may handle it but by letting go."""


class CountingFiles(FailingFiles):
    """Counts the calls that may fail; the many writes of one segment are one. `struck`: it has come to the n-th."""

    def __init__(self, inner: Files, at: int, counted: set[str]) -> None:
        super().__init__(inner)
        self.left = at
        self._counted = counted
        self._last: tuple[str, Path] | None = None

    @property
    def struck(self) -> bool:
        return self.left < 0

    def count(self, operation: str, path: Path) -> bool:
        """Whether this call is the n-th or a later one."""
        again, self._last = (operation, path) == self._last and path.suffix == ".tmp", (operation, path)
        if operation in self._counted and (self.struck or not again):
            self.left -= 1
            return self.struck
        return False


class KilledFiles(CountingFiles):
    """The process ends at the n-th call, counted from 0, that changes something. Of a write then, `share` has been done."""

    def __init__(self, inner: Files, at: int, share: float = 0.0) -> None:
        super().__init__(inner, at, CHANGING)
        self._share = share

    def passes(self, operation: str, path: Path, size_bytes: int = 0) -> tuple[int, BaseException | None]:
        if self.count(operation, path):
            return int(size_bytes * self._share) if self.left == -1 else 0, Killed()
        return super().passes(operation, path, size_bytes)


class FlakyFiles(CountingFiles):
    """From the n-th call on, counted from 0, `calls` fail with an error of the operating system; of a write, half is done."""

    def __init__(self, inner: Files, at: int, calls: int, error: int) -> None:
        super().__init__(inner, at, CHANGING | READING)
        self.fails_left = calls
        self._error = error

    def passes(self, operation: str, path: Path, size_bytes: int = 0) -> tuple[int, BaseException | None]:
        if self.count(operation, path) and self.fails_left > 0:
            self.fails_left -= 1
            return size_bytes // 2, OSError(self._error, os.strerror(self._error), str(path))
        return super().passes(operation, path, size_bytes)


def all_labels(key: tuple[Labels, Shape, int]) -> dict[str, str]:
    owner, shape, _ = key
    return {"__name__": shape.metric, **dict(owner), **dict(shape.labels)}


def matches(labels: Mapping[str, str], matchers: Iterable[Matcher]) -> bool:
    """As in PromQL: what is absent is empty, and expressions match all of a value."""
    for matcher in matchers:
        value = labels.get(matcher.name, "")
        equal = matcher.op in ("=", "!=")
        hit = value == matcher.value if equal else re.fullmatch(matcher.value, value) is not None
        if hit is matcher.op.startswith("!"):
            return False
    return True


def stepped(samples: Model, steps_ms: Sequence[int], lookback_ms: int) -> dict[tuple[Labels, Shape], list[float]]:
    """The newest sample at or before each step and within lookback, one at a time; NaN where there is none, or a marker."""
    series: dict[tuple[Labels, Shape], list[tuple[int, int]]] = {}
    for (owner, shape, time_ms), bits in sorted(samples.items()):
        series.setdefault((owner, shape), []).append((time_ms, bits))
    found = {}
    for name, pairs in series.items():
        times = [time_ms for time_ms, _ in pairs]
        row = []
        for step in steps_ms:
            at = bisect_right(times, step) - 1
            there = at >= 0 and times[at] > step - lookback_ms and pairs[at][1] != STALE_BITS
            row.append(float_of(pairs[at][1]) if there else float("nan"))
        found[name] = row
    return found


class World:
    """A store and what it should hold. `now_ms` is all the time there is."""

    def __init__(
        self, root: Path, settings: StoreSettings = SETTINGS, files: Files | None = None, now_ms: int = NOW_MS
    ) -> None:
        self.root = root
        self.settings = settings
        self.files = files or Files()
        self.now_ms = now_ms
        self.certain = Model()  # committed
        self.history: dict[tuple[Labels, Shape, int], set[int]] = {}  # all values that a sample ever had
        self.tick = Model()  # appended, and in no commit that was begun
        self.flying = Model()  # in the commit that is under way
        self.written: dict[tuple[Labels, Shape, int], set[int]] = {}  # given to commits since the last that succeeded
        self.messages: dict[tuple[Labels, int], Model] = {}  # by owner and sequence, as far as they are not certain
        self.safe: dict[Labels, set[int]] = {}  # sequences that were told to be safe
        self.sent: dict[Labels, int] = {}  # the last sequence of each owner
        self.horizon_ms = ALWAYS[0]  # of what is older nothing is sure
        self.troubles: list[tuple[str, Exception]] = []
        self.counts: Counter[str] = Counter()  # of the background, before the last start
        self._plans: dict[tuple[Labels, tuple[Shape, ...]], Plan] = {}
        self._commit: Commit | None = None
        self.store = self._opened()

    def _opened(self) -> Store:
        self._plans.clear()
        self._commit = None
        return Store.open(self.root, self.settings, self.files, lambda what, error: self.troubles.append((what, error)))

    # Writing

    def plan(self, owner: Labels, shapes: Sequence[Shape], recurring: bool = False) -> tuple[Plan, list[Shape]]:
        """The same for the same series, and those of them that found room."""
        known = self._plans.get((owner, tuple(shapes)))
        if known is None:
            pairs = [(shape, METAS.get(shape.metric, UNKNOWN)) for shape in shapes]
            ids = self.store.head.declare(owner, pairs, 1 << 20)
            known = self.store.head.plan(ids[ids != REFUSED], recurring=recurring)
            if not (ids == REFUSED).any():
                self._plans[owner, tuple(shapes)] = known
        found = self.store.head.names(known.ids)
        return known, [shape for _, shape in found]

    def row(self, owner: Labels, time_ms: int, samples: Mapping[Shape, int | None], recurring: bool = False) -> int:
        """One batch and its sequence; None: no sample. Returns how many samples there was no room for."""
        plan, shapes = self.plan(owner, list(samples), recurring)
        cells = [ABSENT_BITS if samples[shape] is None else samples[shape] for shape in shapes]
        late = self.store.append(plan, time_ms, np.array(cells, dtype=ID).view(VALUE))
        assert late == 0
        kept = {(owner, s, time_ms): bits for s in shapes if (bits := samples[s]) is not None}
        self.tick |= kept
        for key, bits in kept.items():
            self.history.setdefault(key, set()).add(bits)
        sequence = self.sent[owner] = self.sent.get(owner, 0) + 1
        self.messages[owner, sequence] = kept
        self.store.received(owner, sequence, sequence)
        return len(samples) - len(shapes)

    def loose(self, owner: Labels, time_ms: int, samples: Mapping[Shape, int | None]) -> int:
        """As `row`, of series that never came together before."""
        self._plans.pop((owner, tuple(samples)), None)
        return self.row(owner, time_ms, samples)

    def end(self, owner: Labels) -> None:
        """Stale markers for all series of an owner."""
        for plan, time_ms, _ in self.store.head.ends(owner, self.now_ms):
            for _, shape in self.store.head.names(plan.ids):
                self.tick[owner, shape, time_ms] = STALE_BITS
        self.store.end(owner, self.now_ms)

    def take(self) -> None:
        """Begin a commit; what comes now is in the next one."""
        commit = self.store.take(self.now_ms)
        if commit is not None:
            self._commit = commit
            self.flying, self.tick = self.flying | self.tick, Model()
            for key, bits in self.flying.items():
                self.written.setdefault(key, set()).add(bits)

    def land(self) -> None:
        """End the commit that was begun. Raises what its write raises; it is in the next one then."""
        commit, self._commit = self._commit, None
        if commit is None:
            return
        try:
            commit.write()
        except Exception:
            self.store.failed(commit)
            self.tick, self.flying = self.flying | self.tick, Model()
            raise
        self.store.committed(commit)
        self.certain |= self.flying
        self.flying, self.written = Model(), {}
        for owner, _ in list(self.messages):
            numbers = self.safe.setdefault(owner, set())
            for first, last in self.store.safe(owner):
                numbers |= set(range(first, last + 1))
        self.messages = {key: m for key, m in self.messages.items() if key[1] not in self.safe[key[0]]}

    def commit(self) -> None:
        """All of it is safe."""
        self.land()
        self.take()
        self.land()

    # The background

    def roll(self) -> None:
        """The WAL goes on in a new file."""
        assert self.store.wal is not None
        self.land()
        if not self.store.wal.closed:  # as `settle` has it: one generation after the other
            self.store.wal.roll_wanted = True
        self.commit()

    def step(self) -> bool:
        """One piece of background work."""
        assert self.store.keeper is not None
        self._age()
        worked = self.store.keeper.step(self.now_ms)
        self.store.settle(self.now_ms)
        return worked

    def flush(self) -> None:
        """Everything is in segments."""
        self.roll()
        self._age()
        self.store.flush(self.now_ms)

    def compact(self) -> None:
        """All background work there is."""
        self._age()
        self.store.compact(self.now_ms)

    def _age(self) -> None:
        self.horizon_ms = max(self.horizon_ms, self.now_ms - self.settings.retention_ms)

    def evict(self, idle_ms: int = 0) -> int:
        """Idle series leave memory; returns how many."""
        left = self.store.head.evict_idle(self.now_ms, idle_ms)
        self._plans.clear()
        return left

    # Starts and ends

    def reopen(self, clean: bool = True) -> None:
        """Stop and start: in order, with all of it committed, or by kill -9."""
        if clean:
            self.commit()
        self.close(clean)
        self.start()

    def start(self, files: Files | None = None) -> None:
        """After an end of whatever kind. Fails when something is not as it must be."""
        self.files = files or self.files
        self.close()  # whoever was killed lets go of files too
        self.store = self._opened()
        self.observe()

    def start_damaged(self) -> None:
        """After somebody harmed a file: what is there is to be looked at."""
        self.store = self._opened()
        self.tick, self.flying, self.written, self.messages = Model(), Model(), {}, {}

    def close(self, clean: bool = False) -> None:
        """Stop, without a last commit."""
        if self.store.keeper is not None:
            self.counts += self.store.keeper.counts
        self.store.close(clean=clean)
        self.store.keeper = None

    def observe(self) -> None:
        """What is there after a start, in place of what was not sure."""
        found = self.shown()
        for key in found.keys() | self.certain.keys():
            allowed = {self.certain.get(key)} | self.written.get(key, set())
            if key[2] < self.horizon_ms:
                allowed.add(None)
            assert found.get(key) in allowed, (key, found.get(key), allowed)
        claimed = {owner: {n for a, b in self.store.safe(owner) for n in range(a, b + 1)} for owner in self.sent}
        for owner, sent in self.sent.items():
            assert self.safe.get(owner, set()) <= claimed[owner] <= set(range(1, sent + 1)), (owner, claimed[owner])
        for (owner, sequence), samples in self.messages.items():
            if sequence in claimed[owner]:  # told to be received, so all of it is there
                sure = {k for k in samples if k[2] >= self.horizon_ms}
                lost = {k for k in sure if found.get(k) not in self.written.get(k, set())}
                assert not lost, (sequence, lost)
        self.certain, self.safe = found, claimed
        self.tick, self.flying, self.written, self.messages = Model(), Model(), {}, {}

    # Reading

    @property
    def expected(self) -> Model:
        """All that was appended."""
        return self.certain | self.flying | self.tick

    def shown(self) -> Model:
        """All that a read gives."""
        return to_model(self.store.read([], *ALWAYS))

    def check(self) -> None:
        """A read of everything shows everything."""
        self.check_read([], *ALWAYS)

    def check_read(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> None:
        found = to_model(self.store.read(matchers, start_ms, end_ms))
        self._agree(found, self._within(matchers, start_ms, end_ms))

    def _within(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> Model:
        return {
            k: v for k, v in self.expected.items() if start_ms <= k[2] < end_ms and matches(all_labels(k), matchers)
        }

    def _agree(self, found: Model, expected: Model) -> None:
        wrong = {
            k: (found.get(k), expected.get(k))
            for k in found.keys() | expected.keys()
            if found.get(k) != expected.get(k)
        }
        wrong = {k: pair for k, pair in wrong.items() if k[2] >= self.horizon_ms or pair[0] is not None}
        assert not wrong, f"{len(wrong)} samples, got and expected: {sorted(wrong.items())[:3]}"

    def check_select(
        self, matchers: Sequence[Matcher], start_ms: int, end_ms: int, step_ms: int, lookback_ms: int
    ) -> None:
        """REQUIRES: nothing has expired, so rollups are not asked."""
        found = self.store.select(matchers, start_ms, end_ms, step_ms, lookback_ms)
        at = list(range(start_ms, end_ms + 1, step_ms))
        expected = stepped(self._within(matchers, start_ms - lookback_ms + 1, end_ms + 1), at, lookback_ms)
        names = list(zip(found.owners, found.shapes, strict=True))
        assert found.steps_ms.tolist() == at
        assert len(set(names)) == len(names)
        assert set(names) == set(expected)
        np.testing.assert_array_equal(found.matrix, np.array([expected[name] for name in names]).reshape(-1, len(at)))

    def check_matrix(self, steps_ms: Sequence[int], lookback_ms: int, matchers: Sequence[Matcher] = ()) -> None:
        """Of all series that the head knows, and that match."""
        ids = self.store.head.index.match(matchers)
        names = self.store.head.names(ids)
        expected = stepped(self.expected, steps_ms, lookback_ms)
        nothing = [float("nan")] * len(steps_ms)
        found = self.store.matrix(ids, np.array(steps_ms, dtype=np.int64), lookback_ms)
        wanted = np.array([expected.get(name, nothing) for name in names]).reshape(-1, len(steps_ms))
        np.testing.assert_array_equal(found, wanted)


def steady(
    world: World, rows: int, shapes: Sequence[Shape] = SHAPES[:1], owner: Labels = OWNERS[0], step_ms: int = 1000
) -> None:
    """Rows as a scrape has them, not committed."""
    for i in range(rows):
        world.now_ms += step_ms
        world.row(owner, world.now_ms, {shape: i * 8 + j for j, shape in enumerate(shapes)}, recurring=True)


def slowly_rolled(samples: Model, width_ms: int) -> Model:
    """Sample by sample."""
    series: dict[tuple[Labels, Shape], list[tuple[int, float]]] = {}
    for (owner, shape, time_ms), bits in sorted(samples.items()):
        if bits != STALE_BITS and not math.isnan(float_of(bits)):
            series.setdefault((owner, shape), []).append((time_ms, float_of(bits)))
    out = Model()
    for (owner, shape), pairs in series.items():
        before = None
        buckets: dict[int, dict[str, float]] = {}
        for time_ms, value in pairs:
            bucket = buckets.setdefault(-(-time_ms // width_ms) * width_ms, {})
            bucket["min"] = min(bucket.get("min", value), value)
            bucket["max"] = max(bucket.get("max", value), value)
            bucket["sum"] = bucket.get("sum", 0.0) + value
            bucket["count"] = bucket.get("count", 0.0) + 1
            if shape.metric in "ac":  # counters and histograms
                grown = 0.0 if before is None else value - before if value >= before else value
                bucket["increase"] = bucket.get("increase", 0.0) + grown
            before = value
        for end_ms, bucket in buckets.items():
            for name, figure in bucket.items():
                labels = labels_of({**dict(shape.labels), "__rollup__": name})
                out[owner, Shape(shape.metric, labels), end_ms] = bits_of(figure)
    return out
