"""The durable messages of one instance that no ack has covered yet, in memory and on disk; what of them is said when.

New messages are in memory. The spool takes the oldest of them to disk (`take_for_disk`, `written`), and brings them back
on a later stream, a file at a time (`wants_reading`, `restore`): the window. What is in memory is said first, so live
data does not wait behind a backlog. Sans-IO; the disk itself is the spool's.

Of the messages in memory, those up to `_written` are on disk too (with `keep` only), those up to `_writing` on their way.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping

from agent_stub.durable import Counts, Durable, Held, Totals
from agent_stub.wire import stream_pb2 as pb


class Pending:
    """See the module. Totals of what was sent and acked go into `totals`, drops to `drop(reason, counts)`."""

    def __init__(self, limit_bytes: int, totals: Totals, drop: Callable[[int, Counts], None]) -> None:
        self.limit_bytes = limit_bytes
        self.last_sequence = 0
        self.memory_bytes = 0
        self.spool_first = False  # nothing is said before it is on disk
        self.held = Held()  # on disk, not acknowledged
        self.acked_on_disk = False  # `held` has lost some; whoever looks after the files sets it back
        self.read_to = 0  # on this stream, the disk has been read back up to this sequence
        self._totals = totals
        self._drop = drop
        self._memory: OrderedDict[int, Durable] = OrderedDict()
        self._queue: deque[int] = deque()  # of those in memory, not yet said on this stream; some may be gone meanwhile
        self._sent_sequence = 0
        self._written = self._writing = 0
        self._window: OrderedDict[int, Durable] = OrderedDict()  # read back, not yet said on this stream
        self._flight: dict[int, int] = {}  # read back and said: sequence to bytes
        self.flight_bytes = 0
        self._said = Held()  # said on this stream, then taken to disk: not to be said again on this one
        self._unsaid = Held()  # taken to disk before they were said on any stream
        self._is_open = False

    # -- what is held -------------------------------------------------------------------------------------------------

    @property
    def messages(self) -> int:
        """In memory; those that were read back are counted on disk."""
        return len(self._memory)

    @property
    def first_held(self) -> int:
        """The lowest sequence that is still held; the next one to come when there is none."""
        in_memory = next(iter(self._memory), self.last_sequence + 1)
        return min(in_memory, self.held.first or in_memory)

    def add(self, message: pb.AgentMessage, counts: Counts, layout: int = 0, refs: tuple[int, ...] = ()) -> int:
        """Gives a new message its sequence, which is returned, and keeps it."""
        self.last_sequence += 1
        message.sequence = self.last_sequence
        item = Durable(self.last_sequence, message.SerializeToString(), counts, layout, refs)
        self._memory[item.sequence] = item
        self.memory_bytes += item.held_bytes
        if self._is_open:
            self._queue.append(item.sequence)
        self._shrink(self.limit_bytes)
        return item.sequence

    def acked(self, ranges: Iterable[pb.SequenceRange]) -> None:
        """The collector has these."""
        for acked in ranges:
            for sequence in _within(self._memory, acked.first, acked.last):
                item = self._forget(sequence)
                if sequence > self._written:  # else it is on disk too, and counted there
                    self._totals.acked += item.counts.samples
            if self.held:
                self._totals.acked += self._remove_from_disk(acked.first, acked.last).samples

    def abandon(self) -> Counts:
        """Forgets everything in memory; returns what of it is not on disk either."""
        left = Counts()
        for sequence in list(self._memory):
            item = self._forget(sequence)
            if sequence > self._written:
                left.add(item.counts)
        self._queue.clear()
        return left

    # -- what is said -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A stream was welcomed: on it everything is said again."""
        self._queue = deque(self._memory)
        self._is_open = True

    def lost(self) -> None:
        """The stream is over."""
        self._is_open = False
        self._queue.clear()
        self._window.clear()
        self._flight.clear()
        self.flight_bytes = self.read_to = 0
        self._said = Held()

    def front(self, backlog: bool) -> Durable | None:
        """What is to be said next: of what is in memory, or of what was read back. None: nothing, or not yet."""
        if backlog:
            return next(iter(self._window.values()), None)
        while self._queue:
            item = self._memory.get(self._queue[0])
            if item is not None:
                return None if self.is_waiting else item
            self._queue.popleft()  # dropped, or acknowledged, or on disk alone
        return None

    @property
    def is_waiting(self) -> bool:
        """Whether what would be said next has to be on disk first."""
        return self.spool_first and bool(self._queue) and self._queue[0] > self._written

    def said(self, backlog: bool) -> None:
        """What `front` gave goes out."""
        if backlog:
            sequence, item = self._window.popitem(last=False)
            self._flight[sequence] = len(item.data)
            self.flight_bytes += len(item.data)
            self._totals.sent += self._unsaid.remove(sequence, sequence).samples
            return
        sequence = self._queue.popleft()
        if sequence > self._sent_sequence:
            self._sent_sequence = sequence
            self._totals.sent += self._memory[sequence].counts.samples

    def refuse(self, item: Durable, reason: int) -> None:
        """It can never be said, or never be written: dropped and counted."""
        if item.sequence in self._memory:
            self._forget(item.sequence)
        self._remove_from_disk(item.sequence, item.sequence)
        self._drop(reason, item.counts)

    @property
    def newest_in_flight(self) -> int:
        """Of what was read back and said, the sequence that was said last; 0 when all is acknowledged."""
        return next(reversed(self._flight), 0)

    def is_in_flight(self, sequence: int) -> bool:
        """Whether it was read back, said on this stream, and waits for its ack."""
        return sequence in self._flight

    # -- to disk and back ---------------------------------------------------------------------------------------------

    def has_for_disk(self, to_sequence: int) -> bool:
        """Whether `take_for_disk` may find something."""
        oldest = next(iter(self._memory), self.last_sequence + 1)
        return max(oldest, self._written + 1) <= min(to_sequence, self.last_sequence)

    def take_for_disk(self, to_sequence: int, most_bytes: int) -> list[Durable]:
        """The oldest that are in memory alone, up to a sequence and about a size. They stay here until `written`."""
        taken: list[Durable] = []
        first = max(self._written + 1, next(iter(self._memory), self.last_sequence + 1))
        for sequence in range(first, min(to_sequence, self.last_sequence) + 1):
            item = self._memory.get(sequence)
            if item is None:
                continue
            taken.append(item)
            most_bytes -= item.held_bytes
            if most_bytes <= 0:
                break
        self._writing = taken[-1].sequence if taken else self._written
        return taken

    def written(self, items: Iterable[Durable], keep: bool) -> None:
        """These are on disk. With `keep` they stay in memory too, as long as there is room."""
        for item in items:
            self._written = item.sequence
            if item.sequence not in self._memory:  # acknowledged meanwhile
                self.acked_on_disk = True
                continue
            self.held.add(item.sequence, item.counts)
            if not keep:
                self._leave_memory(item)
        self._writing = max(self._writing, self._written)
        if keep:
            self._shrink(self.limit_bytes // 2, only_written=True)

    def not_written(self) -> None:
        """What was taken for the disk and not confirmed is in memory alone."""
        self._writing = self._written

    @property
    def wants_reading(self) -> bool:
        """Whether the stream can take more of what is on disk."""
        return self._is_open and not self._window and self.held.last > self.read_to

    def is_wanted(self, first: int, last: int) -> bool:
        """Whether any of these sequences has to come from the disk to be said on this stream."""
        found = self.held.sequences(max(first, self.read_to + 1), last)
        return not all(map(self._is_elsewhere, found))

    def skip(self, last: int) -> None:
        """Nothing up to this sequence has to be read on this stream."""
        self.read_to = max(self.read_to, last)

    def restore(self, after: int, first: int, last: int, items: Iterable[Durable]) -> Counts:
        """Takes what was read back of a file that holds the sequences first..last. `after`: `read_to` when it was chosen.

        Returns what should have been in it and was not: that is lost.
        """
        found = set()
        is_due = self._is_open and self.read_to == after  # else the stream broke meanwhile; it will be read again
        for item in items:
            found.add(item.sequence)
            if is_due and item.sequence in self.held and not self._is_elsewhere(item.sequence):
                self._window[item.sequence] = item
        if is_due:
            self.skip(last)
        lost = Counts()
        for sequence in self.held.sequences(first, last):
            if sequence not in found:
                lost.add(self.remove_spooled(sequence, sequence))
        return lost

    def remove_spooled(self, first: int, last: int) -> Counts:
        """These are no longer on disk, and are given up; returns what they counted."""
        for sequence in _within(self._memory, first, min(last, self._written)):
            self._forget(sequence)
        return self._remove_from_disk(first, last)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _is_elsewhere(self, sequence: int) -> bool:
        """Whether a message that is on disk need not be read from there: in memory too, or read or said already."""
        read = sequence in self._window or sequence in self._flight
        return read or sequence in self._memory or sequence in self._said

    def _shrink(self, most_bytes: int, only_written: bool = False) -> None:
        """The oldest make room, but for those that are on their way to disk."""
        while self.memory_bytes > most_bytes:
            sequence = next((s for s in self._memory if not self._written < s <= self._writing), 0)
            if not sequence or (only_written and sequence > self._written):
                return
            if sequence <= self._written:
                self._leave_memory(self._memory[sequence])
            else:
                self._drop(pb.DROP_REASON_MEMORY, self._forget(sequence).counts)

    def _leave_memory(self, item: Durable) -> None:
        """From here on it is on disk alone."""
        if self._is_open and not (self._queue and self._queue[0] <= item.sequence):
            self._said.add(item.sequence, item.counts)
        else:
            self.read_to = min(self.read_to, item.sequence - 1)  # it was in memory when the disk was read
            if item.sequence > self._sent_sequence:
                self._unsaid.add(item.sequence, item.counts)
        self._forget(item.sequence)

    def _forget(self, sequence: int) -> Durable:
        item = self._memory.pop(sequence)
        self.memory_bytes -= item.held_bytes
        if self._queue and self._queue[0] == sequence:
            self._queue.popleft()  # a stuck stream must not let the queue grow
        return item

    def _remove_from_disk(self, first: int, last: int) -> Counts:
        before = len(self.held)
        gone = self.held.remove(first, last)
        if len(self.held) != before:
            self.acked_on_disk = True
            self._said.remove(first, last)
            self._unsaid.remove(first, last)
            for sequence in _within(self._window, first, last):
                del self._window[sequence]
            for sequence in _within(self._flight, first, last):
                self.flight_bytes -= self._flight.pop(sequence)
        return gone


def _within(store: Mapping[int, object], first: int, last: int) -> list[int]:
    """The sequences in a store from first to last, inclusive."""
    if last - first < len(store):
        return [s for s in range(first, last + 1) if s in store]
    return [s for s in store if first <= s <= last]
