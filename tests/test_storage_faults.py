"""Crashes, full and failing disks and flipped bits, at every point of a little life in which everything is written once."""

from __future__ import annotations

import errno
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from storage.files import Files
from storage.format import (
    BLOCK_HEADER_BYTES,
    FRAME_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    TRAILER_BYTES,
    StorageError,
    TooNewError,
)
from storage.recovery import BadVersionError
from storage.snapshot import create
from storage.wal_frames import iter_frames
from tests.columns_model import OWNERS, SHAPES, Model
from tests.data_directory import flip, listing
from tests.faulty_files import FailingFiles, ForgetfulFiles
from tests.independent_reader import segment, wal
from tests.store_model import (
    ALWAYS,
    HOUR_MS,
    NOW_MS,
    SETTINGS,
    TIGHT,
    FlakyFiles,
    Killed,
    KilledFiles,
    World,
    all_labels,
    steady,
)

Named = tuple[tuple[str, str], ...]
X, Y, Z = OWNERS[:3]
COUNTER, GAUGE, OTHER = SHAPES[0], SHAPES[3], SHAPES[6]
SHORT = replace(SETTINGS, retention_ms=5 * HOUR_MS)
STRIDE = 4  # of the points, in CI; `make soak` takes the others too
FLIPS = [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 3 * STRIDE))]
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 2 * STRIDE))]


def points(seed: int) -> Iterator[tuple[int, int]]:
    """Places in a life, and a number that goes up by one each time. Without end."""
    return ((at, at // STRIDE + seed) for at in count(seed % STRIDE, STRIDE))


def rows(world: World, commits: int = 2, step_ms: int = 20_000) -> None:
    """A commit for each."""
    for i in range(commits):
        world.now_ms += step_ms
        world.row(X, world.now_ms, {COUNTER: i, GAUGE: 2 * i}, recurring=True)
        world.row(Y, world.now_ms - i, {COUNTER: 7})
        attempt(world.commit)


def attempt(verb: Callable[[], object]) -> None:
    """What fails by name is tried again later."""
    with suppress(OSError, StorageError):
        verb()


def restart(world: World) -> None:
    """In order, if it can be."""
    attempt(world.commit)
    world.close(clean=world.expected == world.certain)
    for _ in range(3):
        try:
            return world.start()
        except StorageError:  # and nothing else, however it fails
            continue
    if isinstance(world.files, FlakyFiles):
        world.files.fails_left = 0
    return world.start()


def life(world: World) -> None:
    """Commits, closed files, flushes, late data, merges, rollups, a snapshot, a start, and retention."""
    rows(world)
    attempt(world.flush)
    world.row(Z, NOW_MS + 5, {OTHER: 1})
    rows(world, 1)
    attempt(world.roll)
    rows(world, 1)
    attempt(world.step)
    world.now_ms += 2 * HOUR_MS
    world.row(X, NOW_MS + 30_000, {COUNTER: 5, GAUGE: 5})  # late, into a partition that is sealed
    attempt(world.flush)
    rows(world, 1)  # a new file of the WAL, while nothing but the flush has written to segments
    attempt(world.compact)
    attempt(lambda: create(world.files, world.root, "s", world.now_ms))
    restart(world)
    rows(world, 1)
    world.now_ms += 4 * HOUR_MS
    attempt(world.flush)
    attempt(world.compact)
    rows(world, 1)


def goes_on(world: World) -> None:
    """Nothing is wrong with it: all is there, more can be added, become segments, and be there after the next start."""
    world.check()
    rows(world, 1)
    world.check()
    world.flush()
    world.compact()
    world.check()
    world.reopen()
    assert world.store.wal is not None
    assert world.store.wal.closed == []
    assert world.store.recovered.damage == []


def forgetful(folder: Path, seed: int | None = None) -> ForgetfulFiles:
    (folder / "data").mkdir(parents=True)
    return ForgetfulFiles(folder / "data", seed)


def ended(world: World, inner: ForgetfulFiles, folder: Path) -> None:
    world.close(clean=True)
    inner.close()
    shutil.rmtree(folder)


def test_a_life_has_everything_in_it(tmp_path: Path) -> None:
    world = World(tmp_path / "data", SHORT)
    life(world)
    world.close()
    assert world.troubles == []
    assert {name for name, count in world.counts.items() if count} == {
        "flushes",
        "merges",
        "rollups",
        "expired_segments",
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_an_end_at_any_point_loses_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    """By power cut, by kill -9, or by both; the disk having kept what it liked of what was not synced."""
    for at, turn in points(seed):
        folder = tmp_path / str(at)
        inner = forgetful(folder, None if turn % 2 else turn)
        files = KilledFiles(inner, at, share=turn % 5 / 4)
        world = None
        with suppress(Killed):
            world = World(folder / "data", SHORT, files)
            life(world)
        if world is None:
            inner.power_cut()
            world = World(folder / "data", SHORT, inner)
        ending = turn % 3
        if ending < 2:
            world.start(inner)
        if ending > 0:
            inner.power_cut()
            world.start(inner)
        goes_on(world)
        ended(world, inner, folder)
        if not files.struck:
            break
    assert at > 80


@pytest.mark.parametrize("seed", SEEDS)
def test_a_crash_of_a_start_after_a_crash_loses_nothing(tmp_path: Path, seed: int) -> None:
    for crash in range(20 + seed, 120, 20):
        starts = 0
        while start_is_cut_off(tmp_path / f"{crash}-{starts}", crash, starts):
            starts += 1
        assert starts > 3


def start_is_cut_off(folder: Path, crash: int, at: int) -> bool:
    """The start after a crash is killed at its n-th call; the next one works. False: it had not so many calls."""
    inner = forgetful(folder, crash + at)
    world = World(folder / "data", SHORT, KilledFiles(inner, crash, share=0.5))
    with suppress(Killed):
        life(world)
    inner.power_cut()
    files = KilledFiles(inner, at)
    with suppress(Killed):
        world.start(files)
    if at % 2:
        inner.power_cut()
    world.start(inner)
    goes_on(world)
    ended(world, inner, folder)
    return files.struck


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_that_fails_at_any_point_loses_nothing_and_when_it_is_well_all_goes_on(
    tmp_path: Path, seed: int
) -> None:
    for at, turn in points(seed):
        folder = tmp_path / str(at)
        inner = forgetful(folder)
        error = (errno.ENOSPC, errno.EROFS, errno.EIO)[turn % 3]
        files = FlakyFiles(inner, at, (1, 5, 1 << 40)[turn // 3 % 3], error)
        try:
            world = World(folder / "data", SHORT, files)
        except StorageError:
            files.fails_left = 0
            world = World(folder / "data", SHORT, files)
        life(world)
        world.check()  # while it fails
        files.fails_left = 0
        attempt(world.commit)
        goes_on(world)
        inner.power_cut()
        world.start()
        ended(world, inner, folder)
        if not files.struck:
            break
    assert at > 150


# Bits


def wal_places(path: Path) -> Iterator[int]:
    """Of the header and of every frame each field, and of the payloads begin, middle and end."""
    yield from (0, 4, 8, 16, 24, 29)
    for frame, payload in iter_frames(Files(), path):
        head = frame.at - FRAME_HEADER_BYTES
        yield from (
            head,
            head + 4,
            head + 8,
            head + 12,
            frame.at,
            frame.at + len(payload) // 2,
            frame.at + len(payload) - 1,
        )


def segment_places(path: Path) -> Iterator[int]:
    """Of header, footer and trailer each field; of every block likewise, and begin, middle and end of its payload."""
    data = path.read_bytes()
    footer_at, footer_bytes = struct.unpack_from("<QI", data, len(data) - TRAILER_BYTES)
    yield from (0, 4, footer_at, footer_at + footer_bytes // 2)
    yield from (len(data) - TRAILER_BYTES + field for field in (0, 8, 12, 16, 20, 24, 28))
    at = SEGMENT_HEADER_BYTES
    while at < footer_at:
        length = int.from_bytes(data[at : at + 4], "little")
        yield from (at, at + 4, at + 8, at + 12, at + 16, at + 16 + length // 2, at + 15 + length)
        at += BLOCK_HEADER_BYTES + length


PLACES = {"wal": wal_places, "segments": segment_places}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Segments of three tiers, closed and open WAL files, left by a kill."""
    world = World(tmp_path_factory.mktemp("grown") / "data", SHORT)
    rows(world, 4)
    world.flush()
    world.now_ms += 2 * HOUR_MS
    world.row(X, NOW_MS + 30_000, {COUNTER: 5, GAUGE: 5})
    world.flush()
    world.compact()
    rows(world, 4)
    world.flush()
    world.row(X, world.now_ms, {COUNTER: 1, GAUGE: 1})  # overwrites what a segment has
    rows(world, 2)
    world.roll()
    rows(world, 2)
    world.close()
    return world


def named(samples: Model) -> set[tuple[Named, int]]:
    """The samples' names, as the independent reader gives them."""
    return {(tuple(sorted(all_labels(key).items())), key[2]) for key in samples}


def copied(world: World, root: Path) -> Callable[[], World]:
    """To be opened as if it were the other's."""

    def opened() -> World:
        copy = World(root, world.settings, now_ms=world.now_ms)
        copy.history, copy.sent, copy.safe = world.history, dict(world.sent), {}
        return copy

    shutil.copytree(world.root, root)
    return opened


def flips(world: World, seed: int) -> list[tuple[Path, int]]:
    """Every so many of the places in all files."""
    files = [path for folder in PLACES for path in sorted((world.root / folder).iterdir())]
    places = [(path.relative_to(world.root), at) for path in files for at in PLACES[path.parent.name](path)]
    return places[seed :: 3 * STRIDE]


@pytest.mark.parametrize("seed", FLIPS)
def test_a_flipped_bit_is_reported_and_costs_what_it_is_in_and_nothing_else(
    tmp_path: Path, grown: World, seed: int
) -> None:
    places = flips(grown, seed)
    assert len(places) > 30
    for turn, (path, at) in enumerate(places):
        root = tmp_path / str(turn)
        opened = copied(grown, root)
        flip(root / path, at, turn % 8)
        if seems_newer(grown, path, at, turn % 8):
            with pytest.raises(TooNewError, match="version"):
                opened()
            flip(root / path, at, turn % 8)  # nothing was touched
            assert opened().shown() == grown.certain
            continue
        world = opened()
        world.certain = check_damage(world, grown, path, at)
        goes_on(world)
        world.close()
        shutil.rmtree(root)


def seems_newer(world: World, path: Path, at: int, bit: int) -> bool:
    """A segment's two places for the version have no CRC over them."""
    place = at - (world.root / path).stat().st_size
    return path.parent.name == "segments" and (at == 4 or place == -8) and bit > 0


def check_damage(world: World, before: World, path: Path, at: int) -> Model:
    """Whatever is shown is right, what is not was in the file, and the file is named. Returns what is shown."""
    found = world.shown()
    assert {bits for key, bits in found.items() if bits not in world.history[key]} == set(), (path, at)
    lost = named(before.certain) - named(found)
    held = wal(before.root / path) if path.parent.name == "wal" else segment(before.root / path)[1]
    assert lost <= held.keys(), (path, at)
    rollups = [world.store.read([], *ALWAYS, tier) for tier in ("1m", "1h")]
    assert all(part.series for part in rollups) or "segments" in str(path)
    told = [error for error in world.store.damage if error.path.name == path.name]
    spans = [(error.offset_bytes, error.offset_bytes + error.size_bytes) for error in told]
    torn = world.store.recovered.torn_bytes
    touched = found != before.certain or path.parent.name == "segments"
    assert not touched or torn or any(first <= at < end for first, end in spans), (path, at, spans)
    return found


def test_a_flipped_bit_in_version_is_refused_by_name_and_nothing_is_touched(tmp_path: Path, grown: World) -> None:
    opened = copied(grown, tmp_path / "data")
    whole = (grown.root / "VERSION").read_bytes()
    for at in range(len(whole) - 1):
        flip(tmp_path / "data/VERSION", at, bit=1)
        before = listing(tmp_path / "data")
        with pytest.raises((BadVersionError, TooNewError), match="VERSION"):
            opened()
        assert listing(tmp_path / "data") == before
        flip(tmp_path / "data/VERSION", at, bit=1)
    assert opened().shown() == grown.certain


def test_what_clean_and_lock_say_is_of_no_consequence(tmp_path: Path, grown: World) -> None:
    opened = copied(grown, tmp_path / "data")
    (tmp_path / "data/CLEAN").write_bytes(b"\xff")
    (tmp_path / "data/LOCK").write_bytes(b"\xff" * 100)
    world = opened()
    assert world.shown() == grown.certain
    assert not world.store.recovered.unclean


# Commits and starts


@pytest.mark.parametrize("failures", [1, 3])
def test_what_came_after_a_commit_that_failed_overwrites_what_was_in_it(tmp_path: Path, failures: int) -> None:
    files = FailingFiles()
    world = World(tmp_path / "data", files=files)
    for value in range(1, failures + 1):
        world.loose(X, NOW_MS, {COUNTER: value})
        world.take()
        fault = files.fail("sync", errno.EIO)
        with pytest.raises(OSError, match="Input/output error"):
            world.land()
        fault.stop()
    world.row(X, NOW_MS, {COUNTER: 9, GAUGE: 9}, recurring=True)
    world.commit()
    world.reopen()
    assert world.certain == {(X, COUNTER, NOW_MS): 9, (X, GAUGE, NOW_MS): 9}


def test_of_files_that_could_not_be_written_only_those_with_something_safe_are_kept(tmp_path: Path) -> None:
    files = FailingFiles()
    world = World(tmp_path / "data", files=files)
    steady(world, 3)
    world.commit()
    files.fail("write", errno.ENOSPC, path="*.wal", after_bytes=40)  # a header, and no frame
    for _ in range(10):
        steady(world, 1)
        with pytest.raises(OSError, match="No space left"):
            world.commit()
    assert len(list((world.root / "wal").iterdir())) == 1
    files.heal()
    world.reopen(clean=False)
    assert len(world.certain) == 3


def test_what_a_killed_process_left_unsynced_is_safe_before_it_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    disk = ForgetfulFiles(tmp_path / "data")
    files = FailingFiles(disk)
    world = World(tmp_path / "data", files=files)
    steady(world, 3)
    world.commit()
    steady(world, 1)
    world.take()
    files.fail("sync", Killed())
    with pytest.raises(Killed):
        world.land()
    world.start(disk)
    assert list(world.store.safe(X)) == [(1, 4)]
    disk.power_cut()
    world.start(disk)
    assert list(world.store.safe(X)) == [(1, 4)]
    world.close()
    disk.close()


def test_rows_of_a_file_that_could_not_be_closed_stay_until_it_is_a_segment(tmp_path: Path) -> None:
    files = FailingFiles()
    world = World(tmp_path / "data", TIGHT, files)
    steady(world, 10)
    fault = files.fail("sync", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        world.roll()
    fault.stop()
    steady(world, 5)
    world.roll()
    for _ in range(30):
        steady(world, 1)
        world.check()
    world.flush()
    world.check()


@pytest.mark.parametrize("operation", ["listdir", "map", "sync_dir", "free_bytes", "append"])
def test_a_directory_that_cannot_be_read_is_refused_by_name_and_left_as_it_is(tmp_path: Path, operation: str) -> None:
    files = FailingFiles()
    world = World(tmp_path / "data", files=files)
    steady(world, 3)
    world.commit()
    world.close()
    files.fail(operation, errno.EACCES)
    with pytest.raises(StorageError, match="Permission denied"):
        world.start()
    files.heal()
    world.start()
