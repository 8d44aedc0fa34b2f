"""What a handler sees of its call: the part of grpc.aio.ServicerContext that needs no C core."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import grpc

from collectord.http2.request import Request
from collectord.http2.status import Metadata, Metadatum
from collectord.http2.stream import Stream


class Context:
    """`read` and `write` are the stream's own: the way of a message has no step between."""

    __slots__ = (
        "_deadline_s",
        "_initial",
        "_peer",
        "_stream",
        "_trailing",
        "code_set",
        "details_set",
        "read",
        "write",
        "write_now",
    )

    def __init__(self, stream: Stream, request: Request, peer: str) -> None:
        self.read = stream.receiver.read
        self.write = stream.sender.write
        self.write_now = stream.sender.write_now
        self.code_set = grpc.StatusCode.OK
        self.details_set = ""
        self._stream = stream
        self._peer = peer
        self._initial = request.invocation_metadata
        self._trailing: Metadata = ()
        self._deadline_s = None if request.timeout_s is None else time.monotonic() + request.timeout_s

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with a status, after what is being written; raises grpc.aio.AbortError, not to be suppressed."""
        if self._stream.closed:
            raise grpc.aio.UsageError("got abort(), expected none: the call is over")
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNKNOWN, "abort() was called with status OK"
        await self._stream.sender.flush()
        self._stream.finish(code, details, trailing_metadata or self._trailing)
        raise grpc.aio.AbortError("Locally aborted.")

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        sender = self._stream.sender
        if sender.opened or sender.over:
            raise grpc.aio.UsageError("got initial metadata, expected none: it was sent")
        sender.metadata = tuple(metadata)
        sender.open()

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code_set = code

    def set_details(self, details: str) -> None:
        self.details_set = details

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        self._trailing = tuple(metadata)

    def set_compression(self, _compression: grpc.Compression) -> None:
        """Replies are small: they go as they are."""

    def code(self) -> grpc.StatusCode:
        return self.code_set

    def details(self) -> str:
        return self.details_set

    def trailing_metadata(self) -> Metadata:
        return self._trailing

    def invocation_metadata(self) -> tuple[Metadatum, ...]:
        return self._initial

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, None without one."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def cancel(self) -> None:
        """End the call as cancelled, its handler too."""
        self._stream.fail(grpc.StatusCode.CANCELLED, "the server cancelled the call")

    def cancelled(self) -> bool:
        return self._stream.cancelled

    def done(self) -> bool:
        return self._stream.closed

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        """`callback(context)` when the call is over; at once when it is."""
        if self._stream.closed:
            callback(self)
        else:
            self._stream.on_close.append(partial(callback, self))
