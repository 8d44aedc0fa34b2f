"""Peers that break the protocol, flood it or fall silent: each is ended, counted, and harms nobody else."""

from __future__ import annotations

import asyncio
import gzip
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from unittest.mock import Mock

import pytest
import uvloop
from http2_rig import SOON_S, Peer, Rig, message, peer, serving

from collectord.http2 import frames, limits
from collectord.http2.budget import BURST
from collectord.http2.connection import Connection
from collectord.http2.frames import Code, frame
from collectord.http2.status import field
from collectord.http2.stream import Stream

Attack = Callable[[Peer], None]
QUARTER = limits.STREAM_WINDOW_BYTES // 4


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with serving() as made:
        yield made


async def is_well(rig: Rig) -> None:
    """Another connection is served as if nothing was."""
    async with peer(rig) as other:
        other.begin(1)
        other.say(1, b"well", frames.END_STREAM)
        assert (await other.until(frames.DATA)).payload == message(b"well")
        assert (await other.trailers())["grpc-status"] == "0"


def preface_of_http_1(p: Peer) -> None:
    p.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")


def headers_before_settings(p: Peer) -> None:
    p.send(frames.PREFACE)
    p.begin(1)


def ack_before_settings(p: Peer) -> None:
    p.send(frames.PREFACE, frames.SETTINGS_ACK)


@pytest.mark.parametrize("attack", [preface_of_http_1, headers_before_settings, ack_before_settings])
async def test_a_wrong_beginning_ends_the_connection(rig: Rig, attack: Attack) -> None:
    async with peer(rig, greet=False) as p:
        attack(p)
        assert await p.goaway() is Code.PROTOCOL_ERROR
    assert rig.server.counts["preface"] == 1
    await is_well(rig)


def begun(p: Peer, *data: bytes) -> None:
    p.begin(1)
    p.send(*data)


def blocks(*pieces: bytes, flags: int = 0) -> bytes:
    """A header block in several frames that does not end."""
    later = (frame(frames.CONTINUATION, 0, 1, piece) for piece in pieces[1:])
    return b"".join((frame(frames.HEADERS, flags, 1, pieces[0]), *later))


ENDING: list[tuple[str, bytes, str, Code]] = [
    ("a DATA frame above 1 MiB", b"\x10\x00\x01\0\0\0\0\0\1", "frame_size", Code.FRAME_SIZE_ERROR),
    ("a control frame above 32 KiB", b"\x00\x80\x01\6\0\0\0\0\0", "frame_size", Code.FRAME_SIZE_ERROR),
    ("DATA on stream 0", frame(frames.DATA, 0, 0, b"x"), "idle_stream", Code.PROTOCOL_ERROR),
    ("DATA on an idle stream", frame(frames.DATA, 0, 7, b"x"), "idle_stream", Code.PROTOCOL_ERROR),
    ("RST_STREAM on an idle stream", frames.rst_stream(7, Code.CANCEL), "idle_stream", Code.PROTOCOL_ERROR),
    ("WINDOW_UPDATE on an idle stream", frames.window_update(7, 1), "idle_stream", Code.PROTOCOL_ERROR),
    ("RST_STREAM on stream 0", frames.rst_stream(0, Code.CANCEL), "idle_stream", Code.PROTOCOL_ERROR),
    ("HEADERS on stream 0", frame(frames.HEADERS, 4, 0, b"\x82"), "stream_id", Code.PROTOCOL_ERROR),
    ("HEADERS on an even stream", frame(frames.HEADERS, 4, 2, b"\x82"), "stream_id", Code.PROTOCOL_ERROR),
    ("SETTINGS on a stream", frame(frames.SETTINGS, 0, 1), "stream_id", Code.PROTOCOL_ERROR),
    ("SETTINGS of seven bytes", frame(frames.SETTINGS, 0, 0, bytes(7)), "frame_size", Code.FRAME_SIZE_ERROR),
    ("SETTINGS with ACK and more", frame(frames.SETTINGS, 1, 0, bytes(6)), "frame_size", Code.FRAME_SIZE_ERROR),
    ("ENABLE_PUSH of 2", frames.settings([(2, 2)]), "settings", Code.PROTOCOL_ERROR),
    ("MAX_FRAME_SIZE of 16383", frames.settings([(5, 16_383)]), "settings", Code.PROTOCOL_ERROR),
    ("MAX_FRAME_SIZE of 2^24", frames.settings([(5, 1 << 24)]), "settings", Code.PROTOCOL_ERROR),
    ("a window of 2^31", frames.settings([(4, 1 << 31)]), "window_overflow", Code.FLOW_CONTROL_ERROR),
    ("the connection's window overflown", frames.window_update(0, (1 << 31) - 1), "window_overflow", Code.FLOW_CONTROL_ERROR),
    ("WINDOW_UPDATE of 0", frames.window_update(0, 0), "window_update", Code.PROTOCOL_ERROR),
    ("WINDOW_UPDATE of three bytes", frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), "frame_size", Code.FRAME_SIZE_ERROR),
    ("PING of seven bytes", frame(frames.PING, 0, 0, bytes(7)), "frame_size", Code.FRAME_SIZE_ERROR),
    ("PING on a stream", frame(frames.PING, 0, 1, bytes(8)), "stream_id", Code.PROTOCOL_ERROR),
    ("PRIORITY on stream 0", frame(frames.PRIORITY, 0, 0, bytes(5)), "stream_id", Code.PROTOCOL_ERROR),
    ("PRIORITY of four bytes", frame(frames.PRIORITY, 0, 1, bytes(4)), "frame_size", Code.FRAME_SIZE_ERROR),
    ("RST_STREAM of five bytes", frame(frames.RST_STREAM, 0, 1, bytes(5)), "frame_size", Code.FRAME_SIZE_ERROR),
    ("GOAWAY on a stream", frame(frames.GOAWAY, 0, 1, bytes(8)), "stream_id", Code.PROTOCOL_ERROR),
    ("GOAWAY of seven bytes", frame(frames.GOAWAY, 0, 0, bytes(7)), "frame_size", Code.FRAME_SIZE_ERROR),
    ("PUSH_PROMISE", frame(frames.PUSH_PROMISE, 4, 1, bytes(4)), "push", Code.PROTOCOL_ERROR),
    ("CONTINUATION out of nowhere", frame(frames.CONTINUATION, 4, 1, b"\x82"), "interleaving", Code.PROTOCOL_ERROR),
    ("PING within a header block", blocks(b"\x82") + frame(frames.PING, 0, 0, bytes(8)), "interleaving", Code.PROTOCOL_ERROR),
    ("DATA within a header block", blocks(b"\x82") + frame(frames.DATA, 0, 1, message(b"x")), "interleaving", Code.PROTOCOL_ERROR),
    ("CONTINUATION of another stream", blocks(b"\x82") + frame(frames.CONTINUATION, 4, 3, b""), "interleaving", Code.PROTOCOL_ERROR),
    ("padding as long as its frame", frame(frames.DATA, frames.PADDED, 1, b"\x05abcd"), "padding", Code.PROTOCOL_ERROR),
    ("padding without its length", frame(frames.DATA, frames.PADDED, 1), "padding", Code.PROTOCOL_ERROR),
    ("HEADERS too short for their priority", frame(frames.HEADERS, 0x24, 3, bytes(4)), "frame_size", Code.FRAME_SIZE_ERROR),
    ("a header block without sense", frame(frames.HEADERS, 4, 3, b"\xff\xff\xff\xff\xff\xff\xff"), "hpack", Code.COMPRESSION_ERROR),
    ("an index that is in no table", frame(frames.HEADERS, 4, 3, b"\xfe"), "hpack", Code.COMPRESSION_ERROR),
    ("a table of 1 MiB", frame(frames.HEADERS, 4, 3, b"\x3f\xe1\xff\x3f"), "hpack", Code.COMPRESSION_ERROR),
    ("a header block of 17 KiB", frame(frames.HEADERS, 4, 3, bytes(17 << 10)), "header_block", Code.ENHANCE_YOUR_CALM),
    ("a header block of 17 KiB in pieces", blocks(*[bytes(1 << 10)] * 17), "header_block", Code.ENHANCE_YOUR_CALM),
    (
        "a bomb of HPACK: 4 KiB in the table, 100 times",
        frame(frames.HEADERS, 4, 3, b"\x40" + field(b"a", b"x" * 4000)[1:] + b"\xbe" * 100),
        "hpack",
        Code.COMPRESSION_ERROR,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("attack", "kind", "code"), [row[1:] for row in ENDING], ids=[row[0] for row in ENDING])
async def test_it_ends_the_connection(rig: Rig, attack: bytes, kind: str, code: Code) -> None:
    async with peer(rig) as p:
        begun(p, attack)
        assert await p.goaway() is code
    assert rig.server.counts[kind] == 1
    await rig.settled()
    await is_well(rig)
    assert rig.server.shared.held_bytes == 0


async def test_a_stream_id_may_not_go_down(rig: Rig) -> None:
    async with peer(rig) as p:
        p.begin(5)
        p.begin(3)
        assert await p.goaway() is Code.PROTOCOL_ERROR


FLOODS: list[tuple[str, bytes]] = [
    ("PING", frame(frames.PING, 0, 0, bytes(8))),
    ("answers to no PING", frame(frames.PING, frames.ACK, 0, bytes(8))),
    ("SETTINGS", frames.settings(())),
    ("empty DATA", frame(frames.DATA, 0, 1)),
    ("tiny DATA", frame(frames.DATA, 0, 1, b"\0")),
    ("padding only", frame(frames.DATA, frames.PADDED, 1, b"\2\0\0")),
    ("WINDOW_UPDATE", frames.window_update(1, 1)),
    ("WINDOW_UPDATE of a closed stream", frames.window_update(3, 1)),
    ("PRIORITY", frame(frames.PRIORITY, 0, 1, bytes(5))),
    ("frames of no known kind", frame(99, 0, 1, b"?")),
    ("GOAWAY", frames.goaway(0, Code.NO_ERROR)),
    ("RST_STREAM of a closed stream", frames.rst_stream(3, Code.CANCEL)),
]


@pytest.mark.parametrize("flood", [row[1] for row in FLOODS], ids=[row[0] for row in FLOODS])
async def test_a_flood_is_told_to_calm_down(rig: Rig, flood: bytes) -> None:
    async with peer(rig) as p:
        p.begin(1, _path="/t/unread")
        p.begin(3)
        p.send(frames.rst_stream(3, Code.CANCEL))
        if flood[-1:] == b"\0" and flood[3] == frames.DATA:
            p.send(frame(frames.DATA, 0, 1, struct.pack(">BI", 0, 1 << 20)))  # so that zeros do not make messages
        p.send(flood * (3 * BURST))
        assert await p.goaway() is Code.ENHANCE_YOUR_CALM
    assert rig.server.counts["flood"] == 1
    await rig.settled()


async def test_a_flood_of_continuations_is_told_to_calm_down(rig: Rig) -> None:
    async with peer(rig) as p:
        p.send(blocks(b"\x82", *[b""] * (2 * BURST)))
        assert await p.goaway() is Code.ENHANCE_YOUR_CALM


async def test_rapid_reset_is_told_to_calm_down(rig: Rig) -> None:
    """CVE-2023-44487: streams begun and reset at once never count as concurrent."""
    async with peer(rig) as p:
        for stream_id in range(1, 2 * BURST, 2):
            p.begin(stream_id)
            p.send(frames.rst_stream(stream_id, Code.CANCEL))
        assert await p.goaway() is Code.ENHANCE_YOUR_CALM
    await rig.settled()
    assert not rig.server.calls
    await is_well(rig)


async def test_making_the_server_reset_is_told_to_calm_down_too(rig: Rig) -> None:
    """CVE-2025-8671: the peer breaks the rules of a stream instead of resetting it."""
    async with peer(rig) as p:
        for stream_id in range(1, 2 * BURST, 2):
            p.begin(stream_id)
            p.send(frames.window_update(stream_id, 0))
        assert await p.goaway() is Code.ENHANCE_YOUR_CALM
    await rig.settled()


async def test_handlers_that_were_reset_and_are_not_done_count(rig: Rig) -> None:
    async with peer(rig) as p:
        for stream_id in range(1, 2 * limits.RUNNING_CALLS + 3, 2):  # all in one piece: no task ends in between
            p.begin(stream_id)
            p.send(frames.rst_stream(stream_id, Code.CANCEL))
        assert await p.reset() is Code.REFUSED_STREAM
        await rig.settled()
        assert rig.server.counts["calls"] <= limits.RUNNING_CALLS


async def test_a_deadline_beyond_all_measure_is_none(rig: Rig) -> None:
    async with peer(rig) as p:
        p.begin(1, grpc_timeout="99999999H")
        p.say(1, b"x", frames.END_STREAM)
        assert (await p.until(frames.DATA)).payload == message(b"x")


async def test_messages_earn_what_control_frames_cost(rig: Rig) -> None:
    async with peer(rig) as p:
        p.begin(1)
        for _ in range(3 * BURST // 100):
            p.send((frame(frames.DATA, 0, 1, message(b"x")) + frame(frames.PRIORITY, 0, 1, bytes(5))) * 100)
            await p.ping()
        assert rig.server.counts["flood"] == 0


async def test_a_hundred_streams_are_served_and_one_more_is_refused(rig: Rig) -> None:
    async with peer(rig) as p:
        for stream_id in range(1, 2 * limits.CONCURRENT_STREAMS + 2, 2):
            p.begin(stream_id, _path="/t/unread")
        refused = await p.until(frames.RST_STREAM)
        assert refused.stream_id == 2 * limits.CONCURRENT_STREAMS + 1
        assert int.from_bytes(refused.payload, "big") == Code.REFUSED_STREAM
        p.send(frames.rst_stream(1, Code.CANCEL))
        p.begin(refused.stream_id + 2)
        p.say(refused.stream_id + 2, b"room again")
        assert (await p.until(frames.DATA)).payload == message(b"room again")


async def test_a_stream_that_sends_more_than_its_window_is_reset_and_the_others_go_on(rig: Rig) -> None:
    async with peer(rig) as p:
        p.begin(1, _path="/t/unread")
        p.begin(3)
        whole = frame(frames.DATA, 0, 1, message(bytes(QUARTER - 5)))
        p.send(whole * 4, frame(frames.DATA, 0, 1, message(b"x")))
        assert await p.reset() is Code.FLOW_CONTROL_ERROR
        p.say(3, b"on")
        assert (await p.until(frames.DATA)).payload == message(b"on")
    assert rig.server.counts["flow_control"] == 1


async def test_before_a_peer_knows_our_settings_it_may_send_what_http_allows(rig: Rig) -> None:
    async with peer(rig, knows=False) as p:
        p.begin(1, _path="/t/unread")
        p.begin(3)
        p.send(frame(frames.DATA, 0, 1, message(bytes(QUARTER - 5))) * 15)
        p.send(frames.SETTINGS_ACK)
        p.say(3, b"on")
        assert (await p.until(frames.DATA)).payload == message(b"on")
        assert not rig.server.counts["flow_control"]
        p.send(frame(frames.DATA, 0, 1, message(b"x")))
        assert await p.reset() is Code.FLOW_CONTROL_ERROR


async def test_what_was_read_before_our_settings_were_known_gets_its_credit(rig: Rig) -> None:
    async with peer(rig, knows=False) as p:
        rig.handlers.go_on.set()
        p.begin(1, _path="/t/unread")
        p.send(frame(frames.DATA, 0, 1, message(bytes(QUARTER - 5))) * 7)  # less than half of what HTTP allows
        while len(rig.handlers.heard) < 7:
            await p.ping()
        assert not [got for got in p.seen if got.kind == frames.WINDOW_UPDATE and got.stream_id]
        p.send(frames.SETTINGS_ACK)
        while (await p.until(frames.WINDOW_UPDATE)).stream_id != 1:
            pass


async def test_no_more_than_what_http_allows_even_then(rig: Rig) -> None:
    async with peer(rig, knows=False) as p:
        p.begin(1, _path="/t/unread")
        p.send(frame(frames.DATA, 0, 1, message(bytes(QUARTER - 5))) * 16)
        assert await p.reset() is Code.FLOW_CONTROL_ERROR


async def test_a_connection_that_sends_more_than_its_window_is_ended(rig: Rig) -> None:
    async with peer(rig) as p:
        streams = limits.CONNECTION_WINDOW_BYTES // (3 * QUARTER) + 1
        for stream_id in range(1, 2 * streams, 2):
            p.begin(stream_id, _path="/t/unread")
            p.send(frame(frames.DATA, 0, stream_id, message(bytes(QUARTER - 5))) * 3)
        assert await p.goaway() is Code.FLOW_CONTROL_ERROR
    await rig.settled()


async def test_what_is_not_read_gets_no_credit_and_what_is_read_does(rig: Rig) -> None:
    async with peer(rig) as p:
        p.begin(1, _path="/t/unread")
        p.send(frame(frames.DATA, 0, 1, message(bytes(QUARTER - 5))) * 4)
        await p.ping()
        assert [got for got in p.seen if got.kind == frames.WINDOW_UPDATE and got.stream_id] == []
        rig.handlers.go_on.set()
        while not (given := await p.until(frames.WINDOW_UPDATE)).stream_id:
            pass
        # When half is read, as much as makes the window of one stream among few.
        credit = limits.MOST_WINDOW_BYTES - limits.STREAM_WINDOW_BYTES // 2
        assert (given.stream_id, int.from_bytes(given.payload, "big")) == (1, credit)


async def test_among_many_streams_each_gets_a_small_window(rig: Rig) -> None:
    async with peer(rig) as p:
        share = limits.ALL_WINDOWS_BYTES // 80
        assert limits.LEAST_WINDOW_BYTES < share < 2 * limits.STREAM_WINDOW_BYTES
        for stream_id in range(1, 161, 2):
            p.begin(stream_id, _path="/t/unread")
        p.send(frame(frames.DATA, 0, 1, message(bytes(QUARTER - 5))) * 3)
        rig.handlers.go_on.set()
        while not (given := await p.until(frames.WINDOW_UPDATE)).stream_id:
            pass
        credit = share - limits.STREAM_WINDOW_BYTES // 2
        assert (given.stream_id, int.from_bytes(given.payload, "big")) == (1, credit)


async def test_streams_with_a_window_full_to_say_take_turns() -> None:
    connection = Connection(Mock(), limits.Limits(), limits.Shared(1), lambda: 0.0)
    read: list[int] = []

    async def handle(stream_id: int) -> None:
        receiver = connection.streams.setdefault(stream_id, Stream(connection, stream_id)).receiver
        receiver.messages.extend([bytes(limits.TURN_BYTES)] * 5)
        for _ in range(5):
            await receiver.read()
            read.append(stream_id)

    await asyncio.gather(*map(handle, (1, 3, 5)))
    assert read == [1, 3, 5] * 5


async def test_small_messages_are_read_several_in_a_turn() -> None:
    connection = Connection(Mock(), limits.Limits(), limits.Shared(1), lambda: 0.0)
    read: list[int] = []

    async def handle(stream_id: int) -> None:
        receiver = connection.streams.setdefault(stream_id, Stream(connection, stream_id)).receiver
        receiver.messages.extend([bytes(limits.TURN_BYTES // 4)] * 8)
        for _ in range(8):
            await receiver.read()
            read.append(stream_id)

    await asyncio.gather(*map(handle, (1, 3)))
    assert read == [1, 1, 1, 1, 3, 3, 3, 3] * 2


async def test_a_window_shrinks_by_credit_that_is_withheld() -> None:
    shared = limits.Shared(1)
    connection = Connection(Mock(), limits.Limits(), shared, lambda: 0.0)
    receiver = connection.streams.setdefault(1, Stream(connection, 1)).receiver
    receiver.grant = receiver.window = limits.MOST_WINDOW_BYTES
    for _ in range(1000):
        shared.begin_stream()
    given = []
    for _ in range(200):
        size = min(receiver.window, 4096)
        receiver.window -= size
        receiver.give_back(size)
        given.append(receiver.window)
    assert max(given[-20:]) <= limits.LEAST_WINDOW_BYTES
    assert receiver.window + receiver.taken == receiver.grant == limits.LEAST_WINDOW_BYTES


async def test_a_stream_that_ends_unread_gives_its_window_back(rig: Rig) -> None:
    async with peer(rig) as p:
        await p.until(frames.WINDOW_UPDATE)  # of the greeting
        for stream_id in range(1, 41, 2):
            p.begin(stream_id, _path="/t/unread")
            p.send(frame(frames.DATA, 0, stream_id, message(bytes(QUARTER - 5))) * 3)
            p.send(frames.rst_stream(stream_id, Code.CANCEL))
            await p.ping()
        (protocol,) = rig.server.protocols
        connection = protocol.connection
        assert connection.window + connection.taken == limits.CONNECTION_WINDOW_BYTES
        assert not connection.streams


async def test_late_data_of_a_stream_we_ended_is_let_pass_and_credited(rig: Rig) -> None:
    async with peer(rig) as p:
        p.begin(1, _path="/t/nothing")
        assert (await p.trailers())["grpc-status"] == "12"
        assert await p.reset() is Code.NO_ERROR
        p.send(frame(frames.DATA, 0, 1, bytes(QUARTER)) * (limits.CONNECTION_CREDIT_BYTES // QUARTER))
        given = await p.until(frames.WINDOW_UPDATE)
        assert given.stream_id == 0
        p.begin(1)  # trailers, as far as the peer knows
        await p.ping()


async def test_frames_after_the_end_of_a_stream_reset_it(rig: Rig) -> None:
    async with peer(rig) as p:
        p.begin(1, _path="/t/unread")
        p.send(frame(frames.DATA, frames.END_STREAM, 1))
        p.say(1, b"more")
        assert await p.reset() is Code.STREAM_CLOSED
        p.begin(3, frames.END_STREAM, _path="/t/unread")
        p.begin(3, frames.END_STREAM)
        assert await p.reset() is Code.STREAM_CLOSED
        await p.ping()
    assert rig.server.counts["closed_stream"] == 2


MALFORMED = [
    ("a header in capitals", field(b"Upper", b"x")),
    ("a header with a space", field(b"a b", b"x")),
    ("an empty name", field(b"", b"x")),
    ("a line break in a value", field(b"a", b"x\r\ny: z")),
    ("connection", field(b"connection", b"close")),
    ("te that is not trailers", field(b"te", b"gzip")),
    ("a pseudo-header field after others", field(b":authority", b"x")),
    ("a timeout without a unit", field(b"grpc-timeout", b"1000")),
    ("a timeout of nine digits", field(b"grpc-timeout", b"123456789S")),
    ("-bin that is no base64", field(b"k-bin", b"?")),
]
START = b"\x83\x86" + field(b":path", b"/t/stream") + field(b"content-type", b"application/grpc")


@pytest.mark.parametrize("extra", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
async def test_a_malformed_request_is_reset_and_the_connection_goes_on(rig: Rig, extra: bytes) -> None:
    async with peer(rig) as p:
        p.send(frames.headers(1, START + extra, 0, 1 << 14))
        assert await p.reset() is Code.PROTOCOL_ERROR
        p.begin(3)
        p.say(3, b"on")
        assert (await p.until(frames.DATA)).payload == message(b"on")
    assert rig.server.counts["malformed_request"] == 1


@pytest.mark.parametrize("block", [b"\x83" + START, b"\x83\x86", START.replace(b"/t/stream", b"t//stream")])
async def test_pseudo_header_fields_are_there_once_and_make_sense(rig: Rig, block: bytes) -> None:
    async with peer(rig) as p:
        p.send(frames.headers(1, block, 0, 1 << 14))
        assert await p.reset() is Code.PROTOCOL_ERROR


@pytest.mark.parametrize(("change", "status"), [({"_method": "GET"}, "405"), ({"content_type": "text/html"}, "415")])
async def test_what_is_no_grpc_gets_an_http_status(rig: Rig, change: dict[str, str], status: str) -> None:
    async with peer(rig) as p:
        p.begin(1, frames.END_STREAM, **change)
        assert (await p.trailers())[":status"] == status
        await p.ping()


async def test_an_encoding_that_is_not_known_is_unimplemented(rig: Rig) -> None:
    async with peer(rig) as p:
        p.begin(1, grpc_encoding="snappy")
        trailers = await p.trailers()
        assert trailers["grpc-status"] == "12"
        assert trailers["grpc-accept-encoding"] == "identity,deflate,gzip"


BROKEN_MESSAGES = [
    ("compressed without an encoding", "identity", message(b"x", 1), "13"),
    ("compressed flag 2", "gzip", message(b"x", 2), "13"),
    ("no gzip", "gzip", message(b"no", 1), "13"),
    ("half of a gzip", "gzip", message(gzip.compress(b"x" * 999)[:-9], 1), "13"),
    ("above the limit", "identity", struct.pack(">BI", 0, 0xFFFFFFFF), "8"),
]


@pytest.mark.parametrize(
    ("encoding", "data", "status"), [row[1:] for row in BROKEN_MESSAGES], ids=[row[0] for row in BROKEN_MESSAGES]
)
async def test_a_broken_message_ends_its_call(rig: Rig, encoding: str, data: bytes, status: str) -> None:
    async with peer(rig) as p:
        p.begin(1, grpc_encoding=encoding)
        p.send(frame(frames.DATA, 0, 1, data))
        assert (await p.trailers())["grpc-status"] == status
        await p.ping()
    await rig.settled()
    assert rig.handlers.cancelled.is_set() or not rig.handlers.began.is_set()


async def test_a_message_that_is_cut_by_the_end_is_internal(rig: Rig) -> None:
    async with peer(rig) as p:
        p.begin(1)
        p.send(frame(frames.DATA, frames.END_STREAM, 1, message(b"abc")[:-1]))
        assert (await p.trailers())["grpc-status"] == "13"


async def test_incomplete_messages_share_one_allowance() -> None:
    async with serving(most_incomplete_bytes=5 * QUARTER) as rig, peer(rig) as p:
        for stream_id in (1, 3, 5):
            p.begin(stream_id)
            p.send(frame(frames.DATA, 0, stream_id, struct.pack(">BI", 0, 1 << 20)))
            p.send(frame(frames.DATA, 0, stream_id, bytes(QUARTER)) * 2)
        assert (await p.trailers())["grpc-status"] == "8"
        p.close()
        await rig.settled()
        assert rig.server.shared.held_bytes == 0


async def test_incomplete_frames_are_taken_from_the_same_allowance() -> None:
    async with serving(most_incomplete_bytes=1 << 19) as rig, peer(rig) as p:
        p.begin(1)
        p.send(frame(frames.DATA, 0, 1, bytes(1 << 20))[:-1])
        assert await p.goaway() is Code.ENHANCE_YOUR_CALM


async def test_very_many_small_unread_messages_stop_reading_until_they_are_read(rig: Rig) -> None:
    many = limits.STREAM_WINDOW_BYTES // len(message(b"ab"))
    streams = range(1, 11, 2)
    assert many * len(streams) > limits.MOST_QUEUED_MESSAGES
    async with peer(rig) as p:
        for stream_id in streams:
            p.begin(stream_id, _path="/t/unread")
            p.send(frame(frames.DATA, 0, stream_id, message(b"ab")) * many)
            p.send(frame(frames.DATA, frames.END_STREAM, stream_id))
        async with asyncio.timeout(SOON_S):
            while not rig.server.counts["reading_paused"]:
                await asyncio.sleep(0.001)
        rig.handlers.go_on.set()
        for _ in streams:
            assert (await p.trailers())["grpc-status"] == "0"
        assert rig.handlers.heard == [b"ab"] * (many * len(streams))


async def test_a_peer_that_never_reads_is_cut_off_when_it_goes_on_asking(rig: Rig) -> None:
    """Pings earn nothing, but messages do: the budget alone would let it go on."""
    async with peer(rig) as p:
        p.send(frames.settings([(4, (1 << 31) - 1)]), frames.window_update(0, 1 << 30))
        p.begin(1)
        both = frame(frames.DATA, 0, 1, message(b"x")) + frame(frames.PING, 0, 0, bytes(8)) * 2
        async with asyncio.timeout(2 * SOON_S):
            while not rig.server.counts["unread_replies"] and not rig.server.counts["flood"]:
                p.send(both * 1000)
                try:
                    await p.writer.drain() if p.writer.transport.get_write_buffer_size() < 1 << 20 else None
                except ConnectionError:
                    break
                await asyncio.sleep(0)
    await rig.settled()
    await is_well(rig)


async def test_a_write_to_a_peer_that_never_reads_waits_and_ends_with_it(rig: Rig) -> None:
    async with peer(rig) as p:
        p.send(frames.settings([(4, (1 << 31) - 1)]), frames.window_update(0, 1 << 30))
        p.begin(1, _path="/t/large")
        p.say(1, b"%d" % (64 << 20), frames.END_STREAM)
        await p.ping()
        async with asyncio.timeout(SOON_S):
            while not (protocol := next(iter(rig.server.protocols))).connection.paused:
                await asyncio.sleep(0.001)
        assert protocol._transport.get_write_buffer_size() <= limits.WRITE_BUFFER_BYTES + limits.SEND_FRAME_BYTES + 1000
    await rig.settled()


@pytest.mark.parametrize("start", [b"", frames.PREFACE[:20], frames.PREFACE])
async def test_a_connection_without_a_preface_is_dropped(start: bytes) -> None:
    async with serving(preface_s=0.05) as rig, peer(rig, greet=False) as p:
        p.send(start)
        await p.lost()
        assert rig.server.counts["preface_timeout"] == 1


async def test_a_silent_connection_is_pinged_kept_when_it_answers_and_dropped_when_not() -> None:
    async with serving(keepalive_s=0.05, keepalive_answer_s=0.05) as rig, peer(rig) as p:
        for _ in range(2):
            got = await p.until(frames.PING)
            assert not got.flags
            p.send(frame(frames.PING, frames.ACK, 0, got.payload))
        await p.lost()
        assert rig.server.counts["keepalive_timeout"] == 1


async def test_a_connection_beyond_the_most_is_closed_and_the_others_go_on() -> None:
    async with serving(most_connections=1) as rig, peer(rig) as p:
        await p.ping()
        async with peer(rig, greet=False) as other:
            await other.lost()
        await p.ping()
        assert rig.server.counts["too_many_connections"] == 1
        p.close()
        await p.lost()
        await is_well(rig)


async def test_a_fault_of_the_server_ends_one_connection_only(rig: Rig) -> None:
    async with peer(rig) as p:
        await p.ping()
        (protocol,) = rig.server.protocols

        def fail(*_: object) -> None:
            raise RuntimeError("boom")

        protocol.connection.on_request = fail
        p.begin(1)
        assert await p.goaway() is Code.INTERNAL_ERROR
    assert rig.server.counts["internal"] == 1
    await is_well(rig)


async def test_new_streams_of_a_stopping_server_are_refused(rig: Rig) -> None:
    async with peer(rig) as p:
        p.begin(1, _path="/t/unread")
        await p.ping()
        stopping = asyncio.create_task(rig.server.stop(SOON_S))
        assert (await p.until(frames.GOAWAY)).payload[:4] == (1).to_bytes(4, "big")
        p.begin(3)
        assert await p.reset() is Code.REFUSED_STREAM
        p.send(frame(frames.DATA, frames.END_STREAM, 1))
        rig.handlers.go_on.set()
        assert (await p.trailers())["grpc-status"] == "0"
        await asyncio.wait_for(stopping, SOON_S)


ON_UVLOOP = [
    test_a_stream_that_ends_unread_gives_its_window_back,
    test_what_is_not_read_gets_no_credit_and_what_is_read_does,
    test_very_many_small_unread_messages_stop_reading_until_they_are_read,
    test_a_write_to_a_peer_that_never_reads_waits_and_ends_with_it,
    test_a_peer_that_never_reads_is_cut_off_when_it_goes_on_asking,
    test_rapid_reset_is_told_to_calm_down,
    test_a_deadline_beyond_all_measure_is_none,
    test_new_streams_of_a_stopping_server_are_refused,
]


@pytest.mark.parametrize("test", ON_UVLOOP, ids=lambda test: test.__name__.removeprefix("test_"))
def test_it_holds_on_the_daemons_own_loop(test: Callable[[Rig], Awaitable[None]]) -> None:
    async def run() -> None:
        async with serving() as rig:
            await test(rig)

    uvloop.run(run())
