"""An agent without the stub: it says what it is told to, right or wrong, and keeps what it hears."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import grpc

from agent_stub.wire import stream_pb2 as wire

METHOD = "/collectord.v1.Collector/Stream"
HEARD_S = 10.0
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
    ) -> None:
        self.heard: list[wire.CollectorMessage] = []
        self.pings = 0
        self._answers = answers
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
                self._changed.set()
                if message.HasField("ping"):
                    self.pings += 1
                    if self._answers:
                        await self.send(pong(message.ping))
        except DRAINED:
            pass
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
