"""One gRPC stream on a socket of its own: the load generator's client, ten times cheaper than grpc.aio's.

A client that costs as much as the server cannot measure the server: 5,000 grpc.aio channels at 1 Hz fill a core. This one
speaks just enough of HTTP/2 (RFC 9113) and gRPC's framing: one stream a connection, no compression, headers
written once as literals. It obeys flow control, answers SETTINGS and PING, and hands every message to the kernel by
itself, as an agent that flushes does.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

from collectord.http2 import frames
from collectord.http2.frames import FRAME_HEAD_BYTES, MESSAGE_HEAD_BYTES, MOST_WINDOW_BYTES, frame
from collectord.http2.status import metadata_block

STREAM = 1  # the only stream of the connection; 0 means the connection itself


class GrpcStream(asyncio.Protocol):
    """Opens `path` as soon as the connection stands.

    `on_message(bytes)` gets each answer, `on_writable()` is called when a queue that flow control had filled is empty
    again, `on_end(reason)` once, when the stream or the connection is over.
    """

    def __init__(
        self,
        path: str,
        *,
        on_message: Callable[[bytes], None],
        on_end: Callable[[str], None],
        on_writable: Callable[[], None] | None = None,
    ) -> None:
        self._path = path
        self._on_message = on_message
        self._on_end = on_end
        self._on_writable = on_writable
        self._transport: asyncio.Transport | None = None
        self._input = bytearray()
        self._answer = bytearray()
        self._queue: deque[bytes] = deque()
        self._paused = False
        self._connection_window = frames.DEFAULT_WINDOW_BYTES
        self._stream_window = frames.DEFAULT_WINDOW_BYTES
        self._initial_window = frames.DEFAULT_WINDOW_BYTES
        self._max_frame = frames.DEFAULT_FRAME_BYTES
        self._ended = False

    # ------------------------------------------------------------------------------------------------------ sending

    @property
    def writable(self) -> bool:
        """False while a message waits for the other side's flow control or for the socket."""
        return not self._queue and not self._paused and not self._ended

    def send(self, message: bytes) -> None:
        """Sends one message, or queues what the windows do not let through."""
        size = MESSAGE_HEAD_BYTES + len(message)
        head = struct.pack(">BI", 0, len(message))
        if self._queue or self._paused or size > min(self._connection_window, self._stream_window, self._max_frame):
            self._queue.append(head + message)
            self._pump()
            return
        self._connection_window -= size
        self._stream_window -= size
        self._write(struct.pack(">I", size)[1:] + b"\x00\x00\x00\x00\x00\x01" + head + message)

    def half_close(self) -> None:
        """No more messages from this side. REQUIRES: writable."""
        self._write(frame(frames.DATA, frames.END_STREAM, STREAM, b""))

    def close(self) -> None:
        """Cuts the connection."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _pump(self) -> None:
        while self._queue and not self._paused:
            packed = []
            rest = memoryview(self._queue[0])
            while rest:
                size = min(len(rest), self._connection_window, self._stream_window, self._max_frame)
                if size <= 0:
                    break
                packed.append(frame(frames.DATA, 0, STREAM, bytes(rest[:size])))
                self._connection_window -= size
                self._stream_window -= size
                rest = rest[size:]
            self._write(b"".join(packed))
            if rest:
                self._queue[0] = bytes(rest)
                return
            self._queue.popleft()
        if self.writable and self._on_writable is not None:
            self._on_writable()

    # ---------------------------------------------------------------------------------------- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        host, port = transport.get_extra_info("peername")[:2]
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", self._path),
            (":authority", f"{host}:{port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        settings = [(frames.SETTINGS_ENABLE_PUSH, 0), (frames.SETTINGS_INITIAL_WINDOW_SIZE, MOST_WINDOW_BYTES)]
        self._write(
            frames.PREFACE
            + frames.settings(settings)
            # Acks and pings of a bench never fill this window, so it is never given back.
            + frames.window_update(0, MOST_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES)
            + frames.headers(STREAM, metadata_block(headers), 0, frames.DEFAULT_FRAME_BYTES)
        )

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"connection lost: {exc or 'closed by the other side'}")

    def data_received(self, data: bytes) -> None:
        self._input += data
        at = 0
        while len(self._input) - at >= FRAME_HEAD_BYTES:
            size = int.from_bytes(self._input[at : at + 3], "big")
            end = at + FRAME_HEAD_BYTES + size
            if len(self._input) < end:
                break
            kind, flags = self._input[at + 3], self._input[at + 4]
            stream = int.from_bytes(self._input[at + 5 : at + 9], "big") & MOST_WINDOW_BYTES
            self._frame(kind, flags, stream, bytes(self._input[at + FRAME_HEAD_BYTES : end]))
            at = end
        del self._input[:at]

    # ------------------------------------------------------------------------------------------------------ receiving

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.DATA:
            self._data(payload)
        elif kind == frames.WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big") & MOST_WINDOW_BYTES
            if stream == 0:
                self._connection_window += increment
            else:
                self._stream_window += increment
            self._pump()
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._settings(payload)
        elif kind == frames.PING and not flags & frames.ACK:
            self._write(frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.RST_STREAM:
            self._end(f"reset by the server with HTTP/2 error {int.from_bytes(payload, 'big')}")
        elif kind == frames.GOAWAY:
            self._end(f"sent away by the server: {payload[8:].decode(errors='replace') or 'no reason given'}")
        if kind in (frames.DATA, frames.HEADERS) and flags & frames.END_STREAM:
            self._end("ended by the server")

    def _settings(self, payload: bytes) -> None:
        for setting, value in frames.parse_settings(payload):
            if setting == frames.SETTINGS_INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif setting == frames.SETTINGS_MAX_FRAME_SIZE:
                self._max_frame = value
        self._write(frames.SETTINGS_ACK)
        self._pump()

    def _data(self, payload: bytes) -> None:
        self._answer += payload
        while len(self._answer) >= MESSAGE_HEAD_BYTES:
            size = int.from_bytes(self._answer[1:MESSAGE_HEAD_BYTES], "big")
            if len(self._answer) < MESSAGE_HEAD_BYTES + size:
                return
            message = bytes(self._answer[MESSAGE_HEAD_BYTES : MESSAGE_HEAD_BYTES + size])
            del self._answer[: MESSAGE_HEAD_BYTES + size]
            self._on_message(message)

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            self._on_end(reason)
