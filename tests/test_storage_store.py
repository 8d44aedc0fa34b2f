"""The store is a dictionary that survives: random operations, starts and power cuts against one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from storage.files import Files, LockedError
from storage.matchers import Matcher
from storage.snapshot import create, restore
from storage.store import Store
from storage.types import Labels, Shape
from tests.columns_model import OWNERS, SHAPES, bits_of, to_model, value_bits
from tests.faulty_files import ForgetfulFiles
from tests.store_model import ALWAYS, HOUR_MS, MINUTE_MS, NOW_MS, SETTINGS, TIGHT, UNKNOWN, World, steady

WIDE = [Shape(f"w{i:02}", ()) for i in range(40)]  # more than an open group holds
X, A, B = OWNERS[0], SHAPES[0], SHAPES[1]
owners = st.sampled_from(OWNERS[:3])
shapes = st.lists(st.sampled_from(SHAPES[:4]), min_size=1, max_size=4, unique=True)
ages_ms = st.one_of(
    st.sampled_from([0, 0, 0, 1, 1000]),
    st.integers(0, 40).map(lambda n: n * 1000),
    st.integers(0, 40).map(lambda n: n * 10_000),
    st.integers(0, 50).map(lambda n: n * HOUR_MS // 7),
)
cells = st.one_of(st.none(), value_bits)
matchers = st.sampled_from(
    [
        [],
        [Matcher("__name__", "=", "a")],
        [Matcher("__name__", "!=", "a"), Matcher("instance", "=", "x")],
        [Matcher("__name__", "=~", "a|b"), Matcher("k", "=", "")],
        [Matcher("k", "=~", "1|2"), Matcher("instance", "!~", "x|y")],
        [Matcher("job", "=", "nobody")],
    ]
)


class StoreMachine(RuleBasedStateMachine):
    """Each rule is one thing that happens to a store."""

    @initialize(seed=st.none() | st.integers(0, 1 << 16), memory_bytes=st.sampled_from([4300, 13_000, 1 << 20]))
    def begin(self, seed: int | None, memory_bytes: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "data").mkdir()
        self.files = ForgetfulFiles(self.folder / "data", seed)
        self.world = World(self.folder / "data", replace(SETTINGS, memory_bytes=memory_bytes), self.files)
        self.snapshots = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.world.close()
            shutil.rmtree(self.folder)

    @rule(owner=owners, shapes=shapes, data=st.data(), recurring=st.booleans(), age_ms=ages_ms)
    def row(self, owner: Labels, shapes: list[Shape], data: st.DataObject, recurring: bool, age_ms: int) -> None:
        drawn = data.draw(st.lists(cells, min_size=len(shapes), max_size=len(shapes)))
        self.world.row(owner, self.world.now_ms - age_ms, dict(zip(shapes, drawn, strict=True)), recurring)

    @rule(owner=owners, rows=st.integers(1, 40), step_ms=st.sampled_from([1, 1000, 10_000]), wide=st.booleans())
    def scrapes(self, owner: Labels, rows: int, step_ms: int, wide: bool) -> None:
        steady(self.world, rows, WIDE if wide else SHAPES[:3], owner, step_ms)

    @rule(owner=owners, shapes=shapes, bits=value_bits, age_ms=ages_ms)
    def loose(self, owner: Labels, shapes: list[Shape], bits: int, age_ms: int) -> None:
        self.world.loose(owner, self.world.now_ms - age_ms, dict.fromkeys(shapes, bits))

    @precondition(lambda self: self.world.expected)
    @rule(data=st.data(), bits=value_bits, recurring=st.booleans())
    def overwrite(self, data: st.DataObject, bits: int, recurring: bool) -> None:
        owner, shape, time_ms = data.draw(st.sampled_from(sorted(self.world.tick or self.world.expected)))
        if recurring:
            self.world.row(owner, time_ms, {shape: bits, SHAPES[7]: None}, recurring)
        else:
            self.world.loose(owner, time_ms, {shape: bits})

    @rule(what=st.sampled_from(["commit", "take", "land", "roll", "roll", "step", "flush", "flush", "compact"]))
    def background(self, what: str) -> None:
        getattr(self.world, what)()

    @rule(by_ms=st.sampled_from([-HOUR_MS, -MINUTE_MS, 1000, MINUTE_MS, HOUR_MS, 2 * HOUR_MS, 30 * HOUR_MS]))
    def clock(self, by_ms: int) -> None:
        self.world.now_ms += by_ms

    @rule(what=st.sampled_from(["evict", "mark_ends", "stop", "kill", "cut_power", "snapshot"]))
    def ending(self, what: str) -> None:
        {
            "evict": self.world.evict,
            "mark_ends": lambda: self.world.end(OWNERS[0]),
            "stop": self.world.reopen,
            "kill": lambda: self.world.reopen(clean=False),
            "cut_power": self.cut_power,
            "snapshot": self.snapshot,
        }[what]()

    def cut_power(self) -> None:
        self.files.power_cut()
        self.world.start()

    def snapshot(self) -> None:
        self.world.commit()
        self.snapshots += 1
        to = self.folder / f"restored{self.snapshots}"
        create(self.files, self.world.root, f"s{self.snapshots}", self.world.now_ms)
        restore(Files(), self.world.root, f"s{self.snapshots}", to)
        other = World(to, files=Files(), now_ms=self.world.now_ms)
        other.certain = self.world.certain
        other.check()
        other.close(clean=True)

    @rule(matchers=matchers, ago_ms=ages_ms, for_ms=ages_ms)
    def read(self, matchers: list[Matcher], ago_ms: int, for_ms: int) -> None:
        start_ms = self.world.now_ms - ago_ms
        self.world.check_read(matchers, start_ms, start_ms + for_ms)

    @rule(matchers=matchers, ago_ms=ages_ms, step_ms=st.sampled_from([1, 7000, 60_000]), steps=st.integers(1, 9))
    def select(self, matchers: list[Matcher], ago_ms: int, step_ms: int, steps: int) -> None:
        start_ms = self.world.now_ms - ago_ms
        self.world.check_select(matchers, start_ms, start_ms + step_ms * steps, step_ms, 3 * step_ms)

    @invariant()
    def all_is_shown(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    @invariant()
    def matrices_show_it_too(self) -> None:
        if hasattr(self, "world"):
            now_ms = self.world.now_ms
            for step_ms in (1000, 20_000, HOUR_MS // 7):
                self.world.check_matrix(range(now_ms - 40 * step_ms, now_ms + 2 * step_ms, step_ms), step_ms)


StoreMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAgainstADictionary = StoreMachine.TestCase


# Reading


def test_a_store_without_samples_shows_none(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    world.check()
    world.check_select([], NOW_MS, NOW_MS + 10, 5, 100)
    world.check_matrix([NOW_MS], 100)
    assert [world.store.read([], *ALWAYS, tier).series for tier in ("raw", "1m", "1h")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "step_ms", "expected"),
    [(0, 10, 0, "step 0"), (0, 10, -5, "step -5"), (10, 9, 1, "start 10, end 9")],
)
def test_steps_that_are_none_are_refused(
    tmp_path: Path, start_ms: int, end_ms: int, step_ms: int, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        World(tmp_path / "data").store.select([], start_ms, end_ms, step_ms)


def test_a_tier_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got tier '2m', expected one of raw, 1m, 1h"):
        World(tmp_path / "data").store.read([], *ALWAYS, "2m")


def test_in_memory_all_that_was_received_is_safe_at_once() -> None:
    store = Store.in_memory()
    plan = store.head.plan(store.head.declare(X, [(A, UNKNOWN)], 10))
    assert store.append(plan, NOW_MS, np.array([1.5])) == 0
    store.received(X, 1, 3)
    assert list(store.safe(X)) == [(1, 3)]
    assert (store.take(NOW_MS), store.refusal, store.is_full, store.durable) == (None, "", False, False)
    assert to_model(store.read([], *ALWAYS)) == {(X, A, NOW_MS): bits_of(1.5)}
    for now_ms in (NOW_MS, NOW_MS + HOUR_MS):
        store.forget_idle([], now_ms, MINUTE_MS)
    assert list(store.safe(X)) == []
    store.settle(NOW_MS)
    store.flush(NOW_MS)
    store.compact(NOW_MS)
    store.close()


# Order


def test_a_row_overwrites_a_loose_sample_of_the_same_tick(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    world.row(X, NOW_MS - 1, {A: 1, B: 1}, recurring=True)
    world.loose(X, NOW_MS, {A: 1})
    world.row(X, NOW_MS, {A: 2, B: 2}, recurring=True)
    world.loose(X, NOW_MS, {B: 3})
    world.check()
    world.reopen()
    world.flush()
    world.check()
    assert world.certain[X, A, NOW_MS] == 2
    assert world.certain[X, B, NOW_MS] == 3


@settings(max_examples=12, deadline=None)
@given(st.permutations(range(20)), st.integers(2, 20), st.booleans())
def test_late_samples_may_come_in_any_order(order: list[int], each: int, kill: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "data", TIGHT)
        for turn, place in enumerate(order):
            world.row(X, NOW_MS + 7 * MINUTE_MS * place, {A: turn}, recurring=True)
            world.row(X, NOW_MS + 7 * MINUTE_MS * (place // 2), {A: 100 + turn}, recurring=True)
            if turn % each == 0:
                world.flush()
            world.check()
        world.commit()
        world.reopen(clean=not kill)
        world.now_ms += 5 * HOUR_MS
        world.flush()
        world.compact()
        world.check()
        world.close()


# Sequences


def test_what_was_received_is_known_after_any_number_of_files_and_starts(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    for turn in range(12):
        steady(world, 2)
        (world.flush, world.reopen, world.roll)[turn % 3]()
    world.reopen(clean=False)
    assert list(world.store.safe(X)) == [(1, 24)]


def test_a_message_is_safe_with_its_commit_and_not_before(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    steady(world, 1)
    assert list(world.store.safe(X)) == []
    world.take()
    steady(world, 1)
    assert list(world.store.safe(X)) == []
    world.land()
    assert list(world.store.safe(X)) == [(1, 1)]
    world.reopen(clean=False)
    assert list(world.store.safe(X)) == [(1, 1)]


def test_an_instance_that_is_forgotten_is_not_in_the_next_file(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    steady(world, 1)
    world.row(OWNERS[1], NOW_MS, {A: 1})
    for _ in range(2):
        world.commit()
        world.store.forget_idle([OWNERS[1]], world.now_ms, MINUTE_MS)
        world.now_ms += HOUR_MS
    world.flush()
    steady(world, 1, owner=OWNERS[1])
    world.commit()
    world.store.close()
    assert list(Store.open(world.root, world.settings).safe(X)) == []


# Memory


def test_full_rings_lose_no_sample_from_reads(tmp_path: Path) -> None:
    world = World(tmp_path / "data", TIGHT)
    for turn in range(12):
        steady(world, 7)
        world.check()
        if turn % 3 == 2:
            world.flush()
            world.check()
    assert world.store.head.ring_bytes <= 2 * TIGHT.memory_bytes


def test_a_late_row_among_rows_that_may_be_overwritten_is_not(tmp_path: Path) -> None:
    world = World(tmp_path / "data", TIGHT)
    steady(world, 16)
    world.flush()
    steady(world, 1)
    world.row(X, world.now_ms - 9500, {A: 777}, recurring=True)
    for _ in range(20):
        steady(world, 1)
        world.check()


def backfill(world: World) -> None:
    world.row(X, NOW_MS - HOUR_MS, {A: 777}, recurring=True)


@pytest.mark.parametrize(
    "what",
    [
        pytest.param([], id="the ring begins in the middle"),
        pytest.param([backfill], id="a sample is older than the ring"),
        pytest.param([World.reopen, backfill], id="a sample is older than what segments hold, in a new ring"),
        pytest.param([World.flush, World.reopen, backfill, World.roll], id="likewise, in the closing file"),
        pytest.param([World.flush, World.evict, backfill], id="likewise, of a series that comes back"),
        pytest.param([backfill, World.reopen, World.flush], id="it is in a segment"),
    ],
)  # fmt: skip
def test_a_matrix_shows_what_rings_segments_and_late_samples_hold_together(
    tmp_path: Path, what: list[Callable[[World], object]]
) -> None:
    world = World(tmp_path / "data", TIGHT)
    steady(world, 16)
    world.flush()
    steady(world, 10)
    for step in what:
        step(world)
    steady(world, 2)
    world.check_matrix(range(NOW_MS - HOUR_MS, NOW_MS - HOUR_MS + 3000, 1000), 5000)
    world.check_matrix(range(NOW_MS, NOW_MS + 40_000, 1000), 5000)
    world.check_matrix([NOW_MS - HOUR_MS, NOW_MS + 5000, NOW_MS + 30_000], HOUR_MS)


def one_by_one(world: World) -> None:
    """Every step for itself, so that no segment is read on behalf of another."""
    for _, _, time_ms in world.expected:
        world.check_matrix([time_ms], 1, [Matcher("instance", "=", "x")])


def test_a_matrix_shows_what_late_rows_took_the_place_of(tmp_path: Path) -> None:
    world = World(tmp_path / "data", TIGHT)
    steady(world, 16)
    world.flush()
    steady(world, 4)
    world.row(X, world.now_ms - 5500, {A: 777}, recurring=True)
    one_by_one(world)


def test_a_matrix_shows_what_a_full_ring_refused(tmp_path: Path) -> None:
    world = World(tmp_path / "data", TIGHT)
    steady(world, 16)
    world.flush()
    backfill(world)
    one_by_one(world)


def test_a_matrix_shows_what_a_ring_held_before_it_was_halved(tmp_path: Path) -> None:
    world = World(tmp_path / "data", replace(SETTINGS, memory_bytes=9000))
    steady(world, 32)
    world.flush()
    steady(world, 1, owner=OWNERS[1])
    one_by_one(world)


def test_a_matrix_shows_samples_of_a_clock_that_was_ahead(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    world.now_ms += HOUR_MS
    steady(world, 16)
    world.flush()
    world.reopen()
    world.now_ms = NOW_MS
    steady(world, 3)
    world.check_matrix([NOW_MS + 2000, NOW_MS + HOUR_MS + 5000], 5000)


def test_a_series_that_was_evicted_comes_back_with_all_it_had(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    steady(world, 5)
    assert world.evict() == 0  # not before a segment has it
    world.roll()
    assert world.evict() == 0
    world.flush()
    assert world.evict() == 1
    world.check()
    steady(world, 5)
    world.check()
    world.check_matrix(range(NOW_MS, NOW_MS + 10_000, 1000), 5000)
    world.reopen()
    world.check()


def test_a_late_sample_keeps_its_series_in_memory_until_a_segment_has_it(tmp_path: Path) -> None:
    world = World(tmp_path / "data", TIGHT)
    steady(world, 16)
    world.flush()
    steady(world, 10)
    world.flush()
    backfill(world)
    assert world.evict() == 0
    world.roll()
    assert world.evict() == 0
    world.flush()
    assert world.evict() == 1
    world.check()


def test_a_replay_that_is_larger_than_memory_shows_everything(tmp_path: Path) -> None:
    world = World(tmp_path / "data", SETTINGS)
    for i in range(60):
        world.row(OWNERS[i % 4], NOW_MS + i * 1000, dict.fromkeys(SHAPES[i % 5 :: 2], i))
    world.commit()
    world.settings = replace(SETTINGS, memory_bytes=5000)
    world.reopen(clean=False)
    assert world.store.recovered.lost_samples == 0
    assert world.store.head.ring_bytes <= 5000
    world.check_select([], NOW_MS, NOW_MS + 60_000, 1000, 5000)


def test_after_a_start_nothing_is_in_the_rings_and_everything_is_read(tmp_path: Path) -> None:
    world = World(tmp_path / "data", TIGHT)
    steady(world, 16)
    world.flush()
    steady(world, 10)
    world.reopen(clean=False)
    head = world.store.head
    assert (head.index.series, head.ring_bytes) == (0, 0)
    world.check()
    steady(world, 3)  # the agents are back: their series go on where they were
    world.check()
    ids = head.index.match([])
    names, steps_ms = head.names(ids), np.arange(NOW_MS, world.now_ms + 1, 5000)
    expected = world.store.select([], NOW_MS, world.now_ms, 5000, 60_000)
    rows = {(owner, shape): i for i, (owner, shape) in enumerate(zip(expected.owners, expected.shapes, strict=True))}
    shown = world.store.matrix(ids, steps_ms, 60_000)
    np.testing.assert_array_equal(shown, expected.matrix[[rows[name] for name in names]])
    world.flush()
    world.check()
    np.testing.assert_array_equal(world.store.matrix(ids, steps_ms, 60_000), shown)


def test_the_newest_sample_is_known_before_an_agent_is_back(tmp_path: Path) -> None:
    world = World(tmp_path / "data", TIGHT)
    world.row(OWNERS[0], NOW_MS, {SHAPES[0]: bits_of(1.0)}, recurring=True)
    world.row(OWNERS[0], NOW_MS + 1000, {SHAPES[0]: bits_of(2.0)}, recurring=True)
    world.commit()
    matchers = [Matcher("__name__", "=", SHAPES[0].metric)]
    newest = [(dict(OWNERS[0]) | dict(SHAPES[0].labels), 2.0, NOW_MS + 1000)]
    assert world.store.newest(matchers, NOW_MS) == newest
    world.reopen(clean=False)
    assert world.store.newest(matchers, NOW_MS) == newest
    assert world.store.newest(matchers, NOW_MS + 4_000_000) == []
    world.row(OWNERS[0], NOW_MS + 2000, {SHAPES[0]: bits_of(3.0)}, recurring=True)
    assert world.store.newest(matchers, NOW_MS) == [(newest[0][0], 3.0, NOW_MS + 2000)]


def test_a_start_while_late_samples_are_in_no_segment_loses_none(tmp_path: Path) -> None:
    world = World(tmp_path / "data", TIGHT)
    steady(world, 16)
    world.flush()
    steady(world, 10)
    backfill(world)
    world.roll()
    backfill(world)
    world.commit()
    world.reopen(clean=False)
    world.check()
    world.flush()
    world.check()


@pytest.mark.parametrize("kill", [False, True])
def test_rows_with_few_values_of_many_take_no_memory_without_bound(tmp_path: Path, kill: bool) -> None:
    bounds = replace(SETTINGS, memory_bytes=1 << 18, wal_bytes=1 << 18, wal_file_bytes=1 << 16)
    world = World(tmp_path / "data", bounds)
    most = 0
    world.row(X, NOW_MS, dict.fromkeys(WIDE, 1), recurring=True)
    for i in range(4000):
        world.now_ms += 1
        world.row(X, world.now_ms, {WIDE[i % len(WIDE)]: i})
        if i % 50 == 49:
            world.commit()
            world.store.settle(world.now_ms)
            if world.store.is_full:
                world.step()
        most = max(most, world.store.head.ring_bytes)
    if kill:
        world.reopen(clean=False)
    world.check()
    assert most <= 3 * (bounds.memory_bytes + bounds.wal_bytes)
    assert world.store.head.ring_bytes <= 3 * (bounds.memory_bytes + bounds.wal_bytes)


def test_own_series_take_no_memory_without_bound_while_nothing_may_be_taken(tmp_path: Path) -> None:
    world = World(tmp_path / "data", replace(TIGHT, wal_bytes=10_000, least_free_bytes=1 << 62))
    store = world.store
    plan = store.head.plan(store.head.declare(X, [(A, UNKNOWN)], 10), recurring=True)
    assert "expected at least" in store.refusal
    for i in range(2000):
        store.append_own(plan, NOW_MS + i, np.array([1.0]))
        store.settle(NOW_MS + i)
    assert store.head.ring_bytes < 60_000
    assert store.take(NOW_MS) is None


# Bounds and odd input


def test_a_batch_of_no_series_is_no_hindrance(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    for _ in range(4):
        world.row(X, NOW_MS, {}, recurring=True)
    world.commit()
    assert list(world.store.safe(X)) == [(1, 4)]


def test_appending_waits_while_the_background_is_behind_and_goes_on_after(tmp_path: Path) -> None:
    world = World(tmp_path / "data", replace(SETTINGS, wal_bytes=2000, wal_file_bytes=500))
    for _ in range(30):
        steady(world, 1)
        world.commit()
        world.store.settle(world.now_ms)
    assert world.store.is_full
    for _ in range(3):
        world.step()
        world.commit()
    assert not world.store.is_full
    world.check()


def test_a_second_store_on_a_directory_is_refused_and_names_the_first(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):
        Store.open(world.root, SETTINGS)
    steady(world, 1)
    world.reopen()


def test_a_clean_stop_is_known_as_such_and_a_kill_as_another(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    assert (world.store.recovered.fresh, world.store.recovered.unclean) == (True, False)
    world.reopen()
    assert (world.store.recovered.fresh, world.store.recovered.unclean) == (False, False)
    world.reopen(clean=False)
    assert (world.store.recovered.fresh, world.store.recovered.unclean) == (False, True)
