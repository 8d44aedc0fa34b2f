"""A server with one handler of each kind, and a peer that says bytes: right ones, wrong ones, too many."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
from hpack import Decoder, Encoder

from collectord.http2 import Server, frames

SOON_S = 5.0
POST = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t/stream"),
    (":authority", "here"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


def message(data: bytes, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(data)) + data


class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Methods /t/unary, /t/replies, /t/sum, /t/stream (an echo), and others that misbehave or wait."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.go_on = asyncio.Event()
        self.contexts: list[Any] = []
        make = {
            "unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "abort": grpc.unary_unary_rpc_method_handler(self.abort),
            "code": grpc.unary_unary_rpc_method_handler(self.code),
            "raise": grpc.unary_unary_rpc_method_handler(self.fail),
            "metadata": grpc.unary_unary_rpc_method_handler(self.metadata),
            "wait": grpc.unary_unary_rpc_method_handler(self.wait),
            "replies": grpc.unary_stream_rpc_method_handler(self.replies),
            "sum": grpc.stream_unary_rpc_method_handler(self.sum),
            "stream": grpc.stream_stream_rpc_method_handler(self.stream),
            "generator": grpc.stream_stream_rpc_method_handler(self.generator),
            "unread": grpc.stream_stream_rpc_method_handler(self.unread),
            "pair": grpc.stream_stream_rpc_method_handler(self.pair),
            "stuck": grpc.stream_stream_rpc_method_handler(self.stuck),
            "nonsense": grpc.unary_unary_rpc_method_handler(self.nonsense),
            "large": grpc.unary_unary_rpc_method_handler(self.large),
        }
        self._handlers = {f"/t/{name}": handler for name, handler in make.items()}

    def service(self, details: Any) -> Any:
        return self._handlers.get(details.method)

    async def unary(self, request: bytes, context: Any) -> bytes:
        self.contexts.append(context)
        return request

    async def abort(self, request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.ABORTED, request.decode(), (("why", "so"), ("why-bin", b"\0\xff")))
        raise AssertionError("abort returned")

    async def code(self, request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("nothing there")
        context.set_trailing_metadata((("k", "v"),))
        return request

    async def fail(self, _: bytes, __: Any) -> bytes:
        raise ValueError("boom")

    async def metadata(self, _: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("first", "1"), ("first-bin", b"\1\2")))
        return repr(sorted(tuple(pair) for pair in context.invocation_metadata() if pair[0] != "user-agent")).encode()

    async def wait(self, request: bytes, context: Any) -> bytes:
        self.contexts.append(context)
        self.began.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request

    async def replies(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield str(number).encode()

    async def sum(self, requests: AsyncIterator[bytes], _: Any) -> bytes:
        return str(sum([int(one) async for one in requests])).encode()

    async def stream(self, _: Any, context: Any) -> None:
        self.contexts.append(context)
        self.began.set()
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                self.heard.append(data)
                await context.write(data)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def generator(self, requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def unread(self, _: Any, context: Any) -> None:
        """Reads nothing until it is told to go on."""
        self.contexts.append(context)
        self.began.set()
        await self.go_on.wait()
        while (data := await context.read()) is not grpc.aio.EOF:
            self.heard.append(data)

    async def pair(self, _: Any, context: Any) -> None:
        """Two writers at once, and a status that waits for both."""
        writers = [asyncio.create_task(context.write(bytes([number]) * 50_000)) for number in range(2)]
        await asyncio.sleep(0)
        try:
            await context.abort(grpc.StatusCode.ABORTED, "after both")
        finally:
            await asyncio.gather(*writers)

    async def stuck(self, _: Any, context: Any) -> None:
        """A status that cannot be given, because a message is half written."""
        writer = asyncio.create_task(context.write(bytes(100_000)))
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(0.01):
                await context.abort(grpc.StatusCode.ABORTED, "never")
        except TimeoutError:
            self.contexts.append(writer)

    async def nonsense(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("schlüssel", "x"),))
        return request

    async def large(self, request: bytes, _: Any) -> bytes:
        return b"x" * int(request)


class Rig(NamedTuple):
    server: Server
    handlers: Handlers
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def settled(self) -> None:
        """Wait until nothing of any call is left."""
        async with asyncio.timeout(SOON_S):
            while self.server.calls or any(protocol.connection.streams for protocol in self.server.protocols):
                await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Rig]:
    server, handlers = Server(**settings), Handlers()
    server.add_generic_rpc_handlers((handlers,))
    port = await server.listen("127.0.0.1", 0)
    try:
        yield Rig(server, handlers, port)
    finally:
        await server.stop(0)


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Peer:
    """A client that says what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.encoder, self.decoder = Encoder(), Decoder()
        self.seen: list[Frame] = []

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    def block(self, headers: Iterable[tuple[str, str]] = POST, **changed: str) -> bytes:
        """`changed`: _path="/x" for a pseudo-header field, grpc_timeout="1S" for others."""
        given = {
            name.replace("_", ":", 1) if name[0] == "_" else name.replace("_", "-"): v for name, v in changed.items()
        }
        return bytes(self.encoder.encode(list({**dict(headers), **given}.items())))

    def begin(self, stream_id: int, flags: int = 0, **changed: str) -> None:
        self.send(frames.headers(stream_id, self.block(**changed), flags, frames.DEFAULT_FRAME_BYTES))

    def say(self, stream_id: int, data: bytes, flags: int = 0) -> None:
        self.send(frames.frame(frames.DATA, flags, stream_id, message(data)))

    async def frame(self) -> Frame:
        head = await self.reader.readexactly(frames.FRAME_HEAD_BYTES)
        payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
        got = Frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
        self.seen.append(got)
        return got

    async def until(self, kind: int, flags: int = 0) -> Frame:
        """The next frame of a kind that has these flags; others are passed over."""
        async with asyncio.timeout(SOON_S):
            while True:
                got = await self.frame()
                if got.kind == kind and got.flags & flags == flags:
                    return got

    async def headers(self) -> dict[str, str]:
        got = await self.until(frames.HEADERS)
        return {str(name): str(value) for name, value in self.decoder.decode(got.payload)}

    async def trailers(self) -> dict[str, str]:
        got = await self.until(frames.HEADERS)
        decoded = {str(name): str(value) for name, value in self.decoder.decode(got.payload)}
        return decoded if got.flags & frames.END_STREAM else await self.trailers()

    async def goaway(self) -> frames.Code:
        """Why the server ended the connection; it does end."""
        got = await self.until(frames.GOAWAY)
        await self.lost()
        return frames.Code(int.from_bytes(got.payload[4:8], "big"))

    async def reset(self) -> frames.Code:
        got = await self.until(frames.RST_STREAM)
        return frames.Code(int.from_bytes(got.payload, "big"))

    async def lost(self) -> None:
        async with asyncio.timeout(SOON_S):
            try:
                while await self.reader.read(1 << 16):
                    pass
            except ConnectionError:
                pass

    async def ping(self) -> None:
        """Both ways: what was sent before has been taken, and the connection lives."""
        self.send(frames.frame(frames.PING, 0, 0, b"12345678"))
        assert (await self.until(frames.PING, frames.ACK)).payload == b"12345678"

    def close(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def peer(rig: Rig, *, greet: bool = True, knows: bool = True) -> AsyncIterator[Peer]:
    """greet: it has sent preface and settings; knows: it has the server's."""
    made = Peer(*await asyncio.open_connection("127.0.0.1", rig.port))
    if greet:
        made.send(frames.PREFACE, frames.settings(()), *((frames.SETTINGS_ACK,) if knows else ()))
    try:
        yield made
    finally:
        made.close()
