"""The load generator's own gRPC client against the real grpc.aio server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from bench.h2stream import GrpcStream

PATH = "/example.Echo/Stream"


@asynccontextmanager
async def echo_server(handler: Any) -> AsyncIterator[int]:
    """A server of one stream method with raw bytes; gives its port."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 8 << 20)])
    method = grpc.stream_stream_rpc_method_handler(handler)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("example.Echo", {"Stream": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def echo(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def opened(port: int) -> tuple[GrpcStream, list[bytes], asyncio.Event, list[str]]:
    got: list[bytes] = []
    news = asyncio.Event()
    ends: list[str] = []

    def on_message(message: bytes) -> None:
        got.append(message)
        news.set()

    def on_end(reason: str) -> None:
        ends.append(reason)
        news.set()

    stream = GrpcStream(PATH, on_message=on_message, on_end=on_end)
    await asyncio.get_running_loop().create_connection(lambda: stream, "127.0.0.1", port)
    return stream, got, news, ends


@pytest.mark.parametrize(
    "messages",
    [
        [b"one"],
        [b""],
        [b"a" * 16_384],
        [b"b" * 3_000_000],
        [bytes([i % 256]) * (i * 37) for i in range(500)],
    ],
    ids=["small", "empty", "a frame and a bit", "over every window", "five hundred"],
)
async def test_what_is_sent_arrives_and_comes_back_unchanged(messages: list[bytes]) -> None:
    async with echo_server(echo) as port:
        stream, got, news, ends = await opened(port)
        for message in messages:
            stream.send(message)
        while len(got) < len(messages):
            news.clear()
            await asyncio.wait_for(news.wait(), 20)
            assert ends == []
        stream.close()
    assert got == messages


async def test_a_client_over_the_window_says_that_it_is_not_writable_until_it_is() -> None:
    async with echo_server(echo) as port:
        stream, got, news, _ = await opened(port)
        assert stream.writable
        stream.send(b"c" * 3_000_000)
        assert not stream.writable
        while not got:
            news.clear()
            await asyncio.wait_for(news.wait(), 20)
        assert stream.writable
        stream.close()


async def test_the_end_of_the_stream_is_told_once() -> None:
    async def refuse(_requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
        yield b""

    async with echo_server(refuse) as port:
        stream, _, news, ends = await opened(port)
        await asyncio.wait_for(news.wait(), 20)
        assert ends == ["ended by the server"]
        stream.close()
    assert len(ends) == 1


async def test_half_closing_ends_the_servers_side() -> None:
    async with echo_server(echo) as port:
        stream, _, news, ends = await opened(port)
        stream.half_close()
        await asyncio.wait_for(news.wait(), 20)
        assert ends == ["ended by the server"]
        stream.close()
