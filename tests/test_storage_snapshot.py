"""Snapshots: whole whatever the daemon does meanwhile, never there by half, and a restore that deletes nothing."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.files import Files
from storage.format import StorageError, TooNewError
from storage.recovery import ForeignDirectoryError, check_version, open_data_dir
from storage.segments import SegmentSet
from storage.snapshot import (
    BadNameError,
    SnapshotError,
    create,
    default_name,
    delete,
    path_of,
    restore,
    snapshots,
    verify,
)
from tests.data_directory import (
    Killed,
    KilledFiles,
    Samples,
    WalOnDisk,
    counting,
    flip,
    listing,
    samples_of,
    segment_path,
    wal_path,
    write_segment,
    write_wal,
)
from tests.faulty_files import FailingFiles, ForgetfulFiles

NOW = 1_706_696_100_000  # 2024-01-31 10:15:00 UTC
OLD = {("m0", 10): 1.0, ("m0", 20): 2.0}
CLOSED = {("m1", 30): 3.0}
OPEN = {("m1", 40): 4.0}
ALL = OLD | CLOSED | OPEN


def data_directory(root: Path, files: Files | None = None) -> Path:
    """One segment, a closed WAL file and one that is still written; no daemon."""
    files = files or Files()
    open_data_dir(files, root).close(clean=False)
    write_segment(root, 2, OLD, wal=1, files=files)
    write_wal(root, 3, CLOSED, files=files)
    write_wal(root, 4, OPEN, files=files)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_directory(tmp_path / "data")


def inodes(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_ino for path in root.rglob("*.*") if path.is_file()}


# Taking


def test_a_snapshot_holds_all_and_shares_what_nobody_writes(data: Path) -> None:
    made = create(Files(), data, "first", NOW)
    assert counting(made.path) == ALL
    assert (made.name, made.created_ms, made.segments, made.wal_files) == ("first", NOW, 1, 2)
    assert made.size_bytes == sum(path.stat().st_size for path in made.path.rglob("0*"))
    assert made.path == data / "snapshots" / "first" == path_of(Files(), data, "first")
    assert check_version(Files(), made.path) == 1
    here, there = inodes(data), inodes(made.path)
    shared = {name for name, inode in there.items() if here.get(name) == inode}
    assert shared == {"segments/0000000000000002.seg", "wal/0000000000000003.wal"}
    assert "wal/0000000000000004.wal" in there


def test_what_is_written_and_cut_later_does_not_change_it(data: Path) -> None:
    made = create(Files(), data, "first", NOW)
    before = listing(made.path)
    with wal_path(data, 4).open("r+b") as file:
        file.truncate(40)
    segment_path(data, 2).unlink()
    wal_path(data, 3).unlink()
    assert {name: entry[2] for name, entry in listing(made.path).items()} == {n: e[2] for n, e in before.items()}
    assert counting(made.path) == ALL


def test_snapshots_are_listed_with_what_they_hold(data: Path) -> None:
    assert snapshots(Files(), data) == []
    first, second = create(Files(), data, "b", NOW), create(Files(), data, "a", NOW + 1)
    (data / "snapshots" / "c.tmp").mkdir()
    assert snapshots(Files(), data) == [second, first]
    (second.path / "CREATED").unlink()
    assert [info.created_ms for info in snapshots(Files(), data)] == [None, NOW]


def test_the_default_name_is_the_time_in_utc(data: Path) -> None:
    assert default_name(NOW) == "2024-01-31T10-15-00Z"
    assert create(Files(), data, default_name(NOW), NOW).name == "2024-01-31T10-15-00Z"


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../a", "a b", "ä", "a\n", "x" * 65, "a.tmp", "a\0b", "/etc"]
)
def test_names_that_lead_elsewhere_are_refused(data: Path, name: str) -> None:
    before = listing(data)
    for action in (lambda: create(Files(), data, name, NOW), lambda: delete(Files(), data, name)):
        with pytest.raises(BadNameError, match="expected 1 to 64 letters"):
            action()
    with pytest.raises(BadNameError):
        restore(Files(), data, name)
    assert listing(data) == before


@pytest.mark.parametrize("name", ["a", "x" * 64, "2024-01-31T10-15-00Z", "v1.2_3", "_", "-"])
def test_ordinary_names_are_taken(data: Path, name: str) -> None:
    assert counting(create(Files(), data, name, NOW).path) == ALL


def test_no_snapshot_is_overwritten(data: Path) -> None:
    create(Files(), data, "first", NOW)
    before = listing(data / "snapshots" / "first")
    with pytest.raises(SnapshotError, match=r"first is there already; choose another name"):
        create(Files(), data, "first", NOW)
    assert listing(data / "snapshots" / "first") == before


def test_an_empty_data_directory_has_snapshots_too(tmp_path: Path) -> None:
    open_data_dir(Files(), tmp_path).close(clean=True)
    made = create(Files(), tmp_path, "empty", NOW)
    assert (made.segments, made.wal_files) == (0, 0)
    assert verify(Files(), made.path).damaged == []
    assert restore(Files(), tmp_path, "empty") == tmp_path / "before-restore-1"


def test_two_commands_at_once_are_kept_apart(data: Path) -> None:
    inside, done = threading.Event(), threading.Event()

    def hold(_done: int, _all: int) -> None:
        inside.set()
        done.wait(20)

    thread = threading.Thread(target=create, args=(Files(), data, "slow", NOW, hold))
    thread.start()
    try:
        assert inside.wait(20)
        with pytest.raises(SnapshotError, match="is at work there; wait"):
            create(Files(), data, "quick", NOW)
    finally:
        done.set()
        thread.join()
    assert [info.name for info in snapshots(Files(), data)] == ["slow"]


# While a daemon works


class Daemon:
    """What a daemon does to its directory, as fast as it goes: appends, flushes, merges, and lets the oldest expire."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = open_data_dir(Files(), root)
        self.segments = SegmentSet(Files(), root)
        self.segments.load()
        self.sent: Samples = {}
        self.acked: Samples = {}
        self.expired: set[tuple[str, int]] = set()
        self.flushes = self.merges = self.expiries = 0
        self._random = random.Random(1)
        self._wal = WalOnDisk(root, self.segments.next_number())
        self._content: Samples = {}
        self._clock = 0

    def step(self) -> None:
        for _ in range(self._random.randrange(1, 4)):
            self._clock += 1
            sample = {("m0", self._clock): float(self._clock)}
            self.sent |= sample
            self._wal.append(sample)
            self.acked |= sample
            self._content |= sample
        self._flush()
        if len(self.segments.all()) >= 4:
            self._merge()
        if len(self.segments.all()) > 2 and self._random.random() < 0.2:
            oldest = self.segments.oldest_first()[0]
            self.expired |= samples_of(oldest.read(None, 0, 1 << 40)).keys()
            self.segments.remove([oldest])
            self.expiries += 1

    def _flush(self) -> None:
        closed, content = self._wal, self._content
        closed.close()
        self._wal, self._content = WalOnDisk(self.root, self.segments.next_number()), {}
        done = int(closed.path.stem)
        self.segments.publish(write_segment(self.root, self.segments.next_number(), content, wal=done))
        closed.path.unlink()
        self.flushes += 1

    def _merge(self) -> None:
        run = self.segments.all()[-3:]
        content = {key: value for s in run for key, value in samples_of(s.read(None, 0, 1 << 40)).items()}
        replaced = tuple(s.info.number for s in run)
        number, wal = self.segments.next_number(), max(s.info.wal for s in run)
        self.segments.publish(
            write_segment(self.root, number, content, order=run[-1].info.order, replaces=replaced, wal=wal)
        )
        self.merges += 1


@contextmanager
def working(daemon: Daemon) -> Iterator[None]:
    stop, failed = threading.Event(), []

    def work() -> None:
        try:
            while not stop.is_set():
                daemon.step()
                stop.wait(0.002)  # a daemon does this every few seconds
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failed == []


def test_taken_from_a_working_daemon_it_holds_all_that_was_acknowledged_before(tmp_path: Path) -> None:
    root = tmp_path / "data"
    daemon = Daemon(root)
    with working(daemon):
        for n in range(40):
            acked = dict(daemon.acked)
            made = create(Files(), root, f"s{n}", NOW)
            expired = set(daemon.expired)
            found = counting(made.path)
            assert {key: found.get(key) for key in acked.keys() - expired} == {
                key: value for key, value in acked.items() if key not in expired
            }
            assert found.items() <= daemon.sent.items()
            assert verify(Files(), made.path).damaged == []
            assert verify(Files(), root).damaged == []
    assert min(daemon.flushes, daemon.merges, daemon.expiries) > 3
    daemon.data.close(clean=False)
    restore(Files(), root, "s39")
    assert counting(root) == counting(root / "snapshots" / "s39")


def test_a_merge_in_the_middle_of_the_linking_begins_it_again(data: Path) -> None:
    for number in (5, 6):
        write_segment(data, number, {("m2", number): 1.0})
    segments = SegmentSet(Files(), data)
    segments.load()
    merged: list[int] = []

    def merge_now(_done: int, _all: int) -> None:
        if not merged:
            merged.append(7)
            segments.publish(write_segment(data, 7, {("m2", 5): 1.0, ("m2", 6): 1.0}, order=6, replaces=(5, 6)))

    made = create(Files(), data, "during", NOW, merge_now)
    assert merged == [7]
    assert counting(made.path) == ALL | {("m2", 5): 1.0, ("m2", 6): 1.0}
    assert sorted(path.name[15] for path in (made.path / "segments").iterdir()) == ["2", "7"]


def test_a_flush_between_the_two_directories_loses_nothing(data: Path) -> None:
    seen: set[Path] = set()

    class Flushed(Files):
        def listdir(self, path: Path) -> list[str]:
            if path in (data / "segments", data / "wal"):
                if seen and path not in seen:
                    write_segment(data, 5, CLOSED, wal=3)
                    wal_path(data, 3).unlink()
                seen.add(path)
            return super().listdir(path)

    assert counting(create(Flushed(), data, "during", NOW).path) == ALL
    assert not wal_path(data, 3).exists()


def test_a_listing_that_missed_a_merge_is_not_believed(data: Path) -> None:
    """A directory that changes while it is read may show neither what came nor what went."""
    both = {("m2", 5): 1.0, ("m2", 6): 1.0}
    for (metric, number), value in both.items():
        write_segment(data, number, {(metric, number): value})
    listed: list[list[str]] = []

    class Torn(Files):
        def listdir(self, path: Path) -> list[str]:
            names = super().listdir(path)
            if path == data / "segments":
                if not listed:
                    names = [name for name in names if name[15] not in "56"]
                    for number in (5, 6):
                        segment_path(data, number).unlink()
                    write_segment(data, 7, both, order=6, replaces=(5, 6))
                listed.append(names)
            return names

    assert counting(create(Torn(), data, "during", NOW).path) == ALL | both
    assert len(listed) > 2


def test_files_that_never_hold_still_end_in_an_error(data: Path) -> None:
    number = 10

    class Restless(Files):
        def link(self, source: Path, target: Path) -> None:
            nonlocal number
            number += 1
            if source.suffix == ".seg":
                source.rename(segment_path(data, number))
            super().link(source, target)

    with pytest.raises(SnapshotError, match="changed 200 times"):
        create(Restless(), data, "never", NOW)
    assert snapshots(Files(), data) == []
    assert not (data / "snapshots" / "never.tmp").exists()


# Faults while taking


def test_killed_at_any_moment_a_snapshot_is_whole_or_not_there(tmp_path: Path) -> None:
    data = data_directory(tmp_path / "data")
    steps = 0
    for at in range(100):
        files = KilledFiles(at)
        try:
            create(files, data, f"s{at}", NOW)
        except Killed:
            steps += 1
        for info in snapshots(Files(), data):
            assert counting(info.path) == ALL
        if files.left >= 0:
            break
    else:
        raise AssertionError("never went through")
    assert steps > 10
    assert counting(data) == ALL
    create(Files(), data, "after", NOW)
    assert [path.name for path in (data / "snapshots").iterdir() if path.name.endswith(".tmp")] == []


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_snapshot_survives_a_power_cut(tmp_path: Path, seed: int | None) -> None:
    (tmp_path / "data").mkdir()
    files = ForgetfulFiles(tmp_path / "data", seed)
    data = data_directory(tmp_path / "data", files)
    create(files, data, "first", NOW)
    files.power_cut()
    assert counting(data / "snapshots" / "first") == ALL
    assert [info.created_ms for info in snapshots(files, data)] == [NOW]
    assert restore(files, data, "first") is not None
    files.power_cut()
    assert counting(data) == ALL
    assert check_version(files, data) == 1
    files.close()


@pytest.mark.parametrize(
    ("operation", "reason", "parts"),
    [
        ("write", errno.ENOSPC, ["No space left", "delete a snapshot"]),
        ("create", errno.EACCES, ["Permission denied", "daemon's user"]),
        ("link", errno.EPERM, ["Operation not permitted", "hard links"]),
        ("mkdir", errno.EROFS, ["Read-only file system", "writable"]),
        ("sync", errno.EIO, ["Input/output error", "disk"]),
        ("rename", errno.EIO, ["Input/output error"]),
    ],
)
def test_a_disk_that_refuses_is_named_and_nothing_is_left(
    data: Path, operation: str, reason: int, parts: list[str]
) -> None:
    files = FailingFiles()
    files.fail(operation, reason)
    with pytest.raises(SnapshotError) as refused:
        create(files, data, "first", NOW)
    for part in ["snapshot first", *parts]:
        assert part in str(refused.value)
    assert not (data / "snapshots" / "first").exists()
    assert not (data / "snapshots" / "first.tmp").exists()
    assert counting(data) == ALL


@pytest.mark.parametrize("action", ["create", "list", "verify", "restore", "delete"])
def test_no_data_directory_is_named(tmp_path: Path, action: str) -> None:
    actions = {
        "create": lambda root: create(Files(), root, "a", NOW),
        "list": lambda root: snapshots(Files(), root),
        "verify": lambda root: verify(Files(), root),
        "restore": lambda root: restore(Files(), root, "a"),
        "delete": lambda root: delete(Files(), root, "a"),
    }
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes").touch()
    for root in (tmp_path / "absent", tmp_path / "foreign", tmp_path / "foreign" / "notes"):
        with pytest.raises(StorageError, match=str(root)):
            actions[action](root)
    assert [path.name for path in tmp_path.iterdir()] == ["foreign"]
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["notes"]


def test_a_later_versions_directory_is_not_touched(data: Path) -> None:
    create(Files(), data, "first", NOW)
    (data / "VERSION").write_text("collectord data 2\n")
    (data / "snapshots" / "first" / "VERSION").write_text("collectord data 2\n")
    before = listing(data)
    for action in (
        lambda: create(Files(), data, "second", NOW),
        lambda: verify(Files(), data),
        lambda: restore(Files(), data, "first"),
    ):
        with pytest.raises(TooNewError, match="version 2"):
            action()
    assert listing(data) == before


# Verifying


def test_verify_counts_all_and_finds_nothing(data: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = verify(Files(), data, lambda done, whole: seen.append((done, whole)))
    assert (found.segments, found.wal_files, found.samples) == (1, 2, 4)
    assert (found.damaged, found.torn_bytes, found.lost_samples) == ([], 0, 0)
    assert found.size_bytes == sum(path.stat().st_size for path in data.rglob("0*"))
    assert seen == sorted(seen)
    assert seen[-1] == (found.size_bytes, found.size_bytes)


def test_a_torn_tail_is_no_damage(data: Path) -> None:
    with wal_path(data, 4).open("ab") as file:
        file.write(b"FRAM half a frame")
    found = verify(Files(), data)
    assert (found.damaged, found.torn_bytes) == ([], 17)


def test_every_flipped_bit_of_a_segment_is_found(data: Path) -> None:
    path = segment_path(data, 2)
    whole = path.read_bytes()
    for wal in (data / "wal").iterdir():
        wal.unlink()
    unnoticed = []
    for offset in range(len(whole)):
        flip(path, offset, bit=offset % 8)
        try:
            if not verify(Files(), data).damaged:
                unnoticed.append(offset)
        except TooNewError:
            assert offset in {4, 5, 6, 7, *range(len(whole) - 8, len(whole) - 4)}
        path.write_bytes(whole)
    assert unnoticed == []


def test_damage_in_the_middle_of_the_wal_is_found(data: Path) -> None:
    wal = WalOnDisk(data, 5)
    for time_ms in range(100, 200):
        wal.append({("m0", time_ms): 1.0})
    wal.close()
    flip(wal.path, wal.path.stat().st_size // 2)
    found = verify(Files(), data)
    (error,) = found.damaged
    assert error.path == wal.path
    assert error.size_bytes > 0
    assert found.samples == 4 + 99


def test_all_damaged_files_are_named_and_the_others_read(data: Path) -> None:
    segment_path(data, 7).write_bytes(b"nothing of a segment")
    wal_path(data, 8).write_bytes(b"nothing of a WAL file, and longer than its header is")
    found = verify(Files(), data)
    assert {error.path for error in found.damaged} == {segment_path(data, 7), wal_path(data, 8)}
    assert found.samples == 4


def test_what_the_disk_cannot_read_is_damage(data: Path) -> None:
    files = FailingFiles()
    files.fail("map", errno.EIO, path="*.seg")
    (error,) = verify(files, data).damaged
    assert error.path == segment_path(data, 2)
    assert "cannot be read" in str(error)


# Restoring


def test_restored_elsewhere_it_is_a_data_directory_of_its_own(data: Path, tmp_path: Path) -> None:
    create(Files(), data, "first", NOW)
    write_wal(data, 9, {("m3", 1): 1.0})
    before, snapshot = listing(data), listing(data / "snapshots" / "first")
    target = tmp_path / "some" / "where"
    assert restore(Files(), data, "first", target) is None
    assert counting(target) == ALL
    opened = open_data_dir(Files(), target)
    assert not opened.fresh
    for path in opened.wal_files(0):  # what a start does to the newest must not reach the snapshot
        with path.open("r+b") as file:
            if path == opened.newest_wal:
                file.truncate(32)
    opened.close(clean=True)
    after = listing(data)
    assert {n: e[2] for n, e in after.items() if "snapshots/.lock" not in n} == {
        n: e[2] for n, e in before.items() if "snapshots/.lock" not in n
    }
    assert {n: e[2] for n, e in listing(data / "snapshots" / "first").items()} == {n: e[2] for n, e in snapshot.items()}


def test_another_file_system_gets_copies(data: Path, tmp_path: Path) -> None:
    create(Files(), data, "first", NOW)
    files = FailingFiles()
    files.fail("link", errno.EXDEV)
    restore(files, data, "first", tmp_path / "target")
    assert counting(tmp_path / "target") == ALL
    assert not set(inodes(tmp_path / "target").values()) & set(inodes(data).values())


def test_nothing_is_restored_over_something(data: Path, tmp_path: Path) -> None:
    create(Files(), data, "first", NOW)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "notes").write_text("mine")
    before = listing(tmp_path / "target")
    with pytest.raises(SnapshotError, match="holds notes, expected an empty or no directory"):
        restore(Files(), data, "first", tmp_path / "target")
    assert listing(tmp_path / "target") == before
    (tmp_path / "target" / "notes").unlink()
    restore(Files(), data, "first", tmp_path / "target")
    assert counting(tmp_path / "target") == ALL


def test_restored_in_place_what_was_there_is_moved_and_can_be_started(data: Path) -> None:
    create(Files(), data, "first", NOW)
    write_wal(data, 9, {("m3", 1): 1.0})
    (data / "quarantine" / "0000000000000001.seg").write_bytes(b"damaged")
    (data / "registry.sqlite").write_bytes(b"not of the store")
    now = counting(data)
    assert restore(Files(), data, "first") == data / "before-restore-1"
    assert counting(data) == ALL
    assert counting(data / "before-restore-1") == now
    assert (data / "before-restore-1" / "quarantine" / "0000000000000001.seg").exists()
    assert (data / "registry.sqlite").exists()
    assert restore(Files(), data, "first") == data / "before-restore-2"
    for root in (data, data / "before-restore-1"):
        opened = open_data_dir(Files(), root)
        assert not opened.fresh
        opened.close(clean=True)
    assert [info.name for info in snapshots(Files(), data)] == ["first"]


HOLD = """
import sys
from pathlib import Path
from storage.files import Files
from storage.recovery import open_data_dir
data = open_data_dir(Files(), Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_nothing_is_restored_under_a_running_daemon(data: Path, tmp_path: Path) -> None:
    create(Files(), data, "first", NOW)
    command = [sys.executable, "-c", HOLD, str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(
                SnapshotError, match=rf"in use by process {process.pid}; stop the daemon first.*--to DIR"
            ):
                restore(Files(), data, "first")
            assert counting(data) == ALL
            assert not (data / "before-restore-1").exists()
            create(Files(), data, "second", NOW)
            restore(Files(), data, "second", tmp_path / "target")
            delete(Files(), data, "second")
        finally:
            process.kill()
    assert counting(tmp_path / "target") == ALL
    assert restore(Files(), data, "first") is not None


def test_killed_at_any_moment_a_restore_loses_nothing_and_can_be_done_again(tmp_path: Path) -> None:
    extra = {("m3", 1): 1.0}
    steps = halves = 0
    for at in range(100):
        root = data_directory(tmp_path / str(at))
        create(Files(), root, "first", NOW)
        write_wal(root, 9, extra)
        files = KilledFiles(at)
        try:
            restore(files, root, "first")
        except Killed:
            steps += 1
        if not (root / "VERSION").exists():  # left half done: a start says so, and doing it again helps
            with pytest.raises(ForeignDirectoryError, match="run `collectord snapshot restore` again"):
                open_data_dir(Files(), root)
            halves += 1
            restore(Files(), root, "first")
        open_data_dir(Files(), root).close(clean=False)
        kept = [counting(root), *(counting(path) for path in root.glob("before-restore-*"))]
        assert kept[0] in (ALL, ALL | extra)
        assert set().union(*kept) == set(ALL | extra)
        assert counting(root / "snapshots" / "first") == ALL
        if files.left >= 0:
            assert kept == [ALL, ALL | extra]
            break
    else:
        raise AssertionError("never went through")
    assert steps > 15
    assert halves > 5


@pytest.mark.parametrize("operation", ["create", "write", "mkdir", "sync", "link"])
def test_a_restore_in_place_that_fails_puts_everything_back(data: Path, operation: str) -> None:
    create(Files(), data, "first", NOW)
    write_wal(data, 9, {("m3", 1): 1.0})
    before = {name: entry[2] for name, entry in listing(data).items()}
    files = FailingFiles()
    files.fail(operation, errno.ENOSPC, path="*data/*[!k]", nth=2 if operation == "mkdir" else 1)
    with pytest.raises(SnapshotError, match=r"No space left.*free some space"):
        restore(files, data, "first")
    assert {name: entry[2] for name, entry in listing(data).items()} == before


def test_a_restore_elsewhere_that_fails_leaves_an_empty_directory(data: Path, tmp_path: Path) -> None:
    create(Files(), data, "first", NOW)
    files = FailingFiles()
    files.fail("write", errno.ENOSPC)
    with pytest.raises(SnapshotError, match="No space left"):
        restore(files, data, "first", tmp_path / "target")
    assert {path.name for path in (tmp_path / "target").iterdir()} == {"LOCK"}
    files.heal()
    restore(files, data, "first", tmp_path / "target")
    assert counting(tmp_path / "target") == ALL


@pytest.mark.parametrize(("made", "text"), [([], "there are none yet"), (["b", "a"], "one of a, b")])
def test_an_unknown_snapshot_is_named_with_those_there_are(data: Path, made: list[str], text: str) -> None:
    for name in made:
        create(Files(), data, name, NOW)
    with pytest.raises(SnapshotError, match=rf"no such snapshot; got 'absent', .*{text}"):
        restore(Files(), data, "absent")


# Deleting


def test_a_deleted_snapshot_takes_nothing_else_with_it(data: Path) -> None:
    for name in ("first", "second"):
        create(Files(), data, name, NOW)
    delete(Files(), data, "first")
    assert [info.name for info in snapshots(Files(), data)] == ["second"]
    assert counting(data / "snapshots" / "second") == counting(data) == ALL
    with pytest.raises(SnapshotError, match="expected one of second"):
        delete(Files(), data, "first")


def test_killed_at_any_moment_a_deleted_snapshot_is_whole_or_not_there(tmp_path: Path) -> None:
    steps = 0
    for at in range(100):
        data = data_directory(tmp_path / str(at))
        create(Files(), data, "first", NOW)
        files = KilledFiles(at)
        try:
            delete(files, data, "first")
        except Killed:
            steps += 1
        assert [counting(info.path) for info in snapshots(Files(), data)] in ([], [ALL])
        create(Files(), data, "second", NOW)
        names = {path.name for path in (data / "snapshots").iterdir()}
        assert names in ({".lock", "second"}, {".lock", "first", "second"})
        if files.left >= 0:
            assert "first" not in names
            break
    else:
        raise AssertionError("never went through")
    assert steps > 5
