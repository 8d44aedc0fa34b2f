"""What a start finds: what speaks against a directory is found before anything is touched, and a crash of a start is none."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.files import Files, LockedError
from storage.format import TooNewError
from storage.recovery import (
    BadVersionError,
    DataDir,
    ForeignDirectoryError,
    UnusableDirectoryError,
    check_version,
    open_data_dir,
)
from storage.wal_reader import read_wal
from tests.data_directory import Killed, KilledFiles, WalOnDisk, listing, samples_of, wal_path, write_segment, write_wal
from tests.faulty_files import FailingFiles, ForgetfulFiles

HOLD = """
import sys
from pathlib import Path
from storage.files import Files
from storage.recovery import open_data_dir
data = open_data_dir(Files(), Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
data.close(clean=sys.argv[2] == "clean")
"""


@contextmanager
def held(directory: Path, ending: str = "clean") -> Iterator[subprocess.Popen[str]]:
    """Another process that has the directory open until its input ends."""
    command = [sys.executable, "-c", HOLD, str(directory), ending]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


Start = Callable[..., DataDir]


@pytest.fixture
def start() -> Iterator[Start]:
    """`open_data_dir`; whatever it gave is let go of at the end."""
    opened = []

    def open_one(directory: Path, files: Files | None = None) -> DataDir:
        opened.append(open_data_dir(files or Files(), directory))
        return opened[-1]

    yield open_one
    for data in opened:
        data.close(clean=False)


# Opening


def test_a_new_directory_is_made_with_its_version(tmp_path: Path, start: Start) -> None:
    root = tmp_path / "deep" / "data"
    data = start(root)
    assert (data.fresh, data.was_clean) == (True, False)
    assert (root / "VERSION").read_text() == "collectord data 1\n"
    assert {path.name for path in root.iterdir()} == {"VERSION", "LOCK", "wal", "segments", "quarantine", "snapshots"}
    assert check_version(Files(), root) == 1


@pytest.mark.parametrize("clean", [True, False])
def test_how_it_was_left_is_known_at_the_next_start(tmp_path: Path, clean: bool, start: Start) -> None:
    data = start(tmp_path)
    assert not (tmp_path / "CLEAN").exists()
    data.close(clean=clean)
    data.close(clean=False)  # twice is fine, and changes nothing
    assert (tmp_path / "CLEAN").exists() is clean
    data = start(tmp_path)
    assert (data.fresh, data.was_clean) == (False, clean)
    assert not (tmp_path / "CLEAN").exists()


@pytest.mark.parametrize("seed", range(8))
def test_after_a_power_cut_it_was_not_left_clean(tmp_path: Path, seed: int, start: Start) -> None:
    (tmp_path / "data").mkdir()
    files = ForgetfulFiles(tmp_path / "data", seed)
    start(tmp_path / "data", files).close(clean=True)
    files.power_cut()
    assert start(tmp_path / "data", files).was_clean
    files.power_cut()
    data = start(tmp_path / "data", files)
    assert (data.fresh, data.was_clean) == (False, False)
    files.power_cut()
    files.close()


def test_a_first_start_that_is_killed_is_no_hindrance_to_the_next(tmp_path: Path, start: Start) -> None:
    steps = 0
    for at in range(100):
        root = tmp_path / str(at)
        files = KilledFiles(at)
        try:
            start(root, files).close(clean=True)
        except Killed:
            steps += 1
        data = start(root)
        assert {"VERSION", "wal", "segments"} <= {path.name for path in root.iterdir()}
        assert (tmp_path / str(at) / "VERSION").read_text() == "collectord data 1\n"
        data.close(clean=True)
        assert start(root).was_clean
        if files.left >= 0:
            break
    else:
        raise AssertionError("never went through")
    assert steps > 8


def test_a_full_disk_at_the_end_is_only_unclean(tmp_path: Path, start: Start) -> None:
    files = FailingFiles()
    data = start(tmp_path, files)
    files.fail("create", errno.ENOSPC)
    data.close(clean=True)
    files.heal()
    data = start(tmp_path, files)
    assert not data.was_clean


@pytest.mark.parametrize(
    ("version", "error", "parts"),
    [
        ("collectord data 2\n", TooNewError, ["VERSION", "version 2", "up to 1", "later collectord"]),
        ("collectord data 10", TooNewError, ["version 10"]),
        ("", BadVersionError, ["got b''", "collectord data 1"]),
        ("collectord data 0\n", BadVersionError, ["collectord data 0"]),
        ("collectord data one\n", BadVersionError, ["expected 'collectord data 1"]),
        ("something else", BadVersionError, ["got b'something else'"]),
        ("x" * 100_000, BadVersionError, ["xxx"]),
        (None, ForeignDirectoryError, ["holds CLEAN, segments, wal", "no VERSION", "name an empty or a new one"]),
    ],
)
def test_a_directory_that_is_refused_is_not_touched(
    tmp_path: Path, version: str | None, error: type[Exception], parts: list[str], start: Start
) -> None:
    write_wal(tmp_path, 3, {("m0", 10): 1.0})
    write_segment(tmp_path, 1, {("m0", 10): 1.0})
    (tmp_path / "CLEAN").touch()
    if version is not None:
        (tmp_path / "VERSION").write_text(version)
    before = listing(tmp_path)
    with pytest.raises(error) as refused:
        start(tmp_path)
    assert type(refused.value) is error
    assert len(str(refused.value)) < 500 + len(str(tmp_path))
    for part in [str(tmp_path), *parts]:
        assert part in str(refused.value)
    assert listing(tmp_path) == before


def test_an_empty_mount_point_is_as_good_as_new(tmp_path: Path, start: Start) -> None:
    (tmp_path / "lost+found").mkdir()
    assert start(tmp_path).fresh


def test_a_restore_that_was_cut_short_is_named(tmp_path: Path, start: Start) -> None:
    for name in ("snapshots", "before-restore-1"):
        (tmp_path / name).mkdir()
    with pytest.raises(ForeignDirectoryError, match="run `collectord snapshot restore` again"):
        start(tmp_path)


def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path, start: Start) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(UnusableDirectoryError, match=r"data: cannot be used.*Not a directory"):
        start(tmp_path / "data")


@pytest.mark.parametrize("operation", ["mkdir", "lock", "create", "sync_dir", "rename"])
@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_disk_that_takes_nothing_is_named_and_the_lock_let_go(
    tmp_path: Path, operation: str, reason: int, start: Start
) -> None:
    files = FailingFiles()
    files.fail(operation, reason)
    with pytest.raises(UnusableDirectoryError) as refused:
        start(tmp_path / "data", files)
    for part in (str(tmp_path / "data"), "make it writable", "name another directory"):
        assert part in str(refused.value)
    files.heal()
    start(tmp_path / "data", files).close(clean=True)


def test_a_read_only_directory_with_data_is_named(tmp_path: Path, start: Start) -> None:
    start(tmp_path).close(clean=True)
    files = FailingFiles()
    files.fail("unlink", errno.EROFS)
    with pytest.raises(UnusableDirectoryError, match="Read-only file system"):
        start(tmp_path, files)
    assert start(tmp_path).was_clean


# Two processes


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path: Path, start: Start) -> None:
    with held(tmp_path) as process:
        with pytest.raises(LockedError) as refused:
            start(tmp_path)
        assert refused.value.pid == process.pid
        assert str(process.pid) in str(refused.value)
        assert str(tmp_path / "LOCK") in str(refused.value)
        assert not (tmp_path / "CLEAN").exists()
        process.communicate("")
    data = start(tmp_path)
    assert data.was_clean


def test_a_killed_process_leaves_no_lock_and_no_clean_mark(tmp_path: Path, start: Start) -> None:
    start(tmp_path).close(clean=True)
    with held(tmp_path) as process:
        process.kill()
        process.wait()
        data = start(tmp_path)
    assert (data.fresh, data.was_clean) == (False, False)


def test_of_many_first_starts_at_once_one_gets_it(tmp_path: Path) -> None:
    root = tmp_path / "data"
    command = [sys.executable, "-c", HOLD, str(root), "clean"]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    try:
        lines = [process.stdout.readline() for process in processes if process.stdout is not None]
        ended = [process.communicate("")[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert sorted(lines) == ["", "", "", "held\n"]
    assert sum("LockedError" in text for text in ended) == 3


# WAL files


def wal_file(root: Path, number: int, checkpoint: tuple[int, int] | None, *messages: int) -> Path:
    """A closed WAL file with one sample a message; with a checkpoint of earlier messages, or without."""
    wal = WalOnDisk(root, number)
    if checkpoint is not None:
        wal.checkpoint(checkpoint)
    for message in messages:
        wal.append({("m0", message): 1.0}, received=(message, message))
    wal.close()
    return wal.path


def received(paths: list[Path]) -> list[tuple[int, int]]:
    return [span for path in paths for spans in read_wal(Files(), path).received.values() for span in spans]


def test_wal_files_that_are_in_segments_are_removed(tmp_path: Path, start: Start) -> None:
    data = start(tmp_path)
    paths = {number: wal_file(tmp_path, number, (1, number), number + 1) for number in (2, 5, 11, 12)}
    (tmp_path / "wal" / "notes.txt").touch()
    assert data.wal_files(0) == list(paths.values())
    assert data.older_wal_files(0) == []
    assert data.wal_files(5) == [paths[11], paths[12]]
    assert data.older_wal_files(5) == []
    assert sorted(path.name for path in (tmp_path / "wal").iterdir()) == [
        "0000000000000011.wal", "0000000000000012.wal", "notes.txt",
    ]  # fmt: skip


def test_what_had_been_received_is_never_removed_with_the_samples(tmp_path: Path, start: Start) -> None:
    """A segment holds samples, and not which messages they came in."""
    data = start(tmp_path)
    assert data.newest_wal is None
    wal_file(tmp_path, 1, (1, 10), 11)
    second = wal_file(tmp_path, 3, (1, 11), 12)
    assert data.wal_files(3) == []
    assert data.older_wal_files(3) == [second]
    assert data.newest_wal == second
    assert received([second]) == [(1, 12)]


@pytest.mark.parametrize("broken", ["empty", "no frame", "half a frame", "no WAL file"])
def test_a_file_without_a_checkpoint_makes_no_other_needless(tmp_path: Path, start: Start, broken: str) -> None:
    data = start(tmp_path)
    first = wal_file(tmp_path, 1, (1, 10), 11)
    newest = wal_file(tmp_path, 4, (1, 11), 12)
    whole = newest.read_bytes()
    newest.write_bytes(
        {"empty": b"", "no frame": whole[:32], "half a frame": whole[:60], "no WAL file": b"x" * 100}[broken]
    )
    assert data.wal_files(4) == []
    assert data.older_wal_files(4) == [first, newest]
    assert received([first]) == [(1, 11)]
    newest.write_bytes(whole)
    assert data.wal_files(4) == []
    assert data.older_wal_files(4) == [newest]


def test_wal_files_that_cannot_be_removed_do_not_count(tmp_path: Path, start: Start) -> None:
    files = FailingFiles()
    data = start(tmp_path, files)
    first, second = wal_file(tmp_path, 1, (1, 1), 2), wal_file(tmp_path, 2, (1, 2), 3)
    files.fail("unlink", errno.EIO)
    assert data.wal_files(1) == [second]
    assert first.exists()


def test_a_torn_tail_is_cut_and_only_of_the_newest(tmp_path: Path, start: Start) -> None:
    data = start(tmp_path)
    whole: dict[int, int] = {}
    for number in (1, 2):
        path = write_wal(tmp_path, number, {("m0", number): 1.0})
        whole[number] = path.stat().st_size
        with path.open("ab") as file:
            file.write(b"FRAM\x40\x00\x00\x00half of a frame")
    for number, cut in ((1, 0), (2, 23)):
        path = wal_path(tmp_path, number)
        wal = read_wal(Files(), path)
        assert wal.torn_bytes == 23
        assert data.cut_tail(path, wal) == cut
        assert path.stat().st_size == whole[number] + 23 - cut
        assert samples_of(read_wal(Files(), path).columns) == {("m0", number): 1.0}
    again = read_wal(Files(), wal_path(tmp_path, 2))
    assert (again.torn_bytes, again.losses) == (0, [])
    assert data.cut_tail(wal_path(tmp_path, 2), again) == 0


@pytest.mark.parametrize("left_bytes", [0, 1, 31, 32, 40])
def test_a_wal_file_cut_anywhere_by_a_crash_starts(tmp_path: Path, left_bytes: int, start: Start) -> None:
    data = start(tmp_path)
    path = write_wal(tmp_path, 1, {("m0", 1): 1.0})
    path.write_bytes(path.read_bytes()[:left_bytes])
    wal = read_wal(Files(), path)
    data.cut_tail(path, wal)
    again = read_wal(Files(), path)
    assert (again.samples, again.torn_bytes) == (0, 0)


def test_a_damaged_file_is_moved_and_not_deleted(tmp_path: Path, start: Start) -> None:
    data = start(tmp_path)
    path = wal_path(tmp_path, 1)
    path.write_bytes(b"no WAL file, whatever it is, and long enough for a header")
    moved = data.quarantine(path)
    assert moved == tmp_path / "quarantine" / path.name
    assert moved.read_bytes().startswith(b"no WAL file")
    assert not path.exists()
