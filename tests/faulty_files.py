"""Disks that fail: one that forgets what was not synced, and one that refuses."""

from __future__ import annotations

import fnmatch
import os
import random
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storage.files import AppendFile, Buffer, Files, Lock

SECTOR_BYTES = 512


@dataclass(slots=True, eq=False)
class Inode:
    """A file or directory, whatever its names are. Of a file the content lies in `kept`, a hard link."""

    kept: Path | None = None
    synced_bytes: int = 0
    live: dict[str, Inode] = field(default_factory=dict)  # of a directory: names as programs see them
    synced: dict[str, Inode] = field(default_factory=dict)  # and as they are on disk


Edit = tuple[Inode, str, Inode | None]
"""In this directory, this name is from now on that; None: gone."""


class ForgetfulFiles(Files):
    """A directory in which nothing is on disk before it was synced; `power_cut` leaves what is.

    Data of a file by its `sync`, names by `sync_dir` of their directory, a rename between two directories by either's. With a
    seed, unsynced names may have got to the disk all the same (in the order of the calls), and of unsynced data any
    sectors, others as zeros, or none. Without: nothing that was not synced is left.
    """

    def __init__(self, root: Path, seed: int | None = None) -> None:
        self.root = root
        self._random = random.Random(seed) if seed is not None else None
        self._kept = root.with_name(root.name + ".kept")
        self._kept.mkdir()
        self._kept_files = 0
        self._pending: list[list[Edit]] = []
        self._open: list[_ForgetfulFile] = []
        self._locks: list[Lock] = []
        self._guard = threading.RLock()
        self._top = self._found(root)

    def close(self) -> None:
        """Remove what keeps unlinked content."""
        shutil.rmtree(self._kept)

    def power_cut(self) -> None:
        """What is on disk, and nothing else, is in the directory. Open files and locks are gone."""
        for file in self._open:
            file.close()
        for lock in self._locks:
            lock.close()
        edits = self._random.randrange(len(self._pending) + 1) if self._random is not None else 0
        for edit in self._pending[:edits]:
            self._apply(edit)
        self._pending, self._open, self._locks = [], [], []
        contents = self._on_disk(self._top, self.root, {})
        for entry in self.root.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for path, content in contents:
            path.mkdir() if content is None else path.write_bytes(content)
        shutil.rmtree(self._kept)
        self._kept.mkdir()
        self._top = self._found(self.root)

    def _on_disk(self, directory: Inode, at: Path, remains: dict[Path, bytes]) -> list[tuple[Path, bytes | None]]:
        """Paths and contents, None for a directory, which comes before what is in it. Two names of a file agree."""
        found: list[tuple[Path, bytes | None]] = []
        for name, inode in sorted(directory.synced.items()):
            if inode.kept is None:
                found += [(at / name, None), *self._on_disk(inode, at / name, remains)]
            else:
                if inode.kept not in remains:
                    remains[inode.kept] = self._remains(inode.kept.read_bytes(), inode.synced_bytes)
                found.append((at / name, remains[inode.kept]))
        return found

    def _remains(self, content: bytes, synced_bytes: int) -> bytes:
        rest = content[synced_bytes:]
        if self._random is None or not rest:
            return content[:synced_bytes]
        rest = rest[: self._random.choice([0, self._random.randrange(len(rest)), len(rest)])]
        sectors = bytearray(rest)
        if self._random.random() < 0.5:  # the size got to the disk before the data did
            edge = -synced_bytes % SECTOR_BYTES
            for first in [0, *range(edge, len(rest), SECTOR_BYTES)]:
                if self._random.random() < 0.5:
                    end = min(edge if first < edge else first + SECTOR_BYTES, len(rest))
                    sectors[first:end] = bytes(end - first)
        return content[:synced_bytes] + bytes(sectors)

    def _found(self, path: Path) -> Inode:
        """What lies in the directory already is on disk."""
        if not path.is_dir():
            inode = self._keep(path)
            inode.synced_bytes = path.stat().st_size
            return inode
        inode = Inode(live={entry.name: self._found(entry) for entry in path.iterdir()})
        inode.synced = dict(inode.live)
        return inode

    def _keep(self, path: Path) -> Inode:
        self._kept_files += 1
        inode = Inode(kept=self._kept / str(self._kept_files))
        assert inode.kept is not None
        os.link(path, inode.kept)
        return inode

    def _at(self, path: Path) -> Inode:
        inode = self._top
        for name in path.relative_to(self.root).parts:
            inode = inode.live[name]
        return inode

    def _edit(self, *edits: tuple[Path, Inode | None]) -> None:
        """Change names as programs see them; on disk they change later, all of these together."""
        with self._guard:
            noted: list[Edit] = [(self._at(path.parent), path.name, inode) for path, inode in edits]
            for directory, name, inode in noted:
                if inode is None:
                    directory.live.pop(name)
                else:
                    directory.live[name] = inode
            self._pending.append(noted)

    @staticmethod
    def _apply(edits: Sequence[Edit]) -> None:
        for directory, name, inode in edits:
            if inode is None:
                directory.synced.pop(name, None)
            else:
                directory.synced[name] = inode

    def create(self, path: Path) -> AppendFile:
        super().create(path).close()
        inode = self._keep(path)
        self._edit((path, inode))
        return self._opened(path, inode)

    def append(self, path: Path) -> AppendFile:
        return self._opened(path, self._at(path))

    def _opened(self, path: Path, inode: Inode) -> AppendFile:
        file = _ForgetfulFile(path, os.open(path, os.O_WRONLY | os.O_APPEND), self.size(path), inode)
        self._open.append(file)
        return file

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._edit((target, self._at(source)), (source, None))

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        self._edit((target, self._at(source)))

    def unlink(self, path: Path, missing_ok: bool = False) -> None:
        there = self.exists(path)
        super().unlink(path, missing_ok)
        if there:
            self._edit((path, None))

    def rmdir(self, path: Path) -> None:
        super().rmdir(path)
        self._edit((path, None))

    def _mkdir(self, path: Path) -> None:
        super()._mkdir(path)
        self._edit((path, Inode()))

    def sync_dir(self, path: Path) -> None:
        if not path.is_relative_to(self.root):
            return
        with self._guard:
            directory = self._at(path)
            for edits in self._pending:
                if any(edit[0] is directory for edit in edits):
                    self._apply(edits)
            self._pending = [edits for edits in self._pending if all(edit[0] is not directory for edit in edits)]

    def truncate(self, path: Path, size_bytes: int) -> None:
        super().truncate(path, size_bytes)
        self._at(path).synced_bytes = size_bytes

    def lock(self, path: Path) -> Lock:
        there = self.exists(path)
        lock = super().lock(path)
        self._locks.append(lock)
        if not there:
            self._edit((path, self._keep(path)))
        return lock


class _ForgetfulFile(AppendFile):
    def __init__(self, path: Path, descriptor: int, size_bytes: int, inode: Inode) -> None:
        super().__init__(path, descriptor, size_bytes)
        self._inode = inode

    def sync(self) -> None:
        os.fstat(self._descriptor)  # EBADF when it is closed
        self._inode.synced_bytes = self.size


@dataclass(slots=True)
class Fault:
    """Which calls fail, and how. See `FailingFiles.fail`."""

    operation: str
    error: int | BaseException
    path: str
    nth: int
    after_bytes: int | None
    stopped: bool = False

    def concerns(self, operation: str, path: Path) -> bool:
        return not self.stopped and operation == self.operation and fnmatch.fnmatch(str(path), self.path)

    def raised(self, path: Path) -> BaseException:
        if isinstance(self.error, BaseException):
            return self.error
        return OSError(self.error, os.strerror(self.error), str(path))

    def stop(self) -> None:
        """From now on nothing fails by this."""
        self.stopped = True


class FailingFiles(Files):
    """Passes every call on to `inner` and fails those that it was told to. `calls`: name and path of all, in their order."""

    def __init__(self, inner: Files | None = None) -> None:
        self.calls: list[tuple[str, Path]] = []
        self.inner = inner or Files()
        self._faults: list[Fault] = []

    def fail(
        self,
        operation: str,
        error: int | BaseException,
        *,
        path: str = "*",
        nth: int = 1,
        after_bytes: int | None = None,
    ) -> Fault:
        """From the `nth` call of this name on a matching path on, raise OSError(error), or the error itself.

        operation: a method of Files, or `write`, `sync` of an AppendFile. `after_bytes`, of `write`: so many bytes, over all
        matching files, are still written, the last of them by a short write. Goes on until `stop` or `heal`.
        """
        if operation not in OPERATIONS:
            raise ValueError(f"got operation {operation!r}, expected one of {', '.join(sorted(OPERATIONS))}")
        fault = Fault(operation, error, path, nth, after_bytes)
        self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Nothing fails any more."""
        for fault in self._faults:
            fault.stop()
        self._faults.clear()

    def passes(self, operation: str, path: Path, size_bytes: int = 0) -> tuple[int, BaseException | None]:
        """Notes a call. How many of its bytes may be written, and what is to be raised after that."""
        self.calls.append((operation, path))
        for fault in self._faults:
            if not fault.concerns(operation, path):
                continue
            if fault.nth > 1:
                fault.nth -= 1
            elif fault.after_bytes is None:
                return 0, fault.raised(path)
            elif size_bytes > fault.after_bytes:
                allowed, fault.after_bytes = fault.after_bytes, 0
                return allowed, fault.raised(path)
            else:
                fault.after_bytes -= size_bytes
        return size_bytes, None

    def _check(self, operation: str, path: Path) -> None:
        _, error = self.passes(operation, path)
        if error is not None:
            raise error

    def create(self, path: Path) -> AppendFile:
        self._check("create", path)
        return _FailingFile(self, self.inner.create(path))

    def append(self, path: Path) -> AppendFile:
        self._check("append", path)
        return _FailingFile(self, self.inner.append(path))

    def map(self, path: Path, *, probe: bool = False) -> memoryview:
        self._check("map", path)
        return self.inner.map(path, probe=probe)

    def read(self, path: Path, offset_bytes: int = 0, size_bytes: int = -1) -> bytes:
        self._check("read", path)
        return self.inner.read(path, offset_bytes, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        self._check("rename", target)
        self.inner.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._check("link", target)
        self.inner.link(source, target)

    def unlink(self, path: Path, missing_ok: bool = False) -> None:
        self._check("unlink", path)
        self.inner.unlink(path, missing_ok)

    def rmdir(self, path: Path) -> None:
        self._check("rmdir", path)
        self.inner.rmdir(path)

    def listdir(self, path: Path) -> list[str]:
        self._check("listdir", path)
        return self.inner.listdir(path)

    def mkdir(self, path: Path) -> None:
        self._check("mkdir", path)
        self.inner.mkdir(path)

    def sync_dir(self, path: Path) -> None:
        self._check("sync_dir", path)
        self.inner.sync_dir(path)

    def size(self, path: Path) -> int:
        self._check("size", path)
        return self.inner.size(path)

    def exists(self, path: Path) -> bool:
        self._check("exists", path)
        return self.inner.exists(path)

    def truncate(self, path: Path, size_bytes: int) -> None:
        self._check("truncate", path)
        self.inner.truncate(path, size_bytes)

    def free_bytes(self, path: Path) -> int:
        self._check("free_bytes", path)
        return self.inner.free_bytes(path)

    def lock(self, path: Path) -> Lock:
        self._check("lock", path)
        return self.inner.lock(path)


OPERATIONS = {name for name in vars(Files) if not name.startswith("_") and name != "write_atomic"} | {"write", "sync"}


class _FailingFile(AppendFile):
    """Passes on to another; the descriptor is that one's."""

    def __init__(self, files: FailingFiles, inner: AppendFile) -> None:
        super().__init__(inner.path, -1, inner.size)
        self._files = files
        self._inner = inner

    def write(self, buffers: Sequence[Buffer]) -> None:
        data = b"".join(memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes)
        allowed, error = self._files.passes("write", self.path, len(data))
        self._inner.write([data[:allowed]])
        self.size = self._inner.size
        if error is not None:
            raise error

    def sync(self) -> None:
        _, error = self._files.passes("sync", self.path)
        if error is not None:
            raise error
        self._inner.sync()

    def close(self) -> None:
        self._inner.close()
