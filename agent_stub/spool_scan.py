"""What an earlier instance left on disk, file after file: what is still to be delivered, and what was lost to damage."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from agent_stub.durable import Counts, Held
from agent_stub.spool_format import Contents, Gap, Sums, minus
from agent_stub.wire import stream_pb2 as pb


class Done:
    """Inclusive, ascending ranges of sequences that need no delivery: acknowledged, or given up and counted."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges = ranges
        self._firsts = [first for first, _ in ranges]

    def covers(self, first: int, last: int) -> bool:
        """Whether all of first..last are done; also true when there are none."""
        at = bisect_right(self._firsts, first) - 1
        return last < first or (at >= 0 and last <= self._ranges[at][1])


@dataclass
class Scan:
    """Give it every file's contents, in the order of their numbers."""

    done: Done
    held: Held  # gets what is to be delivered
    hello: pb.Hello | None = None  # the newest
    report: pb.SelfReport | None = None  # the newest
    lost: Counts = field(default_factory=Counts)
    end: Sums | None = None
    last: int = 0  # the highest sequence so far
    _tail: Counts = field(default_factory=Counts)  # of the file before: counted unless the next one knows better

    def take(self, contents: Contents, counted: bool = False) -> tuple[int, int]:
        """Returns first and last sequence of a file; zeros when it has none. `counted`: its last frame was counted before."""
        self.hello, self.report = contents.hello or self.hello, contents.report or self.report
        first = next((m.sequence for m in contents.messages if m.sequence > self.last), 0)
        for gap in self._gaps(contents, first):
            if not gap.before or not self.done.covers(max(gap.after, self.last) + 1, gap.before - 1):
                self.lost.add(gap.counts)
        for message in contents.messages:
            if message.sequence > self.last:
                self.last = message.sequence
                if not self.done.covers(message.sequence, message.sequence):
                    self.held.add(message.sequence, message.counts)
        if contents.end is not None:
            self.end = contents.end
        self._tail = Counts() if counted else contents.tail
        return first, self.last if first else 0

    def finish(self) -> None:
        """There is no further file."""
        self.lost.add(self._tail)

    def _gaps(self, contents: Contents, first: int) -> list[Gap]:
        gaps = list(contents.gaps)
        if contents.begin is None:
            self.lost.add(self._tail)
        elif self.end is not None and contents.begin != self.end:
            gaps.append(Gap(self.last, first, minus(contents.begin, self.end)))
        return gaps
