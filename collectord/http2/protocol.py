"""A connection on its socket: asyncio's protocol around `Connection`, and what time does to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import structlog

from collectord.http2 import frames
from collectord.http2.connection import GREETING, Connection
from collectord.http2.frames import Code, ConnectionFaultError
from collectord.http2.limits import MOST_UNREAD_REPLY_BYTES, WRITE_BUFFER_BYTES
from collectord.http2.request import Request
from collectord.http2.stream import Stream

if TYPE_CHECKING:
    from collectord.http2.server import Server

log = structlog.get_logger("http2")


class HttpProtocol(asyncio.Protocol):
    """Made by the server for each connection it accepts."""

    __slots__ = (
        "_closing_s",
        "_heard",
        "_heard_s",
        "_made_s",
        "_pinged_s",
        "_server",
        "_transport",
        "connection",
        "peer",
        "write",
    )

    connection: Connection
    write: Callable[[bytes], None]
    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.peer = ""
        self._server = server
        self._made_s = self._heard_s = server.now_s()
        self._heard = False  # since the last look
        self._pinged_s: float | None = None  # monotonic, while a keepalive ping is unanswered
        self._closing_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write
        self.peer = peer_text(transport.get_extra_info("peername"))
        server = self._server
        self.connection = Connection(self, server.limits, server.shared, server.now_s)
        refusal = server.refusal(transport.get_extra_info("ssl_object"))
        server.protocols.add(self)
        if refusal:
            self.count(refusal)
            self.abort()
            return
        self.count("connections")
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self.write(GREETING)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        connection = self.connection
        try:
            connection.receive(data)
        except ConnectionFaultError as fault:
            self._fail(fault)
        except Exception as error:  # a fault of ours ends this connection only
            log.error("a connection failed", peer=self.peer, exc_info=error)
            self._fail(ConnectionFaultError("internal", Code.INTERNAL_ERROR, "the server failed"))
        if connection.paused and self._transport.get_write_buffer_size() > MOST_UNREAD_REPLY_BYTES:
            self.count("unread_replies")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.protocols.discard(self)
        self.connection.close()
        self._server.lost()

    def pause_writing(self) -> None:
        self.connection.paused = True

    def resume_writing(self) -> None:
        self.connection.paused = False
        self.connection.wake_blocked()

    def on_request(self, stream: Stream, request: Request) -> None:
        self._server.dispatch(stream, request, self.peer)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def count(self, kind: str) -> None:
        self._server.counts[kind] += 1

    def _fail(self, fault: ConnectionFaultError) -> None:
        """Say why, and close when the peer has done so, or after a while.

        To close at once would lose the reason: what the peer sent and nobody read makes its kernel drop what it got.
        """
        self.count(fault.kind)
        log.debug("a peer broke the protocol", peer=self.peer, code=fault.code.name, reason=fault.reason)
        self.write(frames.goaway(self.connection.highest_id, fault.code, fault.reason))
        self._closing_s = self._server.now_s()
        self.connection.close()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:  # TLS
            self._transport.close()

    def close(self) -> None:
        """End the connection and its calls. What was written before is still sent, for a while."""
        if self._closing_s is None:
            self._closing_s = self._server.now_s()
            self.connection.close()
        self._transport.close()

    def abort(self) -> None:
        """End it with nothing more sent."""
        self._closing_s = self._closing_s or self._server.now_s()
        self.connection.close()
        self._transport.abort()

    def look(self, now_s: float) -> None:
        """What time does: the preface's deadline, keepalive, an end to closing."""
        limits = self._server.limits
        if self._heard:
            self._heard, self._heard_s, self._pinged_s = False, now_s, None
        if self._closing_s is not None:
            if now_s - self._closing_s > limits.close_s:
                self._transport.abort()
        elif not self.connection.settled:
            if now_s - self._made_s > limits.preface_s:
                self._expire("preface_timeout")
        elif self._pinged_s is not None:
            if now_s - self._pinged_s > limits.keepalive_answer_s and not self.connection.reading_paused:
                self._expire("keepalive_timeout")
        elif now_s - self._heard_s > limits.keepalive_s:
            self._pinged_s = now_s
            self.write(frames.KEEPALIVE_PING)

    def _expire(self, kind: str) -> None:
        self.count(kind)
        self.abort()


def peer_text(name: tuple[str, int] | tuple[str, int, int, int] | None) -> str:
    """A peer's address as gRPC writes it."""
    if name is None:
        return "unknown:"
    host, port = name[0].removeprefix("::ffff:") if "." in name[0] else name[0], name[1]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
