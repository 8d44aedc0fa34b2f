"""One instance on disk: its folder, and the conversation that delivers what is in it. Used by the spool's thread.

`lock` is the transport's, and is never held during a disk's work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent_stub.conversation import AgentConversation
from agent_stub.durable import Counts, Held
from agent_stub.problems import Problems
from agent_stub.spool import Spool, SpoolFile
from agent_stub.wire import stream_pb2 as pb

BOOKMARK_S = 2.0  # between two bookmarks: what was acked since the last one would be sent once more
KEPT_OPEN_BYTES = 256 * 1024  # an open file this small need not be replaced because all in it is acknowledged


class Shelf:
    """`live` is the conversation of the running instance, whose drops are counted; `talk` is it, or an earlier one's."""

    def __init__(
        self, spool: Spool, talk: AgentConversation, live: AgentConversation, lock: Any, problems: Problems
    ) -> None:
        self.spool = spool
        self.talk = talk
        self.wake: Callable[[], None] = lambda: None  # something was read back
        self._live = live
        self._lock = lock
        self._problems = problems
        self._unmarked = False  # there are acks that are not in the bookmark
        self._marked_s = float("-inf")
        self._known_refs: set[int] = set()  # of an earlier instance's series, what its conversation has declared

    @classmethod
    def of_earlier(cls, spool: Spool, live: AgentConversation, lock: Any, problems: Problems) -> Shelf | None:
        """An earlier instance, from what is in its folder; None when nothing of it is left to deliver."""
        held = Held()
        scan, damaged = spool.scan(held)
        hello = scan.hello or pb.Hello(agent=live.hello.agent, instance=spool.instance)
        hello.backlog = True
        hello.ClearField("capabilities")
        talk = AgentConversation(hello, 0)
        talk.pending.held, talk.pending.last_sequence = held, scan.last
        for drop in scan.report.drops if scan.report is not None else ():
            talk.totals.drops[drop.reason] = Counts(drop.samples_total, drop.events_total, drop.logs_total)
        shelf = cls(spool, talk, live, lock, problems)
        for what in damaged:
            shelf._warn_damaged(what)
        with lock:
            shelf.count_lost(scan.lost)
        if damaged:
            spool.mark(spool.done(held))
        shelf.tidy(float("inf"))
        if spool.files:
            return shelf
        spool.delete()
        return None

    @property
    def has_work(self) -> bool:
        """With the lock held: something is acknowledged, or to be read, or to be marked."""
        return self.wants_attention or self._unmarked

    @property
    def wants_attention(self) -> bool:
        """With the lock held: something that should not wait for the next second."""
        return self.talk.pending.wants_reading or self.talk.pending.acked_on_disk

    def count_lost(self, counts: Counts) -> None:
        """With the lock held."""
        if counts:
            self._live.drop(pb.DROP_REASON_SPOOL, counts)

    def give_up(self, file: SpoolFile) -> None:
        """A file makes room; what of it is not acknowledged is dropped and counted."""
        with self._lock:
            self.count_lost(self.talk.pending.remove_spooled(file.first, file.last))
        self.spool.remove(file, keep_damaged=False)

    def tidy(self, now_s: float, keep_open: bool = False) -> None:
        """Removes files of which all is acknowledged, and writes the bookmark when it is time.

        `keep_open`: the open file stays while it is small.
        """
        spool, pending = self.spool, self.talk.pending
        with self._lock:
            self._unmarked |= pending.acked_on_disk
            pending.acked_on_disk = False
            finished = spool.finished(pending.held)
            done = spool.done(pending.held)
        if keep_open and finished and finished[-1] is spool.open_file and finished[-1].size_bytes <= KEPT_OPEN_BYTES:
            finished.pop()
        if finished and finished != spool.files[: len(finished)]:
            spool.mark(done)  # a hole in the row of files must be known not to be a loss
        for file in finished:
            spool.remove(file)
        if not spool.files:
            self._unmarked = False
        elif self._unmarked and now_s - self._marked_s >= BOOKMARK_S:
            spool.mark(done)
            self._unmarked, self._marked_s = False, now_s

    def read_back(self) -> None:
        """As much as the stream takes, a file at a time."""
        spool, pending = self.spool, self.talk.pending
        while True:
            with self._lock:
                if not pending.wants_reading:
                    return
                after = pending.read_to
                file = spool.file_after(after)
                if file is None:  # the files are gone
                    self.count_lost(pending.remove_spooled(after + 1, pending.held.last))
                    return
                is_wanted = pending.is_wanted(file.first, file.last)
                if not is_wanted:
                    pending.skip(file.last)
            if is_wanted:
                self._load(file, after)

    def _load(self, file: SpoolFile, after: int) -> None:
        if file is self.spool.open_file:
            self.spool.roll(sync=False)
        contents = self.spool.load(file)
        with self._lock:
            if self.talk is not self._live:
                series = [s for s in contents.series if s.ref not in self._known_refs]
                self._known_refs.update(s.ref for s in series)
                self.talk.declare(series)
            self.count_lost(self.talk.pending.restore(after, file.first, file.last, contents.messages))
        self.wake()
        if contents.damage and not file.is_damaged:
            self._warn_damaged(f"{file.path}: {contents.damage}")
            self.spool.set_aside(file)

    def _warn_damaged(self, what: str) -> None:
        self._problems.warn(f"damaged {what}", "%s; set aside, and what was lost is counted", what)
