"""The agent's end of the stream, sans-IO: bytes in, events out; things to say in, bytes out. No network, no clock, no thread.

The law of this file: what the collector may say in which state is `TRANSITIONS`, and nothing else. A durable message
(batch, events, logs) keeps its sequence from its creation until an ack covers it or the memory bound drops it; it is
said again, in order, on every new stream. Declarations and layouts are said again before them.

    talk = AgentConversation(hello, pending_limit_bytes=8 << 20)
    send(talk.open())                                    # a new stream: Hello
    for event in talk.receive(data, now_s, unix_ns): ... # each message of the collector
    while (data := talk.next_message(now_s)): send(data) # whenever the stream takes more
    talk.lost()                                          # the stream is gone, for whatever reason

Times: `now_s` is a monotonic clock in seconds, `unix_ns` the wall clock. Not thread-safe: the caller holds one lock.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from agent_stub.heard import (
    Commanded,
    ConfigPushed,
    Drained,
    Event,
    LimitHit,
    Pinged,
    Polled,
    Refused,
    Throttled,
    Violated,
    Welcomed,
)
from agent_stub.wire import stream_pb2 as pb

PROTOCOL_VERSION = 1
LAYOUTS = 65_535
DECLARE_BYTES = 256 * 1024  # a Declare, at most: one series with 32 long labels takes 41 KB
MESSAGE_BYTES = 4 << 20  # the contract's limit of a message, unless Welcome says otherwise
ITEM_BYTES = 200  # what Python needs to keep one pending message, beside its bytes
CONTROL_MESSAGES = 1000  # answers that wait while the stream is stuck; older ones are of no use
REPORT_S = 1.0  # a SelfReport at most this often
DEFAULT_FLUSH_S, DEFAULT_FULL_S, DEFAULT_PING_S = 0.15, 10.0, 5.0


class State(enum.Enum):
    IDLE = "no stream"
    GREETING = "hello sent"
    OPEN = "welcomed"
    LEAVING = "goodbye under way"
    ENDED = "the stream is over"


ANYTIME = ("ack", "ping", "poll", "throttle", "limit_notice", "violations", "config_push", "command")
TRANSITIONS: dict[tuple[State, str], State] = {
    (State.GREETING, "welcome"): State.OPEN,
    (State.GREETING, "refusal"): State.ENDED,
    **{(State.OPEN, part): State.OPEN for part in ANYTIME},
    (State.OPEN, "refusal"): State.ENDED,
    (State.OPEN, "drain"): State.LEAVING,
    **{(State.LEAVING, part): State.LEAVING for part in ANYTIME},
    (State.LEAVING, "refusal"): State.ENDED,
    (State.LEAVING, "drain"): State.LEAVING,
}
"""(state, part of a CollectorMessage) -> state. Whatever is not here breaks the contract."""


class ProtocolError(Exception):
    """The collector broke the contract; the stream must be closed."""


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


@dataclass(frozen=True)
class Durable:
    data: bytes
    counts: Counts
    layout: int = 0  # the layout that the batch needs; 0: none

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


class AgentConversation:
    """See the module. `hello` holds all but what changes from stream to stream."""

    def __init__(self, hello: pb.Hello, pending_limit_bytes: int) -> None:
        self.hello = pb.Hello()
        self.hello.CopyFrom(hello)
        self.hello.protocol_version = PROTOCOL_VERSION
        self.pending_limit_bytes = pending_limit_bytes
        self.state = State.IDLE
        self.totals = Totals()
        self.last_sequence = 0
        self.pending_bytes = 0
        self.flush_s, self.full_s, self.ping_s = DEFAULT_FLUSH_S, DEFAULT_FULL_S, DEFAULT_PING_S
        self.paused_until_s = 0.0
        self.message_bytes = MESSAGE_BYTES
        self.heard_s = 0.0  # when the collector last said something
        self.goodbye_sent = False
        self._welcomed_flush_s, self._welcomed_full_s = DEFAULT_FLUSH_S, DEFAULT_FULL_S
        self._pending: OrderedDict[int, Durable] = OrderedDict()
        self._to_send: deque[int] = deque()  # sequences not yet sent on this stream; some may be gone meanwhile
        self._sent_sequence = 0
        self._series: list[pb.Series] = []
        self._declared = 0  # how many of them this stream has heard of
        self._layouts: dict[int, tuple[int, ...]] = {}
        self._declared_layouts: set[int] = set()
        self._next_layout = 1
        self._control: deque[bytes] = deque(maxlen=CONTROL_MESSAGES)
        self._goodbye: pb.Goodbye | None = None
        self._report_wanted = False
        self._acks_wanted = False
        self._reported_s = float("-inf")

    # -- the stream ---------------------------------------------------------------------------------------------------

    def open(self) -> bytes:
        """Begins a stream. Returns the Hello, which must be its first message."""
        self._forget_stream()
        self.state = State.GREETING
        self.hello.connection += 1
        self.hello.first_held_sequence = next(iter(self._pending), self.last_sequence + 1)
        return pb.AgentMessage(hello=self.hello).SerializeToString()

    def lost(self) -> None:
        """The stream is over; what was not acked will be said again on the next one."""
        self._forget_stream()
        self.state = State.IDLE

    def receive(self, data: bytes, now_s: float, unix_ns: int) -> list[Event]:
        """Takes one CollectorMessage. Errors: ProtocolError, after which the stream must be closed."""
        try:
            message = pb.CollectorMessage.FromString(data)
        except Exception as error:  # DecodeError's home differs among protobuf's versions
            raise ProtocolError(
                f"got {len(data)} bytes that are no CollectorMessage; check what listens there"
            ) from error
        self.heard_s = now_s
        events: list[Event] = []
        for descriptor, value in message.ListFields():  # in the order of the field numbers, as the contract wants
            part = descriptor.name
            next_state = TRANSITIONS.get((self.state, part))
            if next_state is None:
                raise ProtocolError(f"got {part} in state '{self.state.value}'; the contract does not allow it there")
            self.state = next_state
            events.extend(getattr(self, "_on_" + part)(value, now_s, unix_ns))
        return events

    def next_message(self, now_s: float) -> bytes | None:
        """What to say next, or None when there is nothing (yet)."""
        if self.state not in (State.OPEN, State.LEAVING):
            return None
        self._maybe_report(now_s)
        if self._control:
            return self._control.popleft()
        declaration = self._next_declaration()
        if declaration is not None:
            return declaration
        if now_s >= self.paused_until_s or self._goodbye is not None:
            durable = self._next_durable()
            if durable is not None:
                return durable
        return self._next_afterwards(now_s)

    def want_acks(self) -> None:
        """Once everything pending is sent, ask for its acks: a SelfReport is answered by them at once."""
        self._acks_wanted = True

    # -- what the agent says ------------------------------------------------------------------------------------------

    def declare(self, series: Iterable[pb.Series]) -> None:
        """Series that batches from now on may use. Said on this stream and on every later one."""
        self._series.extend(series)

    def layout(self, refs: Sequence[int]) -> int:
        """A number for this set of refs; 0 when there are no more numbers (then send the refs themselves)."""
        if self._next_layout > LAYOUTS:
            return 0
        number = self._next_layout
        self._next_layout += 1
        self._layouts[number] = tuple(refs)
        return number

    def forget_layouts(self) -> None:
        """No new batch will use the layouts made so far; those of pending batches are kept."""
        needed = {item.layout for item in self._pending.values()}
        self._layouts = {number: refs for number, refs in self._layouts.items() if number in needed}

    def batch(self, batch: pb.Batch) -> int:
        """Queues a batch; returns its sequence."""
        return self._add(pb.AgentMessage(batch=batch), Counts(samples=len(batch.values)), batch.layout)

    def events(self, events: Sequence[pb.Event]) -> int:
        """Queues events, at most 1,000; returns their sequence."""
        return self._add(pb.AgentMessage(events=pb.Events(events=events)), Counts(events=len(events)))

    def logs(self, records: Sequence[pb.LogRecord]) -> int:
        """Queues log records, at most 1,000; returns their sequence."""
        return self._add(pb.AgentMessage(logs=pb.Logs(records=records)), Counts(logs=len(records)))

    def pong(self, pinged: Pinged, health: pb.Pong, sent_unix_ns: int) -> None:
        """Answers a ping; `health` holds what the agent says of itself."""
        health.id = pinged.ping.id
        health.ping_sent_unix_ns = pinged.ping.sent_unix_ns
        health.received_unix_ns = pinged.received_unix_ns
        health.sent_unix_ns = sent_unix_ns
        self._say(pb.AgentMessage(pong=health))

    def config_status(self, status: pb.ConfigStatus) -> None:
        if status.state == pb.CONFIG_STATE_APPLIED:
            self.hello.config_hash = status.hash
        self._say(pb.AgentMessage(config_status=status))

    def command_result(self, result: pb.CommandResult) -> None:
        self._say(pb.AgentMessage(command_result=result))

    def drop(self, reason: int, counts: Counts) -> None:
        """Counts what was dropped, here or before it came here, and reports it."""
        self.totals.drops.setdefault(reason, Counts()).add(counts)
        self._report_wanted = True

    def goodbye(self, kind: int, reason: str) -> None:
        """Ends the stream after everything pending has been sent once. Before Welcome it waits for it."""
        self._goodbye = pb.Goodbye(kind=kind, reason=reason)  # type: ignore[arg-type]
        if self.state is State.OPEN:
            self.state = State.LEAVING

    def rename(self, instance: str) -> None:
        """Another process has this instance's uid: goes on under a new one."""
        self.hello.instance = instance
        self.hello.connection = 0

    def abandon(self) -> Counts:
        """Forgets everything pending; returns what it was."""
        left = Counts()
        for item in self._pending.values():
            left.add(item.counts)
        self._pending.clear()
        self._to_send.clear()
        self.pending_bytes = 0
        return left

    def is_acked(self, sequence: int) -> bool:
        """Whether everything up to this sequence is acknowledged (or dropped and counted)."""
        return next(iter(self._pending), sequence + 1) > sequence

    @property
    def pending_messages(self) -> int:
        return len(self._pending)

    # -- what the collector says --------------------------------------------------------------------------------------

    def _on_welcome(self, welcome: pb.Welcome, now_s: float, unix_ns: int) -> list[Event]:
        self._forget(welcome.received)
        self._welcomed_flush_s = (welcome.flush_interval_ms or DEFAULT_FLUSH_S * 1000) / 1000
        self._welcomed_full_s = (welcome.full_interval_ms or DEFAULT_FULL_S * 1000) / 1000
        self.flush_s, self.full_s = self._welcomed_flush_s, self._welcomed_full_s
        self.ping_s = (welcome.ping_interval_ms or DEFAULT_PING_S * 1000) / 1000
        self.message_bytes = welcome.limits.message_bytes or MESSAGE_BYTES
        self.paused_until_s = 0.0
        self._to_send = deque(self._pending)
        self._report_wanted = True
        if self._goodbye is not None:
            self.state = State.LEAVING
        return [Welcomed(welcome.collector)]

    def _on_refusal(self, refusal: pb.Refusal, now_s: float, unix_ns: int) -> list[Event]:
        return [Refused(refusal.reason, refusal.text, refusal.retry_after_ms / 1000)]

    def _on_ack(self, ack: pb.Ack, now_s: float, unix_ns: int) -> list[Event]:
        self._forget(ack.ranges)
        return []

    def _on_ping(self, ping: pb.Ping, now_s: float, unix_ns: int) -> list[Event]:
        return [Pinged(ping, unix_ns)]

    def _on_poll(self, poll: pb.Poll, now_s: float, unix_ns: int) -> list[Event]:
        return [Polled(poll.id)]

    def _on_throttle(self, throttle: pb.Throttle, now_s: float, unix_ns: int) -> list[Event]:
        self.flush_s = throttle.flush_interval_ms / 1000 or self._welcomed_flush_s
        self.full_s = throttle.full_interval_ms / 1000 or self._welcomed_full_s
        self.paused_until_s = now_s + throttle.pause_ms / 1000
        return [Throttled(throttle.reason)]

    def _on_limit_notice(self, notice: pb.LimitNotice, now_s: float, unix_ns: int) -> list[Event]:
        return [LimitHit(notice.text, notice.refused_total)]

    def _on_violations(self, violations: Sequence[pb.Violation], now_s: float, unix_ns: int) -> list[Event]:
        return [Violated(v.kind, v.text, v.sequence) for v in violations]

    def _on_config_push(self, push: pb.ConfigPush, now_s: float, unix_ns: int) -> list[Event]:
        return [ConfigPushed(push)]

    def _on_command(self, command: pb.Command, now_s: float, unix_ns: int) -> list[Event]:
        return [Commanded(command)]

    def _on_drain(self, drain: pb.Drain, now_s: float, unix_ns: int) -> list[Event]:
        if self._goodbye is None:  # a goodbye for good says more than one for a while
            self.goodbye(pb.GOODBYE_KIND_RECONNECT, drain.reason)
        return [Drained(drain.reconnect_within_ms / 1000, drain.deadline_ms / 1000, drain.reason)]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _forget_stream(self) -> None:
        self._control.clear()
        self._to_send.clear()
        self._declared = 0
        self._declared_layouts.clear()
        self._reported_s = float("-inf")
        self.paused_until_s = 0.0
        if self._goodbye is not None and self._goodbye.kind == pb.GOODBYE_KIND_RECONNECT:
            self._goodbye = None
        self.goodbye_sent = False

    def _say(self, message: pb.AgentMessage) -> None:
        if self.state in (State.OPEN, State.LEAVING):
            self._control.append(message.SerializeToString())

    def _add(self, message: pb.AgentMessage, counts: Counts, layout: int = 0) -> int:
        self.last_sequence += 1
        message.sequence = self.last_sequence
        item = Durable(message.SerializeToString(), counts, layout)
        self._pending[self.last_sequence] = item
        self.pending_bytes += item.held_bytes
        if self.state in (State.OPEN, State.LEAVING):
            self._to_send.append(self.last_sequence)
        while self.pending_bytes > self.pending_limit_bytes:
            _, oldest = self._pending.popitem(last=False)
            self.pending_bytes -= oldest.held_bytes
            self.drop(pb.DROP_REASON_MEMORY, oldest.counts)
        if self.pending_bytes > self.pending_limit_bytes // 2:
            self._report_wanted = True  # asks for acks sooner
        return self.last_sequence

    def _forget(self, ranges: Iterable[pb.SequenceRange]) -> None:
        for acked in ranges:
            covered = []
            for sequence in self._pending:
                if sequence > acked.last:
                    break
                if sequence >= acked.first:
                    covered.append(sequence)
            for sequence in covered:
                item = self._pending.pop(sequence)
                self.pending_bytes -= item.held_bytes
                self.totals.acked += item.counts.samples

    def _next_declaration(self) -> bytes | None:
        chunk: list[pb.Series] = []
        size_bytes, most_bytes = 0, min(DECLARE_BYTES, self.message_bytes // 2)
        for series in self._series[self._declared :]:
            size_bytes += series.ByteSize() + 4
            if chunk and size_bytes > most_bytes:
                break
            chunk.append(series)
        self._declared += len(chunk)
        return pb.AgentMessage(declare=pb.Declare(series=chunk)).SerializeToString() if chunk else None

    def _next_durable(self) -> bytes | None:
        while self._to_send:
            item = self._pending.get(self._to_send[0])
            if item is not None and item.layout and item.layout not in self._declared_layouts:
                self._declared_layouts.add(item.layout)
                layout = pb.Layout(layout=item.layout, refs=self._layouts[item.layout])
                return pb.AgentMessage(declare=pb.Declare(layouts=[layout])).SerializeToString()
            sequence = self._to_send.popleft()
            if item is None:
                continue  # dropped, or acknowledged on an earlier stream
            if len(item.data) > self.message_bytes:  # would end this stream, and every later one
                self.pending_bytes -= self._pending.pop(sequence).held_bytes
                self.drop(pb.DROP_REASON_INVALID, item.counts)
                continue
            if sequence > self._sent_sequence:
                self._sent_sequence = sequence
                self.totals.sent += item.counts.samples
            return item.data
        return None

    def _next_afterwards(self, now_s: float) -> bytes | None:
        """What waits until everything pending has been sent."""
        if self._goodbye is not None and not self.goodbye_sent:
            self.goodbye_sent = True
            self._goodbye.last_sequence = self.last_sequence
            return pb.AgentMessage(goodbye=self._goodbye).SerializeToString()
        if self._acks_wanted:
            self._acks_wanted = False
            return self._report(now_s).SerializeToString()
        return None

    def _maybe_report(self, now_s: float) -> None:
        if self._report_wanted and now_s - self._reported_s >= REPORT_S:
            self._say(self._report(now_s))

    def _report(self, now_s: float) -> pb.AgentMessage:
        self._report_wanted = False
        self._reported_s = now_s
        totals = self.totals
        drops = [
            pb.Drop(reason=reason, samples_total=c.samples, events_total=c.events, logs_total=c.logs)  # type: ignore[arg-type]
            for reason, c in totals.drops.items()
        ]
        report = pb.SelfReport(
            recorded_total=totals.recorded, sent_total=totals.sent, acked_total=totals.acked, drops=drops,
            pending_messages=len(self._pending), pending_bytes=self.pending_bytes, flush_seconds=totals.flush_s,
        )  # fmt: skip
        return pb.AgentMessage(self_report=report)
