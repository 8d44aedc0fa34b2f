"""The operating system as far as the store uses it: one class, so that tests can put a failing disk in its place."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import numpy.typing as npt

from storage.format import StorageError

Buffer = bytes | bytearray | memoryview | npt.NDArray[Any]
"""What can be written: contiguous bytes of any item type."""

MOST_BUFFERS: Final = 1024  # of one writev: IOV_MAX of Linux
PROBE_BYTES: Final = 1 << 18  # stays in a core's cache
PID_BYTES: Final = 32  # more than a process id and a line end take


class LockedError(StorageError):
    """Somebody else holds the lock. `pid`: who, as far as the file says."""

    def __init__(self, path: Path, pid: int | None) -> None:
        holder = "another process" if pid is None else f"process {pid}"
        super().__init__(f"{path}: held by {holder}; stop it, or use another directory")
        self.path = path
        self.pid = pid


class _Opened:
    """A descriptor that is given back once."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor, -1 when it is given back."""
        return self._descriptor

    def close(self) -> None:
        """Give the descriptor back; twice is fine."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AppendFile(_Opened):
    """A file that only grows. Not for two threads at once. What `write` returned from is on disk after the next `sync`."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int) -> None:
        super().__init__(path, descriptor)
        self.size = size_bytes

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append all of the buffers, one after the other. OSError: any part of them may have been written."""
        views = [view.cast("B") for buffer in buffers if (view := memoryview(cast("bytes", buffer))).nbytes]
        while views:
            written = self._put(views[:MOST_BUFFERS])
            if not written:
                raise OSError(errno.EIO, "nothing was written", str(self.path))
            self.size += written
            whole = 0
            while whole < len(views) and written >= len(views[whole]):
                written -= len(views[whole])
                whole += 1
            views = views[whole:]
            if written:
                views[0] = views[0][written:]

    def _put(self, views: Sequence[memoryview]) -> int:
        """One system call; returns how many bytes it took."""
        return os.writev(self._descriptor, views)

    def sync(self) -> None:
        """Wait until all that was written is on disk. OSError: it may not be, and trying again proves nothing."""
        if self._descriptor < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), str(self.path))
        os.fdatasync(self._descriptor)


class Lock(_Opened):
    """An flock(2) that this process holds; the kernel lets go of it when the process ends, however it ends.

    The file stays, for another process may be waiting at it.
    """


class Files:
    """The real one. What fails raises the operating system's OSError. A name is durable after `sync_dir` of its directory."""

    def create(self, path: Path) -> AppendFile:
        """A new, empty file. FileExistsError when there is one: nothing is ever overwritten."""
        return AppendFile(
            path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640), 0
        )

    def append(self, path: Path) -> AppendFile:
        """An existing file, to be gone on with at its end."""
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            return AppendFile(path, descriptor, os.fstat(descriptor).st_size)
        except BaseException:
            os.close(descriptor)
            raise

    def map(self, path: Path, *, probe: bool = False) -> memoryview:
        """The file's bytes, read-only, fetched when they are touched. They outlive the file's name; it must not be cut.

        A sector that cannot be read is a SIGBUS when it is touched. With `probe` everything is read once before, at some
        10 GB/s from memory, so that it is an OSError here.
        """
        with open(path, "rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if not size_bytes:
                return memoryview(b"")
            if probe:
                piece = bytearray(PROBE_BYTES)
                while file.readinto(piece):
                    pass
            return memoryview(mmap.mmap(file.fileno(), size_bytes, mmap.MAP_SHARED, mmap.PROT_READ))

    def read(self, path: Path, offset_bytes: int = 0, size_bytes: int = -1) -> bytes:
        """A copy of the file's bytes from an offset on: all, or at most so many."""
        with open(path, "rb", buffering=0) as file:
            file.seek(offset_bytes)
            if size_bytes < 0:
                return file.readall()
            return file.read(size_bytes)

    def write_atomic(self, path: Path, data: Buffer) -> None:
        """Durably the new content or, whatever happens meanwhile, the old."""
        temporary = path.with_name(path.name + ".tmp")
        self.unlink(temporary, missing_ok=True)
        try:
            with self.create(temporary) as file:
                file.write([data])
                file.sync()
            self.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                self.unlink(temporary, missing_ok=True)
            raise
        self.sync_dir(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        """Atomically; a file at `target` is replaced."""
        os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        """A second name of the same file."""
        os.link(source, target)

    def unlink(self, path: Path, missing_ok: bool = False) -> None:
        """Remove a file's name."""
        path.unlink(missing_ok)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def listdir(self, path: Path) -> list[str]:
        """Names in a directory, sorted."""
        return sorted(os.listdir(path))

    def mkdir(self, path: Path) -> None:
        """A directory and those above it, durably; one that is there is fine."""
        if path.is_dir():
            return
        if path.parent != path:
            self.mkdir(path.parent)
        self._mkdir(path)
        self.sync_dir(path.parent)

    def _mkdir(self, path: Path) -> None:
        path.mkdir(0o750, exist_ok=True)

    def sync_dir(self, path: Path) -> None:
        """Wait until the names in a directory are on disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def size(self, path: Path) -> int:
        """Bytes of a file."""
        return path.stat().st_size

    def exists(self, path: Path) -> bool:
        """Whether there is something of this name."""
        return path.exists()

    def truncate(self, path: Path, size_bytes: int) -> None:
        """Cut a file, durably. REQUIRES: nobody has it mapped beyond that."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged process may still take of the file system."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def lock(self, path: Path) -> Lock:
        """Hold the file, made if need be, with this process's id in it. LockedError at once when another does."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, PID_BYTES, 0).strip()
            os.close(descriptor)
            raise LockedError(path, int(text) if text.isdigit() else None) from None
        except BaseException:
            os.close(descriptor)
            raise
        # The lock is the flock; the text is for people, so a full disk does not keep its holder from starting.
        with suppress(OSError):
            os.ftruncate(descriptor, os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0))
        return Lock(path, descriptor)
