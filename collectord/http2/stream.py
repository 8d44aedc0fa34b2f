"""One HTTP/2 stream of a connection: its two halves, and how it ends, in each of the ways it can."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from collectord.http2 import frames, status
from collectord.http2.frames import Code
from collectord.http2.receiver import Receiver
from collectord.http2.sender import Sender

if TYPE_CHECKING:
    from collectord.http2.connection import Connection


class Stream:
    """In the connection's table from its HEADERS until it is closed, which is when this server has said its last.

    finish   a status, by the handler or instead of it
    reset    RST_STREAM: no status can be given
    close    without a word: the peer has reset it, or the connection is gone
    """

    __slots__ = ("cancelled", "closed", "connection", "id", "on_close", "receiver", "sender", "task", "timer")

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.receiver = Receiver(connection, stream_id)
        self.sender = Sender(connection, stream_id)
        self.task: asyncio.Task[None] | None = None  # the handler's
        self.timer: asyncio.TimerHandle | None = None  # the deadline
        self.closed = False
        self.cancelled = False  # closed before its handler gave a status
        self.on_close: list[Callable[[], Any]] = []

    def finish(self, code: grpc.StatusCode, details: str = "", metadata: status.Metadata = ()) -> None:
        """End with a status. A message that is being written goes before it or with it: then it is a reset."""
        if self.closed:
            return
        if self.sender.busy:
            self.reset(Code.CANCEL)
            return
        self.sender.end(status.trailers(code, details, metadata))
        self._end_early()

    def finish_http(self, http_status: int, details: str) -> None:
        """End what is no gRPC call."""
        self.sender.end_with(status.http_error(http_status, details))
        self._end_early()

    def _end_early(self) -> None:
        """A peer that would still send is told that nobody listens (RFC 9113, section 8.1)."""
        if not self.receiver.ended:
            self.connection.write(frames.rst_stream(self.id, Code.NO_ERROR))
        self.close()

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """End with a status instead of the handler, which is cancelled."""
        self.cancelled = True
        self.finish(code, details)
        self.cancel_task()

    def reset(self, code: Code) -> None:
        if not self.closed:
            self.connection.write(frames.rst_stream(self.id, code))
            self.abandon()

    def abandon(self) -> None:
        """The call is lost: close it and cancel its handler."""
        self.cancelled = True
        self.close()
        self.cancel_task()

    def cancel_task(self) -> None:
        """REQUIRES: closed. A handler that ends by itself is left alone: it is the caller then."""
        if self.task is not None and self.task is not _current_task():
            self.task.cancel()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.connection.forget(self)
        self.sender.close()
        self.receiver.close()
        callbacks, self.on_close = self.on_close, []
        for callback in callbacks:
            callback()


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs: bytes are fed by hand
        return None
