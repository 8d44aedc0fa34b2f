"""The operating system as far as the spool uses it; a test can put a failing one in its place.

Plain descriptors, no buffered files: a forked child that frees one must not write what the parent has not.
"""

from __future__ import annotations

import os

try:
    import fcntl
except ImportError:  # not a Unix: there is no spool then
    fcntl = None  # type: ignore[assignment]

FOLDER_MODE, FILE_MODE = 0o700, 0o600  # what an agent measures is its user's


class Disk:
    """Every method may raise OSError."""

    def make_folders(self, path: str) -> None:
        os.makedirs(path, FOLDER_MODE, exist_ok=True)

    def make_folder(self, path: str) -> None:
        os.mkdir(path, FOLDER_MODE)

    def names(self, path: str) -> list[str]:
        """Of what is in a folder, sorted; empty when there is no such folder."""
        try:
            return sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def create(self, path: str) -> int:
        """A new, empty file, open for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)

    def write(self, file: int, data: bytes) -> None:
        """All of it, at the end of what was written before."""
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]

    def sync(self, file: int) -> None:
        os.fsync(file)

    def sync_folder(self, path: str) -> None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def close(self, file: int) -> None:
        os.close(file)

    def read(self, path: str) -> bytes:
        with open(path, "rb", buffering=0) as file:
            return file.read()

    def size(self, path: str) -> int:
        """0 when there is no such file."""
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return 0

    def rename(self, path: str, to: str) -> None:
        os.replace(path, to)

    def remove(self, path: str) -> None:
        """A file; that it is gone already is no error."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return

    def remove_folder(self, path: str) -> None:
        """An empty one."""
        os.rmdir(path)

    def lock(self, path: str) -> int | None:
        """Makes and locks a file for as long as the descriptor that is returned is open; None when another has it."""
        if fcntl is None:
            raise OSError("this system has no flock(2)")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                return None
            raise
        return file

    def is_same(self, file: int, path: str) -> bool:
        """Whether this path still leads to this open file."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(path))
        except FileNotFoundError:
            return False
