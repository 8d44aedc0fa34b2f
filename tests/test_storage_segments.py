"""The segments that count: nothing is there twice, nothing is lost between publishing and removing, and damage is set aside."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.files import Files
from storage.format import CorruptError, TooNewError
from storage.segment_writer import SegmentInfo
from storage.segments import MergeRules, SegmentSet, merge_runs
from storage.settings import StoreSettings
from tests.data_directory import (
    Killed,
    KilledFiles,
    counting,
    flip,
    listing,
    samples_of,
    segment_path,
    write_segment,
    write_wal,
)
from tests.faulty_files import FailingFiles

DAY = 86_400_000
HOUR = 3_600_000
RULES = MergeRules(partition_ms=DAY, seal_ms=HOUR, fewest=4)


def loaded(root: Path, files: Files | None = None, **options: int) -> SegmentSet:
    segments = SegmentSet(files or Files(), root, StoreSettings(**options))
    assert segments.load() == []
    return segments


def numbers(segments: Sequence[object]) -> list[int]:
    return [segment.info.number for segment in segments]  # type: ignore[attr-defined]


def info(
    number: int,
    samples: int = 100,
    *,
    span: tuple[int, int] = (HOUR, 2 * HOUR),
    order: int = 0,
    tier: str = "raw",
    series: int = 10,
) -> SegmentInfo:
    return SegmentInfo(number, order or number, tier, *span, series, samples, 10 * samples, (), 0)


# Which to merge


TODAY = 12 * HOUR
TOMORROW = DAY + HOUR
NEXT_DAY = (DAY + HOUR, DAY + 2 * HOUR)
ACROSS = (23 * HOUR, 25 * HOUR)

CASES = {
    "three of an open day wait": ([info(n) for n in (1, 2, 3)], TODAY, []),
    "four of similar size do not": ([info(n) for n in (1, 2, 3, 4)], TODAY, [[1, 2, 3, 4]]),
    "small ones leave the large one alone": (
        [info(1, 5000), *(info(n) for n in (2, 3, 4, 5))],
        TODAY,
        [[2, 3, 4, 5]],
    ),
    "small ones join when they are together as large": (
        [info(1, 400), *(info(n) for n in (2, 3, 4, 5))],
        TODAY,
        [[2, 3, 4, 5]],
    ),
    "order and not number is their order": (
        [info(9, order=2), info(3), info(1), info(4)],
        TODAY,
        [[1, 9, 3, 4]],
    ),
    "a sealed day becomes one": ([info(1, 500), info(2)], TOMORROW, [[1, 2]]),
    "a day is not sealed at its end": ([info(1, 500), info(2)], TOMORROW - 1, []),
    "a sealed day is not written again for a crumb": ([info(1, 100_000), info(2, 10)], TOMORROW, []),
    "crumbs of a sealed day become one": (
        [info(1, 100_000), *(info(n, 10) for n in (2, 3, 4, 5))],
        TOMORROW,
        [[2, 3, 4, 5]],
    ),
    "days are kept apart": ([info(1), info(2, span=NEXT_DAY), info(3), info(4)], TODAY, []),
    "one alone is nothing to merge": ([info(1)], TOMORROW, []),
    "what spans days is not put into either": ([info(1), info(2, span=ACROSS), info(3)], 3 * DAY, [[1, 3]]),
    "what spans the same days is": ([info(1, span=ACROSS), info(2, span=ACROSS)], 3 * DAY, [[1, 2]]),
    "nothing goes across what was written between": (
        [info(1, span=(20 * HOUR, 24 * HOUR - 1)), info(2, span=ACROSS), info(3)],
        3 * DAY,
        [],
    ),
    "what was written between, but later than all of it, is no matter": (
        [info(1), info(2, span=ACROSS), info(3, span=(20 * HOUR, 24 * HOUR - 1))],
        3 * DAY,
        [[1, 3]],
    ),
    "no more samples than one may have": (
        [info(n, 100_000_000) for n in (1, 2, 3)],
        TOMORROW,
        [[1, 2]],
    ),
    "the oldest that is full is passed over": (
        [info(n, samples) for n, samples in ((1, 250_000_000), (2, 100_000_000), (3, 100_000_000))],
        TOMORROW,
        [[2, 3]],
    ),
    "no more series than one may have": ([info(n, series=6_000_000) for n in (1, 2, 3)], TOMORROW, [[1, 2]]),
    "a bucket that ends at midnight is of the day before": (
        [info(1, tier="1m", span=(60_000, DAY)), info(2, tier="1m", span=(60_000, DAY))],
        TOMORROW,
        [[1, 2]],
    ),
    "the smallest run first": (
        [info(1, 500), info(2, 500), info(3, span=NEXT_DAY), info(4, span=NEXT_DAY)],
        4 * DAY,
        [[3, 4], [1, 2]],
    ),
}


@pytest.mark.parametrize(("infos", "now_ms", "expected"), CASES.values(), ids=CASES)
def test_segments_are_merged(infos: list[SegmentInfo], now_ms: int, expected: list[list[int]]) -> None:
    runs = merge_runs(infos, RULES, now_ms)
    assert [[info.number for info in run] for run in runs] == expected


@st.composite
def written(draw: st.DrawFn) -> list[SegmentInfo]:
    """Segments in the order of writing, most of one day, some of the day after, some of both."""
    infos = []
    for number in range(1, draw(st.integers(2, 25)) + 1):
        start = draw(st.integers(0, 47))
        length = draw(st.sampled_from([1, 1, 1, 3, 12]))
        span = start * HOUR, min((start + length) * HOUR, 2 * DAY) - 1
        infos.append(info(number, draw(st.sampled_from([1, 10, 100, 1000])), span=span, series=1))
    return infos


@settings(max_examples=150, deadline=None)
@given(written(), st.integers(0, 4 * DAY))
def test_merging_never_changes_which_write_was_the_last(infos: list[SegmentInfo], now_ms: int) -> None:
    rules = MergeRules(partition_ms=DAY, seal_ms=HOUR, most_samples=2500)
    parts = {
        info.number: [info] for info in infos
    }  # of every segment, what was merged into it, in the order of writing
    current, last = list(infos), len(infos)
    while runs := merge_runs(current, rules, now_ms):
        seen = [info.number for run in runs for info in run]
        assert len(set(seen)) == len(seen)
        for run in runs:
            assert len(run) > 1
            assert sum(info.samples for info in run) <= 2500
            assert len({rules.partitions(info) for info in run}) == 1
            last += 1
            merged = SegmentInfo(
                last, run[-1].order, "raw", min(i.min_ms for i in run), max(i.max_ms for i in run), 1,
                sum(i.samples for i in run), 0, (), 0,
            )  # fmt: skip
            parts[last] = [part for info in run for part in parts[info.number]]
            current = [info for info in current if info not in run] + [merged]
    finally_written = [
        part for info in sorted(current, key=lambda i: (i.order, i.number)) for part in parts[info.number]
    ]
    assert sorted(part.number for part in finally_written) == [info.number for info in infos]
    for i, earlier in enumerate(finally_written):
        for later in finally_written[i + 1 :]:
            if earlier.number > later.number:
                assert earlier.max_ms < later.min_ms or later.max_ms < earlier.min_ms


def test_a_days_flushes_are_written_few_times_and_few_are_left() -> None:
    current: list[SegmentInfo] = []
    writes = 0
    for number in range(1, 501):
        current.append(info(number, 100))
        while runs := merge_runs(current, RULES, TODAY):
            samples = sum(i.samples for i in runs[0])
            writes += samples
            merged = info(1000 * number, samples, order=runs[0][-1].order)
            current = [i for i in current if i not in runs[0]] + [merged]
    assert len(current) <= 20
    assert writes <= 8 * 500 * 100


# Loading


def test_what_a_valid_one_replaces_is_left_out_and_removed(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, {("m0", 10): 1.0})
    write_segment(tmp_path, 2, {("m0", 20): 2.0})
    write_segment(tmp_path, 3, {("m0", 10): 1.0, ("m0", 20): 2.0}, order=2, replaces=(1, 2), wal=1)
    segments = loaded(tmp_path)
    assert numbers(segments.all()) == [3]
    assert [path.name for path in (tmp_path / "segments").iterdir()] == ["0000000000000003.seg"]
    assert segments.wal_done == 1


def test_unfinished_files_are_removed_and_strangers_are_not(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, {("m0", 10): 1.0})
    for name in ("0000000000000002.seg.tmp", "notes.txt", "7.seg", "000000000000000x.seg"):
        (tmp_path / "segments" / name).write_bytes(b"anything")
    assert numbers(loaded(tmp_path).all()) == [1]
    assert {path.name for path in (tmp_path / "segments").iterdir()} == {
        "0000000000000001.seg", "notes.txt", "7.seg", "000000000000000x.seg",
    }  # fmt: skip


def places(path: Path) -> dict[str, int]:
    """One offset in every kind of place of a segment."""
    size = path.stat().st_size
    footer = int.from_bytes(path.read_bytes()[-32:-24], "little")
    return {
        "magic": 0, "version": 5, "block's length": 8, "block's CRC": 12, "block's kind": 16, "block's payload": 26,
        "footer": footer + 5, "footer's end": size - 33, "trailer": size - 30, "trailer's CRC": size - 10,
    }  # fmt: skip


@pytest.mark.parametrize(
    "place",
    [
        "magic",
        "footer",
        "footer's end",
        "trailer",
        "trailer's CRC",
        "block's length",
        "block's CRC",
        "block's kind",
        "block's payload",
    ],
)
def test_a_flipped_bit_sends_it_to_quarantine_with_file_offset_and_bytes(tmp_path: Path, place: str) -> None:
    write_segment(tmp_path, 1, {("m0", 10): 1.0})
    write_segment(tmp_path, 2, {("m1", t): t * 1.1 for t in range(0, 1000, 10)}, wal=1)
    path = segment_path(tmp_path, 2)
    flip(path, places(path)[place])
    content = path.read_bytes()
    segments = SegmentSet(Files(), tmp_path)
    (error,) = segments.load(thorough=True)
    assert error.path == path
    assert 0 <= error.offset_bytes < len(content)
    assert 0 < error.size_bytes <= len(content)
    for part in (str(path), f"byte {error.offset_bytes}", f"{error.size_bytes} bytes lost"):
        assert part in str(error)
    assert numbers(segments.all()) == [1]
    assert segments.wal_done == 0  # so a WAL file that is still there counts again
    assert not path.exists()
    assert (tmp_path / "quarantine" / path.name).read_bytes() == content
    assert segments.next_number() == 3
    assert loaded(tmp_path).next_number() == 3


def test_a_damaged_one_replaces_nothing(tmp_path: Path) -> None:
    """Also where only a block of it is damaged: it is read in full before anything is removed for it."""
    write_segment(tmp_path, 1, {("m0", 10): 1.0})
    write_segment(tmp_path, 2, {("m0", 20): 2.0})
    write_segment(tmp_path, 3, {("m0", 10): 1.0, ("m0", 20): 2.0}, order=2, replaces=(1, 2))
    flip(segment_path(tmp_path, 3), places(segment_path(tmp_path, 3))["block's payload"])
    segments = SegmentSet(Files(), tmp_path)
    (error,) = segments.load()
    assert error.path == segment_path(tmp_path, 3)
    assert numbers(segments.all()) == [1, 2]
    assert counting(tmp_path) == {("m0", 10): 1.0, ("m0", 20): 2.0}


def test_a_file_with_anothers_name_does_not_count(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, {("m0", 10): 1.0})
    segment_path(tmp_path, 1).rename(segment_path(tmp_path, 2))
    (error,) = SegmentSet(Files(), tmp_path).load()
    assert "number 1, expected 2" in str(error)


def test_two_damaged_files_of_one_name_are_both_kept(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        (tmp_path / "segments").mkdir(exist_ok=True)
        segment_path(tmp_path, 1).write_bytes(content)
        assert len(SegmentSet(Files(), tmp_path).load()) == 1
    assert sorted(path.read_bytes() for path in (tmp_path / "quarantine").iterdir()) == [b"first", b"second"]


def test_a_later_versions_segment_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, {("m0", 10): 1.0})
    write_segment(tmp_path, 2, {("m0", 20): 1.0}, replaces=(1,))
    segment_path(tmp_path, 3).write_bytes(b"damaged")
    (tmp_path / "segments" / "0000000000000004.seg.tmp").touch()
    later = bytearray(segment_path(tmp_path, 2).read_bytes())
    later[4:8] = later[-8:-4] = (3).to_bytes(4, "little")
    segment_path(tmp_path, 5).write_bytes(later)
    before = listing(tmp_path)
    with pytest.raises(TooNewError, match="0000000000000005"):
        SegmentSet(Files(), tmp_path).load()
    assert listing(tmp_path) == before


def test_what_the_disk_cannot_read_is_reported_and_stays(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, {("m0", 10): 1.0})
    write_segment(tmp_path, 2, {("m0", 20): 1.0})
    files = FailingFiles()
    for operation in ("map", "read"):
        files.fail(operation, errno.EIO, path="*2.seg")
    segments = SegmentSet(files, tmp_path)
    (error,) = segments.load()
    assert error.path == segment_path(tmp_path, 2)
    assert numbers(segments.all()) == [1]
    assert segments.next_number() == 3
    assert numbers(loaded(tmp_path).all()) == [1, 2]


def test_numbers_go_on_above_all_that_were_ever_seen(tmp_path: Path) -> None:
    assert loaded(tmp_path).next_number() == 1
    write_wal(tmp_path, 4, {("m0", 10): 1.0})
    assert loaded(tmp_path).next_number() == 5
    write_segment(tmp_path, 6, {("m0", 10): 1.0}, replaces=(9,), wal=11)
    assert loaded(tmp_path).next_number() == 12
    write_segment(tmp_path, 7, {("m0", 10): 1.0}, replaces=(15,))
    assert loaded(tmp_path).next_number() == 16
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / "0000000000000020.seg.1").touch()
    segments = loaded(tmp_path)
    assert [segments.next_number(), segments.next_number()] == [21, 22]
    segments.number_after([40, 30])
    assert segments.next_number() == 41
    segments.number_after([])
    assert segments.next_number() == 42


# Publishing and removing


def test_a_published_segment_takes_the_place_of_what_it_replaces(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_segment(tmp_path, number, {("m0", number): float(number)})
    segments = loaded(tmp_path)
    before = segments.all()
    segments.publish(write_segment(tmp_path, 4, {("m0", 1): 1.0, ("m0", 2): 2.0}, order=2, replaces=(1, 2), wal=7))
    assert numbers(segments.all()) == [4, 3]
    assert segments.wal_done == 7
    assert sorted(path.name[15] for path in (tmp_path / "segments").iterdir()) == ["3", "4"]
    assert numbers(before) == [1, 2, 3]
    assert [samples_of(s.read(None, 0, 10)) for s in before] == [{("m0", n): float(n)} for n in (1, 2, 3)]


def test_what_is_replaced_is_unlinked_only_when_the_new_one_counts(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, {("m0", 1): 1.0})
    files = FailingFiles()
    segments = loaded(tmp_path, files)
    files.calls.clear()
    new = write_segment(tmp_path, 2, {("m0", 1): 1.0}, replaces=(1,), files=files)
    segments.publish(new)
    wanted = {
        "rename": segment_path(tmp_path, 2),
        "unlink": segment_path(tmp_path, 1),
        "sync_dir": tmp_path / "segments",
    }
    assert [name for name, path in files.calls if wanted.get(name) == path] == [
        "rename", "sync_dir", "unlink", "sync_dir",
    ]  # fmt: skip


def test_killed_at_any_moment_of_a_merge_everything_counts_once(tmp_path: Path) -> None:
    samples = {("m0", n): float(n) for n in range(6)}
    steps = 0
    for at in range(100):
        root = tmp_path / str(at)
        write_segment(root, 1, {("m0", n): float(n) for n in range(3)})
        write_segment(root, 2, {("m0", n): float(n) for n in range(3, 6)}, wal=1)
        files = KilledFiles(at)
        segments = loaded(root, files)
        try:
            segments.publish(write_segment(root, 3, samples, order=2, replaces=(1, 2), wal=1, files=files))
        except Killed:
            steps += 1
        assert counting(root) == samples
        after = loaded(root)
        assert numbers(after.all()) in ([1, 2], [3])
        assert len(list((root / "segments").iterdir())) == len(after.all())
        assert counting(root) == samples
        if files.left >= 0:
            break
    else:
        raise AssertionError("never went through")
    assert steps > 6


def test_what_cannot_be_unlinked_does_not_count_and_goes_later(tmp_path: Path) -> None:
    for number in (1, 2):
        write_segment(tmp_path, number, {("m0", number): 1.0})
    files = FailingFiles()
    segments = loaded(tmp_path, files)
    files.fail("unlink", errno.EROFS)
    segments.publish(write_segment(tmp_path, 3, {("m0", 1): 1.0}, replaces=(1,)))
    assert numbers(segments.all()) == [2, 3]
    assert segments.leftovers == [segment_path(tmp_path, 1)]
    files.heal()
    segments.remove(segments.all()[:1])
    assert numbers(segments.all()) == [3]
    assert segments.leftovers == []
    assert [path.name[15] for path in (tmp_path / "segments").iterdir()] == ["3"]


def test_a_segment_that_cannot_be_read_back_is_not_published(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, {("m0", 1): 1.0})
    segments = loaded(tmp_path)
    new = write_segment(tmp_path, 2, {("m0", 1): 1.0}, replaces=(1,))
    flip(segment_path(tmp_path, 2), places(segment_path(tmp_path, 2))["footer"])
    with pytest.raises(CorruptError):
        segments.publish(new)
    assert numbers(segments.all()) == [1]
    assert segment_path(tmp_path, 1).exists()


def test_several_are_published_at_once(tmp_path: Path) -> None:
    segments = loaded(tmp_path)
    segments.publish(write_segment(tmp_path, 1, {("m0", 1): 1.0}), write_segment(tmp_path, 2, {("m0", 2): 1.0}, wal=5))
    assert (numbers(segments.all()), segments.wal_done) == ([1, 2], 5)


def test_a_segment_found_damaged_is_set_aside_when_it_is_replaced(tmp_path: Path) -> None:
    for number in (1, 2):
        write_segment(tmp_path, number, {("m0", number): 1.0})
    segments = loaded(tmp_path)
    segments.note_damage(segments.all()[0])
    assert numbers(segments.all()) == [1, 2]
    segments.publish(write_segment(tmp_path, 3, {("m0", 2): 1.0}, order=2, replaces=(1, 2)))
    assert [path.name[15] for path in (tmp_path / "quarantine").iterdir()] == ["1"]
    assert [path.name[15] for path in (tmp_path / "segments").iterdir()] == ["3"]


def test_a_segment_can_be_set_aside_at_once(tmp_path: Path) -> None:
    for number in (1, 2):
        write_segment(tmp_path, number, {("m0", number): 1.0})
    segments = loaded(tmp_path)
    held = segments.all()[0]
    segments.quarantine(held)
    segments.quarantine(held)
    assert numbers(segments.all()) == [2]
    assert [path.name[15] for path in (tmp_path / "quarantine").iterdir()] == ["1"]
    assert samples_of(held.read(None, 0, 10)) == {("m0", 1): 1.0}


def test_readers_always_see_a_whole_set(tmp_path: Path) -> None:
    """A thread publishes and merges; each look of a reader has every sample once."""
    segments = loaded(tmp_path)
    segments.publish(write_segment(tmp_path, segments.next_number(), {("m0", 0): 0.0}))
    stop, problems = threading.Event(), []

    def read() -> None:
        newest = 0
        while not stop.is_set():
            seen = [t for s in segments.overlapping("raw", 0, 1 << 40) for _, t in samples_of(s.read(None, 0, 1 << 40))]
            if sorted(seen) != list(range(len(seen))) or len(seen) < newest:
                problems.append(seen)
            newest = len(seen)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for time_ms in range(1, 60):
            segments.publish(write_segment(tmp_path, segments.next_number(), {("m0", time_ms): 0.0}))
            if time_ms % 4 == 0:
                gone = segments.all()
                samples = {key: v for s in gone for key, v in samples_of(s.read(None, 0, 1 << 40)).items()}
                segments.publish(
                    write_segment(
                        tmp_path,
                        segments.next_number(),
                        samples,
                        order=gone[-1].info.order,
                        replaces=tuple(numbers(gone)),
                    )
                )
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert problems == []


# Reading


def test_segments_are_found_by_tier_and_time(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, {("m0", 10): 1.0, ("m0", 20): 1.0})
    write_segment(tmp_path, 2, {("m0", 15): 1.0, ("m0", 40): 1.0}, order=1)
    write_segment(tmp_path, 3, {("m0", 60_000): 1.0}, tier="1m")
    write_segment(tmp_path, 4, {("m0", 5): 1.0}, order=1)
    segments = loaded(tmp_path)
    assert numbers(segments.all()) == [1, 2, 4, 3]
    assert numbers(segments.all("1m")) == [3]
    for tier, start, end, expected in [
        ("raw", 0, 100, [1, 2, 4]),
        ("raw", 20, 21, [1, 2]),
        ("raw", 21, 40, [2]),
        ("raw", 40, 41, [2]),
        ("raw", 0, 5, []),
        ("raw", 0, 6, [4]),
        ("raw", 41, 100, []),
        ("1m", 0, 60_001, [3]),
        ("1h", 0, 60_001, []),
    ]:
        assert numbers(segments.overlapping(tier, start, end)) == expected, (tier, start, end)
    assert numbers(segments.expired("raw", 20)) == [4]
    assert numbers(segments.expired("raw", 21)) == [1, 4]
    assert numbers(segments.oldest_first()) == [4, 1, 2, 3]
    sizes = {number: segment_path(tmp_path, number).stat().st_size for number in (1, 2, 3, 4)}
    assert segments.size_bytes == {"raw": sizes[1] + sizes[2] + sizes[4], "1m": sizes[3], "1h": 0}
    segments.remove(segments.expired("raw", 21))
    assert numbers(segments.all()) == [2, 3]
    assert not segment_path(tmp_path, 1).exists()


def test_merge_candidates_are_the_sets_own_segments(tmp_path: Path) -> None:
    for number in (1, 2):
        write_segment(tmp_path, number, {("m0", number): 1.0})
    segments = loaded(tmp_path, seal_ms=HOUR)
    assert segments.merge_candidates("raw", TODAY) == []
    assert segments.merge_candidates("1m", TOMORROW) == []
    (run,) = segments.merge_candidates("raw", TOMORROW)
    assert run == segments.all()


def test_tables_in_memory_stay_within_their_bound(tmp_path: Path) -> None:
    for number in range(1, 6):
        write_segment(tmp_path, number, {("m0", number): 1.0})
    segments = loaded(tmp_path, table_bytes=1)
    for segment in segments.overlapping("raw", 0, 10):
        segment.tables()
    assert segments.tables_bytes > 0
    segments.trim()
    assert segments.tables_bytes == 0
    roomy = loaded(tmp_path)
    one = roomy.all()[0]
    one.tables()
    roomy_bytes = 3 * one.tables_bytes + 1
    some = loaded(tmp_path, table_bytes=roomy_bytes)
    for time_ms in (1, 2, 3, 4, 1, 5):
        for segment in some.overlapping("raw", time_ms, time_ms + 1):
            segment.tables()
    some.trim()
    assert 0 < some.tables_bytes <= roomy_bytes
    assert [segment.tables_bytes > 0 for segment in some.all()] == [True, False, False, True, True]


def test_a_closed_set_is_empty(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, {("m0", 1): 1.0})
    segments = loaded(tmp_path)
    segments.close()
    assert segments.all() == ()
    assert segments.overlapping("raw", 0, 10) == []
