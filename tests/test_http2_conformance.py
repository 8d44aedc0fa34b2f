"""The server as `h2`, another implementation of RFC 9113, sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from http2_rig import POST, SOON_S, Rig, message, serving

from collectord.http2 import limits
from collectord.http2.frames import END_STREAM, Code, frame

Settings = h2.settings.SettingCodes


class H2Client:
    """h2's state machine on a socket: any answer it does not expect is an exception here."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.data: dict[int, bytes] = {}
        self.trailers: dict[int, dict[bytes, bytes]] = {}
        self.events: list[Any] = []
        self.acknowledges = True  # whether DATA is given back at once

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def begin(self, stream_id: int, path: str = "/t/stream", **more: Any) -> None:
        self.h2.send_headers(stream_id, [*({**dict(POST), ":path": path}).items()], **more)
        self.flush()

    def say(self, stream_id: int, data: bytes, *, end_stream: bool = False, pad_length: int | None = None) -> None:
        self.h2.send_data(stream_id, message(data), end_stream=end_stream, pad_length=pad_length)
        self.flush()

    async def until(self, kind: type[Any]) -> Any:
        """The next event of a kind."""
        async with asyncio.timeout(SOON_S):
            while True:
                while self.events:
                    event = self.events.pop(0)
                    if isinstance(event, kind):
                        return event
                self.take(await self.reader.read(1 << 16))

    def take(self, data: bytes) -> None:
        assert data, "the server closed the connection"
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
                if self.acknowledges:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                self.trailers[event.stream_id] = dict(event.headers)
            self.events.append(event)
        self.flush()

    async def ended(self, stream_id: int) -> bytes:
        """What came on a stream, when it has ended well."""
        while (await self.until(h2.events.StreamEnded)).stream_id != stream_id:
            pass
        assert self.trailers[stream_id][b"grpc-status"] == b"0"
        return self.data.get(stream_id, b"")


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with serving() as made:
        yield made


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[H2Client]:
    made = H2Client(*await asyncio.open_connection("127.0.0.1", rig.port))
    made.h2.initiate_connection()
    made.flush()
    yield made
    made.writer.transport.abort()


async def settle(client: H2Client, **changed: int) -> None:
    client.h2.update_settings({Settings[name]: value for name, value in changed.items()})
    client.flush()
    await client.until(h2.events.SettingsAcknowledged)


async def test_a_call_is_headers_data_and_trailers(client: H2Client) -> None:
    client.begin(1)
    client.say(1, b"hello", end_stream=True)
    response = await client.until(h2.events.ResponseReceived)
    assert dict(response.headers)[b":status"] == b"200"
    assert dict(response.headers)[b"content-type"] == b"application/grpc"
    assert await client.ended(1) == message(b"hello")


async def test_the_server_says_its_limits(client: H2Client) -> None:
    await client.until(h2.events.RemoteSettingsChanged)
    said = client.h2.remote_settings
    assert said.max_concurrent_streams == limits.CONCURRENT_STREAMS
    assert said.initial_window_size == limits.STREAM_WINDOW_BYTES
    assert said.max_frame_size == limits.FRAME_BYTES
    assert said.max_header_list_size == limits.HEADER_LIST_BYTES


async def test_a_large_reply_goes_through_small_windows(client: H2Client) -> None:
    await settle(client, INITIAL_WINDOW_SIZE=1000)
    client.begin(1, "/t/large")
    client.say(1, b"200000", end_stream=True)
    assert await client.ended(1) == message(b"x" * 200_000)


async def test_no_more_is_sent_than_the_window_holds_and_more_when_it_widens(client: H2Client) -> None:
    await settle(client, INITIAL_WINDOW_SIZE=10)
    client.acknowledges = False
    client.begin(1, "/t/large")
    client.say(1, b"100", end_stream=True)
    while len(client.data.get(1, b"")) < 10:
        await client.until(h2.events.DataReceived)
    client.h2.ping(b"01234567")
    client.flush()
    await client.until(h2.events.PingAckReceived)
    assert len(client.data[1]) == 10
    await settle(client, INITIAL_WINDOW_SIZE=0)  # leaves the stream with less than nothing
    client.h2.increment_flow_control_window(10, 1)
    client.flush()
    client.h2.ping(b"01234567")
    client.flush()
    await client.until(h2.events.PingAckReceived)
    assert len(client.data[1]) == 10
    await settle(client, INITIAL_WINDOW_SIZE=1000)
    assert await client.ended(1) == message(b"x" * 100)


async def test_streams_share_a_full_connection_window_and_all_end(client: H2Client) -> None:
    ids = range(1, 41, 2)
    for stream_id in ids:
        client.begin(stream_id, "/t/large")
        client.say(stream_id, b"50000", end_stream=True)
    ended = set()
    while len(ended) < len(ids):
        ended.add((await client.until(h2.events.StreamEnded)).stream_id)
    assert {len(client.data[stream_id]) for stream_id in ids} == {50_005}


async def test_two_writers_of_a_stream_do_not_mix_and_a_status_waits_for_them(client: H2Client) -> None:
    await settle(client, INITIAL_WINDOW_SIZE=700)
    client.begin(1, "/t/pair")
    await client.until(h2.events.StreamEnded)
    assert client.data[1] == message(b"\0" * 50_000) + message(b"\1" * 50_000)
    assert client.trailers[1][b"grpc-message"] == b"after both"


async def test_a_call_that_ends_within_a_message_is_reset(rig: Rig, client: H2Client) -> None:
    client.acknowledges = False
    client.begin(1, "/t/stuck")
    assert (await client.until(h2.events.StreamReset)).error_code == Code.CANCEL
    (writer,) = rig.handlers.contexts
    with pytest.raises(grpc.aio.UsageError):
        await writer


async def test_a_status_that_cannot_be_written_resets_the_call(client: H2Client) -> None:
    client.begin(1, "/t/nonsense")
    client.say(1, b"x", end_stream=True)
    assert (await client.until(h2.events.StreamReset)).error_code == Code.INTERNAL_ERROR
    client.begin(3)
    client.say(3, b"on", end_stream=True)
    assert await client.ended(3) == message(b"on")


async def test_frames_are_as_large_as_the_peer_takes(client: H2Client) -> None:
    await settle(client, MAX_FRAME_SIZE=1 << 20, INITIAL_WINDOW_SIZE=1 << 20)
    client.h2.increment_flow_control_window(1 << 20)
    client.begin(1, "/t/large")
    client.say(1, b"600000", end_stream=True)
    await client.ended(1)  # h2 refuses frames above its limit; a smaller one was honoured in the tests before


async def test_a_smaller_table_of_the_peer_is_honoured(client: H2Client) -> None:
    """hpack's decoder insists that an encoder says so before its next block."""
    await settle(client, HEADER_TABLE_SIZE=0)
    for stream_id in (1, 3):
        client.begin(stream_id)
        client.say(stream_id, b"x", end_stream=True)
        assert await client.ended(stream_id) == message(b"x")


async def test_padding_is_taken_off_and_given_back(rig: Rig, client: H2Client) -> None:
    client.begin(1)
    for number in range(50):
        client.say(1, b"%d" % number, pad_length=255)
    client.h2.end_stream(1)
    client.flush()
    assert await client.ended(1) == b"".join(message(b"%d" % number) for number in range(50))
    (protocol,) = rig.server.protocols
    connection = protocol.connection
    assert connection.window + connection.taken == limits.CONNECTION_WINDOW_BYTES


async def test_priorities_are_taken_and_ignored(client: H2Client) -> None:
    client.begin(1, priority_weight=20, priority_depends_on=0, priority_exclusive=True)
    client.h2.prioritize(1, weight=1)
    client.h2.prioritize(9, weight=1)
    client.say(1, b"x", end_stream=True)
    assert await client.ended(1) == message(b"x")


async def test_headers_go_on_in_continuations_both_ways(rig: Rig, client: H2Client) -> None:
    block = client.h2.encoder.encode([*POST, ("long", "l" * 9000)], huffman=False)
    client.h2.send_headers(1, list(POST))
    client.h2.data_to_send()  # h2 knows of the stream; the bytes are ours
    pieces = [block[at : at + 1000] for at in range(0, len(block), 1000)]
    client.writer.write(frame(1, 0, 1, pieces[0]) + b"".join(frame(9, 0, 1, piece) for piece in pieces[1:]))
    client.writer.write(frame(9, 4, 1))
    client.say(1, b"x")
    await client.until(h2.events.DataReceived)
    context = rig.handlers.contexts[0]
    assert dict(context.invocation_metadata())["long"] == "l" * 9000
    context.set_trailing_metadata((("large", "t" * 40_000),))
    client.h2.end_stream(1)
    client.flush()
    await client.until(h2.events.StreamEnded)
    assert client.trailers[1][b"large"] == b"t" * 40_000


async def test_several_messages_in_a_frame_and_a_message_in_several_frames(rig: Rig, client: H2Client) -> None:
    client.begin(1)
    data = message(b"one") + message(b"two") + message(b"three")
    for at, end in ((0, 1), (1, 9), (9, 22), (22, len(data))):
        client.h2.send_data(1, data[at:end])
        client.flush()
        await asyncio.sleep(0)
    client.h2.end_stream(1)
    client.flush()
    assert await client.ended(1) == data
    assert rig.handlers.heard == [b"one", b"two", b"three"]


async def test_a_ping_is_answered(client: H2Client) -> None:
    client.h2.ping(b"abcdefgh")
    client.flush()
    assert (await client.until(h2.events.PingAckReceived)).ping_data == b"abcdefgh"


async def test_a_reset_cancels_the_call_and_the_connection_goes_on(rig: Rig, client: H2Client) -> None:
    client.begin(1)
    await asyncio.wait_for(rig.handlers.began.wait(), SOON_S)
    client.h2.reset_stream(1, Code.CANCEL)
    client.begin(3)
    client.say(3, b"on", end_stream=True)
    assert await client.ended(3) == message(b"on")
    assert rig.handlers.cancelled.is_set()


async def test_trailers_of_the_client_half_close(client: H2Client) -> None:
    client.begin(1)
    client.say(1, b"x")
    client.h2.send_headers(1, [("k", "v")], end_stream=True)
    client.flush()
    assert await client.ended(1) == message(b"x")


async def test_a_call_that_ends_before_its_client_is_reset_with_no_error(client: H2Client) -> None:
    client.begin(1, "/t/nothing")
    await client.until(h2.events.StreamEnded)
    assert client.trailers[1][b"grpc-status"] == b"12"
    client.h2.ping(b"abcdefgh")
    client.flush()
    await client.until(h2.events.PingAckReceived)


async def test_a_client_that_goes_away_gets_its_answers(client: H2Client) -> None:
    client.begin(1)
    client.say(1, b"last")
    await client.until(h2.events.DataReceived)
    client.writer.write(frame(7, 0, 0, bytes(8)))
    client.writer.write(frame(0, END_STREAM, 1))
    while not client.trailers.get(1, {}).get(b"grpc-status"):
        await client.until(h2.events.TrailersReceived)
    assert client.trailers[1][b"grpc-status"] == b"0"


async def test_a_stopping_server_says_so(rig: Rig, client: H2Client) -> None:
    client.begin(1)
    client.say(1, b"x", end_stream=True)
    await client.ended(1)
    stopping = asyncio.create_task(rig.server.stop(0))
    assert (await client.until(h2.events.ConnectionTerminated)).error_code == Code.NO_ERROR
    await asyncio.wait_for(stopping, SOON_S)
