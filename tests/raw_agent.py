"""An agent without the stub: it says what it is told to, right or wrong, and keeps what it hears."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import grpc

from agent_stub.wire import stream_pb2 as wire

METHOD = "/collectord.v1.Collector/Stream"
HEARD_S = 10.0
RECONNECT_S = 0.1
DRAINED = (grpc.aio.AioRpcError, asyncio.CancelledError)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def hello(instance: str = "", **fields: Any) -> wire.AgentMessage:
    """A Hello that nothing is wrong with, but for what `fields` say."""
    right = {
        "protocol_version": 1,
        "agent": "raw",
        "instance": instance or uuid.uuid4().hex,
        "start_time_unix_ms": now_ms(),
        "connection": 1,
    }
    return wire.AgentMessage(hello=wire.Hello(**(right | fields)))


def declare(*series: wire.Series, layouts: Iterable[wire.Layout] = ()) -> wire.AgentMessage:
    return wire.AgentMessage(declare=wire.Declare(series=series, layouts=layouts))


def gauge(ref: int, name: str = "raw.value", unit: str = "", **labels: str) -> wire.Series:
    pairs = [wire.Label(name=k, value=v) for k, v in labels.items()]
    return wire.Series(ref=ref, name=name, labels=pairs, kind=wire.METRIC_KIND_GAUGE, unit=unit)


def batch(
    sequence: int,
    refs: Iterable[int] = (),
    values: Iterable[float] = (),
    *,
    time_ms: int | None = None,
    layout: int = 0,
    offsets_ms: Iterable[int] = (),
) -> wire.AgentMessage:
    body = wire.Batch(
        time_unix_ms=now_ms() if time_ms is None else time_ms,
        layout=layout,
        refs=refs,
        values=values,
        offsets_ms=offsets_ms,
    )
    return wire.AgentMessage(sequence=sequence, batch=body)


class RawAgent:
    """One stream. Reads at once and answers pings, unless `reads` or `answers` is false."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        reads: bool = True,
        answers: bool = True,
        compression: grpc.Compression | None = None,
        hears: Callable[[wire.CollectorMessage], None] = lambda _message: None,
    ) -> None:
        self.heard: list[wire.CollectorMessage] = []
        self.over = asyncio.Event()  # the stream has ended, and everything that came was heard
        self.pings = 0
        self._answers = answers
        self._hears = hears
        self._changed = asyncio.Event()
        self._sequence = itertools.count(1)
        self._one_write = asyncio.Lock()
        self.call = channel.stream_stream(METHOD)(compression=compression)
        self._reader: asyncio.Task[None] | None = None
        if reads:
            self.read()

    def read(self) -> None:
        """Begin to read."""
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while (data := await self.call.read()) is not grpc.aio.EOF:
                message = wire.CollectorMessage.FromString(data)
                self.heard.append(message)
                self._hears(message)
                self._changed.set()
                if message.HasField("ping"):
                    self.pings += 1
                    if self._answers:
                        await self.send(pong(message.ping))
        except DRAINED:
            pass
        self.over.set()
        self._changed.set()

    def next_sequence(self) -> int:
        return next(self._sequence)

    async def send(self, message: wire.AgentMessage | bytes) -> None:
        """Writes; that the stream is over already is no error here, for `status` tells."""
        data = message if isinstance(message, bytes) else message.SerializeToString()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            async with self._one_write:  # gRPC takes one at a time
                await self.call.write(data)

    async def until(self, holds: Callable[[], Any], what: str = "") -> Any:
        """Until something heard makes `holds()` true; returns that."""
        async with asyncio.timeout(HEARD_S) as limit:
            try:
                while not (found := holds()):
                    self._changed.clear()
                    await self._changed.wait()
                return found
            except asyncio.CancelledError:
                if not limit.expired():
                    raise
        raise AssertionError(f"not heard within {HEARD_S:g} s: {what}; heard {self.heard[-5:]}")

    async def welcomed(self, message: wire.AgentMessage | None = None) -> RawAgent:
        """Says hello and waits for the welcome."""
        await self.send(message or hello())
        await self.until(lambda: any(m.HasField("welcome") for m in self.heard), "welcome")
        return self

    async def refusal(self) -> wire.Refusal:
        return await self.until(lambda: next((m.refusal for m in self.heard if m.HasField("refusal")), None), "refusal")

    async def violation(self, kind: int) -> wire.Violation:
        return await self.until(
            lambda: next((v for v in self.violations() if v.kind == kind), None),
            wire.ViolationKind.Name(kind),
        )

    async def acked(self, sequence: int) -> None:
        await self.until(lambda: self.is_acked(sequence), f"ack of {sequence}")

    def is_acked(self, sequence: int) -> bool:
        return any(r.first <= sequence <= r.last for m in self.heard for r in m.ack.ranges)

    def violations(self) -> list[wire.Violation]:
        return [v for m in self.heard for v in m.violations]

    async def status(self) -> grpc.StatusCode:
        """How the collector ended the stream."""
        async with asyncio.timeout(HEARD_S):
            return await self.call.code()

    async def close(self) -> None:
        self.call.cancel()
        if self._reader is not None:
            await asyncio.wait([self._reader])


class ResendingAgent:
    """An agent as the contract wants it: what is not acknowledged is kept, and said again on every new stream, in order.

    `address()`: where the collector is now, asked before each stream. `hears`: is told everything that is heard.
    """

    def __init__(
        self,
        instance: str,
        declarations: wire.AgentMessage,
        address: Callable[[], str],
        hears: Callable[[wire.CollectorMessage], None] = lambda _message: None,
    ) -> None:
        self.instance = instance
        self.held: dict[int, bytes] = {}  # by sequence, ascending
        self.streams = 0
        self.is_open = False
        self._declarations = declarations
        self._address = address
        self._hears = hears
        self._started_ms = now_ms()
        self._greatest = 0
        self._unsaid: deque[int] = deque()  # on this stream
        self._stir = asyncio.Event()
        self._leaving = False

    def say(self, message: wire.AgentMessage) -> None:
        """A new durable message, with its sequence."""
        self._greatest = message.sequence
        self.held[message.sequence] = message.SerializeToString()
        self._unsaid.append(message.sequence)
        self._stir.set()

    async def run(self) -> None:
        """Stream after stream, until cancelled."""
        while True:
            with suppress(AssertionError):  # no welcome
                await self._stream()
            await asyncio.sleep(RECONNECT_S)

    async def _stream(self) -> None:
        self.streams += 1
        self._leaving = False
        async with grpc.aio.insecure_channel(self._address(), [("grpc.use_local_subchannel_pool", 1)]) as channel:
            agent = RawAgent(channel, hears=self._hear)
            first = next(iter(self.held), self._greatest + 1)
            said = hello(
                self.instance,
                start_time_unix_ms=self._started_ms,
                connection=self.streams,
                first_held_sequence=first,
            )
            try:
                await agent.send(said)
                await agent.until(lambda: self.is_open or agent.over.is_set(), "welcome")
                if self.is_open:
                    await self._talk(agent)
            finally:
                self.is_open = False
                await agent.close()

    async def _talk(self, agent: RawAgent) -> None:
        await agent.send(self._declarations)
        self._unsaid = deque(self.held)
        over = asyncio.create_task(agent.over.wait())
        over.add_done_callback(lambda _: self._stir.set())
        while not agent.over.is_set() and not self._leaving:
            self._stir.clear()
            while self._unsaid and not agent.over.is_set() and not self._leaving:
                data = self.held.get(self._unsaid.popleft())
                if data is not None:  # else it was acknowledged meanwhile
                    await agent.send(data)
            if not agent.over.is_set() and not self._leaving:
                await self._stir.wait()
        if self._leaving:
            await agent.send(wire.AgentMessage(goodbye=wire.Goodbye(kind=wire.GOODBYE_KIND_RECONNECT)))
            await agent.call.done_writing()
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARD_S):
                    await agent.over.wait()
        over.cancel()

    def _hear(self, message: wire.CollectorMessage) -> None:
        self._hears(message)
        for span in [*message.welcome.received, *message.ack.ranges]:
            for sequence in [held for held in self.held if span.first <= held <= span.last]:
                del self.held[sequence]
        self.is_open |= message.HasField("welcome")
        if message.HasField("drain"):
            self._leaving = True
            self._stir.set()


def pong(ping: wire.Ping, **fields: Any) -> wire.AgentMessage:
    now_ns = time.time_ns()
    return wire.AgentMessage(
        pong=wire.Pong(
            id=ping.id,
            ping_sent_unix_ns=ping.sent_unix_ns,
            received_unix_ns=now_ns,
            sent_unix_ns=now_ns,
            **fields,
        )
    )
