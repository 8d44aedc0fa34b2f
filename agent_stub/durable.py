"""A durable message, what it counts, and which of them are held where."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

from agent_stub.wire import stream_pb2 as pb

ITEM_BYTES = 200  # what Python needs to keep one message, beside its bytes
RUN = 65_536  # messages in one piece of `Held`: what an ack may have to copy
SAMPLES, EVENTS, LOGS = 0, 1, 2  # what a message counts, in the two lowest bits of its entry in `Held`


@dataclass
class Counts:
    """Samples, events and log records of one durable message, or dropped for one reason."""

    samples: int = 0
    events: int = 0
    logs: int = 0

    def add(self, other: Counts) -> None:
        self.samples += other.samples
        self.events += other.events
        self.logs += other.logs

    def __bool__(self) -> bool:
        return bool(self.samples or self.events or self.logs)


@dataclass(frozen=True)
class Durable:
    """A batch, events or logs, as they go over the wire."""

    sequence: int
    data: bytes
    counts: Counts
    layout: int = 0  # the layout that the batch needs; 0: none
    refs: tuple[int, ...] = ()  # of that layout

    @property
    def held_bytes(self) -> int:
        return len(self.data) + ITEM_BYTES


@dataclass
class Totals:
    """What SelfReport carries. `recorded` and `flush_s` are written by whoever collects the samples."""

    recorded: int = 0
    sent: int = 0
    acked: int = 0
    flush_s: float = 0.0
    drops: dict[int, Counts] = field(default_factory=dict)


def counts_of(message: pb.AgentMessage) -> Counts:
    """What a message counts; all zero when it is not durable."""
    return Counts(len(message.batch.values), len(message.events.events), len(message.logs.records))


class Held:
    """Ascending sequences, each with what its message counts: 4 bytes a message where they are consecutive."""

    def __init__(self) -> None:
        self._firsts: list[int] = []  # of each run
        self._runs: list[array[int]] = []  # a run's sequences are consecutive
        self._messages = 0

    def __len__(self) -> int:
        return self._messages

    def __contains__(self, sequence: int) -> bool:
        at = bisect_right(self._firsts, sequence) - 1
        return at >= 0 and sequence - self._firsts[at] < len(self._runs[at])

    @property
    def first(self) -> int:
        """The lowest; 0 when there is none."""
        return self._firsts[0] if self._firsts else 0

    @property
    def last(self) -> int:
        """The highest; 0 when there is none."""
        return self._firsts[-1] + len(self._runs[-1]) - 1 if self._firsts else 0

    def add(self, sequence: int, counts: Counts) -> None:
        """REQUIRES: sequence > last."""
        packed = counts.samples << 2 | SAMPLES
        if counts.events:
            packed = counts.events << 2 | EVENTS
        elif counts.logs:
            packed = counts.logs << 2 | LOGS
        if self._runs and sequence == self.last + 1 and len(self._runs[-1]) < RUN:
            self._runs[-1].append(packed)
        else:
            self._firsts.append(sequence)
            self._runs.append(array("I", (packed,)))
        self._messages += 1

    def remove(self, first: int, last: int) -> Counts:
        """Forgets those from first to last, inclusive; returns what they counted."""
        gone = Counts()
        at = max(bisect_right(self._firsts, first) - 1, 0)
        while at < len(self._firsts) and self._firsts[at] <= last:
            begin, run = self._firsts[at], self._runs[at]
            low, high = max(first - begin, 0), min(last - begin + 1, len(run))
            if low >= high:
                at += 1
                continue
            _count(run[low:high], gone)
            self._messages -= high - low
            left = [(begin, run[:low]), (begin + high, run[high:])]
            left = [(number, part) for number, part in left if part]
            self._firsts[at : at + 1] = [number for number, _ in left]
            self._runs[at : at + 1] = [part for _, part in left]
            at += len(left)
        return gone

    def sequences(self, first: int, last: int) -> list[int]:
        """Those from first to last, inclusive."""
        found: list[int] = []
        for begin, end in self.ranges(first, last):
            found.extend(range(begin, end + 1))
        return found

    def any(self, first: int, last: int) -> bool:
        """Whether there is one from first to last, inclusive."""
        return bool(self.ranges(first, last))

    def ranges(self, first: int, last: int) -> list[tuple[int, int]]:
        """Inclusive ranges of those from first to last, ascending, none touching the next."""
        found: list[tuple[int, int]] = []
        for at in range(max(bisect_right(self._firsts, first) - 1, 0), len(self._firsts)):
            begin = max(self._firsts[at], first)
            end = min(self._firsts[at] + len(self._runs[at]) - 1, last)
            if self._firsts[at] > last:
                break
            if begin > end:
                continue
            if found and found[-1][1] == begin - 1:
                begin = found.pop()[0]
            found.append((begin, end))
        return found


def _count(run: array[int], into: Counts) -> None:
    for packed in run:
        kind, number = packed & 3, packed >> 2
        if kind == SAMPLES:
            into.samples += number
        elif kind == EVENTS:
            into.events += number
        else:
            into.logs += number
