"""A call that is over leaves nothing, however it ended."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from http2_rig import Peer, Rig, message, peer, serving

from collectord.http2 import frames, limits
from collectord.http2.frames import END_STREAM, Code, frame

CALLS = 2000
AT_ONCE = 50


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with serving() as made:
        yield made


async def finish(p: Peer, stream_id: int) -> None:
    p.begin(stream_id, _path="/t/unary")
    p.say(stream_id, b"x", END_STREAM)


async def fail(p: Peer, stream_id: int) -> None:
    p.begin(stream_id, _path="/t/nothing")


async def cancel(p: Peer, stream_id: int) -> None:
    p.begin(stream_id, _path="/t/unread")
    p.send(frame(frames.DATA, 0, stream_id, message(b"unread") + message(b"cut")[:-1]))
    p.send(frames.rst_stream(stream_id, Code.CANCEL))


async def expire(p: Peer, stream_id: int) -> None:
    p.begin(stream_id, _path="/t/unread", grpc_timeout="1n")


@pytest.mark.parametrize("kind", [finish, fail, cancel, expire])
async def test_nothing_is_left_of_thousands_of_calls(rig: Rig, kind: Callable[[Peer, int], Awaitable[None]]) -> None:
    async with peer(rig) as p:
        await p.ping()
        (protocol,) = rig.server.protocols
        connection = protocol.connection
        connection.budget.left = 100 * CALLS  # so many resets at once are a flood, which is not the matter here
        seen: weakref.WeakSet[object] = weakref.WeakSet()
        for first in range(1, 2 * CALLS, 2 * AT_ONCE):
            for stream_id in range(first, first + 2 * AT_ONCE, 2):
                await kind(p, stream_id)
            await p.ping()
            seen.update(rig.server.calls)
            await rig.settled()
            rig.handlers.contexts.clear()
        assert rig.server.counts["calls"] == CALLS
        assert (connection.streams, connection._whole, connection.running) == ({}, {}, 0)
        assert (connection.blocked, len(connection.lingering) <= limits.LINGERING_STREAMS) == (set(), True)
        assert connection.window + connection.taken == limits.CONNECTION_WINDOW_BYTES
        assert rig.server.shared.held_bytes == 0
        assert not rig.server.calls
    gc.collect()
    assert len(seen) == 0


async def test_a_lost_connection_takes_its_calls_along(rig: Rig) -> None:
    async with peer(rig) as p:
        for stream_id in range(1, 101, 2):
            p.begin(stream_id, _path="/t/unread")
            p.say(stream_id, b"x" * 1000)
        await p.ping()
        (protocol,) = rig.server.protocols
        left = weakref.ref(protocol.connection)
        del protocol
    await rig.settled()
    async with asyncio.timeout(5):
        while rig.server.protocols:
            await asyncio.sleep(0.001)
    rig.handlers.contexts.clear()
    gc.collect()
    assert left() is None


async def test_a_call_is_freed_without_the_collector(rig: Rig) -> None:
    """A hundred thousand calls an hour would otherwise wait for a full collection of a large heap."""
    async with peer(rig) as p:
        gc.collect()
        gc.disable()
        try:
            p.begin(1, _path="/t/unary")
            await p.ping()
            (protocol,) = rig.server.protocols
            left = weakref.ref(protocol.connection.streams[1].task)  # it holds the handler, the context and the stream
            p.say(1, b"x", END_STREAM)
            await p.trailers()
            await rig.settled()
            rig.handlers.contexts.clear()
            await asyncio.sleep(0)
            assert left() is None
        finally:
            gc.enable()
