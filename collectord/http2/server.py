"""The server: handlers, connections, and an orderly end. A drop-in for what this daemon uses of grpc.aio.server."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import structlog

from collectord.http2 import call
from collectord.http2.context import Context
from collectord.http2.frames import Code
from collectord.http2.limits import Limits, Shared
from collectord.http2.listen import BACKLOG, bind
from collectord.http2.protocol import HttpProtocol
from collectord.http2.request import Request
from collectord.http2.status import CallError
from collectord.http2.stream import Stream

log = structlog.get_logger("http2")

_LOOKS_A_DEADLINE = 4  # so often within the shortest time of the limits
_CANCELLED_S = 5.0  # for handlers to end that were cancelled
_CLOSED_S = 1.0  # for the last bytes to be written


class Server:
    """`counts` has connections, calls, and by kind what was refused or broke the protocol."""

    def __init__(
        self,
        *,
        most_message_bytes: int = Limits.message_bytes,
        most_connections: int = Limits.connections,
        most_incomplete_bytes: int = Limits.incomplete_bytes,
        preface_s: float = Limits.preface_s,
        keepalive_s: float = Limits.keepalive_s,
        keepalive_answer_s: float = Limits.keepalive_answer_s,
    ) -> None:
        self.limits = Limits(
            message_bytes=most_message_bytes,
            connections=most_connections,
            incomplete_bytes=most_incomplete_bytes,
            preface_s=preface_s,
            keepalive_s=keepalive_s,
            keepalive_answer_s=keepalive_answer_s,
        )
        self.shared = Shared(most_incomplete_bytes)
        self.counts: Counter[str] = Counter()
        self.protocols: set[HttpProtocol] = set()
        self.calls: set[asyncio.Task[None]] = set()
        self.now_s = time.monotonic
        self._generic: list[grpc.GenericRpcHandler] = []
        self._registered: dict[str, grpc.RpcMethodHandler] = {}
        self._listening: list[asyncio.Server] = []
        self._looker: asyncio.Task[None] | None = None
        self._stopping = False
        self._all_lost = asyncio.Event()

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        """Generated code adds a service this way too: found without asking anyone."""
        self._registered.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    async def listen(self, host: str, port: int, ssl_context: ssl.SSLContext | None = None) -> int:
        """Accept connections on every address of `host`; returns the port. Raises OSError when it cannot."""
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {}
        if ssl_context is not None:
            ssl_context.set_alpn_protocols(["h2"])
            tls = {"ssl": ssl_context, "ssl_handshake_timeout": self.limits.preface_s}
        sockets = await bind(host, port)
        for one in sockets:
            made = await loop.create_server(lambda: HttpProtocol(self), sock=one, backlog=BACKLOG, **tls)
            self._listening.append(made)
        if self._looker is None:
            self._looker = loop.create_task(self._look())
        return int(sockets[0].getsockname()[1])

    async def _look(self) -> None:
        limits = self.limits
        every_s = min(limits.preface_s, limits.keepalive_s, limits.keepalive_answer_s) / _LOOKS_A_DEADLINE
        while True:
            await asyncio.sleep(every_s)
            now_s = self.now_s()
            for protocol in list(self.protocols):
                protocol.look(now_s)

    def refusal(self, ssl_object: ssl.SSLObject | None) -> str:
        """Why a connection that is being made is not taken; empty when it is."""
        if self._stopping:
            return "stopping"
        if len(self.protocols) >= self.limits.connections:
            return "too_many_connections"
        if ssl_object is not None and ssl_object.selected_alpn_protocol() != "h2":
            return "no_alpn"
        return ""

    def lost(self) -> None:
        """A connection is gone."""
        if not self.protocols:
            self._all_lost.set()

    def dispatch(self, stream: Stream, request: Request, peer: str) -> None:
        """Begin a call; its handler runs in a task of its own."""
        self.counts["calls"] += 1
        try:
            handler = call.find(request, self._registered, self._generic)
        except CallError as fault:
            self.counts["call_" + fault.code.name.lower()] += 1
            stream.finish(fault.code, fault.details)
            return
        call.prepare(stream, handler, request.encoding, self.limits.message_bytes)
        context = Context(stream, request, peer)
        loop = asyncio.get_running_loop()
        task = stream.task = loop.create_task(call.start(stream, handler, context))
        stream.connection.running += 1
        self.calls.add(task)
        task.add_done_callback(partial(self._ended, stream, context, request.method))
        if request.timeout_s is not None:
            deadline = grpc.StatusCode.DEADLINE_EXCEEDED
            stream.timer = loop.call_later(request.timeout_s, stream.fail, deadline, "Deadline Exceeded")

    def _ended(self, stream: Stream, context: Context, method: str, task: asyncio.Task[None]) -> None:
        self.calls.discard(task)
        stream.connection.running -= 1
        stream.task = None
        try:
            call.conclude(stream, context, task, method)
        except Exception as error:  # metadata that is none; whatever it is, the client is not left waiting
            log.error("a call could not be ended", method=method, exc_info=error)
            stream.reset(Code.INTERNAL_ERROR)

    async def stop(self, grace: float = 0.0) -> None:
        """Take nothing new, let calls end for up to `grace` seconds, end the rest as UNAVAILABLE, close."""
        self._stopping = True
        for server in self._listening:
            server.close()
        for protocol in list(self.protocols):
            protocol.connection.go_away()
        if self.calls and grace > 0:
            await asyncio.wait(set(self.calls), timeout=grace)
        for protocol in list(self.protocols):
            for stream in list(protocol.connection.streams.values()):
                stream.fail(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        if self.calls:
            await asyncio.wait(set(self.calls), timeout=_CANCELLED_S)
        if self.calls:
            log.warning("handlers did not end when they were cancelled", calls=len(self.calls))
        await self._close()

    async def _close(self) -> None:
        if self._looker is not None:
            self._looker.cancel()
        for protocol in list(self.protocols):
            protocol.close()
        if self.protocols:
            self._all_lost.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSED_S):
                    await self._all_lost.wait()
        for protocol in list(self.protocols):
            protocol.abort()
