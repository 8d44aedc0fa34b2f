"""Snapshots: hard links, taken while the daemon runs and without its help; verified, restored, deleted.

Why a snapshot holds everything that was acknowledged before it began: WAL files are linked before segments, and a WAL file is
only removed once segments with its samples are there. Segments are linked until a listing afterwards is the same as
before: then no merge, flush or removal took place in between.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from storage.files import Files, LockedError
from storage.format import CorruptError, StorageError
from storage.recovery import CLEAN, LOCK, NOT_CONTENT, SNAPSHOTS_DIR, VERSION, check_version
from storage.segment_reader import Segment
from storage.segments import (
    QUARANTINE_DIR,
    SEGMENT_SUFFIX,
    SEGMENTS_DIR,
    TMP_SUFFIX,
    WAL_DIR,
    WAL_SUFFIX,
    names_in,
    numbered,
)
from storage.wal_reader import read_wal

CREATED: Final = "CREATED"  # text: Unix ms, by the clock of whoever made the snapshot
SNAPSHOTS_LOCK: Final = ".lock"  # one command at a time; the daemon does not take it
MOST_TRIES: Final = 200  # a daemon changes its files every few seconds at most, and linking takes some milliseconds
PIECE_BYTES: Final = 4 << 20  # copied at once

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_ASIDE = re.compile(r"before-restore-(\d+)")

Progress = Callable[[int, int], None]
"""Called with how much is done, and how much there is to do."""


class SnapshotError(StorageError):
    """A snapshot that cannot be made, found, restored or deleted; the text says what to do."""


class BadNameError(SnapshotError):
    """No snapshot can have this name."""


def _silent(_done: int, _all: int) -> None: ...


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One snapshot. `size_bytes`: of its files, also where they are shared with the data directory. `created_ms`: if known."""

    name: str
    path: Path
    created_ms: int | None
    segments: int
    wal_files: int
    size_bytes: int


@dataclass(slots=True)
class Verified:
    """What a look at every byte found. `torn_bytes` were promised to nobody and are no fault."""

    segments: int = 0
    wal_files: int = 0
    samples: int = 0
    size_bytes: int = 0
    torn_bytes: int = 0
    lost_samples: int = 0
    damaged: list[CorruptError] = field(default_factory=list)


def default_name(now_ms: int) -> str:
    """The time in UTC, as a name: 2024-01-31T10-15-00Z."""
    return datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m-%dT%H-%M-%SZ")


def check_name(name: str) -> str:
    """The name itself. Raises BadNameError where it is none."""
    if not _NAME.fullmatch(name) or name.endswith(TMP_SUFFIX):
        raise BadNameError(
            f"got {name!r} for a snapshot's name, expected 1 to 64 letters, digits, dots, dashes and underscores, "
            f"with no dot at the beginning and no {TMP_SUFFIX} at the end"
        )
    return name


def create(files: Files, data_dir: Path, name: str, now_ms: int, progress: Progress = _silent) -> SnapshotInfo:
    """Everything that was acknowledged before this call, under a name. Takes no more room than the newest WAL file."""
    check_name(name)
    _require_data(files, data_dir)
    folder = data_dir / SNAPSHOTS_DIR
    with _explained(f"cannot make snapshot {name} of {data_dir}"), _alone(files, folder):
        for leftover in names_in(files, folder):
            if leftover.endswith(TMP_SUFFIX):  # of a command that was killed
                _remove_tree(files, folder / leftover)
        if files.exists(folder / name):
            raise SnapshotError(f"{folder / name} is there already; choose another name, or delete that snapshot first")
        unfinished = folder / (name + TMP_SUFFIX)
        try:
            _fill(files, data_dir, unfinished, now_ms, progress)
            files.rename(unfinished, folder / name)
        except BaseException:
            with suppress(OSError):
                _remove_tree(files, unfinished)
            raise
        files.sync_dir(folder)
        return _describe(files, folder / name)


def _fill(files: Files, data_dir: Path, to: Path, now_ms: int, progress: Progress) -> None:
    for name in (WAL_DIR, SEGMENTS_DIR):
        files.mkdir(to / name)
    _until_still(lambda: _take_wal(files, data_dir / WAL_DIR, to / WAL_DIR), data_dir)
    _until_still(lambda: _take_segments(files, data_dir / SEGMENTS_DIR, to / SEGMENTS_DIR, progress), data_dir)
    for name in (WAL_DIR, SEGMENTS_DIR):
        files.sync_dir(to / name)
    files.write_atomic(to / CREATED, f"{now_ms}\n".encode())
    files.write_atomic(to / VERSION, files.read(data_dir / VERSION))


def _until_still(take: Callable[[], bool], data_dir: Path) -> None:
    """Again and again, until nothing vanished or came meanwhile."""
    for _ in range(MOST_TRIES):
        with suppress(FileNotFoundError):
            if take():
                return
    raise SnapshotError(
        f"{data_dir}: its files changed {MOST_TRIES} times while they were linked; try again, and if it stays so, "
        "stop the daemon for it"
    )


def _take_wal(files: Files, source: Path, to: Path) -> bool:
    for name in names_in(files, to):
        files.unlink(to / name)
    paths = list(numbered(files, source, WAL_SUFFIX).values())
    for path in paths[:-1]:
        files.link(path, to / path.name)
    for path in paths[-1:]:  # still written, and cut after a crash: not to be shared
        _copy(files, path, to / path.name)
    return True


def _take_segments(files: Files, source: Path, to: Path, progress: Progress) -> bool:
    names = {path.name for path in numbered(files, source, SEGMENT_SUFFIX).values()}
    taken = set(names_in(files, to))
    for name in taken - names:
        files.unlink(to / name)
    for done, name in enumerate(sorted(names - taken)):
        files.link(source / name, to / name)
        progress(done + 1, len(names))
    return names == {path.name for path in numbered(files, source, SEGMENT_SUFFIX).values()}


def _copy(files: Files, source: Path, to: Path) -> None:
    """As much as the file has now. Read and not mapped: whoever starts a daemon meanwhile may cut it."""
    left = files.size(source)
    with files.create(to) as copy:
        while left and (piece := files.read(source, copy.size, min(left, PIECE_BYTES))):
            copy.write([piece])
            left -= len(piece)
        copy.sync()


def snapshots(files: Files, data_dir: Path) -> list[SnapshotInfo]:
    """All snapshots of a data directory, by name."""
    _require_data(files, data_dir)
    folder = data_dir / SNAPSHOTS_DIR
    with _explained(f"cannot list the snapshots of {data_dir}"):
        names = [n for n in names_in(files, folder) if _NAME.fullmatch(n) and not n.endswith(TMP_SUFFIX)]
        return [_describe(files, folder / name) for name in names]


def _describe(files: Files, path: Path) -> SnapshotInfo:
    wal = numbered(files, path / WAL_DIR, WAL_SUFFIX)
    segments = numbered(files, path / SEGMENTS_DIR, SEGMENT_SUFFIX)
    try:
        created_ms: int | None = int(files.read(path / CREATED, 0, 32))
    except (OSError, ValueError):
        created_ms = None  # copied by hand, perhaps; no reason not to show it
    size_bytes = sum(files.size(file) for file in (*wal.values(), *segments.values()))
    return SnapshotInfo(path.name, path, created_ms, len(segments), len(wal), size_bytes)


def verify(files: Files, root: Path, progress: Progress = _silent) -> Verified:
    """Every block of every segment and every frame of every WAL file of a snapshot or data directory. `progress`: in bytes.

    Needs no lock: what a running daemon removes meanwhile is passed over. Raises TooNewError for a file of a later version.
    """
    _require_data(files, root)
    found = Verified()
    segments = numbered(files, root / SEGMENTS_DIR, SEGMENT_SUFFIX).values()
    wal = numbered(files, root / WAL_DIR, WAL_SUFFIX).values()
    with _explained(f"cannot verify {root}"):
        sizes = {path: size for path in (*segments, *wal) if (size := _size_if_there(files, path)) is not None}
        whole = sum(sizes.values())
        for path, size_bytes in sizes.items():
            _verify_file(files, path, size_bytes, found, _shifted(progress, found.size_bytes, whole))
            found.size_bytes += size_bytes
            progress(found.size_bytes, whole)
    return found


def _size_if_there(files: Files, path: Path) -> int | None:
    try:
        return files.size(path)
    except FileNotFoundError:
        return None


def _shifted(progress: Progress, before: int, whole: int) -> Progress:
    return lambda part, _of: progress(before + part, whole)


def _verify_file(files: Files, path: Path, size_bytes: int, found: Verified, progress: Progress) -> None:
    try:
        if path.suffix == SEGMENT_SUFFIX:
            _verify_segment(files, path, found, progress)
        else:
            _verify_wal(files, path, found)
    except CorruptError as error:
        found.damaged.append(error)
    except FileNotFoundError:
        pass  # flushed, merged or expired meanwhile
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        found.damaged.append(CorruptError(path, 0, size_bytes, f"cannot be read: {error.strerror}"))


def _verify_segment(files: Files, path: Path, found: Verified, progress: Progress) -> None:
    segment = Segment.open(files, path)
    found.segments += 1
    try:
        segment.verify(progress)
        found.samples += segment.info.samples
    finally:
        segment.close()


def _verify_wal(files: Files, path: Path, found: Verified) -> None:
    wal = read_wal(files, path)
    found.wal_files += 1
    found.samples += wal.samples
    found.torn_bytes += wal.torn_bytes
    found.lost_samples += wal.lost_samples
    found.damaged += wal.losses


def restore(
    files: Files, data_dir: Path, name: str, target: Path | None = None, progress: Progress = _silent
) -> Path | None:
    """A snapshot's files, by hard links where that is possible, as a data directory to start from. The snapshot stays.

    `target`: an empty or absent directory. None: the data directory itself, which no daemon may be using; what is in it is
    moved into `before-restore-<n>`, which is returned.
    """
    source = path_of(files, data_dir, name)
    with _explained(f"cannot restore snapshot {name}"), _alone(files, source.parent):
        if target is not None:
            _restore_into(files, source, target, progress)
            return None
        with _locked(files, data_dir, "stop the daemon first, or restore elsewhere with --to DIR"):
            return _restore_here(files, source, data_dir, progress)


def _restore_into(files: Files, source: Path, target: Path, progress: Progress) -> None:
    _refuse_content(files, target)
    files.mkdir(target)
    with _locked(files, target, "name another directory"):
        _refuse_content(files, target)  # once more: until now a daemon could have begun here
        _put(files, source, target, progress)


def _refuse_content(files: Files, target: Path) -> None:
    content = sorted(set(names_in(files, target)) - NOT_CONTENT)
    if content:
        raise SnapshotError(f"{target} holds {content[0]}, expected an empty or no directory; name another one")


def _restore_here(files: Files, source: Path, data_dir: Path, progress: Progress) -> Path | None:
    # VERSION goes first and comes last: a daemon does not start on what was left half done.
    content = [n for n in (VERSION, CLEAN, WAL_DIR, SEGMENTS_DIR, QUARANTINE_DIR) if files.exists(data_dir / n)]
    numbers = [int(match[1]) for name in names_in(files, data_dir) if (match := _ASIDE.fullmatch(name))]
    aside = data_dir / f"before-restore-{1 + max(numbers, default=0)}"
    moved: list[str] = []
    files.mkdir(aside)
    try:
        for name in content:
            files.rename(data_dir / name, aside / name)
            moved.append(name)
            files.sync_dir(data_dir)
        files.sync_dir(aside)
        _put(files, source, data_dir, progress)
    except BaseException:
        for name in reversed(moved):
            files.rename(aside / name, data_dir / name)
        files.rmdir(aside)
        raise
    return aside


def _put(files: Files, source: Path, to: Path, progress: Progress) -> None:
    """Makes VERSION, wal/ and segments/, of which there is none so far; all or nothing."""
    wal = list(numbered(files, source / WAL_DIR, WAL_SUFFIX).values())
    segments = list(numbered(files, source / SEGMENTS_DIR, SEGMENT_SUFFIX).values())
    try:
        for name in (WAL_DIR, SEGMENTS_DIR):
            files.mkdir(to / name)
        for done, path in enumerate((*wal, *segments)):
            at = to / path.parent.name / path.name
            if path in wal[-1:]:  # a start may cut it, and the snapshot stays as it is
                _copy(files, path, at)
            else:
                _link_or_copy(files, path, at)
            progress(done + 1, len(wal) + len(segments))
        for name in (WAL_DIR, SEGMENTS_DIR):
            files.sync_dir(to / name)
        files.write_atomic(to / VERSION, files.read(source / VERSION))
    except BaseException:
        for name in (WAL_DIR, SEGMENTS_DIR):
            with suppress(OSError):
                _remove_tree(files, to / name)
        raise


def _link_or_copy(files: Files, source: Path, to: Path) -> None:
    try:
        files.link(source, to)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        _copy(files, source, to)


def delete(files: Files, data_dir: Path, name: str) -> None:
    """Removes a snapshot, and with it the files that nothing else needs."""
    path = path_of(files, data_dir, name)
    with _explained(f"cannot delete snapshot {name}"), _alone(files, path.parent):
        unwanted = path.with_name(name + TMP_SUFFIX)  # so that it is never there by half
        files.rename(path, unwanted)
        files.sync_dir(path.parent)
        _remove_tree(files, unwanted)


def _remove_tree(files: Files, directory: Path) -> None:
    if not files.exists(directory):
        return
    for name in files.listdir(directory):
        path = directory / name
        if path.is_dir():
            _remove_tree(files, path)
        else:
            files.unlink(path)
    files.rmdir(directory)


def _require_data(files: Files, root: Path) -> None:
    with _explained(f"cannot read {root}"):
        if check_version(files, root) is None:
            raise SnapshotError(f"{root}: no data directory; name the daemon's with --data-dir")


def path_of(files: Files, data_dir: Path, name: str) -> Path:
    """Where a snapshot lies. Raises SnapshotError when there is none of that name, TooNewError when it is a later version's."""
    path = data_dir / SNAPSHOTS_DIR / check_name(name)
    with _explained(f"cannot read {path}"):
        if not files.exists(path / VERSION):
            known = [n for n in names_in(files, path.parent) if files.exists(path.parent / n / VERSION)]
            expected = (
                f"expected one of {', '.join(known)}" if known else "there are none yet; is it the right --data-dir?"
            )
            raise SnapshotError(f"{path}: no such snapshot; got {name!r}, {expected}")
        check_version(files, path)
    return path


@contextmanager
def _alone(files: Files, folder: Path) -> Iterator[None]:
    """Nobody else makes, restores or deletes snapshots meanwhile."""
    files.mkdir(folder)
    try:
        lock = files.lock(folder / SNAPSHOTS_LOCK)
    except LockedError as error:
        raise SnapshotError(
            f"{error.path.parent}: process {error.pid} is at work there; wait until it is done"
        ) from error
    with lock:
        yield


@contextmanager
def _locked(files: Files, directory: Path, advice: str) -> Iterator[None]:
    try:
        lock = files.lock(directory / LOCK)
    except LockedError as error:
        raise SnapshotError(f"{directory}: in use by process {error.pid}; {advice}") from error
    with lock:
        yield


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """What the operating system says, with what to do about it."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "free some space, or delete a snapshot",
            errno.EACCES: "run it as the daemon's user",
            errno.EPERM: "run it as the daemon's user, on a file system with hard links",
            errno.EROFS: "make the file system writable",
        }.get(error.errno or 0, "see whether the disk is well")
        raise SnapshotError(f"{what}: {error.strerror or error} ({error.filename}); {advice}") from error
