"""Group commit: what all streams wrote since the last commit is made safe by one write and one fdatasync, then acknowledged.

One commit is under way at a time, in a thread of its own; what comes meanwhile is in the next one. So a slow disk makes
commits larger and rarer, and when too much waits the streams are read no further (`full`): HTTP/2 flow control then
stops the agents.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog

from collectord.conversation import CollectorConversation
from collectord.dictionary import Dictionary
from collectord.distribution import Distribution
from storage.format import StorageError
from storage.store import Store
from storage.wal import Commit

MOST_SHARE_BYTES = 1 << 16  # that a stream may write in one turn, with a WAL that is half full; the fuller, the less
RETRY_S = 1.0  # after a commit that failed
MOST_UNSAFE_BYTES = 8 << 20  # of messages that wait for the next commit: what a disk takes in some 20 ms

log = structlog.get_logger("commit")


class Turn:
    """What one stream has written lately. While the background is behind, streams write in turns: one message at least, so
    that who has little to say never waits for those who flood.
    """

    __slots__ = ("_bytes", "_ends_s")

    def __init__(self) -> None:
        self._ends_s = -math.inf
        self._bytes = 0

    def rest_s(self, now_s: float, size_bytes: int, share_bytes: int, turn_s: float) -> float:
        """How long to wait before a message is written, which is counted now: to the turn's end once the share is used up."""
        wait_s = self._ends_s - now_s if self._ends_s > now_s and self._bytes >= share_bytes else 0.0
        if self._ends_s <= now_s + wait_s:
            self._ends_s, self._bytes = now_s + wait_s + turn_s, 0
        self._bytes += size_bytes
        return wait_s


class BatchStream(Protocol):
    """What ingest and commit need of a stream."""

    conversation: CollectorConversation
    dictionary: Dictionary
    samples: int
    dropped: int


Written = tuple[BatchStream, int, int]
"""A stream, and first and last of consecutive sequences."""


class Committer:
    """Everything that waits to be safe. `now_ms`, `now_s`: the wall clock and a monotonic one."""

    def __init__(self, store: Store, tick_s: float, now_ms: Callable[[], int], now_s: Callable[[], float]) -> None:
        self.ticks = 0
        self.latency = Distribution()  # from the first message of a commit to its end, seconds
        self.error = ""  # why the last commit failed, or empty
        self.full = False  # nothing more may be written now: wait for `room`
        self.share_bytes: int | None = None  # that a stream may write in one turn; None: as much as it likes
        self._store = store
        self._tick_s = tick_s
        self._now_ms = now_ms
        self._now_s = now_s
        self._new: list[tuple[BatchStream, int]] = []  # messages since the last tick
        self._unsafe_bytes = 0  # of these
        self._waiting: list[Written] = []  # in the store's lists, and in no commit that has succeeded
        self._flying: list[Written] | None = None  # in the commit that is under way
        self._after: list[Callable[[], None]] = []  # to be called at the end of the next commit
        self._after_flying: list[Callable[[], None]] = []  # of the one that is under way
        self._since_s: float | None = None  # when the first message of the next commit came
        self._flying_since_s: float | None = None
        self._write: asyncio.Future[None] | None = None  # the newest; `_end` is called before whoever else waits for it
        self._timer: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wal")

    @property
    def refusal(self) -> str:
        """Why nothing can be taken now, or empty."""
        return self._store.refusal or self.error

    def wrote(self, stream: BatchStream, sequence: int, size_bytes: int = 0) -> None:
        """A durable message is in the store's lists (or needs no place there): acknowledge it when it is safe."""
        self._new.append((stream, sequence))
        self._unsafe_bytes += size_bytes
        if self._unsafe_bytes > MOST_UNSAFE_BYTES:
            self._set_full()
        if self._since_s is None:
            self._since_s = self._now_s()
            self._schedule(self._tick_s)

    def when_safe(self, then: Callable[[], None]) -> None:
        """Call `then` when everything written until now is safe: at once if it is."""
        if self._new or self._waiting:
            self._after.append(then)
            if not self.error:  # else the disk is tried again when it is time
                self.tick()
        elif self._flying is not None:
            self._after_flying.append(then)
        else:
            then()

    def _schedule(self, delay_s: float) -> None:
        if self._timer is None and self._flying is None:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.tick)

    async def room(self) -> None:
        """Wait until writing goes on."""
        self._room.clear()
        await self._room.wait()

    def tick(self) -> None:
        """Begin a commit of everything until now, unless one is under way: the next one begins when that ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flying is not None:
            return
        self._waiting += self._spans()
        try:
            commit = self._store.take(self._now_ms())
        except Exception as error:  # noqa: BLE001  told in `_trouble`; whoever calls this has other work too
            self._trouble(error)
            return
        self.ticks += 1
        self._unsafe_bytes = 0
        self._set_full()
        self._flying, self._waiting = self._waiting, []
        self._after_flying, self._after = self._after_flying + self._after, []
        self._flying_since_s, self._since_s = self._since_s, None
        if commit is None:
            self._done()
            return
        self._write = asyncio.get_running_loop().run_in_executor(self._thread, commit.write)
        self._write.add_done_callback(lambda done: self._end(commit, done))

    def _spans(self) -> list[Written]:
        """The new messages, consecutive ones of a stream as one."""
        spans: dict[BatchStream, list[int]] = {}
        written: list[Written] = []
        for stream, sequence in self._new:
            span = spans.get(stream)
            if span is not None and sequence == span[1] + 1:
                span[1] = sequence
                continue
            if span is not None:
                written.append((stream, span[0], span[1]))
            spans[stream] = [sequence, sequence]
        self._new.clear()
        written += [(stream, first, last) for stream, (first, last) in spans.items()]
        for stream, first, last in written:
            self._store.received(stream.dictionary.labels, first, last)
        return written

    def _end(self, commit: Commit, done: asyncio.Future[None]) -> None:
        error = done.exception()
        if error is None:
            self._store.committed(commit)
            self._done()
            return
        self._store.failed(commit)
        self._waiting, self._flying = (self._flying or []) + self._waiting, None
        self._trouble(error)

    def _trouble(self, error: BaseException) -> None:
        if not self.error and not isinstance(error, (OSError, StorageError)):
            log.error("a commit failed by a fault of the daemon's own", exc_info=error)
        if not self.error:
            log.error("cannot write to the data directory; agents keep what is not acknowledged", error=str(error))
        self.error = f"cannot write to the data directory: {error}; see to the disk"
        self._set_full()
        self._schedule(RETRY_S)

    def _done(self) -> None:
        for stream, first, last in self._flying or ():
            stream.conversation.applied(first, last)
        self._flying = None
        if self.error:
            self.error = ""
            log.info("the data directory can be written again")
        if self._flying_since_s is not None:
            self.latency.observe(self._now_s() - self._flying_since_s)
        self.look()
        if self._new:
            self._schedule(0.0 if self.full else self._tick_s)
        after, self._after_flying = self._after_flying, []
        for then in after:
            then()

    def look(self) -> None:
        """Whether writing may go on."""
        self._store.settle(self._now_ms())
        left = 2 * (1.0 - self._store.fullness)  # of the second half of the WAL's bound
        self.share_bytes = None if left >= 1.0 else int(MOST_SHARE_BYTES * max(left, 0.0) ** 3)
        self._set_full()

    def _set_full(self) -> None:
        """What cannot be written at all is no reason to wait: it is refused."""
        self.full = self._store.is_full or (self._unsafe_bytes > MOST_UNSAFE_BYTES and not self.error)
        if not self.full:
            self._room.set()

    async def close(self) -> None:
        """Everything until now is safe, or cannot be made so."""
        for _ in range(2):  # the commit that is under way, and that of what came meanwhile
            self.tick()
            if self._flying is not None and self._write is not None:
                await asyncio.wait([self._write])
        if self._waiting:
            left = sum(last - first + 1 for _, first, last in self._waiting)
            log.error("left without a last commit", messages=left, error=self.error)
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
