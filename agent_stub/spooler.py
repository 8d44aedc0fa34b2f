"""The thread that moves messages between memory and disk. Nobody else waits for the disk, least of all the agent.

It sleeps while acks come as they should. When messages grow old without one, or fill half of the memory, it writes them
to this instance's folder; it reads them back as the stream takes them; and it adopts the folders of earlier instances of the
agent, which `backlog.py` then delivers. `lock` is the transport's, and is never held during a disk's work.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from agent_stub import native
from agent_stub.conversation import AgentConversation, State
from agent_stub.disk import Disk
from agent_stub.problems import Problems
from agent_stub.settings import Settings
from agent_stub.shelf import Shelf
from agent_stub.spool import Catalogue, Spool, SpoolFullError, folder_name
from agent_stub.wire import stream_pb2 as pb

FILE_BYTES = 1 << 20  # of messages in one file: what is read back at once
FILES = 8  # a small spool still has so many, or dropping the oldest would drop it all
CHUNK_BYTES = 256 * 1024  # written at once
FOLDER_BYTES = 16 * 1024  # what a folder takes beside its messages, about
STALLED_PINGS = 2  # acks ride on pings: with a stream, a message this old (and a second) is one whose ack does not come
RETRY_S = 10.0  # after the disk failed
ADOPT_S = 60.0  # between two looks for folders of instances that are no more
MEASURE_S = 5.0  # between two looks at what other instances take of the bound
FOLDER_S = 0.1  # more for each folder: a thousand instances on one machine must not keep it busy with looking
ADOPTED = 16  # folders at once: each is an open file
RELICS = 4  # damaged files that are kept, of one agent
SLEEP_S = 3600.0
NEVER = float("-inf")


class Spooler:
    """See the module. `wake_stream` is called when the live stream may have something new to say."""

    def __init__(
        self,
        settings: Settings,
        talk: AgentConversation,
        lock: Any,
        problems: Problems,
        wake_stream: Callable[[], None],
        disk: Disk | None = None,
    ) -> None:
        self.is_on = bool(settings.spool_dir) and settings.spool_bytes > 0 and not settings.disabled
        self.is_over = True
        self.adopted: list[Shelf] = []  # changed with the lock held
        self._settings = settings
        self._talk = talk
        self._lock = lock
        self._problems = problems
        self._wake_stream = wake_stream
        self._disk = disk or Disk()
        self._folder = os.path.join(settings.spool_dir, folder_name(settings.agent))
        self._file_bytes = max(1, min(FILE_BYTES, settings.spool_bytes // FILES))
        self._always = self.is_on and settings.spool_always
        talk.pending.spool_first = self._always
        self._own: Shelf | None = None
        self._own_instance = ""
        self._catalogue = Catalogue(talk.series)
        self._wake = native.Wake()
        self._finishing = False
        self._marks: deque[tuple[float, int]] = deque()  # when which sequence was the last
        self._aged = 0  # every sequence up to here is old enough for the disk
        self._retry_s = self._adopt_s = self._measured_s = NEVER
        self._others_bytes = self._folders = 0
        self._relics: list[str] = []
        self._complained = False

    # -- for the transport's threads ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread. Errors: RuntimeError when the interpreter is shutting down."""
        if not self.is_on:
            return
        self.is_over = False
        try:
            native.spawn(self._run, "agent_stub-spool")
        except RuntimeError:
            self.is_over, self._talk.pending.spool_first = True, False
            raise

    def tick(self, now_s: float) -> None:
        """Once a second: wakes the thread if there is something for it to do."""
        if not self.is_on:
            return
        with self._lock:
            talk = self._talk
            self._marks.append((now_s, talk.last_sequence))
            age_s = self._settings.spool_age_s
            if talk.state in (State.OPEN, State.LEAVING):
                age_s = max(age_s, STALLED_PINGS * talk.ping_s + 1.0)
            while self._marks and self._marks[0][0] <= now_s - age_s:
                self._aged = self._marks.popleft()[1]
            is_spill_due = now_s >= self._retry_s and talk.pending.has_for_disk(self._target())
            is_due = is_spill_due or now_s >= self._adopt_s or any(shelf.has_work for shelf in self._shelves())
        if is_due:
            self._wake.set()

    def look(self) -> None:
        """With the lock held: something was said, or heard."""
        if (self._own is not None or self.adopted) and any(shelf.wants_attention for shelf in self._shelves()):
            self._wake.set()

    def look_at_memory(self) -> None:
        """With the lock held: messages were added."""
        pending = self._talk.pending
        if self.is_on and (self._always or pending.memory_bytes > pending.limit_bytes // 2):
            self._wake.set()

    def finish(self) -> None:
        """Takes everything to disk that is not acknowledged, and ends; `is_over` then."""
        self._finishing = True
        self._wake.set()

    def next_backlog(self) -> Shelf | None:
        """With the lock held: an earlier instance with something to deliver."""
        return next((shelf for shelf in self.adopted if shelf.talk.pending.held), None)

    def after_fork_in_child(self) -> None:
        """The folders are the parent's: the child lets go of them, and of nothing else."""
        for shelf in self._shelves():
            shelf.spool.close()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._finishing:
                self.work(time.monotonic())
                self._wake.wait(SLEEP_S)
            self._leave()
        except Exception as unexpected:  # noqa: BLE001  the agent must not see a traceback of ours
            self._problems.warn("spool thread", "the spool's thread failed: %r", unexpected, exception=unexpected)
        finally:
            with self._lock:
                self._talk.pending.not_written()
                self._talk.pending.spool_first = False
            self.is_over = True

    def work(self, now_s: float) -> None:
        """Everything that is due. Raises nothing that a disk may do."""
        if now_s >= self._adopt_s and not self._finishing:
            self._adopt_s = now_s + ADOPT_S + FOLDER_S * self._folders
            self._guarded(self._adopt)
        if (now_s >= self._retry_s or self._finishing) and not self._guarded(self._spill):
            self._retry_s = now_s + RETRY_S
        for shelf in self._shelves():
            self._guarded(partial(self._tidy, shelf, float("inf") if self._finishing else now_s))
            self._guarded(shelf.read_back)
        with self._lock:
            self._talk.spool_bytes = self._own_bytes()

    def _leave(self) -> None:
        self.work(time.monotonic())
        for shelf in self._shelves():
            if shelf.spool.files:
                self._guarded(shelf.spool.roll)
            elif shelf is self._own:
                self._guarded(shelf.spool.delete)
            shelf.spool.close()

    def _shelves(self) -> list[Shelf]:
        """Earlier instances first."""
        return [*self.adopted, *([self._own] if self._own is not None else [])]

    def _own_bytes(self) -> int:
        return sum(shelf.spool.size_bytes for shelf in self._shelves())

    def _guarded(self, action: Callable[[], object]) -> bool:
        """False when the disk failed. It is said once, until the disk can be written again."""
        try:
            action()
        except (OSError, SpoolFullError) as error:
            if not self._complained:
                self._complained = True
                self._problems.warn(
                    "spool", "%s: the spool cannot be used (%s); memory goes on, up to its bound", self._folder, error
                )
            return False
        return True

    # -- memory to disk -----------------------------------------------------------------------------------------------

    def _target(self) -> int:
        """Up to which sequence messages belong on disk."""
        pending = self._talk.pending
        if self._always or self._finishing or pending.memory_bytes > pending.limit_bytes // 2:
            return pending.last_sequence
        return self._aged

    def _spill(self) -> None:
        pending = self._talk.pending
        while True:
            with self._lock:
                items = pending.take_for_disk(self._target(), CHUNK_BYTES)
                hello, drops = pb.Hello(), self._talk.drops()
                hello.CopyFrom(self._talk.hello)
            if not items:
                return
            try:
                count = self._own_spool(hello).append(items, self._catalogue, hello, drops, self._make_room)
            except (OSError, SpoolFullError) as error:
                self._not_spilled(items[0].sequence, error)
                raise
            with self._lock:
                pending.written(items[:count], keep=self._always)
                pending.not_written()  # the rest of them, if any
                pending.spool_first = self._always and not self._finishing
            self._complained = False
            if self._always:
                self._wake_stream()

    def _not_spilled(self, sequence: int, error: Exception) -> None:
        """Memory goes on as if there were no spool; a message that no spool of this size can take is dropped."""
        pending = self._talk.pending
        with self._lock:
            items = pending.take_for_disk(sequence, 1)
            pending.not_written()
            pending.spool_first = False
            is_alone = not self._others_bytes and not self._own_bytes()
            if isinstance(error, SpoolFullError) and is_alone and items and items[0].sequence == sequence:
                pending.refuse(items[0], pb.DROP_REASON_SPOOL)
        if isinstance(error, FileNotFoundError) and self._own is not None:  # somebody removed the folder
            self._own.spool.close()
            self._own = None
        self._wake_stream()

    def _own_spool(self, hello: pb.Hello) -> Spool:
        if self._own is None:
            spool = Spool.create(self._folder, hello.instance, self._disk, self._file_bytes)
            self._own = Shelf(spool, self._talk, self._talk, self._lock, self._problems)
            self._own.wake = self._wake_stream
            self._own_instance, self._measured_s = hello.instance, NEVER
        if self._own_instance != hello.instance:  # renamed; whoever finds this folder goes by the newest file's Hello
            self._own.spool.roll()
            self._own_instance = hello.instance
        return self._own.spool

    # -- the bound ----------------------------------------------------------------------------------------------------

    def _make_room(self, size_bytes: int) -> bool:
        """Whether so much may be written; the oldest go first."""
        now_s = time.monotonic()
        if now_s - self._measured_s >= MEASURE_S + FOLDER_S * self._folders:
            self._measured_s = now_s
            self._measure()
        while self._others_bytes + self._own_bytes() + size_bytes > self._settings.spool_bytes:
            if not self._drop_oldest():
                return False
        return True

    def _measure(self) -> None:
        """What else is in the agent's folder: other instances, and damaged files, of which the newest few are kept."""
        ours = {shelf.spool.instance for shelf in self._shelves()}
        names = self._disk.names(self._folder)
        self._folders = len(names)
        self._relics = [os.path.join(self._folder, name) for name in names if name.endswith(".damaged")]
        while len(self._relics) > RELICS:
            self._disk.remove(self._relics.pop(0))
        self._others_bytes = sum(map(self._disk.size, self._relics))
        for name in names:
            if name not in ours and not name.endswith(".damaged"):
                folder = os.path.join(self._folder, name)
                inside = [os.path.join(folder, file) for file in self._disk.names(folder)]
                self._others_bytes += FOLDER_BYTES + sum(map(self._disk.size, inside))

    def _drop_oldest(self) -> bool:
        """Damaged files first, then what earlier instances left, then the oldest of our own; False when there is nothing."""
        if self._relics:
            path = self._relics.pop(0)
            self._others_bytes -= self._disk.size(path)
            self._disk.remove(path)
            return True
        for shelf in self._shelves():
            file = next((f for f in shelf.spool.files if f is not shelf.spool.open_file), None)
            if file is not None:
                shelf.give_up(file)
                self._retire_if_empty(shelf)
                return True
        return False

    # -- earlier instances --------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Takes over what instances that are no more have left."""
        ours = {shelf.spool.instance for shelf in self._shelves()}
        names = self._disk.names(self._folder)
        self._folders = len(names)
        for name in names:
            if len(self.adopted) >= ADOPTED or self._finishing:
                return
            if name in ours or name.endswith(".damaged"):
                continue
            try:
                self._adopt_one(os.path.join(self._folder, name))
            except OSError as error:
                self._problems.warn("spool adopt", "%s/%s cannot be taken over: %s", self._folder, name, error)

    def _adopt_one(self, folder: str) -> None:
        spool = Spool.adopt(folder, self._disk, self._file_bytes)
        if spool is None:
            return
        if spool.instance.startswith("."):  # its maker was killed before it had a name
            spool.delete()
            return
        try:
            shelf = Shelf.of_earlier(spool, self._talk, self._lock, self._problems)
        except OSError:
            spool.close()
            raise
        if shelf is not None:
            with self._lock:
                self.adopted.append(shelf)

    def _tidy(self, shelf: Shelf, now_s: float) -> None:
        shelf.tidy(now_s, keep_open=self._always and not self._finishing)
        self._retire_if_empty(shelf)

    def _retire_if_empty(self, shelf: Shelf) -> None:
        """Nothing is left of an earlier instance."""
        if shelf is self._own or shelf.spool.files:
            return
        with self._lock:
            self.adopted.remove(shelf)
        shelf.wake()
        self._adopt_s = NEVER  # there may be more of them
        shelf.spool.delete()
