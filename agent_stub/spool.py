"""One instance's folder in the spool: files of messages, a bookmark, a lock. Bytes: `spool_format.py` and README.md.

Used by one thread at a time. What is still wanted of the files is not known here: it comes in as `Held`.
"""

from __future__ import annotations

import os
import re
import uuid
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import quote

from agent_stub.disk import Disk
from agent_stub.durable import Counts, Durable, Held
from agent_stub.spool_format import (
    FILE_MAGIC,
    HEADER,
    NOTHING,
    Contents,
    Sums,
    bookmark,
    frame,
    plus,
    read_bookmark,
    read_file,
)
from agent_stub.spool_scan import Done, Scan
from agent_stub.wire import stream_pb2 as pb

LOCK, BOOKMARK = "LOCK", "BOOKMARK"
NAME = re.compile(r"(\d{10})\.(spool|damaged)")
DECLARE_BYTES = 256 * 1024  # a Declare, about
FOLDER_NAME_BYTES = 120


class SpoolFullError(Exception):
    """There is no room for a message, and nothing that could make room."""


@dataclass
class SpoolFile:
    number: int
    path: str
    first: int  # sequence
    last: int
    size_bytes: int
    is_damaged: bool = False


def folder_name(agent: str) -> str:
    """An agent's name as the name of a folder."""
    name = quote(agent, safe="", errors="replace")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > FOLDER_NAME_BYTES:
        name = f"{name[:80]}-{zlib.crc32(agent.encode('utf-8', 'replace')):08x}"  # two of one name would do no harm
    return name


class Catalogue:
    """Finds series by their refs. `series`: ascending refs; may grow meanwhile."""

    def __init__(self, series: Sequence[pb.Series]) -> None:
        self._series = series
        self._starts: list[int] = []

    def of(self, refs: Iterable[int]) -> list[pb.Series]:
        """The series that these refs belong to, each once."""
        self._starts.extend(s.ref for s in self._series[len(self._starts) :])
        places = {bisect_right(self._starts, ref) - 1 for ref in refs}
        return [self._series[place] for place in sorted(places) if place >= 0]


def refs_of(series: pb.Series) -> range:
    """All refs of one series: a histogram has several."""
    return range(series.ref, series.ref + (len(series.bucket_bounds) + 3 if series.bucket_bounds else 1))


@dataclass
class _Said:
    """What the open file has declared."""

    refs: set[int] = field(default_factory=set)
    layouts: set[int] = field(default_factory=set)
    drops: bytes = b""


class Spool:
    """See the module. Methods raise OSError as the disk does, unless they say otherwise."""

    def __init__(self, folder: str, disk: Disk, lock: int, file_bytes: int) -> None:
        self.folder = folder
        self.instance = os.path.basename(folder)
        self.files: list[SpoolFile] = []  # ascending; the last one may be open
        self.open_file: SpoolFile | None = None
        self._disk = disk
        self._lock = lock
        self._file_bytes = file_bytes
        self._file = -1
        self._said = _Said()
        self._messages_bytes = 0  # of the open file, without what was declared in it
        self._sums = NOTHING
        self._number = 0
        self._marked: list[tuple[int, int]] = []

    # -- a folder's life ----------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, agent_folder: str, instance: str, disk: Disk, file_bytes: int) -> Spool:
        """A new folder, locked before anybody else can see it."""
        disk.make_folders(agent_folder)
        making = os.path.join(agent_folder, f".{instance}.{uuid.uuid4().hex[:8]}")
        folder = os.path.join(agent_folder, instance)
        disk.make_folder(making)
        lock = disk.lock(os.path.join(making, LOCK))
        if lock is None:
            raise OSError(f"{making}: got a lock that another process holds, expected a new folder")
        try:
            disk.rename(making, folder)
        except OSError:
            disk.close(lock)
            raise
        return cls(folder, disk, lock, file_bytes)

    @classmethod
    def adopt(cls, folder: str, disk: Disk, file_bytes: int) -> Spool | None:
        """The folder of an instance that is no more; None while a living process holds it, or when it is gone."""
        path = os.path.join(folder, LOCK)
        try:
            lock = disk.lock(path)
        except FileNotFoundError:
            return None
        if lock is None:
            return None
        if not disk.is_same(lock, path):  # its owner removed it while we waited for the lock
            disk.close(lock)
            return None
        return cls(folder, disk, lock, file_bytes)

    def close(self) -> None:
        """Lets go of files and lock; what is there stays, for whoever comes next. Raises nothing."""
        for file in self._take_descriptors():
            with suppress(OSError):
                self._disk.close(file)

    def _take_descriptors(self) -> list[int]:
        """In this order a fork in between leaves a child with a descriptor too many, never with a wrong one."""
        found, self._file, self._lock = [self._file, self._lock], -1, -1
        self.open_file = None
        return [file for file in found if file >= 0]

    def delete(self) -> None:
        """Removes the folder. REQUIRES: no files are left."""
        try:
            names = self._disk.names(self.folder)
            for name in sorted(names, key=lambda name: name == LOCK):  # the lock last: what has one may be adopted
                self._disk.remove(os.path.join(self.folder, name))
            self._disk.remove_folder(self.folder)
        finally:
            self.close()

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(
        self,
        messages: Sequence[Durable],
        catalogue: Catalogue,
        hello: pb.Hello,
        drops: Sequence[pb.Drop],
        make_room: Callable[[int], bool],
    ) -> int:
        """Writes the first of these messages, as many as go into one file; returns how many.

        `make_room(size_bytes)` says whether so much may be written; it may remove any file but the open one. Errors:
        OSError and SpoolFullError, and then none of them is written.
        """
        if self.open_file is not None and self._messages_bytes >= self._file_bytes:
            self.roll()
        while True:
            count, data, sums, said = self._encode(messages, catalogue, hello, drops)
            if make_room(len(data)):
                break
            if self.open_file is None:
                raise SpoolFullError(f"got {len(data)} bytes to write, and no room for them")
            self.roll()  # now it may be removed
        self._write(data, messages[0].sequence, messages[count - 1].sequence)
        self._sums, self._said = sums, said
        self._messages_bytes += sum(len(message.data) + HEADER.size for message in messages[:count])
        return count

    def _encode(
        self, messages: Sequence[Durable], catalogue: Catalogue, hello: pb.Hello, drops: Sequence[pb.Drop]
    ) -> tuple[int, bytes, Sums, _Said]:
        """How many of them go into the open file (or a new one), the bytes, and what holds after these are written."""
        is_new = self.open_file is None
        said = _Said() if is_new else _Said(set(self._said.refs), set(self._said.layouts), self._said.drops)
        room_bytes = self._file_bytes - (0 if is_new else self._messages_bytes)
        sums, parts = self._sums, []
        if is_new:
            parts += [FILE_MAGIC, frame(pb.AgentMessage(hello=hello).SerializeToString(), sums)]
        report = pb.AgentMessage(self_report=pb.SelfReport(drops=drops)).SerializeToString()
        if drops and report != said.drops:
            said.drops = report
            parts.append(frame(report, sums))
        count = 0
        for message in messages:
            if count and room_bytes <= 0:
                break
            parts += [frame(declaration, sums) for declaration in _declarations(message, catalogue, said)]
            sums = plus(sums, message.counts)
            parts.append(frame(message.data, sums))
            room_bytes -= len(message.data) + HEADER.size
            count += 1
        return count, b"".join(parts), sums, said

    def _write(self, data: bytes, first: int, last: int) -> None:
        if self._file < 0:
            self._begin()
        file = self.open_file
        assert file is not None
        try:
            self._disk.write(self._file, data)
        except OSError:
            self._take_back(file)
            raise
        file.size_bytes += len(data)
        file.first, file.last = file.first or first, last

    def _begin(self) -> None:
        self._number += 1
        path = os.path.join(self.folder, f"{self._number:010}.spool")
        self._file = self._disk.create(path)
        self.open_file = SpoolFile(self._number, path, 0, 0, 0)
        self.files.append(self.open_file)
        self._messages_bytes = 0

    def _take_back(self, file: SpoolFile) -> None:
        """After a failed write the next one begins a new file: half a frame is no harm at the end of one."""
        if not file.size_bytes:
            self.files.remove(file)
        with suppress(OSError):
            self._close_file()
            if not file.size_bytes:
                self._disk.remove(file.path)

    def roll(self, sync: bool = True) -> None:
        """Ends the open file. With `sync` it survives a power cut from here on; a failure of that is not one of the data."""
        if self._file < 0:
            return
        try:
            if sync:
                self._disk.sync(self._file)
                self._disk.sync_folder(self.folder)
        finally:
            self._close_file()

    def _close_file(self) -> None:
        file, self._file, self.open_file = self._file, -1, None
        self._disk.close(file)

    # -- reading ------------------------------------------------------------------------------------------------------

    def scan(self, held: Held) -> tuple[Scan, list[str]]:
        """Reads what an earlier instance left: fills `files` and `held`. Also returns what was found damaged, for people;
        those files are set aside, and what is whole in them is delivered with the rest."""
        scan, damaged = Scan(Done(self._read_bookmark()), held), []
        for name in self._disk.names(self.folder):
            match = NAME.fullmatch(name)
            if match is None:
                continue
            file = SpoolFile(int(match[1]), os.path.join(self.folder, name), 0, 0, 0, match[2] == "damaged")
            contents = self.load(file)
            file.first, file.last = scan.take(contents, file.is_damaged)
            self.files.append(file)
            self._number = max(self._number, file.number)
            if contents.damage and not file.is_damaged:
                damaged.append(f"{file.path}: {contents.damage}")
                self.set_aside(file)
        scan.finish()
        self._sums = scan.end or NOTHING
        return scan, damaged

    def load(self, file: SpoolFile) -> Contents:
        """What is whole in a file that is not open; one that cannot be read is damaged, which is no error."""
        try:
            data = self._disk.read(file.path)
        except OSError as error:
            return Contents(damage=f"cannot be read: {error}", tail=Counts(samples=1))
        file.size_bytes = len(data)
        return read_file(data)

    def file_after(self, sequence: int) -> SpoolFile | None:
        """The first file with something beyond this sequence."""
        return next((file for file in self.files if file.last > sequence), None)

    def _read_bookmark(self) -> list[tuple[int, int]]:
        try:
            return read_bookmark(self._disk.read(os.path.join(self.folder, BOOKMARK))) or []
        except OSError:
            return []

    # -- letting go ---------------------------------------------------------------------------------------------------

    def finished(self, held: Held) -> list[SpoolFile]:
        """The files of which nothing is held any more."""
        return [file for file in self.files if not held.any(file.first, file.last)]

    def remove(self, file: SpoolFile, keep_damaged: bool = True) -> None:
        """Removes a file; a damaged one goes to the agent's folder, for whoever wants to know."""
        if file is self.open_file:
            self._close_file()
        if file.is_damaged and keep_damaged:
            name = f"{self.instance}-{file.number:010}.damaged"
            self._disk.rename(file.path, os.path.join(os.path.dirname(self.folder), name))
        else:
            self._disk.remove(file.path)
        self.files.remove(file)

    def set_aside(self, file: SpoolFile) -> None:
        """Marks a file as damaged, by its name."""
        path = file.path[: -len("spool")] + "damaged"
        self._disk.rename(file.path, path)
        file.path, file.is_damaged = path, True

    def mark(self, done: list[tuple[int, int]]) -> None:
        """Writes the bookmark when it has changed. `done`: as `done` gives it."""
        if done == self._marked:
            return
        path = os.path.join(self.folder, BOOKMARK)
        self._disk.remove(path + ".new")
        file = self._disk.create(path + ".new")
        try:
            self._disk.write(file, bookmark(done))
            self._disk.sync(file)
        finally:
            self._disk.close(file)
        self._disk.rename(path + ".new", path)
        self._disk.sync_folder(self.folder)
        self._marked = done

    def done(self, held: Held) -> list[tuple[int, int]]:
        """What of these files needs no delivery any more: the ranges between those that are held, inclusive."""
        files = [file for file in self.files if file.last]
        if not files:
            return []
        done, at = [], files[0].first
        for first, last in held.ranges(at, files[-1].last):
            if first > at:
                done.append((at, first - 1))
            at = last + 1
        return [*done, (at, files[-1].last)] if at <= files[-1].last else done


def _declarations(message: Durable, catalogue: Catalogue, said: _Said) -> list[bytes]:
    """What has to be declared before this message; counts as said from here on."""
    if message.layout in said.layouts:
        return []
    refs: Iterable[int] = message.refs
    if message.counts.samples and not message.layout:
        refs = pb.AgentMessage.FromString(message.data).batch.refs
    missing = set(refs) - said.refs
    declares = [pb.Declare()]
    size_bytes = 0
    for series in catalogue.of(missing):
        said.refs.update(refs_of(series))
        size_bytes += series.ByteSize()
        if size_bytes > DECLARE_BYTES:
            size_bytes = series.ByteSize()
            declares.append(pb.Declare())
        declares[-1].series.append(series)
    if message.layout:
        said.layouts.add(message.layout)
        declares.append(pb.Declare(layouts=[pb.Layout(layout=message.layout, refs=message.refs)]))
    return [pb.AgentMessage(declare=d).SerializeToString() for d in declares if d.series or d.layouts]
