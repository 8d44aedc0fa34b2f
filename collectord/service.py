"""The gRPC service: one coroutine a stream, raw bytes both ways, a writer's task only while a message has to wait."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc
import structlog

from agent_stub.wire import stream_pb2 as wire
from collectord.committer import Committer, Turn
from collectord.config import Config
from collectord.conversation import PROTOCOL_VERSION, CollectorConversation, Stage
from collectord.dictionary import Dictionary
from collectord.distribution import Distribution
from collectord.fleet import Agent, Fleet
from collectord.http2.context import Context
from collectord.ingest import Ingest

METHOD = "/collectord.v1.Collector/Stream"
OVERLOAD_RETRY_MS = 10_000
GOODBYE_S = 1.0  # for a refusal to be written, and again for its status
TURN_S, TURNS_A_SECOND = 0.02, 10_000  # of one stream at least, of all streams together at most
PAUSE_S = 10.0  # that agents are asked for while nothing can be taken
MOST_ATTRIBUTES, MOST_EVENTS_A_MESSAGE = 128, 1000  # as the contract says

log = structlog.get_logger("stream")

_STATUS = {
    wire.REFUSAL_REASON_VERSION: grpc.StatusCode.FAILED_PRECONDITION,
    wire.REFUSAL_REASON_UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    wire.REFUSAL_REASON_DUPLICATE_INSTANCE: grpc.StatusCode.ALREADY_EXISTS,
    wire.REFUSAL_REASON_OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    wire.REFUSAL_REASON_RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    wire.REFUSAL_REASON_MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    wire.REFUSAL_REASON_SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
    wire.REFUSAL_REASON_HANDSHAKE_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    wire.REFUSAL_REASON_REPLACED: grpc.StatusCode.ABORTED,
    wire.REFUSAL_REASON_SLOW_READER: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class Stream:
    """One open stream. What it has to say collects in its conversation; `wake` writes it."""

    __slots__ = (
        "_context",
        "_ender",
        "_writer",
        "agent",
        "conversation",
        "dictionary",
        "discarded",
        "dropped",
        "flush_interval_ms",
        "next_poll_s",
        "samples",
        "served_s",
        "turn",
        "was_cut",
        "writing_since_s",
    )

    def __init__(self, context: Context) -> None:
        self.conversation = CollectorConversation()
        self.samples = 0
        self.dropped = 0
        self.discarded = False  # something of it was not taken in while nothing could be: it is to send that again
        self.flush_interval_ms = 0  # as the agent was told last
        self.next_poll_s = 0.0
        self.served_s = 0.0  # monotonic, of the newest ping
        self.turn = Turn()
        self.writing_since_s: float | None = None  # monotonic, while a write is under way
        self.agent: Agent
        self.dictionary: Dictionary
        self.was_cut = False
        self._context = context
        self._writer: asyncio.Task[None] | None = None
        self._ender = asyncio.current_task()

    @property
    def writing(self) -> bool:
        """Whether a write is under way: the agent has not taken the last one yet."""
        return self._writer is not None

    def wake(self) -> None:
        """Write what there is to say, unless a writer is at it already."""
        while self._writer is None and (data := self.conversation.take()) is not None:
            if not self._context.write_now(data):
                self._writer = asyncio.get_running_loop().create_task(self._write(data))

    async def _write(self, data: bytes | None) -> None:
        """From a message on that has to wait."""
        try:
            while data is not None:
                self.writing_since_s = time.monotonic()
                await self._context.write(data)
                data = self.conversation.take()
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # the stream is over; its reader learns that by itself
        finally:
            self._writer = None
            self.writing_since_s = None

    async def flush(self) -> None:
        """Wait until everything said is written."""
        self.wake()
        while self._writer is not None:
            await asyncio.wait([self._writer])

    def cut(self) -> None:
        """End the stream from outside its own coroutine. REQUIRES: its conversation has refused."""
        if self._ender is not None and not self.was_cut:
            self.was_cut = True
            self._ender.cancel()


class StreamService(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers METHOD. `now_ms` and `now_ns` are the wall clock; health's clock is time.monotonic."""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        ingest: Ingest,
        committer: Committer,
        collector: str,
        now_ns: Callable[[], int],
    ) -> None:
        self.streams: set[Stream] = set()
        self.messages = 0
        self.accepted = 0
        self.round_trips = Distribution()
        self.ended = 0  # streams, welcomed or not
        self.refused: Counter[str] = Counter()  # reason -> streams
        self.violations: Counter[str] = Counter()  # kind -> messages, of ended and open streams
        self.refused_series = 0
        self.broken = 0  # streams that ended without a goodbye and were not refused
        self.draining = False
        self.refusal = ""  # why nothing can be taken now
        self._refused_s = 0.0
        self.refused_messages = 0  # durable ones, while nothing could be taken
        self._all_left = asyncio.Event()  # while draining
        self._config = config
        self._fleet = fleet
        self._ingest = ingest
        self._committer = committer
        self._collector = collector
        self._now_ns = now_ns
        self.on_welcome: Callable[[Stream, float], None] = lambda _stream, _now_s: None
        self._handler = grpc.stream_stream_rpc_method_handler(self._stream)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """gRPC asks this for every call."""
        return self._handler if details.method == METHOD else None

    def flush_interval_ms(self) -> int:
        """How often agents may send, by the size of the fleet: 5,000 agents at once a second are one core's work."""
        return max(self._config.ingest.flush_interval_ms, len(self.streams) // 5)

    def ping_interval_s(self) -> float:
        """How often each agent is pinged: at most 1,000 pings a second, because a write is dear."""
        return max(self._config.health.ping_interval_s, len(self.streams) / 1000)

    async def _stream(self, _: AsyncIterator[bytes], context: Context) -> None:
        stream = Stream(context)
        why = "the stream was cut"
        try:
            if await self._greet(stream, context):
                why = await self._hear(stream, context)
            await self._end_refused(stream, context)
        except asyncio.CancelledError:
            if not stream.was_cut:
                why = self._closed(stream)
                raise
            await self._end_refused(stream, context)
        finally:
            self.ended += 1
            self._leave(stream, why)

    async def _greet(self, stream: Stream, context: Context) -> bool:
        """Hear Hello and answer it; False when the stream is refused or gone."""
        conversation, limits = stream.conversation, self._config.limits
        try:
            async with asyncio.timeout(limits.handshake_s):
                data = await context.read()
        except TimeoutError:
            conversation.refuse(
                wire.REFUSAL_REASON_HANDSHAKE_TIMEOUT, f"got no message within {limits.handshake_s:g} s, expected Hello"
            )
            return False
        if data is grpc.aio.EOF:
            return False
        self.messages += 1
        what, hello, _ = conversation.receive(data)
        if what != "hello":
            return False
        if not self._admissible(stream, hello):
            return False
        now_s, now_ns = time.monotonic(), self._now_ns()
        if hello.backlog:
            agent = self._fleet.admit_backlog(hello, context.peer())
        else:
            agent = self._fleet.admit(hello, context.peer(), now_s, now_ns // 1_000_000)
        stream.agent = agent
        stream.dictionary = Dictionary(self._ingest.head, agent.labels, limits.series_per_agent)
        agent.stream = stream
        self.streams.add(stream)
        self.accepted += 1
        stream.flush_interval_ms = self.flush_interval_ms()
        conversation.welcome(self._welcome(), agent.received, agent.safe, hello.first_held_sequence)
        if not hello.backlog:
            conversation.ping(now_ns, agent.round_trip)
        self.on_welcome(stream, now_s)
        stream.wake()
        return True

    def _welcome(self) -> wire.Welcome:
        config = self._config
        return wire.Welcome(
            protocol_version=PROTOCOL_VERSION,
            collector=self._collector,
            flush_interval_ms=self.flush_interval_ms(),
            full_interval_ms=config.ingest.full_interval_ms,
            ping_interval_ms=int(1000 * self.ping_interval_s()),
            limits=wire.Limits(
                message_bytes=config.limits.message_bytes,
                series=config.limits.series_per_agent,
                handshake_s=int(config.limits.handshake_s),
            ),
        )

    def _admissible(self, stream: Stream, hello: wire.Hello) -> bool:
        refuse = stream.conversation.refuse
        if hello.protocol_version != PROTOCOL_VERSION:
            refuse(
                wire.REFUSAL_REASON_VERSION,
                f"got protocol_version {hello.protocol_version}, expected {PROTOCOL_VERSION}; use an agent_stub of this "
                "collector's major version",
            )
        elif not 1 <= len(hello.agent.encode()) <= 256 or not 1 <= len(hello.instance.encode()) <= 128:
            refuse(
                wire.REFUSAL_REASON_MALFORMED,
                f"got an agent's name of {len(hello.agent.encode())} bytes and an instance uid of "
                f"{len(hello.instance.encode())}, expected 1 to 256 and 1 to 128",
            )
        elif len(hello.version.encode()) > 256 or not _attributes_fit(hello):
            refuse(
                wire.REFUSAL_REASON_MALFORMED,
                f"got a version of {len(hello.version.encode())} bytes and {len(hello.attributes)} attributes, expected at "
                f"most 256 bytes, and at most {MOST_ATTRIBUTES} attributes with names of 256 and values of 4096 bytes",
            )
        elif self.draining:
            retry_ms = int(1000 * self._config.shutdown.reconnect_within_s)
            refuse(wire.REFUSAL_REASON_SHUTTING_DOWN, "the collector is shutting down; come back later", retry_ms)
        elif len(self.streams) >= self._config.limits.agents:
            refuse(
                wire.REFUSAL_REASON_OVERLOADED,
                f"got stream {len(self.streams) + 1}, expected at most {self._config.limits.agents} (limits.agents); raise "
                "the limit or start another collector",
                OVERLOAD_RETRY_MS,
            )
        else:
            self._settle_duplicate(stream, hello)
        return stream.conversation.stage is not Stage.ENDED

    def _settle_duplicate(self, stream: Stream, hello: wire.Hello) -> None:
        """Of two open streams with one uid: a later one of the same process takes over, another process is refused."""
        agents = self._fleet.backlogs if hello.backlog else self._fleet.agents
        agent = agents.get(hello.instance)
        if agent is None or agent.stream is None:
            return
        if hello.start_time_unix_ms == agent.started_ms and hello.connection > agent.connection:
            before = agent.stream
            before.conversation.refuse(wire.REFUSAL_REASON_REPLACED, "a newer stream of the same instance took over")
            self._leave(before, "replaced by a newer stream", replaced=True)
            before.cut()
        else:
            stream.conversation.refuse(
                wire.REFUSAL_REASON_DUPLICATE_INSTANCE,
                f"got instance uid {hello.instance!r}, which another process of {agent.name!r} at {agent.address} is using; "
                "make a new uid for every process",
            )

    async def _hear(self, stream: Stream, context: Context) -> str:
        """Until the stream ends; returns why it did."""
        read, receive, batch = context.read, stream.conversation.receive, self._ingest.batch
        conversation, agent, now, committer = stream.conversation, stream.agent, time.monotonic, self._committer
        most_bytes = self._config.limits.message_bytes
        while conversation.stage is not Stage.ENDED:
            data = await read()
            if data is grpc.aio.EOF:
                return self._closed(stream)
            self.messages += 1
            if len(data) > most_bytes:
                stream.conversation.refuse_too_large(len(data), most_bytes)
                self._count_violations(stream)
                break
            what, body, sequence = receive(data)
            agent.last_seen_s = arrived_s = now()
            if what == "batch":
                if committer.share_bytes is not None or committer.full:
                    await self._room(stream, sequence, len(data))
                if self.refusal or stream.discarded:
                    self._discard(stream, sequence)
                else:
                    batch(stream, body, sequence, data)
            elif what:
                self._take(stream, what, body, sequence, arrived_s)
            if conversation.new_violations:
                self._count_violations(stream)
        return ""

    async def _room(self, stream: Stream, sequence: int, size_bytes: int) -> None:
        """Wait for the background. A stream that ends meanwhile has not had this message."""
        try:
            share_bytes = self._committer.share_bytes
            if share_bytes is not None:
                turn_s = max(TURN_S, len(self.streams) / TURNS_A_SECOND)
                rest_s = stream.turn.rest_s(time.monotonic(), size_bytes, share_bytes, turn_s)
                if rest_s > 0:
                    await asyncio.sleep(rest_s)
            while self._committer.full:  # of those who waited the first may have filled it again
                await self._committer.room()
        except asyncio.CancelledError:
            stream.conversation.unreceive(sequence)
            raise

    def _take(self, stream: Stream, what: str, body: Any, sequence: int, now_s: float) -> None:
        """Everything but batches: rare enough for a chain of comparisons."""
        agent = stream.agent
        if what == "pong":
            self._pong(stream, body, now_s)
        elif what == "again":
            self._committer.wrote(stream, sequence)
        elif sequence and (self.refusal or stream.discarded):
            self._discard(stream, sequence)
        elif what == "declare":
            self._declare(stream, body)
        elif what == "events":
            self._fleet.take_events(agent, body.events[:MOST_EVENTS_A_MESSAGE])
            self._committer.wrote(stream, sequence)
        elif what == "logs":
            self._fleet.take_logs(agent, body.records[:MOST_EVENTS_A_MESSAGE])
            self._committer.wrote(stream, sequence)
        elif what == "self_report":
            agent.agent_drops = {
                wire.DropReason.Name(d.reason).removeprefix("DROP_REASON_").lower(): d.samples_total
                for d in body.drops
                if d.samples_total and d.reason in wire.DropReason.values()
            }
            self._acknowledge_now(stream)
        elif what == "goodbye":
            kind = wire.GoodbyeKind.Name(body.kind).removeprefix("GOODBYE_KIND_").lower() if body.kind < 5 else "exit"
            returns_s = (
                body.expected_return_unix_ms / 1e3 - self._now_ns() / 1e9 if body.expected_return_unix_ms else None
            )
            agent.health.goodbye(now_s, kind, body.reason[:256], returns_s)
            self._acknowledge_now(stream)

    def _acknowledge_now(self, stream: Stream) -> None:
        def say() -> None:
            if not stream.writing and stream in self.streams:
                stream.conversation.acknowledge()
                stream.wake()

        self._committer.when_safe(say)

    def _discard(self, stream: Stream, sequence: int) -> None:
        """Nothing can be taken now: the agent keeps it, and is asked to come back when it can.

        Nor is anything that it says later on this stream: what came first must not overwrite what came after it.
        """
        stream.conversation.unreceive(sequence)
        stream.discarded = True
        self.refused_messages += 1

    def refuse(self, reason: str) -> None:
        """Nothing can be taken now, or (an empty reason) everything again. Called once a second; agents hear it at once and
        then every few seconds. They go on being pinged: a full disk here is no fault of theirs.
        """
        changed = bool(reason) != bool(self.refusal)  # how much is free, or which file failed, may change all the time
        self.refusal = reason
        now_s = time.monotonic()
        if not changed and (not reason or now_s - self._refused_s < PAUSE_S / 2):
            return
        self._refused_s = now_s
        if changed:
            log.warning("nothing is taken", reason=reason) if reason else log.info("everything is taken again")
        for stream in list(self.streams):
            pause_ms = int(1000 * PAUSE_S) if reason else 0
            stream.conversation.throttle(
                wire.Throttle(flush_interval_ms=stream.flush_interval_ms, pause_ms=pause_ms, reason=reason[:1024])
            )
            if not reason and stream.discarded:
                stream.conversation.drain(int(1000 * PAUSE_S), int(1000 * PAUSE_S), "come back with what was not taken")
            stream.wake()

    def _declare(self, stream: Stream, declare: wire.Declare) -> None:
        declared = stream.dictionary.declare(declare)
        stream.agent.series = stream.dictionary.series
        for kind, text in declared.violations:
            stream.conversation.violate(kind, text)
        if declared.notice is not None:
            self.refused_series += declared.refused
            stream.conversation.notice_limit(declared.notice)
            stream.wake()
            log.warning(
                "series refused", agent=stream.agent.name, instance=stream.agent.instance, text=declared.notice.text
            )

    def _pong(self, stream: Stream, pong: wire.Pong, now_s: float) -> None:
        agent, now_ns = stream.agent, self._now_ns()
        trip = stream.conversation.pong(pong, now_ns)
        if trip is None:
            return
        agent.round_trip = trip
        self.round_trips.observe(trip.rtt_s)
        agent.activity, agent.open_tasks = pong.activity[:256], pong.open_tasks
        lag_s = pong.loop_lag_s if pong.HasField("loop_lag_s") else None
        progress_s = pong.progress_age_s if pong.open_tasks else 0.0
        agent.derived.round_trip(trip.rtt_s, lag_s, progress_s)
        # The agent's clock said "until"; ours may differ, so what counts is how long from when it answered.
        busy_for_s = pong.busy_until_unix_ms / 1e3 - pong.sent_unix_ns / 1e9 if pong.busy_until_unix_ms else 0.0
        agent.health.pong(now_s, lag_s, pong.open_tasks, pong.progress_age_s, busy_for_s, agent.activity)
        self._fleet.write(agent, now_s, now_ns // 1_000_000)

    def _count_violations(self, stream: Stream) -> None:
        for kind, count in stream.conversation.new_violations.items():
            name = wire.ViolationKind.Name(kind).removeprefix("VIOLATION_KIND_")
            self.violations[name.lower()] += count
        stream.conversation.new_violations.clear()
        stream.wake()

    async def _end_refused(self, stream: Stream, context: Context) -> None:
        reason = stream.conversation.refused
        if not reason:
            await stream.flush()
            return
        name = wire.RefusalReason.Name(reason).removeprefix("REFUSAL_REASON_")
        self.refused[name.lower()] += 1
        with suppress(TimeoutError):  # a client that does not read is left with what its connection holds
            async with asyncio.timeout(GOODBYE_S):
                await stream.flush()
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await context.abort(_STATUS[reason], name)

    def _closed(self, stream: Stream) -> str:
        """The other side ended the stream; after a goodbye that is as it should be."""
        if stream.conversation.stage is Stage.OPEN:
            self.broken += 1
        return "the stream ended"

    def _leave(self, stream: Stream, why: str, *, replaced: bool = False) -> None:
        """The stream is over: once, whoever ends it."""
        if stream not in self.streams:
            return
        self.streams.discard(stream)
        stream.dictionary.release()
        if self.draining and not self.streams:
            self._all_left.set()
        refused = stream.conversation.refused
        refusal = _spoken(refused) if refused else ""
        self._fleet.ended(stream.agent, why, refusal, time.monotonic(), self._now_ns() // 1_000_000, replaced=replaced)

    async def drain(self, drain_s: float, reconnect_within_s: float) -> None:
        """First stage of the shutdown: agents are asked to leave, and have `drain_s` for it."""
        self.draining = True
        if not self.streams:
            self._all_left.set()
        for stream in list(self.streams):
            stream.conversation.drain(
                int(1000 * reconnect_within_s), int(1000 * drain_s), "the collector is shutting down"
            )
            stream.conversation.acknowledge()
            stream.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._all_left.wait()


def _spoken(reason: int) -> str:
    """REFUSAL_REASON_SLOW_READER -> "slow reader"."""
    return wire.RefusalReason.Name(reason).removeprefix("REFUSAL_REASON_").lower().replace("_", " ")


def _attributes_fit(hello: wire.Hello) -> bool:
    return len(hello.attributes) <= MOST_ATTRIBUTES and all(
        1 <= len(a.key.encode()) <= 256 and len(a.text.encode()) <= 4096 for a in hello.attributes
    )
