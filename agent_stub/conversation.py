"""The agent's end of the stream, sans-IO: bytes in, events out; things to say in, bytes out. No network, no clock, no thread.

The law of this file: what the collector may say in which state is `TRANSITIONS`, and nothing else. A durable message
(batch, events, logs) keeps its sequence from its creation until an ack covers it or a bound drops it (`pending`); it is
said again on every new stream. Declarations and layouts are said again before them.

    talk = AgentConversation(hello, pending_limit_bytes=8 << 20)
    send(talk.open())                                    # a new stream: Hello
    for event in talk.receive(data, now_s, unix_ns): ... # each message of the collector
    while (data := talk.next_message(now_s)): send(data) # whenever the stream takes more
    while (data := talk.next_backlog(now_s)): send(data) # when there is nothing newer: what was read back from disk
    talk.lost()                                          # the stream is gone, for whatever reason

Times: `now_s` is a monotonic clock in seconds, `unix_ns` the wall clock. Not thread-safe: the caller holds one lock.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Sequence

from agent_stub.durable import Counts, Totals, counts_of
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
from agent_stub.pending import Pending
from agent_stub.wire import stream_pb2 as pb

PROTOCOL_VERSION = 1
LAYOUTS = 65_535
DECLARE_BYTES = 256 * 1024  # a Declare, at most: one series with 32 long labels takes 41 KB
MESSAGE_BYTES = 4 << 20  # the contract's limit of a message, unless Welcome says otherwise
CONTROL_MESSAGES = 1000  # answers that wait while the stream is stuck; older ones are of no use
REPORT_S = 1.0  # a SelfReport at most this often
FLIGHT_BYTES = (32 * 1024, 1 << 20)  # of a backlog, said and not acknowledged: at first and at least, and at most
FLIGHT_S = (0.1, 0.3)  # acks sooner than this: more; later than this: less
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


class AgentConversation:
    """See the module. `hello` holds all but what changes from stream to stream."""

    def __init__(self, hello: pb.Hello, pending_limit_bytes: int) -> None:
        self.hello = pb.Hello()
        self.hello.CopyFrom(hello)
        self.hello.protocol_version = PROTOCOL_VERSION
        self.state = State.IDLE
        self.totals = Totals()
        self.pending = Pending(pending_limit_bytes, self.totals, self.drop)
        self.series: list[pb.Series] = []  # all that were declared; only ever grows
        self.spool_bytes = 0  # on disk, as whoever keeps the files says
        self.flush_s, self.full_s, self.ping_s = DEFAULT_FLUSH_S, DEFAULT_FULL_S, DEFAULT_PING_S
        self.paused_until_s = 0.0
        self.message_bytes = MESSAGE_BYTES
        self.heard_s = 0.0  # when the collector last said something
        self.goodbye_sent = False
        self._welcomed_flush_s, self._welcomed_full_s = DEFAULT_FLUSH_S, DEFAULT_FULL_S
        self._declared = 0  # how many series this stream has heard of
        self._layouts: dict[int, tuple[int, ...]] = {}  # that new batches may use
        self._declared_layouts: set[int] = set()
        self._next_layout = 1
        self._control: deque[bytes] = deque(maxlen=CONTROL_MESSAGES)
        self._goodbye: pb.Goodbye | None = None
        self._report_wanted = False
        self._acks_wanted = False
        self._flight_limit_bytes = FLIGHT_BYTES[0]
        self._flight_asked: tuple[int, float] | None = None  # a report asked for the ack of this sequence, at this time
        self._reported_s = float("-inf")

    # -- the stream ---------------------------------------------------------------------------------------------------

    def open(self) -> bytes:
        """Begins a stream. Returns the Hello, which must be its first message."""
        self._forget_stream()
        self.state = State.GREETING
        self.hello.connection += 1
        self.hello.first_held_sequence = self.pending.first_held
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
            durable = self._next_durable(backlog=False)
            if durable is not None or self.pending.is_waiting:
                return durable
        return self._next_afterwards(now_s)

    def next_backlog(self, now_s: float) -> bytes | None:
        """What to say when `next_message` has nothing and nothing newer is due: of what was read back from disk."""
        if self.state is not State.OPEN or now_s < self.paused_until_s:
            return None
        self._measure_flight(now_s)
        if self.pending.flight_bytes < self._flight_limit_bytes:
            durable = self._next_durable(backlog=True)
            if durable is not None:
                return durable
        if self._flight_asked is None and self.pending.newest_in_flight:
            self._flight_asked = (self.pending.newest_in_flight, now_s)
            return self._report(now_s).SerializeToString()
        return None

    def want_acks(self) -> None:
        """Once everything in memory is sent, ask for its acks: a SelfReport is answered by them at once."""
        self._acks_wanted = True

    # -- what the agent says ------------------------------------------------------------------------------------------

    def declare(self, series: Iterable[pb.Series]) -> None:
        """Series that batches from now on may use. Said on this stream and on every later one."""
        self.series.extend(series)

    def layout(self, refs: Sequence[int]) -> int:
        """A number for this set of refs; 0 when there are no more numbers (then send the refs themselves)."""
        if self._next_layout > LAYOUTS:
            return 0
        number = self._next_layout
        self._next_layout += 1
        self._layouts[number] = tuple(refs)
        return number

    def forget_layouts(self) -> None:
        """No new batch will use the layouts made so far; pending batches have their own."""
        self._layouts.clear()

    def batch(self, batch: pb.Batch) -> int:
        """Queues a batch; returns its sequence."""
        return self._add(pb.AgentMessage(batch=batch), batch.layout)

    def events(self, events: Sequence[pb.Event]) -> int:
        """Queues events, at most 1,000; returns their sequence."""
        return self._add(pb.AgentMessage(events=pb.Events(events=events)))

    def logs(self, records: Sequence[pb.LogRecord]) -> int:
        """Queues log records, at most 1,000; returns their sequence."""
        return self._add(pb.AgentMessage(logs=pb.Logs(records=records)))

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
        """Ends the stream after everything in memory has been sent once. Before Welcome it waits for it."""
        self._goodbye = pb.Goodbye(kind=kind, reason=reason)  # type: ignore[arg-type]
        if self.state is State.OPEN:
            self.state = State.LEAVING

    def rename(self, instance: str) -> None:
        """Another process has this instance's uid: goes on under a new one."""
        self.hello.instance = instance
        self.hello.connection = 0

    def is_acked(self, sequence: int) -> bool:
        """Whether everything up to this sequence is acknowledged (or dropped and counted)."""
        return self.pending.first_held > sequence

    @property
    def last_sequence(self) -> int:
        return self.pending.last_sequence

    @property
    def pending_bytes(self) -> int:
        """Of the messages in memory, with what Python needs to keep them."""
        return self.pending.memory_bytes

    @property
    def pending_messages(self) -> int:
        return self.pending.messages

    # -- what the collector says --------------------------------------------------------------------------------------

    def _on_welcome(self, welcome: pb.Welcome, now_s: float, unix_ns: int) -> list[Event]:
        self.pending.acked(welcome.received)
        self._welcomed_flush_s = (welcome.flush_interval_ms or DEFAULT_FLUSH_S * 1000) / 1000
        self._welcomed_full_s = (welcome.full_interval_ms or DEFAULT_FULL_S * 1000) / 1000
        self.flush_s, self.full_s = self._welcomed_flush_s, self._welcomed_full_s
        self.ping_s = (welcome.ping_interval_ms or DEFAULT_PING_S * 1000) / 1000
        self.message_bytes = welcome.limits.message_bytes or MESSAGE_BYTES
        self.paused_until_s = 0.0
        self.pending.begin()
        self._report_wanted = True
        if self._goodbye is not None:
            self.state = State.LEAVING
        return [Welcomed(welcome.collector)]

    def _on_refusal(self, refusal: pb.Refusal, now_s: float, unix_ns: int) -> list[Event]:
        return [Refused(refusal.reason, refusal.text, refusal.retry_after_ms / 1000)]

    def _on_ack(self, ack: pb.Ack, now_s: float, unix_ns: int) -> list[Event]:
        self.pending.acked(ack.ranges)
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
        self._flight_asked = None
        self.pending.lost()
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

    def _add(self, message: pb.AgentMessage, layout: int = 0) -> int:
        sequence = self.pending.add(message, counts_of(message), layout, self._layouts.get(layout, ()))
        if self.pending.memory_bytes > self.pending.limit_bytes // 2:
            self._report_wanted = True  # asks for acks sooner
        return sequence

    def _next_declaration(self) -> bytes | None:
        chunk: list[pb.Series] = []
        size_bytes, most_bytes = 0, min(DECLARE_BYTES, self.message_bytes // 2)
        for series in self.series[self._declared :]:
            size_bytes += series.ByteSize() + 4
            if chunk and size_bytes > most_bytes:
                break
            chunk.append(series)
        self._declared += len(chunk)
        return pb.AgentMessage(declare=pb.Declare(series=chunk)).SerializeToString() if chunk else None

    def _next_durable(self, backlog: bool) -> bytes | None:
        while True:
            item = self.pending.front(backlog)
            if item is None:
                return None
            if item.layout and item.layout not in self._declared_layouts:
                self._declared_layouts.add(item.layout)
                layout = pb.Layout(layout=item.layout, refs=item.refs)
                return pb.AgentMessage(declare=pb.Declare(layouts=[layout])).SerializeToString()
            if len(item.data) > self.message_bytes:  # would end this stream, and every later one
                self.pending.refuse(item, pb.DROP_REASON_INVALID)
                continue
            self.pending.said(backlog)
            return item.data

    def _measure_flight(self, now_s: float) -> None:
        """As much of a backlog is under way as is acknowledged soon: live data has to wait behind it on a slow line."""
        if self._flight_asked is None or self.pending.is_in_flight(self._flight_asked[0]):
            return
        took_s, limit_bytes = now_s - self._flight_asked[1], self._flight_limit_bytes
        self._flight_asked = None
        if took_s < FLIGHT_S[0]:
            self._flight_limit_bytes = min(2 * limit_bytes, FLIGHT_BYTES[1])
        elif took_s > FLIGHT_S[1]:
            self._flight_limit_bytes = max(limit_bytes // 2, FLIGHT_BYTES[0])

    def _next_afterwards(self, now_s: float) -> bytes | None:
        """What waits until everything in memory has been sent."""
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
        report = pb.SelfReport(
            recorded_total=totals.recorded, sent_total=totals.sent, acked_total=totals.acked, drops=self.drops(),
            pending_messages=self.pending.messages, pending_bytes=self.pending.memory_bytes,
            spool_bytes=self.spool_bytes, flush_seconds=totals.flush_s,
        )  # fmt: skip
        return pb.AgentMessage(self_report=report)

    def drops(self) -> list[pb.Drop]:
        """What was dropped so far, by reason."""
        return [
            pb.Drop(reason=reason, samples_total=c.samples, events_total=c.events, logs_total=c.logs)  # type: ignore[arg-type]
            for reason, c in self.totals.drops.items()
        ]
