"""What a start finds in a data directory: whose it is, of which version, how it was left, and which WAL files count.

Everything that speaks against a directory is found before anything in it is touched.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from storage.files import Files, Lock, LockedError
from storage.format import DATA_VERSION, KIND_CHECKPOINT, VERSION_TEXT, CorruptError, StorageError, TooNewError
from storage.segments import QUARANTINE_DIR, SEGMENTS_DIR, WAL_DIR, WAL_SUFFIX, names_in, numbered, set_aside
from storage.wal_frames import iter_frames
from storage.wal_reader import WalFile

VERSION: Final = "VERSION"
LOCK: Final = "LOCK"
CLEAN: Final = "CLEAN"
SNAPSHOTS_DIR: Final = "snapshots"
NOT_CONTENT: Final = frozenset(
    {LOCK, "VERSION.tmp", "lost+found"}
)  # what a directory may hold that is as good as empty
MOST_VERSION_BYTES: Final = 64
LOCK_TRIES: Final = 50
LOCK_REST_S: Final = 0.1

_VERSION = re.compile(rb"collectord data ([1-9][0-9]{0,8})\n?")
_BEFORE_RESTORE = re.compile(r"before-restore-\d+")


class ForeignDirectoryError(StorageError):
    """A directory with something else in it."""


class BadVersionError(StorageError):
    """A VERSION that says nothing."""


class UnusableDirectoryError(StorageError):
    """A directory that the operating system does not let us use."""


@dataclass(slots=True)
class Recovered:
    """What a start found."""

    fresh: bool = True
    unclean: bool = False
    wal_files: int = 0
    wal_samples: int = 0  # at most: with the cells of rows that hold none
    wal_bytes: int = 0
    torn_bytes: int = 0
    lost_samples: int = 0
    damage: list[CorruptError] = field(default_factory=list)


class DataDir:
    """A data directory, locked for this process. `fresh`: there was nothing; `was_clean`: it was left in order."""

    def __init__(self, files: Files, directory: Path, lock: Lock, *, fresh: bool, was_clean: bool) -> None:
        self.directory = directory
        self.lock = lock
        self.fresh = fresh
        self.was_clean = was_clean
        self._files = files

    @property
    def newest_wal(self) -> Path | None:
        """The WAL file with the greatest number, the one that was written last."""
        return next(reversed(self._wal().values()), None)

    def wal_files(self, wal_done: int) -> list[Path]:
        """The WAL files with samples that are in no segment, oldest first. Of the others those that nothing needs are removed.

        Raises TooNewError for a file of a later version.
        """
        for path in unneeded_wal(self._files, self.directory, wal_done):
            with suppress(OSError):  # it does not count, and the next start tries again
                self._files.unlink(path)
        return [path for number, path in self._wal().items() if number > wal_done]

    def older_wal_files(self, wal_done: int) -> list[Path]:
        """Those whose samples are all in segments, oldest first: they say what had been received, and nothing else."""
        return [path for number, path in self._wal().items() if number <= wal_done]

    def _wal(self) -> dict[int, Path]:
        return numbered(self._files, self.directory / WAL_DIR, WAL_SUFFIX)

    def cut_tail(self, path: Path, wal: WalFile) -> int:
        """Cuts what of the newest WAL file is torn; returns how many bytes. Of any other file it cuts nothing."""
        if not wal.torn_bytes or path != self.newest_wal:
            return 0
        self._files.truncate(path, wal.valid_bytes)
        return wal.torn_bytes

    def quarantine(self, path: Path) -> Path:
        """Moves a damaged file away; returns where it lies now."""
        return set_aside(self._files, self.directory, path)

    def close(self, *, clean: bool) -> None:
        """Lets go of the directory; `clean`: all that was taken is on disk. Twice is fine."""
        try:
            if clean:
                with suppress(OSError):  # then the next start has a little more to say, and no less to find
                    self._files.write_atomic(self.directory / CLEAN, b"clean\n")
        finally:
            self.lock.close()


def unneeded_wal(files: Files, directory: Path, wal_done: int) -> list[Path]:
    """The WAL files of a data directory whose samples are in segments, and which are older than a checkpoint.

    The one with the newest checkpoint and all after it stay: they alone say what had been received. (The newest file may have
    none yet, or never get one: it is made before its first frame is written.)
    """
    found = numbered(files, directory / WAL_DIR, WAL_SUFFIX)
    checkpoint = next((number for number in reversed(found) if _has_checkpoint(files, found[number])), 0)
    return [path for number, path in found.items() if number <= wal_done and number < checkpoint]


def _has_checkpoint(files: Files, path: Path) -> bool:
    try:
        return any(frame.kind == KIND_CHECKPOINT for frame, _ in iter_frames(files, path))
    except (CorruptError, OSError):
        return False


def open_data_dir(files: Files, directory: Path) -> DataDir:
    """Makes the directory if need be, checks and locks it.

    Raises TooNewError, BadVersionError, ForeignDirectoryError (nothing was touched then), LockedError (somebody else has it),
    UnusableDirectoryError (read-only, no right, no directory ...).
    """
    try:
        check_version(files, directory)
        files.mkdir(directory)
        lock = _locked(files, directory / LOCK)
    except OSError as error:
        raise unusable(directory, error) from error
    try:
        return _prepare(files, directory, lock)
    except BaseException as error:
        lock.close()
        if isinstance(error, OSError):
            raise unusable(directory, error) from error
        raise


def _locked(files: Files, path: Path) -> Lock:
    """Of a daemon that was killed something may still be running for a moment: it is waited for."""
    for _ in range(LOCK_TRIES):
        try:
            return files.lock(path)
        except LockedError as error:
            if error.pid is None or _is_alive(error.pid):
                raise
        threading.Event().wait(LOCK_REST_S)
    return files.lock(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        pass
    return True


def _prepare(files: Files, directory: Path, lock: Lock) -> DataDir:
    fresh = check_version(files, directory) is None  # once more: until now others could have written here
    if fresh:
        # First of all: without it the directories made below would be taken for somebody else's.
        files.write_atomic(directory / VERSION, VERSION_TEXT.format(DATA_VERSION).encode())
    for name in (WAL_DIR, SEGMENTS_DIR, QUARANTINE_DIR, SNAPSHOTS_DIR):
        files.mkdir(directory / name)
    was_clean = files.exists(directory / CLEAN)
    if was_clean:
        files.unlink(directory / CLEAN)
        files.sync_dir(directory)
    return DataDir(files, directory, lock, fresh=fresh, was_clean=was_clean)


def check_version(files: Files, directory: Path) -> int | None:
    """The version of a data directory, None of one that is empty or absent. Touches nothing.

    Raises TooNewError, BadVersionError, and ForeignDirectoryError where there is something, but no VERSION.
    """
    path = directory / VERSION
    try:
        text = files.read(path, 0, MOST_VERSION_BYTES)
    except FileNotFoundError:
        _refuse_foreign(directory, set(names_in(files, directory)) - NOT_CONTENT)
        return None
    match = _VERSION.fullmatch(text)
    if match is None:
        raise BadVersionError(
            f"{path}: got {text[:40]!r}, expected {VERSION_TEXT.format(DATA_VERSION)!r}; restore a snapshot, or write that line"
            " if the files beside it are a collectord's"
        )
    version = int(match[1])
    if version > DATA_VERSION:
        raise TooNewError(
            f"{path}: got version {version}, this collectord knows up to {DATA_VERSION}; run the later collectord that wrote "
            "it, or name another directory; nothing was touched"
        )
    return version


def _refuse_foreign(directory: Path, names: set[str]) -> None:
    if not names:
        return
    if SNAPSHOTS_DIR in names and any(_BEFORE_RESTORE.fullmatch(name) for name in names):
        raise ForeignDirectoryError(
            f"{directory}: a restore was cut short here; run `collectord snapshot restore` again, or move what lies in the "
            "last before-restore folder back"
        )
    some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    raise ForeignDirectoryError(
        f"{directory}: holds {some} and no VERSION, so it is no data directory; name an empty or a new one"
    )


def unusable(directory: Path, error: OSError) -> UnusableDirectoryError:
    """The named error for what the operating system said."""
    what = error.filename or directory
    return UnusableDirectoryError(
        f"{directory}: cannot be used as a data directory: {error.strerror or error} ({what}); make it writable for this user, "
        "or name another directory"
    )
