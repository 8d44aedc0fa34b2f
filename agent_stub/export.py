"""From changed handles, events and log records to durable messages. Time comes in as an argument; no thread, no network."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from agent_stub.conversation import AgentConversation
from agent_stub.durable import Counts
from agent_stub.instruments import Handle
from agent_stub.registry import Registry
from agent_stub.wire import stream_pb2 as pb

RESOLUTION_MS = 1000  # times are floored to it: the collector keeps the last value of each second, one ring row
BATCH_SAMPLES = 20_000  # 240 KB a message: well below the usual limit, and a slow link gets pongs in between
SAMPLE_BYTES = 32  # of a message, more than a sample and its ref and offset take
EVENTS_AT_ONCE = 1000  # the contract's bound
EVENTS_BYTES = 512 * 1024
STABLE_S = 1.0  # a layout is declared once the set of series has not grown for this long

Record = TypeVar("Record", pb.Event, pb.LogRecord)


class Outbox(Generic[Record]):
    """Events or log records between the agent's threads and the flush, bounded by bytes; the oldest make room."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.dropped = 0
        self._records: deque[tuple[int, Record]] = deque()

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: Record) -> None:
        """From any thread, never waits."""
        size_bytes = record.ByteSize() + 200  # 200: what Python needs beside
        self._records.append((size_bytes, record))
        self.held_bytes += size_bytes
        while self.held_bytes > self.limit_bytes and self._take() is not None:
            self.dropped += 1

    def take(self, most_bytes: int = EVENTS_BYTES) -> list[Record]:
        """At most one message's worth, oldest first; only the flush calls this."""
        taken: list[Record] = []
        size_bytes = 0
        while len(taken) < EVENTS_AT_ONCE and size_bytes < most_bytes:
            item = self._take()
            if item is None:
                break
            size_bytes += item[0]
            taken.append(item[1])
        return taken

    def clear(self) -> int:
        """Forgets everything; returns how many there were."""
        count = len(self._records)
        self._records.clear()
        self.held_bytes = 0
        return count

    def _take(self) -> tuple[int, Record] | None:
        try:
            item = self._records.popleft()
        except IndexError:
            self.held_bytes = 0  # two threads may have miscounted by a record; here it is known
            return None
        self.held_bytes -= item[0]
        return item


class Exporter:
    """Knows what was declared, when everything was last sent, and when the next flush is due."""

    def __init__(self, registry: Registry, events: Outbox[pb.Event], logs: Outbox[pb.LogRecord]) -> None:
        self.registry = registry
        self.events = events
        self.logs = logs
        self.flushed_s = float("-inf")
        self.changed_s: float | None = None  # when the sender first saw that something changed since the last flush
        self._full_s = float("-inf")
        self._declared = 0
        self._grown_s = 0.0
        self._layouts: list[tuple[int, list[Handle]]] = []
        self._laid_out = 0
        self._reported_invalid = self._reported_overflow = 0

    def is_pending(self) -> bool:
        """Whether anything has changed since the last flush."""
        return bool(self.registry.changed or self.events or self.logs)

    def full_due_s(self, full_s: float) -> float:
        """When every series is to be sent again, on the clock of `collect`."""
        return self._full_s + full_s if self.registry.handles else float("inf")

    def want_full(self) -> None:
        """The next flush sends every value: a new stream, or the collector asked."""
        self._full_s = float("-inf")

    def collect(self, talk: AgentConversation, now_s: float, unix_ms: int) -> None:
        """Makes durable messages of everything that has changed; of every series when that is due."""
        self.flushed_s, self.changed_s = now_s, None
        time_unix_ms = unix_ms // RESOLUTION_MS * RESOLUTION_MS
        changed = self.registry.take_changed()
        handles = self.registry.handles
        new = handles[self._declared :]  # taken once: other threads add to them
        if new:
            talk.declare([handle.definition.to_wire() for handle in new])
            self._declared += len(new)
            self._grown_s = now_s
        if now_s >= self._full_s + talk.full_s:
            self._full_s = now_s
            self._collect_all(talk, now_s, time_unix_ms)
        elif changed:
            self._send_refs(talk, [h for h in changed if h.definition.ref], time_unix_ms)
        while self.events:
            talk.events(self.events.take(min(EVENTS_BYTES, talk.message_bytes // 4)))
        while self.logs:
            talk.logs(self.logs.take(min(EVENTS_BYTES, talk.message_bytes // 4)))
        self._count_drops(talk)

    def _collect_all(self, talk: AgentConversation, now_s: float, time_unix_ms: int) -> None:
        handles = self.registry.handles[: self._declared]
        if self._laid_out != len(handles) and now_s - self._grown_s >= STABLE_S:
            self._lay_out(talk, handles)
        if self._laid_out != len(handles):
            self._send_refs(talk, handles, time_unix_ms)
            return
        for layout, members in self._layouts:
            values = [value for handle in members for value in handle.values()]
            self._send(talk, pb.Batch(time_unix_ms=time_unix_ms, layout=layout, values=values))

    def _lay_out(self, talk: AgentConversation, handles: Sequence[Handle]) -> None:
        talk.forget_layouts()
        layouts = [(talk.layout(_refs(chunk)), chunk) for chunk in _chunks(handles, talk.message_bytes)]
        if all(number for number, _ in layouts):
            self._layouts, self._laid_out = layouts, len(handles)

    def _send_refs(self, talk: AgentConversation, handles: Sequence[Handle], time_unix_ms: int) -> None:
        for chunk in _chunks(handles, talk.message_bytes):
            values = [value for handle in chunk for value in handle.values()]
            self._send(talk, pb.Batch(time_unix_ms=time_unix_ms, refs=_refs(chunk), values=values))

    def _send(self, talk: AgentConversation, batch: pb.Batch) -> None:
        if batch.values:
            talk.totals.recorded += len(batch.values)
            talk.batch(batch)

    def _count_drops(self, talk: AgentConversation) -> None:
        registry = self.registry
        if registry.invalid > self._reported_invalid:
            talk.drop(pb.DROP_REASON_INVALID, Counts(samples=registry.invalid - self._reported_invalid))
            self._reported_invalid = registry.invalid
        if registry.overflowed > self._reported_overflow:
            talk.drop(pb.DROP_REASON_SERIES_LIMIT, Counts(samples=registry.overflowed - self._reported_overflow))
            self._reported_overflow = registry.overflowed
        lost = Counts(events=_take_dropped(self.events), logs=_take_dropped(self.logs))
        if lost.events or lost.logs:
            talk.drop(pb.DROP_REASON_MEMORY, lost)


def _refs(handles: Sequence[Handle]) -> list[int]:
    return [ref for h in handles for ref in range(h.definition.ref, h.definition.ref + h.definition.width)]


def _chunks(handles: Sequence[Handle], message_bytes: int) -> list[list[Handle]]:
    """In order, each of at most BATCH_SAMPLES refs, fewer where the collector takes only small messages."""
    most = min(BATCH_SAMPLES, message_bytes // SAMPLE_BYTES)
    chunks: list[list[Handle]] = []
    room = 0
    for handle in handles:
        if handle.definition.width > room:
            chunks.append([])
            room = most
        chunks[-1].append(handle)
        room -= handle.definition.width
    return chunks


def _take_dropped(outbox: Outbox[Record]) -> int:
    dropped = outbox.dropped
    outbox.dropped -= dropped
    return dropped
