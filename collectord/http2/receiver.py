"""The receiving half of a call: DATA in, whole messages out, and the credit that lets the peer go on.

Credit for a whole message is given back when its handler reads it. Of a message that is still incomplete it is given
at once, or no message could be larger than a window, but only while no whole one waits: so a call never holds more than
MOST_WINDOW_BYTES and one message.
"""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import grpc

from collectord.http2.compression import Compressed
from collectord.http2.frames import MESSAGE_HEAD_BYTES
from collectord.http2.limits import CONNECTION_CREDIT_BYTES, TURN_BYTES
from collectord.http2.status import CallError

if TYPE_CHECKING:
    from collectord.http2.connection import Connection


@types.coroutine
def _turn_over() -> Generator[None, None, None]:
    """As asyncio.sleep(0), in fewer steps."""
    yield


class Receiver:
    """`Connection.receive` writes `window` and `messages` itself: there a whole message in a frame takes no call."""

    __slots__ = (
        "_advanced",
        "_buffer",
        "_connection",
        "_held",
        "_loop",
        "_most_bytes",
        "_need",
        "_turn",
        "decode",
        "ended",
        "grant",
        "id",
        "inflates",
        "messages",
        "taken",
        "waiter",
        "window",
    )

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.id = stream_id
        self.window = connection.stream_window  # that the peer may still send
        self.grant = connection.stream_window  # the window when all that came is read and credited
        self.taken = 0  # bytes that credit is due for
        self.messages: deque[bytes] = deque()
        self.waiter: asyncio.Future[None] | None = None  # of the reader, while it waits
        self.ended = False  # nothing more will come
        self.decode: Callable[[bytes], Any] | None = None  # None: handlers get the bytes
        self.inflates = False  # whether `decode` takes Compressed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection = connection
        self._most_bytes = connection.limits.message_bytes
        self._buffer = bytearray()  # what came of the incomplete message, its head included
        self._need = MESSAGE_HEAD_BYTES  # length of the buffer with which to look again
        self._advanced = 0  # bytes of the incomplete message, or else of the oldest one, that credit was given for
        self._held = 0  # bytes of the server's allowance for what is incomplete
        self._turn = 0  # bytes that were read since the reader last waited

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF when there will be none. REQUIRES: no other read waits."""
        messages = self.messages
        if self._turn > TURN_BYTES and messages:
            self._turn = 0
            await _turn_over()  # whoever has a window full to say lets the others say something in between
        while not messages:
            if self.ended:
                return grpc.aio.EOF
            if self._buffer or self.waiter is not None or self._connection.reading_paused:
                self._before_waiting()
            if self._loop is None:  # kept: asking for it is a system call each time
                self._loop = asyncio.get_running_loop()
            self._turn = 0
            self.waiter = waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                if self.waiter is waiter:
                    self.waiter = None
        message = messages.popleft()
        size = len(message) + MESSAGE_HEAD_BYTES
        if self._advanced:
            size -= self._advanced
            self._advanced = 0
        connection = self._connection
        self.taken += size
        self._turn += size
        connection.taken += size
        if 2 * self.taken >= self.grant or connection.taken >= CONNECTION_CREDIT_BYTES:
            connection.give_credit(self)
        return message if self.decode is None else self.decode(message)

    def _before_waiting(self) -> None:
        if self.waiter is not None:
            raise grpc.aio.UsageError("got a second read() while one waits, expected one at a time")
        if self._buffer:
            self._advance()
        if self._connection.reading_paused:
            self._connection.resume_reading()

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    @property
    def whole(self) -> bool:
        """Whether the next byte begins a message."""
        return not self._buffer

    def receive(self, data: bytes) -> int:
        """What a DATA frame holds; returns how many messages that completed. Raises CallError."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return self._keep()
            data = bytes(self._buffer)
        completed = self._split(data)
        self._keep()
        if completed:
            self.wake()
        return completed

    def _split(self, data: bytes) -> int:
        """Queue every whole message of `data`, and keep the rest in the buffer."""
        at = completed = 0
        self._need = MESSAGE_HEAD_BYTES
        while len(data) - at >= MESSAGE_HEAD_BYTES:
            body = at + MESSAGE_HEAD_BYTES
            size = int.from_bytes(data[at + 1 : body], "big")
            self._check(data[at], size)
            if body + size > len(data):
                self._need = MESSAGE_HEAD_BYTES + size
                break
            message = data[body : body + size]
            self.messages.append(Compressed(message) if data[at] else message)
            completed += 1
            at = body + size
        self._buffer = bytearray(data[at:])
        return completed

    def _check(self, compressed: int, size: int) -> None:
        if size > self._most_bytes:
            details = f"got a message of {size} bytes, expected at most {self._most_bytes}"
            raise CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
        if compressed > 1 or (compressed and not self.inflates):
            details = f"got a message with compressed flag {compressed}, expected 0, or 1 after a grpc-encoding"
            raise CallError(grpc.StatusCode.INTERNAL, details)

    def _keep(self) -> int:
        """Account for what is in the buffer now."""
        if not self._connection.shared.hold(len(self._buffer) - self._held):
            details = "the server holds all the incomplete messages it may; come back later"
            raise CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
        self._held = len(self._buffer)
        if self._buffer and not self.messages:
            self._advance()
        return 0

    def _advance(self) -> None:
        """Give credit for what has come of the incomplete message. REQUIRES: no whole one waits."""
        size = len(self._buffer) - self._advanced
        self._advanced += size
        self.give_back(size)

    def give_back(self, size: int) -> None:
        """Let the peer send `size` bytes more, now or soon."""
        self.taken += size
        self._connection.taken += size
        self._connection.give_credit(self)

    def end(self) -> None:
        """The peer half-closed. Raises CallError when it did so within a message."""
        self.ended = True
        self.wake()
        if self._buffer:
            raise CallError(grpc.StatusCode.INTERNAL, f"got the end after {len(self._buffer)} bytes of a message")

    def close(self) -> None:
        """Nothing will be read any more: its bytes count for the connection no longer."""
        self._connection.shared.release(self._held)
        self._connection.taken += self.grant - self.window - self.taken  # what came and was not given back
        self._held, self.window, self.taken = 0, self.grant, 0
        self._buffer, self.ended = bytearray(), True
        self.messages.clear()
        self.wake()
        self._connection.give_connection_credit()
        if self._connection.reading_paused:
            self._connection.resume_reading()
