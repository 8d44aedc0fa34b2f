"""The background: what it writes is what was there, whatever fails meanwhile, and it takes away what is too old and nothing else."""

from __future__ import annotations

import errno
import gc
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from storage.files import Files
from storage.format import BLOCK_HEADER_BYTES, SEGMENT_HEADER_BYTES, TIERS, CorruptError
from storage.making import Made, MakerLostError, Task
from storage.settings import StoreSettings
from storage.snapshot import create, restore, verify
from storage.types import STALE_BITS, Shape, labels_of
from tests.columns_model import OWNERS, SHAPES, bits_of, to_model
from tests.data_directory import flip
from tests.faulty_files import FailingFiles, ForgetfulFiles
from tests.store_model import ALWAYS, HOUR_MS, MINUTE_MS, NOW_MS, SETTINGS, Killed, KilledFiles, World, slowly_rolled

X, Y = OWNERS[:2]
A, B = SHAPES[0], SHAPES[3]  # a counter, a gauge


def rows(world: World, number: int, step_ms: int = 10_000) -> None:
    """Committed."""
    for i in range(number):
        world.now_ms += step_ms
        world.row(X, world.now_ms, {A: bits_of(float(i)), B: bits_of(i / 2)}, recurring=True)
    world.commit()


def work(world: World) -> None:
    """All there is to do, and a second time what failed."""
    for _ in range(2):
        world.compact()


def segments(world: World, tier: str = "raw") -> list[str]:
    assert world.store.segments is not None
    return [segment.path.name for segment in world.store.segments.all(tier)]


def files_in(world: World, folder: str) -> list[str]:
    return sorted(path.name for path in (world.root / folder).iterdir())


# Flush


@pytest.mark.parametrize(
    ("times_ms", "pieces"),
    [
        ([NOW_MS], 1),
        ([NOW_MS - 1, NOW_MS], 2),
        ([NOW_MS - 1, NOW_MS, NOW_MS + HOUR_MS - 1, NOW_MS + HOUR_MS], 3),
        ([NOW_MS - h * HOUR_MS for h in range(12)], 8),  # the older ones are in one
        ([0, 1, NOW_MS], 2),
        ([NOW_MS, 1 << 55], 2),  # as a clock says that went mad
        ([1 << 54, 1 << 55, (1 << 62) - 1], 2),
        ([-(1 << 55), -1, NOW_MS], 2),
    ],
)
def test_a_flush_cuts_at_the_partitions_and_never_into_many_pieces(
    tmp_path: Path, times_ms: list[int], pieces: int
) -> None:
    world = World(tmp_path / "data", replace(SETTINGS, retention_ms=1 << 60))
    for time_ms in times_ms:
        world.row(X, time_ms, {A: time_ms & 0xFFFF})
    world.flush()
    assert len(segments(world)) == pieces
    world.check()
    world.reopen()
    world.check()


def test_a_flush_that_is_cut_off_between_partitions_is_done_again(tmp_path: Path) -> None:
    for at in count():
        folder = tmp_path / str(at)
        (folder / "data").mkdir(parents=True)
        disk = ForgetfulFiles(folder / "data", at)
        files = KilledFiles(disk, 1 << 40)
        world = World(folder / "data", files=files)
        for time_ms in (NOW_MS - 1, NOW_MS, NOW_MS + HOUR_MS - 1, NOW_MS + HOUR_MS):
            world.row(X, time_ms, {A: time_ms & 0xFFFF})
            world.commit()
        world.roll()
        files.left = at
        with suppress(Killed):
            world.step()
        struck, files.left = files.struck, 1 << 40
        world.start()
        world.check()
        disk.power_cut()
        world.start()
        world.flush()
        world.now_ms += 3 * HOUR_MS
        world.compact()
        world.check()
        assert len(segments(world)) == 3
        world.close()
        disk.close()
        if not struck:
            break
    assert at > 10


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename", "sync_dir", "map"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_flush_that_fails_again_and_again_leaves_nothing_behind(tmp_path: Path, operation: str, error: int) -> None:
    files = FailingFiles()
    world = World(tmp_path / "data", files=files)
    for hour in range(3):
        world.row(X, NOW_MS + hour * HOUR_MS, {A: hour})
    world.roll()
    for nth in (1, 2, 3):
        fault = files.fail(operation, error, path="*/segments*", nth=nth)
        assert not world.step()
        fault.stop()
        assert [name for name in files_in(world, "segments") if name.endswith(".seg")] == []
        world.check()
    assert world.store.keeper is not None
    assert world.store.keeper.counts["keeper_failures"] == 3
    assert [str(e) for _, e in world.troubles] != []
    world.flush()
    assert files_in(world, "segments") == segments(world)
    assert len(segments(world)) == 3
    world.reopen()
    world.check()


def test_wal_files_that_cannot_be_removed_are_removed_later_and_count_once(tmp_path: Path) -> None:
    files = FailingFiles()
    world = World(tmp_path / "data", files=files)
    for _ in range(3):
        rows(world, 2)
        world.roll()
        fault = files.fail("unlink", errno.EIO, path="*.wal")
        world.step()
        fault.stop()
    assert len(segments(world)) == 3
    world.reopen(clean=False)
    world.flush()
    rows(world, 1)
    world.flush()
    assert len(files_in(world, "wal")) == 1
    world.check()


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: flip(path, 2)])
def test_a_closed_file_that_is_gone_or_none_any_more_keeps_no_other_waiting(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    world = World(tmp_path / "data")
    rows(world, 3)
    world.roll()
    assert world.store.wal is not None
    (path,) = world.store.wal.closed
    harm(path)
    work(world)
    assert world.store.wal.closed == []
    assert path.name in str(world.troubles[0][1])
    world.certain = {}
    rows(world, 3)
    world.flush()
    world.evict()
    world.check()


def test_a_broken_file_that_cannot_be_put_aside_costs_nothing_else(tmp_path: Path) -> None:
    files = FailingFiles()
    world = World(tmp_path / "data", files=files)
    rows(world, 3)
    world.roll()
    assert world.store.wal is not None
    flip(world.store.wal.closed[0], 2)
    fault = files.fail("rename", errno.EACCES, path="*.wal*")
    for _ in range(3):
        work(world)
    assert world.store.wal.closed == []
    assert files_in(world, "segments") == segments(world)
    fault.stop()
    world.certain = {}
    rows(world, 3)
    world.flush()
    world.evict()
    world.check()


@pytest.mark.parametrize("failing", ["none", "unlink the last", "unlink the others", "killed after one"])
def test_what_a_maker_had_finished_when_it_was_lost_never_counts_in_part(tmp_path: Path, failing: str) -> None:
    """Only the last of a flush's segments says that the WAL is in segments: without all the others it must not be there."""
    files = FailingFiles()
    world = World(tmp_path / "data", files=files)
    for time_ms in (NOW_MS - HOUR_MS, NOW_MS, NOW_MS + HOUR_MS):
        world.row(X, time_ms, {A: time_ms & 0xFFFF})
    world.commit()
    world.roll()
    keeper = world.store.keeper
    assert keeper is not None
    make, made = keeper.make, []

    def lost(task: Task) -> Made:
        made.append(make(task))
        if failing == "unlink the last":
            files.fail("unlink", errno.EIO, path=f"*{made[0].infos[-1].number}.seg")
        elif failing == "unlink the others":
            files.fail("unlink", errno.EIO, path=f"*{made[0].infos[0].number}.seg")
        elif failing == "killed after one":
            files.fail("unlink", errno.EIO, nth=2)
        raise MakerLostError("gone")

    keeper.make = lost
    assert not keeper.step(world.now_ms)
    assert len(made[0].infos) == 3
    files.heal()
    left = len(files_in(world, "segments"))
    assert left == {"none": 0, "unlink the last": 3, "unlink the others": 1, "killed after one": 2}[failing]
    world.reopen(clean=False)
    world.check()
    world.flush()
    world.check()


# Space


def test_below_the_watermark_nothing_is_taken_and_above_it_all_goes_on(tmp_path: Path) -> None:
    class Full(Files):
        free = 1 << 30

        def free_bytes(self, path: Path) -> int:
            return self.free

    disk = Full()
    world = World(tmp_path / "data", replace(SETTINGS, least_free_bytes=1 << 20), disk)
    assert world.store.refusal == ""
    disk.free = 1000
    world.step()
    assert "0 MiB of free space" in world.store.refusal
    assert "expected at least 1 MiB" in world.store.refusal
    disk.free = 1 << 21
    world.step()
    assert world.store.refusal == ""


def test_no_space_left_is_a_refusal_until_there_is_some(tmp_path: Path) -> None:
    files = FailingFiles()
    world = World(tmp_path / "data", files=files)
    rows(world, 3)
    world.roll()
    files.fail("write", errno.ENOSPC, path="*.tmp", after_bytes=100)
    assert not world.step()
    assert "no space left" in world.store.refusal
    files.heal()
    assert world.step()
    assert world.store.refusal == ""
    world.check()


# Damage


def many_segments(world: World, number: int = 5) -> None:
    for _ in range(number):
        rows(world, 12)
        world.flush()


def test_a_segment_whose_tables_are_damaged_is_set_aside_and_the_others_are_merged(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    many_segments(world)
    world.close(clean=True)
    name = files_in(world, "segments")[1]
    data = (world.root / "segments" / name).read_bytes()
    flip(world.root / "segments" / name, len(data) // 2)  # of few samples the tables are nearly all
    world.start_damaged()
    world.certain = world.shown()
    assert len(world.certain) == 4 * 24
    world.now_ms += 5 * HOUR_MS
    work(world)
    assert len(segments(world)) == 1
    assert files_in(world, "quarantine") == [name]
    assert {Path(e.path).name for _, e in world.troubles if isinstance(e, CorruptError)} == {name}
    world.check()


def test_of_a_segment_with_a_damaged_block_the_rest_is_merged_and_the_file_kept(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    many_segments(world)
    world.close(clean=True)
    name = files_in(world, "segments")[1]
    flip(world.root / "segments" / name, SEGMENT_HEADER_BYTES + BLOCK_HEADER_BYTES + 3)  # the first values or times
    world.start_damaged()
    world.certain = world.shown()
    assert 4 * 24 <= len(world.certain) < 5 * 24
    world.now_ms += 5 * HOUR_MS
    work(world)
    assert len(segments(world)) == 1
    assert files_in(world, "quarantine") == [name]
    world.check()


# Retention


def test_what_is_older_than_its_tiers_age_goes_and_nothing_else(tmp_path: Path) -> None:
    ages = replace(SETTINGS, retention_ms=4 * HOUR_MS, retention_1m_ms=8 * HOUR_MS, retention_1h_ms=16 * HOUR_MS)
    world = World(tmp_path / "data", ages)
    rows(world, 30)
    world.flush()
    kept = []
    for _ in range(20):
        world.now_ms += HOUR_MS
        world.compact()
        kept.append(tuple(bool(segments(world, tier)) for tier in TIERS))
        world.check()
    assert kept[1:] == [(hour < 5, hour < 9, hour < 17) for hour in range(2, 21)]
    world.reopen()
    assert [segments(world, tier) for tier in TIERS] == [[], [], []]


def test_of_a_segment_that_is_partly_too_old_the_rest_is_rolled_up_and_stays(tmp_path: Path) -> None:
    world = World(tmp_path / "data", replace(SETTINGS, retention_ms=2 * HOUR_MS))
    rows(world, 100)
    world.flush()
    for _ in range(12):
        world.now_ms += 15 * MINUTE_MS
        world.compact()
        world.check()
    assert world.troubles == []
    assert segments(world) == []
    assert segments(world, "1m") != []


def test_the_oldest_segments_go_when_all_take_more_than_they_may(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    for _ in range(6):
        rows(world, 30)
        world.flush()
        world.now_ms += HOUR_MS
    assert world.store.segments is not None
    sizes = [segment.info.size_bytes for segment in world.store.segments.oldest_first()]
    last = segments(world)[-2:]
    world.settings = replace(SETTINGS, retention_bytes=sum(sizes[-2:]) + 1, seal_ms=1 << 50)
    world.close(clean=True)
    world.horizon_ms = world.now_ms
    world.start()
    work(world)
    assert segments(world) == last
    world.check()


def test_whoever_reads_a_segment_goes_on_when_it_is_removed(tmp_path: Path) -> None:
    world = World(tmp_path / "data", replace(SETTINGS, retention_ms=HOUR_MS))
    rows(world, 30)
    world.flush()
    assert world.store.segments is not None
    (held,) = world.store.segments.all("raw")
    expected = to_model(held.read())
    world.now_ms += 3 * HOUR_MS
    world.compact()
    assert not held.path.exists()
    assert to_model(held.read()) == expected == world.certain


def test_beyond_the_raw_samples_retention_a_selection_asks_the_rollups(tmp_path: Path) -> None:
    world = World(tmp_path / "data", replace(SETTINGS, retention_ms=3 * HOUR_MS))
    rows(world, 60)
    world.flush()
    world.now_ms += 2 * HOUR_MS
    world.compact()
    world.evict()
    steps_ms = NOW_MS + MINUTE_MS, NOW_MS + 10 * MINUTE_MS, MINUTE_MS
    before = world.store.select([], *steps_ms)
    world.now_ms += 4 * HOUR_MS
    world.compact()
    assert segments(world) == []
    after = world.store.select([], *steps_ms)
    assert (after.owners, after.shapes) == (before.owners, before.shapes)
    np.testing.assert_array_equal(after.matrix[0], before.matrix[0])  # of a counter the greatest, here the last
    np.testing.assert_allclose(after.matrix[1], before.matrix[1] - 1.25)  # of a gauge the mean of six
    rows(world, 2)
    world.flush()
    np.testing.assert_array_equal(world.store.select([], *steps_ms).matrix, after.matrix)


# Rollups


@pytest.mark.parametrize("seed", [0, 2, 5, *(pytest.param(n, marks=pytest.mark.soak) for n in range(6, 60))])
def test_rollups_say_what_a_slow_one_says_after_late_samples_and_starts(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    world = World(tmp_path / "data")
    for owner in (X, Y):
        for turn in range(6):  # the value before is looked for in the hour before
            world.row(owner, NOW_MS + 37 + turn * 45 * MINUTE_MS, dict.fromkeys(SHAPES[:9], bits_of(9.0 * turn)))
    for _ in range(6):
        for _ in range(dice.randrange(1, 60)):
            time_ms = NOW_MS + dice.randrange(4 * HOUR_MS) // 60_000 * dice.choice([60_000, 60_001, 59_000])
            bits = bits_of(float(dice.randrange(100)))
            world.row(dice.choice([X, Y]), time_ms, {dice.choice(SHAPES[:9]): bits})
            world.row(dice.choice([X, Y]), time_ms + 7, {dice.choice(SHAPES[:9]): STALE_BITS})
        world.now_ms = max(world.now_ms, NOW_MS + 5 * HOUR_MS) + dice.randrange(MINUTE_MS)
        world.flush()
        world.compact()
        if dice.random() < 0.5:
            world.reopen(clean=dice.random() < 0.5)
            world.compact()
        for tier in ("1m", "1h"):
            found = to_model(world.store.read([], *ALWAYS, tier))
            wanted = slowly_rolled(world.certain, TIERS[tier])
            wrong = {k: (found.get(k), wanted.get(k)) for k in found.keys() | wanted if found.get(k) != wanted.get(k)}
            assert wrong == {}, tier


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.soak) for n in range(1, 6))])
def test_a_rollup_of_several_files_that_is_cut_off_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr("storage.making.SLICE_SAMPLES", 100)  # so that a metric does not fit into one
    for at in count(first, 6):
        files = KilledFiles(Files(), 1 << 40)
        world = World(tmp_path / str(at), files=files)
        for i in range(40):
            world.now_ms += MINUTE_MS
            for owner in OWNERS[:3]:
                world.row(owner, world.now_ms, dict.fromkeys(SHAPES[:3], bits_of(float(i))))
        world.flush()
        world.now_ms += 3 * HOUR_MS
        files.left = at
        with suppress(Killed):
            world.compact()
        struck, files.left = files.struck, 1 << 40
        world.start(Files())
        world.compact()
        for tier in ("1m", "1h"):
            assert to_model(world.store.read([], *ALWAYS, tier)) == slowly_rolled(world.certain, TIERS[tier])
        world.close()
        if not struck:
            break
    made = [path for operation, path in files.calls if operation == "create" and path.suffix == ".tmp"]
    assert len(made) > 4  # and not one of each tier


# Clocks


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.soak) for n in range(4, 60))])
def test_a_clock_that_jumps_by_an_hour_loses_nothing(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    world = World(tmp_path / "data")
    for turn in range(40):
        world.now_ms += dice.choice([-HOUR_MS, HOUR_MS, 0, 1000])
        rows(world, 1)
        world.now_ms += dice.choice([-HOUR_MS, HOUR_MS, 0, 1000])
        dice.choice([world.commit, world.roll, world.step, world.flush, world.compact, world.evict, world.reopen])()
        world.check()
        world.check_matrix(range(world.now_ms - HOUR_MS, world.now_ms + HOUR_MS, 600_000), 300_000 + turn)
    world.now_ms += 10 * HOUR_MS
    world.flush()
    world.compact()
    world.check()


# Side by side


def test_snapshots_while_the_background_works_hold_all_that_was_committed(tmp_path: Path) -> None:
    world = World(tmp_path / "data", replace(SETTINGS, seal_ms=0))
    keeper, over = world.store.keeper, threading.Event()
    assert keeper is not None

    def background() -> None:
        while not over.is_set():
            keeper.step(NOW_MS + 100 * HOUR_MS)

    thread = threading.Thread(target=background)
    thread.start()
    try:
        for turn in range(12):
            rows(world, 5, 7 * MINUTE_MS)
            world.roll()
            world.store.settle(world.now_ms)
            create(Files(), world.root, f"s{turn}", world.now_ms)
            restored = World(tmp_path / f"r{turn}", world.settings, now_ms=restored_from(world, turn, tmp_path))
            restored.certain = world.certain
            restored.check()
            restored.close(clean=True)
    finally:
        over.set()
        thread.join()
    assert world.troubles == []
    assert keeper.counts["merges"] > 0
    world.check()


def restored_from(world: World, turn: int, folder: Path) -> int:
    restore(Files(), world.root, f"s{turn}", folder / f"r{turn}")
    assert verify(Files(), folder / f"r{turn}").damaged == []
    return world.now_ms


# Churn


def test_a_day_of_series_that_come_and_go_grows_the_disk_and_not_the_memory(tmp_path: Path) -> None:
    world = World(
        tmp_path / "data",
        StoreSettings(memory_bytes=8 << 20, wal_file_bytes=1 << 20, least_free_bytes=0, table_bytes=1 << 18),
    )
    head, sizes = world.store.head, []
    for hour in range(16):
        for turn in range(20):
            owner = labels_of({"job": "j", "instance": f"{hour}-{turn}"})
            shapes = [Shape(f"m{i % 10}", labels_of({"task": f"{hour}-{i}"})) for i in range(100)]
            for _ in range(2):
                world.now_ms += 90_000
                world.row(owner, world.now_ms, {shape: bits_of(float(turn)) for shape in shapes}, recurring=True)
        world.flush()
        world.compact()
        world.evict(HOUR_MS)
        world.store.forget_idle([], world.now_ms, HOUR_MS)
        world.certain = {}
        world.history = {}
        gc.collect()
        segments_bytes = sum(path.stat().st_size for path in (world.root / "segments").iterdir())
        sizes.append((head.index.series, head.ring_bytes, len(head.latest), len(gc.get_objects()), segments_bytes))
    early, late = np.array(sizes[4]), np.array(sizes[15])
    assert (late[:4] <= 1.1 * early[:4]).all(), (early, late)
    assert late[0] <= 4000
    assert late[4] > early[4]
    assert world.store.segments is not None
    assert world.store.segments.tables_bytes <= 1 << 18
    assert world.store.read([], *ALWAYS).series == 16 * 20 * 100
