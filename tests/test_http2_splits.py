"""However a peer's bytes are cut, the same calls and messages come of them. No socket, no loop."""

from __future__ import annotations

import gzip
import itertools
import struct
from typing import Any

from hpack import Encoder
from http2_rig import POST, message
from hypothesis import given
from hypothesis import strategies as st

from collectord.http2 import frames, limits
from collectord.http2.connection import Connection
from collectord.http2.frames import ConnectionFaultError, frame
from collectord.http2.limits import Limits, Shared

SETTINGS_AND_PREFACE = frames.PREFACE + frames.settings([(4, 1 << 20)])


class World:
    """What a connection has outside, written down."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.streams: list[Any] = []
        self.requests: list[Any] = []
        self.counts: list[str] = []

    def write(self, data: bytes) -> None:
        self.sent += data

    def on_request(self, stream: Any, request: Any) -> None:
        stream.receiver.inflates = True
        self.streams.append(stream)
        self.requests.append(request)

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def count(self, kind: str) -> None:
        self.counts.append(kind)

    def heard(self) -> list[list[bytes]]:
        return [list(stream.receiver.messages) for stream in self.streams]


def recorded() -> bytes:
    """A bit of everything: two streams in turn, several messages a frame, pieces, padding, continuations, pings."""
    encoder = Encoder()
    blocks = [encoder.encode([*POST, ("n", str(number)), ("long", "x" * 300)]) for number in range(2)]
    whole = [message(bytes([number]) * number) for number in (0, 1, 7, 250)]
    large = message(b"L" * 3000)
    parts = [
        SETTINGS_AND_PREFACE,
        frames.headers(1, blocks[0], 0, 100),
        *(frame(frames.DATA, 0, 1, one) for one in whole),
        frames.headers(3, blocks[1], 0, 1 << 14),
        frame(frames.PING, 0, 0, b"ping ing"),
        frame(frames.DATA, 0, 3, b"".join(whole) + large[:10]),
        frame(frames.DATA, 0, 1, message(b"between")),
        frame(frames.DATA, frames.PADDED, 3, b"\3" + large[10:2000] + b"\0\0\0"),
        frames.window_update(0, 77),
        frame(frames.DATA, 0, 3, large[2000:] + b"\0"),
        frame(frames.DATA, 0, 3, struct.pack(">I", 2) + b"ok"),
        frame(frames.DATA, 0, 3, message(gzip.compress(b"squeezed"), 1)),
        frame(200, 0, 0, b"of no known kind"),
        frame(frames.DATA, frames.END_STREAM, 3, message(b"last")),
        frames.SETTINGS_ACK,
        frame(frames.DATA, 0, 1, message(b"after")),
    ]
    return b"".join(parts)


RECORDED = recorded()


def fed(pieces: list[bytes]) -> tuple[World, Connection]:
    world = World()
    connection = Connection(world, Limits(), Shared(1 << 30), lambda: 0.0)
    for piece in pieces:
        connection.receive(piece)
    return world, connection


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % len(data) for place in places), len(data)]
    return [data[at:end] for at, end in itertools.pairwise(edges) if end > at]


def test_the_recorded_bytes_say_what_they_should() -> None:
    world, connection = fed([RECORDED])
    first, second = world.heard()
    small = [bytes([number]) * number for number in (0, 1, 7, 250)]
    assert first == [*small, b"between", b"after"]
    assert second[:4] == small
    assert second[4:6] == [b"L" * 3000, b"ok"]
    assert gzip.decompress(second[6]) == b"squeezed"
    assert second[7:] == [b"last"]
    assert [dict(request.invocation_metadata)["n"] for request in world.requests] == ["0", "1"]
    assert connection.streams[3].receiver.ended
    assert not connection.streams[1].receiver.ended


@given(st.lists(st.integers(0, len(RECORDED)), max_size=40))
def test_any_cut_gives_the_same_messages_and_answers(places: list[int]) -> None:
    expected, plain = fed([RECORDED])
    world, connection = fed(cut(RECORDED, places))
    assert world.heard() == expected.heard()
    assert world.requests == expected.requests
    assert bytes(world.sent) == bytes(expected.sent)
    assert (connection.window, connection.taken) == (plain.window, plain.taken)
    assert [s.receiver.window for s in world.streams] == [s.receiver.window for s in expected.streams]


def test_byte_by_byte_gives_the_same_too() -> None:
    assert fed([RECORDED[at : at + 1] for at in range(len(RECORDED))])[0].heard() == fed([RECORDED])[0].heard()


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_no_bytes_make_anything_but_a_fault_of_the_peer(data: bytes, places: list[int]) -> None:
    try:
        _, connection = fed(cut(SETTINGS_AND_PREFACE + data, places))
    except ConnectionFaultError:
        return
    connection.close()
    assert connection.shared.held_bytes == 0


FRAMES = st.builds(
    frame,
    st.integers(0, 10),
    st.sampled_from([0, 1, 4, 5, 8, 9, 0x20, 0x2D]),
    st.integers(0, 6),
    st.one_of(st.binary(max_size=20), st.binary(max_size=9).map(message), st.just(bytes(Encoder().encode(list(POST))))),
)


@given(st.lists(FRAMES, max_size=30))
def test_no_frames_make_anything_but_a_fault_of_the_peer(sent: list[bytes]) -> None:
    """And whatever they are, no byte of the windows is lost."""
    world = World()
    connection = Connection(world, Limits(), Shared(1 << 30), lambda: 0.0)
    connection.receive(SETTINGS_AND_PREFACE)
    try:
        connection.receive(b"".join(sent))
    except ConnectionFaultError:
        connection.close()
    else:
        held = sum(s.receiver.grant - s.receiver.window - s.receiver.taken for s in connection.streams.values())
        assert connection.window + connection.taken + held == limits.CONNECTION_WINDOW_BYTES
        connection.close()
        assert connection.window + connection.taken == limits.CONNECTION_WINDOW_BYTES
    assert connection.shared.held_bytes == 0
    assert not connection.streams
