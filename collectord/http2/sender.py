"""The sending half of a call: messages out as the peer's windows and the transport's buffer let them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from collectord.http2 import frames, status
from collectord.http2.frames import MESSAGE_FRAME_HEAD, MESSAGE_HEAD_BYTES

if TYPE_CHECKING:
    from collectord.http2.connection import Connection

_EARNED_BY_WRITING = 2  # a message sent may be answered by an update of both windows


class Sender:
    """Writes headers once, then messages, then trailers; `over` after these, or when the call is lost."""

    __slots__ = ("_connection", "_turn", "_waiter", "_writers", "encode", "id", "metadata", "opened", "over", "window")

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.id = stream_id
        self.window = connection.peer_window
        self.encode: Callable[[Any], bytes] | None = None  # None: handlers give bytes
        self.metadata: status.Metadata = ()  # to go with the headers
        self.opened = False  # the headers are written
        self.over = False
        self._connection = connection
        self._waiter: asyncio.Future[None] | None = None  # for room
        self._turn: asyncio.Lock | None = None  # made when a first message has to be sent in pieces
        self._writers = 0  # in or before their turn

    async def write(self, message: Any) -> None:
        """Send one message; returns when the transport has it. Raises UsageError when the call is over."""
        data = message if self.encode is None else self.encode(message)
        if self.over:
            raise grpc.aio.UsageError("got a message to write, expected none: the call is over")
        if not self.write_now(data):
            await self._write_in_turn(len(data).to_bytes(MESSAGE_HEAD_BYTES, "big") + data)

    def write_now(self, data: bytes) -> bool:
        """Send one message, encoded; False, and nothing sent, where it would have to wait, or the call is over."""
        connection, size = self._connection, len(data) + MESSAGE_HEAD_BYTES
        if (
            size > self.window
            or size > connection.send_window
            or size > connection.send_frame
            or connection.paused
            or self._writers
            or self.over
        ):
            return False
        head = MESSAGE_FRAME_HEAD.pack(size << 8, 0, self.id, 0, size - MESSAGE_HEAD_BYTES)  # << 8: DATA is 0
        self.window -= size
        connection.send_window -= size
        connection.budget.earned += _EARNED_BY_WRITING
        connection.write(head + data if self.opened else self._opening() + head + data)
        return True

    async def _write_in_turn(self, data: bytes) -> None:
        if self._turn is None:
            self._turn = asyncio.Lock()
        self._writers += 1
        try:
            async with self._turn:
                await self._write_pieces(data)
        finally:
            self._writers -= 1

    async def _write_pieces(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            room = await self._room()
            piece = data[at : at + room]
            self.open()
            self._spend(len(piece))
            self._connection.write(frames.frame(frames.DATA, 0, self.id, piece))
            at += len(piece)

    def _spend(self, size: int) -> None:
        self.window -= size
        self._connection.send_window -= size
        self._connection.budget.earned += _EARNED_BY_WRITING

    async def _room(self) -> int:
        """Wait until something may be sent; returns how many bytes of it one frame may hold."""
        connection = self._connection
        while not self.over:
            room = min(self.window, connection.send_window, connection.send_frame)
            if room > 0 and not connection.paused:
                return room
            self._waiter = asyncio.get_running_loop().create_future()
            connection.blocked.add(self)
            try:
                await self._waiter
            finally:
                self._waiter = None
                connection.blocked.discard(self)
        raise grpc.aio.UsageError("the call ended while a message was being written")

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def busy(self) -> bool:
        """Whether a message is being written in pieces: trailers now would cut it."""
        return self._writers > 0

    async def flush(self) -> None:
        """Wait until no message is being written."""
        while self._turn is not None and self._writers and not self.over:
            async with self._turn:
                pass  # turns are taken in order: who writes now is done

    def open(self) -> None:
        """Write the headers, unless they are."""
        if not self.opened and not self.over:
            self._connection.write(self._opening())

    def _opening(self) -> bytes:
        self.opened = True
        block = status.INITIAL + status.metadata_block(self.metadata) if self.metadata else status.INITIAL
        return self._connection.headers(self.id, block, 0)

    def end(self, block: bytes) -> None:
        """Write the trailers; without headers before, both in one block."""
        if self.over:
            return
        if not self.opened:
            block = status.INITIAL + status.metadata_block(self.metadata) + block
        self.end_with(block)

    def end_with(self, block: bytes) -> None:
        """Write a last header block as it is."""
        self._connection.write(self._connection.headers(self.id, block, frames.END_STREAM))
        self.close()

    def close(self) -> None:
        self.over = True
        self.wake()
