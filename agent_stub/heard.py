"""What an agent can hear: the events that `AgentConversation.receive` returns."""

from __future__ import annotations

from dataclasses import dataclass

from agent_stub.wire import stream_pb2 as pb


class Event:
    """Something that the collector said and the agent has to know."""


@dataclass(frozen=True)
class Welcomed(Event):
    """The agent may send; `flush_s` and the like are now in force. Every value is to be sent again."""

    collector: str


@dataclass(frozen=True)
class Refused(Event):
    reason: int  # pb.RefusalReason
    text: str
    retry_after_s: float  # 0: the agent's own backoff


@dataclass(frozen=True)
class Pinged(Event):
    """To be answered at once with `pong`."""

    ping: pb.Ping
    received_unix_ns: int


@dataclass(frozen=True)
class Polled(Event):
    """Resource samples are wanted now."""

    id: int


@dataclass(frozen=True)
class Throttled(Event):
    reason: str


@dataclass(frozen=True)
class LimitHit(Event):
    text: str
    refused_total: int


@dataclass(frozen=True)
class Violated(Event):
    """The collector found this agent's message wrong in part."""

    kind: int  # pb.ViolationKind
    text: str
    sequence: int


@dataclass(frozen=True)
class ConfigPushed(Event):
    push: pb.ConfigPush


@dataclass(frozen=True)
class Commanded(Event):
    command: pb.Command


@dataclass(frozen=True)
class Drained(Event):
    """Goodbye (RECONNECT) is queued already. Come back after a random time up to `reconnect_within_s`."""

    reconnect_within_s: float
    deadline_s: float
    reason: str
