"""The file layer, and the two faulty disks that other tests stand on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.files import MOST_BUFFERS, AppendFile, Files, LockedError
from tests.faulty_files import SECTOR_BYTES, FailingFiles, ForgetfulFiles


@pytest.fixture
def files() -> Files:
    return Files()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def write(files: Files, path: Path, *data: bytes) -> None:
    with files.create(path) as file:
        file.write(data)
        file.sync()


class Dribbling(AppendFile):
    """Takes at most three bytes a call."""

    def _put(self, views: Sequence[memoryview]) -> int:
        return super()._put([views[0][:3]])


class Stuck(AppendFile):
    def _put(self, views: Sequence[memoryview]) -> int:
        return 0


def opened(kind: type[AppendFile], path: Path) -> AppendFile:
    return kind(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 0)


@pytest.mark.parametrize(
    ("buffers", "expected"),
    [
        ([], b""),
        ([b"", b"ab", b""], b"ab"),
        ([b"ab", bytearray(b"cde"), memoryview(b"xfghx")[1:-1]], b"abcdefgh"),
        ([np.arange(2, dtype="<f8"), np.empty(0)], np.arange(2, dtype="<f8").tobytes()),
        ([np.arange(6, dtype="<i4").reshape(2, 3)], np.arange(6, dtype="<i4").tobytes()),
        ([b"%05d" % i for i in range(3 * MOST_BUFFERS)], b"".join(b"%05d" % i for i in range(3 * MOST_BUFFERS))),
    ],
)
@pytest.mark.parametrize("kind", [AppendFile, Dribbling])
def test_all_of_the_buffers_are_written(
    kind: type[AppendFile], buffers: list[bytes], expected: bytes, tmp_path: Path
) -> None:
    with opened(kind, tmp_path / "a") as file:
        file.write([b"before"])
        file.write(buffers)
        file.sync()
        assert file.size == 6 + len(expected)
    assert (tmp_path / "a").read_bytes() == b"before" + expected


def test_a_write_that_takes_nothing_is_an_error_not_a_loop(tmp_path: Path) -> None:
    with opened(Stuck, tmp_path / "a") as file, pytest.raises(OSError, match="nothing was written"):
        file.write([b"x"])


def test_create_overwrites_nothing(files: Files, tmp_path: Path) -> None:
    write(files, tmp_path / "a", b"old")
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "a")
    assert files.read(tmp_path / "a") == b"old"


def test_append_goes_on_at_the_end_and_makes_no_file(files: Files, tmp_path: Path) -> None:
    write(files, tmp_path / "a", b"one")
    with files.append(tmp_path / "a") as file:
        assert file.size == 3
        file.write([b"two"])
    assert files.read(tmp_path / "a") == b"onetwo"
    with pytest.raises(FileNotFoundError):
        files.append(tmp_path / "b")


def test_a_closed_file_is_closed(files: Files, tmp_path: Path) -> None:
    file = files.create(tmp_path / "a")
    file.close()
    file.close()
    for call in (lambda: file.write([b"x"]), file.sync):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()


@pytest.mark.parametrize("probe", [False, True])
def test_a_map_outlives_its_file(probe: bool, files: Files, tmp_path: Path) -> None:
    data = os.urandom(1_000_003)
    write(files, tmp_path / "a", data)
    view = files.map(tmp_path / "a", probe=probe)
    files.unlink(tmp_path / "a")
    assert view.readonly
    assert view == data
    del view


def test_a_map_of_an_empty_file_is_empty(files: Files, tmp_path: Path) -> None:
    write(files, tmp_path / "a")
    assert len(files.map(tmp_path / "a")) == 0


@pytest.mark.parametrize(
    ("part", "expected"),
    [((), b"012345"), ((2,), b"2345"), ((2, 3), b"234"), ((4, 9), b"45"), ((9,), b""), ((0, 0), b"")],
)
def test_read_gives_a_part(part: tuple[int, ...], expected: bytes, files: Files, tmp_path: Path) -> None:
    write(files, tmp_path / "a", b"012345")
    assert files.read(tmp_path / "a", *part) == expected


def test_names_and_sizes(files: Files, tmp_path: Path) -> None:
    files.mkdir(tmp_path / "x" / "y")
    files.mkdir(tmp_path / "x" / "y")
    write(files, tmp_path / "x" / "b", b"12345")
    files.link(tmp_path / "x" / "b", tmp_path / "x" / "a")
    files.rename(tmp_path / "x" / "b", tmp_path / "x" / "c")
    files.sync_dir(tmp_path / "x")
    assert files.listdir(tmp_path / "x") == ["a", "c", "y"]
    assert files.size(tmp_path / "x" / "a") == 5
    assert files.exists(tmp_path / "x" / "y")
    assert not files.exists(tmp_path / "x" / "b")
    files.truncate(tmp_path / "x" / "c", 2)
    assert files.read(tmp_path / "x" / "a") == b"12"
    files.rmdir(tmp_path / "x" / "y")
    files.unlink(tmp_path / "x" / "c")
    files.unlink(tmp_path / "x" / "c", missing_ok=True)
    with pytest.raises(FileNotFoundError):
        files.unlink(tmp_path / "x" / "c")
    assert files.listdir(tmp_path / "x") == ["a"]
    assert 0 < files.free_bytes(tmp_path) <= os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize


def test_write_atomic_replaces_and_leaves_no_temporary_file(files: Files, tmp_path: Path) -> None:
    (tmp_path / "a.tmp").write_bytes(b"of an earlier crash")
    for data in (b"one", b"two"):
        files.write_atomic(tmp_path / "a", data)
        assert files.read(tmp_path / "a") == data
    assert files.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename"])
def test_write_atomic_leaves_the_old_content_when_it_fails(operation: str, tmp_path: Path) -> None:
    files = FailingFiles()
    files.write_atomic(tmp_path / "a", b"old")
    files.fail(operation, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(tmp_path / "a", b"new")
    files.heal()
    assert files.read(tmp_path / "a") == b"old"
    assert files.listdir(tmp_path) == ["a"]


def test_a_lock_is_refused_while_it_is_held_and_names_its_holder(files: Files, tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text("1234567890\n")
    with files.lock(tmp_path / "LOCK") as lock:
        assert (tmp_path / "LOCK").read_text() == f"{os.getpid()}\n"
        with pytest.raises(LockedError, match=f"held by process {os.getpid()};") as caught:
            files.lock(tmp_path / "LOCK")
        assert (caught.value.pid, caught.value.path) == (os.getpid(), tmp_path / "LOCK")
    lock.close()
    files.lock(tmp_path / "LOCK").close()


def test_a_lock_ends_with_its_process(files: Files, tmp_path: Path) -> None:
    code = "import sys, pathlib; from storage.files import Files; lock = Files().lock(pathlib.Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "LOCK")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(LockedError) as caught:
            files.lock(tmp_path / "LOCK")
        assert caught.value.pid == holder.pid
        holder.kill()
        holder.wait()
        files.lock(tmp_path / "LOCK").close()


def test_a_lock_without_a_readable_holder_says_so(files: Files, tmp_path: Path) -> None:
    with files.lock(tmp_path / "LOCK"):
        (tmp_path / "LOCK").write_bytes(b"")
        with pytest.raises(LockedError, match="another process"):
            files.lock(tmp_path / "LOCK")


# The disk that forgets


def tree(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in sorted(root.rglob("*"))}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def a_file(files: Files, root: Path) -> AppendFile:
    """Its name and `one` are on disk."""
    file = files.create(root / "a")
    file.write([b"one"])
    file.sync()
    files.sync_dir(root)
    return file


def unsynced_data(files: Files, root: Path) -> None:
    with a_file(files, root) as file:
        file.write([b"two"])


def synced_data(files: Files, root: Path) -> None:
    with a_file(files, root) as file:
        file.write([b"two"])
        file.sync()
        file.write([b"three"])


def unsynced_name(files: Files, root: Path) -> None:
    a_file(files, root).close()
    write(files, root / "b", b"x")


def renamed(files: Files, root: Path) -> None:
    a_file(files, root).close()
    files.rename(root / "a", root / "b")


def renamed_and_synced(files: Files, root: Path) -> None:
    renamed(files, root)
    files.sync_dir(root)


def unlinked(files: Files, root: Path) -> None:
    a_file(files, root).close()
    files.unlink(root / "a")


def unlinked_and_synced(files: Files, root: Path) -> None:
    unlinked(files, root)
    files.sync_dir(root)


def linked(files: Files, root: Path) -> None:
    with a_file(files, root) as file:
        files.link(root / "a", root / "b")
        files.sync_dir(root)
        files.unlink(root / "a")
        file.write([b"two"])
        file.sync()


def cut(files: Files, root: Path) -> None:
    a_file(files, root).close()
    files.truncate(root / "a", 1)


def moved(files: Files, root: Path) -> None:
    a_file(files, root).close()
    files.mkdir(root / "x")
    files.rename(root / "a", root / "x" / "a")


def moved_and_source_synced(files: Files, root: Path) -> None:
    moved(files, root)
    files.sync_dir(root)


def directory_renamed(files: Files, root: Path) -> None:
    files.mkdir(root / "x" / "y")
    write(files, root / "x" / "y" / "a", b"one")
    files.sync_dir(root / "x" / "y")
    files.rename(root / "x", root / "z")
    files.sync_dir(root)


def atomic(files: Files, root: Path) -> None:
    files.write_atomic(root / "a", b"one")
    files.write_atomic(root / "a", b"two")


CUTS: list[tuple[Callable[[Files, Path], None], dict[str, bytes | None]]] = [
    (unsynced_data, {"a": b"one"}),
    (synced_data, {"a": b"onetwo"}),
    (unsynced_name, {"a": b"one"}),
    (renamed, {"a": b"one"}),
    (renamed_and_synced, {"b": b"one"}),
    (unlinked, {"a": b"one"}),
    (unlinked_and_synced, {}),
    (linked, {"a": b"onetwo", "b": b"onetwo"}),
    (cut, {"a": b"o"}),
    (moved, {"a": b"one", "x": None}),
    (moved_and_source_synced, {"x": None, "x/a": b"one"}),
    (directory_renamed, {"z": None, "z/y": None, "z/y/a": b"one"}),
    (atomic, {"a": b"two"}),
]


@pytest.mark.parametrize(("act", "expected"), CUTS, ids=[act.__name__ for act, _ in CUTS])
def test_a_power_cut_leaves_what_was_synced(
    act: Callable[[Files, Path], None], expected: dict[str, bytes | None], root: Path
) -> None:
    files = ForgetfulFiles(root)
    act(files, root)
    files.power_cut()
    assert tree(root) == expected
    files.power_cut()
    assert tree(root) == expected
    files.close()


def test_what_lay_there_before_is_on_disk(root: Path) -> None:
    (root / "x").mkdir()
    (root / "x" / "a").write_bytes(b"one")
    files = ForgetfulFiles(root)
    with files.append(root / "x" / "a") as file:
        file.write([b"two"])
    assert files.read(root / "x" / "a") == b"onetwo"
    files.power_cut()
    assert tree(root) == {"x": None, "x/a": b"one"}


def test_a_power_cut_ends_open_files_and_locks(root: Path) -> None:
    files = ForgetfulFiles(root)
    file = a_file(files, root)
    files.lock(root / "LOCK")
    files.power_cut()
    for call in (lambda: file.write([b"x"]), file.sync):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()
    files.lock(root / "LOCK").close()


def test_with_a_seed_unsynced_things_are_there_or_not(tmp_path: Path) -> None:
    """Never less than what was synced; now and then nothing more, all of it, a piece, and holes of whole sectors."""
    data = bytes(range(1, 256)) * 8
    seen = set()
    for seed in range(60):
        root = tmp_path / str(seed)
        root.mkdir()
        files = ForgetfulFiles(root, seed)
        with a_file(files, root) as file:
            file.write([data])
        write(files, root / "b")
        files.power_cut()
        content = (root / "a").read_bytes()
        assert content[:3] == b"one"
        rest = content[3:]
        holes = [i for i, byte in enumerate(rest) if not byte]
        assert all(byte in (0, data[i]) for i, byte in enumerate(rest))
        assert all((i + 3) % SECTOR_BYTES == 0 or i == 0 or i - 1 in holes for i in holes)
        whole = "all" if len(rest) == len(data) else "part" if rest else "none"
        seen |= {whole, "holes" if holes else "dense", f"b: {(root / 'b').exists()}"}
        files.close()
    assert seen == {"all", "part", "none", "holes", "dense", "b: True", "b: False"}


@given(
    steps=st.lists(st.tuples(st.sampled_from(["write", "sync", "name", "dir", "cut"]), st.integers(0, 2)), max_size=25),
    seed=st.none() | st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_synced_is_there_after_any_power_cut(
    steps: list[tuple[str, int]], seed: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("disk") / "root"
    root.mkdir()
    files = ForgetfulFiles(root, seed)
    open_files: dict[int, AppendFile] = {}
    synced = {0: b"", 1: b"", 2: b""}  # data
    named = set()
    for what, number in steps:
        path = root / str(number)
        if what == "cut":
            files.power_cut()
            open_files.clear()
            for n in named:
                assert (root / str(n)).read_bytes().startswith(synced[n])
            synced = {n: (root / str(n)).read_bytes() if (root / str(n)).exists() else b"" for n in synced}
            named = {n for n in synced if (root / str(n)).exists()}
        elif what == "name" and number not in open_files:
            open_files[number] = files.append(path) if files.exists(path) else files.create(path)
        elif what == "write" and number in open_files:
            open_files[number].write([os.urandom(700)])
        elif what == "sync" and number in open_files:
            open_files[number].sync()
            synced[number] = path.read_bytes()
        elif what == "dir":
            files.sync_dir(root)
            named |= {n for n in synced if files.exists(root / str(n))}
    files.power_cut()
    files.close()


# The disk that refuses


def test_the_nth_call_and_all_after_it_fail_until_healed(tmp_path: Path) -> None:
    files = FailingFiles()
    files.fail("sync_dir", errno.EIO, nth=3)
    files.sync_dir(tmp_path)
    files.sync_dir(tmp_path)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error") as caught:
            files.sync_dir(tmp_path)
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path))
    files.heal()
    files.sync_dir(tmp_path)
    assert files.calls == [("sync_dir", tmp_path)] * 5


def test_only_matching_paths_fail(tmp_path: Path) -> None:
    files = FailingFiles()
    fault = files.fail("create", errno.EROFS, path="*.wal")
    write(files, tmp_path / "a.seg", b"x")
    with pytest.raises(OSError, match="Read-only"):
        files.create(tmp_path / "a.wal")
    fault.stop()
    write(files, tmp_path / "a.wal", b"x")


def test_a_full_disk_takes_a_part_of_the_last_write(tmp_path: Path) -> None:
    files = FailingFiles()
    files.fail("write", errno.ENOSPC, after_bytes=8)
    with files.create(tmp_path / "a") as file:
        file.write([b"123", b"45"])
        with pytest.raises(OSError, match="No space"):
            file.write([b"67", b"89"])
        assert file.size == 8
        with pytest.raises(OSError, match="No space"):
            file.write([b"x"])
        files.heal()
        file.write([b"y"])
    assert files.read(tmp_path / "a") == b"12345678y"


def test_any_error_can_be_raised_at_a_call(tmp_path: Path) -> None:
    files = FailingFiles()
    files.fail("unlink", KeyboardInterrupt())
    write(files, tmp_path / "a", b"x")
    with pytest.raises(KeyboardInterrupt):
        files.unlink(tmp_path / "a")
    assert files.calls[-1] == ("unlink", tmp_path / "a")
    assert (tmp_path / "a").exists()


def calls(files: Files, root: Path) -> dict[str, Callable[[], object]]:
    """Every operation once, on what is there."""
    return {
        "create": lambda: files.create(root / "new"),
        "append": lambda: files.append(root / "a"),
        "map": lambda: files.map(root / "a"),
        "read": lambda: files.read(root / "a"),
        "rename": lambda: files.rename(root / "a", root / "new"),
        "link": lambda: files.link(root / "a", root / "new"),
        "unlink": lambda: files.unlink(root / "a"),
        "rmdir": lambda: files.rmdir(root / "x"),
        "listdir": lambda: files.listdir(root),
        "mkdir": lambda: files.mkdir(root / "new"),
        "sync_dir": lambda: files.sync_dir(root),
        "size": lambda: files.size(root / "a"),
        "exists": lambda: files.exists(root / "a"),
        "truncate": lambda: files.truncate(root / "a", 0),
        "free_bytes": lambda: files.free_bytes(root),
        "lock": lambda: files.lock(root / "new"),
    }


@pytest.mark.parametrize("operation", sorted(calls(Files(), Path())))
def test_every_call_can_fail_and_then_does_nothing(operation: str, root: Path) -> None:
    files = FailingFiles()
    write(files, root / "a", b"one")
    files.mkdir(root / "x")
    before = tree(root)
    files.fail(operation, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        calls(files, root)[operation]()
    assert tree(root) == before


def test_an_unknown_call_cannot_be_told_to_fail() -> None:
    with pytest.raises(ValueError, match="got operation 'fsync', expected one of append, create"):
        FailingFiles().fail("fsync", errno.EIO)


def test_a_failing_disk_can_forget_too(root: Path) -> None:
    forgetful = ForgetfulFiles(root)
    files = FailingFiles(forgetful)
    file = a_file(files, root)
    files.fail("sync", errno.EIO)
    file.write([b"two"])
    with pytest.raises(OSError, match="Input/output"):
        file.sync()
    forgetful.power_cut()
    assert tree(root) == {"a": b"one"}
