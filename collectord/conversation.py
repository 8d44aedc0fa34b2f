"""The collector's end of a stream, sans-IO: bytes in, what was heard out; what there is to say collects in one message.

The law of this file: it does no I/O, reads no clock (times are arguments), knows no series. What may be said when
stands in `ALLOWED`; everything else is a violation, answered by name, and the stream goes on.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from agent_stub.wire import stream_pb2 as wire
from collectord.wire import twin_pb2 as twin
from storage.sequences import Sequences

PROTOCOL_VERSION = 1
MOST_VIOLATIONS = 100  # of one stream; a client that breaks the contract this often is refused
MOST_VIOLATION_TEXTS = 10  # in one message
MOST_PINGS_OPEN = 16  # remembered pings without a pong; an older one is given up

_DURABLE = frozenset({"batch", "events", "logs"})


class Stage(enum.Enum):
    """How far a stream has come."""

    GREETING = "waiting for Hello"
    DECIDING = "Hello heard, not answered"
    OPEN = "open"
    LEAVING = "Goodbye heard"
    ENDED = "ended"


_ANYTHING = frozenset(
    {"declare", "batch", "events", "logs", "pong", "config_status", "command_result", "self_report", "goodbye"}
)

ALLOWED: dict[Stage, frozenset[str]] = {
    Stage.GREETING: frozenset({"hello"}),
    Stage.DECIDING: frozenset(),
    Stage.OPEN: _ANYTHING,
    Stage.LEAVING: _ANYTHING - {"goodbye"},  # what was under way still counts
    Stage.ENDED: frozenset(),
}

AFTER: dict[tuple[Stage, str], Stage] = {
    (Stage.GREETING, "hello"): Stage.DECIDING,
    (Stage.DECIDING, "welcome"): Stage.OPEN,
    (Stage.DECIDING, "refuse"): Stage.ENDED,
    (Stage.OPEN, "goodbye"): Stage.LEAVING,
}


Heard = tuple[str, Any, int]
"""One thing the agent said: a body's name, the body (a twin.Batch for "batch", else the contract's message), and its
sequence. The name is "" when the message was a violation or had been acknowledged, and "again" when it is here, but not
safe yet: it is to be acknowledged when what came before is. A plain tuple: one is made for each message.
"""


class RoundTrip(NamedTuple):
    """What a pong tells of the way and the clocks (RFC 5905, section 8)."""

    rtt_s: float
    clock_offset_s: float  # the agent's clock minus ours


_NOTHING: Heard = ("", None, 0)


@dataclass(slots=True)
class CollectorConversation:
    """One stream. `received` and `safe` belong to the instance and outlive the stream: hand them over with `welcome`.

    What is received is here; what is safe is on disk, and only that may be acknowledged.
    """

    stage: Stage = Stage.GREETING
    received: Sequences = field(default_factory=Sequences)
    safe: Sequences = field(default_factory=Sequences)
    repeated_messages: int = 0
    violations: int = 0  # whole stream
    new_violations: Counter[wire.ViolationKind] = field(
        default_factory=Counter
    )  # kind -> how often, until somebody counted them
    refused: wire.RefusalReason = wire.REFUSAL_REASON_UNSPECIFIED
    _out: wire.CollectorMessage = field(default_factory=wire.CollectorMessage)
    _said: bool = False
    _to_ack: Sequences = field(default_factory=Sequences)
    _pings: dict[int, int] = field(default_factory=dict)  # id -> sent, Unix ns
    _ping_id: int = 0

    # Hearing

    def receive(self, data: bytes) -> Heard:
        """Take one message from the agent. Durable messages are handed out once; a repetition is only acknowledged."""
        try:
            message = twin.AgentMessage.FromString(data)
            if not message.HasField("batch"):
                return self._receive_rare(data)
        except DecodeError as error:
            return self._garbage(str(error))
        if self.stage is not Stage.OPEN and "batch" not in ALLOWED[self.stage]:
            return self._out_of_order("batch", message.sequence)
        sequence = message.sequence
        if not sequence or not self.received.add(sequence):
            return self._unwanted("batch", sequence)
        return "batch", message.batch, sequence

    def _receive_rare(self, data: bytes) -> Heard:
        message = wire.AgentMessage.FromString(data)
        what = message.WhichOneof("body")
        if what is None:
            return self._garbage("a message without a body")
        if what not in ALLOWED[self.stage]:
            return self._out_of_order(what, message.sequence)
        durable = what in _DURABLE
        if durable and (not message.sequence or not self.received.add(message.sequence)):
            return self._unwanted(what, message.sequence)
        if not durable and message.sequence:
            self.violate(
                wire.VIOLATION_KIND_SEQUENCE,
                f"{what} carries sequence {message.sequence}, expected 0: it is not durable",
            )
        self.stage = AFTER.get((self.stage, what), self.stage)
        return what, getattr(message, what), message.sequence

    def _unwanted(self, what: str, sequence: int) -> Heard:
        if not sequence:
            self.violate(wire.VIOLATION_KIND_SEQUENCE, f"{what} without a sequence, expected 1 or more: it is durable")
            return _NOTHING
        self.repeated_messages += 1
        if sequence not in self.safe:
            return "again", None, sequence
        self._to_ack.add(sequence)
        return _NOTHING

    def unreceive(self, sequence: int) -> None:
        """A durable message was not taken in: its repetition will be news."""
        self.received.discard(sequence)

    def _garbage(self, why: str) -> Heard:
        if self.stage is Stage.GREETING:
            self.refuse(
                wire.REFUSAL_REASON_MALFORMED,
                f"got bytes that are no collectord.v1.AgentMessage ({why}), expected Hello; is the client a collectord agent?",
            )
        else:
            self.violate(wire.VIOLATION_KIND_GARBAGE, f"got {why}, expected a collectord.v1.AgentMessage with a body")
        return _NOTHING

    def _out_of_order(self, what: str, sequence: int) -> Heard:
        text = f"got {what} while the stream was {self.stage.value}"
        if self.stage is Stage.GREETING:
            self.refuse(wire.REFUSAL_REASON_MALFORMED, f"{text}, expected Hello first")
        elif self.stage is not Stage.ENDED:
            self.violate(wire.VIOLATION_KIND_ORDER, f"{text}, where that is not said", sequence)
        return _NOTHING

    def pong(self, pong: wire.Pong, now_unix_ns: int) -> RoundTrip | None:
        """What a pong tells; None for an answer to a ping that was never sent, or was answered or given up."""
        sent = self._pings.pop(pong.id, None)
        if sent is None:
            return None
        held = max(0, pong.sent_unix_ns - pong.received_unix_ns)
        rtt = max(0, now_unix_ns - sent - held)
        offset = ((pong.received_unix_ns - sent) + (pong.sent_unix_ns - now_unix_ns)) / 2
        return RoundTrip(rtt / 1e9, offset / 1e9)

    # Saying

    def welcome(self, welcome: wire.Welcome, received: Sequences, safe: Sequences, first_held: int) -> None:
        """Open the stream. `received`: what came of this instance before; `safe`: what of it need not come again."""
        self._move("welcome")
        self.received, self.safe = received, safe
        received.add_below(first_held)
        safe.add_below(first_held)
        for first, last in safe:
            welcome.received.add(first=first, last=last)
        self._out.welcome.CopyFrom(welcome)
        self._said = True

    def refuse(self, reason: wire.RefusalReason, text: str, retry_after_ms: int = 0) -> None:
        """End the stream with a reason; allowed at every stage."""
        if self.stage is Stage.ENDED:
            return
        self.stage = Stage.ENDED
        self.refused = reason
        self._out.Clear()  # nothing is said beside a refusal; what was not acknowledged will be said again
        self._out.refusal.reason = reason
        self._out.refusal.text = text
        self._out.refusal.retry_after_ms = retry_after_ms
        if reason == wire.REFUSAL_REASON_VERSION:
            self._out.refusal.supported_versions.append(PROTOCOL_VERSION)
        self._said = True

    def refuse_too_large(self, size_bytes: int, most_bytes: int) -> None:
        """End the stream: a message that was not looked into cannot be acknowledged, and would come again and again."""
        text = f"got a message of {size_bytes} bytes, expected at most {most_bytes} (Welcome.limits.message_bytes)"
        self.violate(wire.VIOLATION_KIND_TOO_LARGE, text)
        self.refuse(wire.REFUSAL_REASON_MALFORMED, f"{text}; send less at once")

    def violate(self, kind: wire.ViolationKind, text: str, sequence: int = 0) -> None:
        """Tell the agent what was wrong with its message; after MOST_VIOLATIONS of them, refuse it."""
        self.violations += 1
        self.new_violations[kind] += 1
        if len(self._out.violations) < MOST_VIOLATION_TEXTS:
            self._out.violations.add(kind=kind, text=text[:1024], sequence=sequence)
            self._said = True
        if self.violations > MOST_VIOLATIONS:
            self.refuse(
                wire.REFUSAL_REASON_MALFORMED, f"more than {MOST_VIOLATIONS} violations on one stream; the last: {text}"
            )

    def applied(self, first: int, last: int) -> None:
        """Durable messages first..last are safe: acknowledge them with the next `acknowledge`."""
        self._to_ack.add_range(first, last)

    @property
    def acks_waiting(self) -> bool:
        """Whether `acknowledge` has something to say."""
        return len(self._to_ack) > 0

    def acknowledge(self) -> None:
        """Put the ranges that are safe since the last time into the next message."""
        for first, last in self._to_ack:
            self._out.ack.ranges.add(first=first, last=last)
            self._said = True
        self._to_ack.clear()

    def ping(self, now_unix_ns: int, last: RoundTrip | None) -> None:
        """Put a ping into the next message, with what was measured last."""
        self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
        self._pings[self._ping_id] = now_unix_ns
        if len(self._pings) > MOST_PINGS_OPEN:
            del self._pings[next(iter(self._pings))]
        ping = self._out.ping
        ping.id, ping.sent_unix_ns = self._ping_id, now_unix_ns
        if last is not None:
            ping.rtt_ms, ping.clock_offset_s = last.rtt_s * 1e3, last.clock_offset_s
        self._said = True

    def poll(self) -> None:
        """Ask for resource samples with the next message."""
        self._out.poll.id = self._ping_id
        self._said = True

    def throttle(self, throttle: wire.Throttle) -> None:
        """Ask the agent to send less, or more again."""
        self._out.throttle.CopyFrom(throttle)
        self._said = True

    def notice_limit(self, notice: wire.LimitNotice) -> None:
        """Tell the agent which series were refused."""
        self._out.limit_notice.CopyFrom(notice)
        self._said = True

    def drain(self, reconnect_within_ms: int, deadline_ms: int, reason: str) -> None:
        """Ask the agent to finish, leave and come back."""
        drain = self._out.drain
        drain.reconnect_within_ms, drain.deadline_ms, drain.reason = reconnect_within_ms, deadline_ms, reason
        self._said = True

    def take(self) -> bytes | None:
        """What there is to say, as one message; None when there is nothing."""
        if not self._said:
            return None
        data = self._out.SerializeToString()
        self._out.Clear()
        self._said = False
        return data

    def _move(self, what: str) -> None:
        if (self.stage, what) not in AFTER:
            raise RuntimeError(f"{what} said while {self.stage.value}: a fault of the collector's own")
        self.stage = AFTER[self.stage, what]
