"""HTTP/2 frames as bytes: constants of RFC 9113 and the functions that pack what a server sends."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEAD_BYTES = 3 + 1 + 1 + 4  # length, kind, flags, stream id
MESSAGE_HEAD_BYTES = 1 + 4  # gRPC's: whether compressed, length

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

SETTINGS_HEADER_TABLE_SIZE = 1
SETTINGS_ENABLE_PUSH = 2
SETTINGS_MAX_CONCURRENT_STREAMS = 3
SETTINGS_INITIAL_WINDOW_SIZE = 4
SETTINGS_MAX_FRAME_SIZE = 5
SETTINGS_MAX_HEADER_LIST_SIZE = 6

DEFAULT_WINDOW_BYTES = 65_535  # of a stream and of the connection, until a peer says otherwise
DEFAULT_FRAME_BYTES = 1 << 14
DEFAULT_TABLE_BYTES = 4096  # of HPACK
MOST_WINDOW_BYTES = (1 << 31) - 1
MOST_FRAME_BYTES = (1 << 24) - 1
STREAM_ID_MASK = (1 << 31) - 1  # the highest bit is reserved


class Code(IntEnum):
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class PeerError(Exception):
    """The peer's fault: `kind` is what it counts as, `code` what the peer is told, `reason` got and expected."""

    def __init__(self, kind: str, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.code, self.reason = kind, code, reason


class ConnectionFaultError(PeerError):
    """Ends the connection."""


class StreamFaultError(PeerError):
    """Ends one stream; the connection goes on."""


_HEAD = struct.Struct(">IBI")  # length << 8 | kind, flags, stream id
_CREDIT = struct.Struct(">IBII")
_SETTING = struct.Struct(">HI")
MESSAGE_FRAME_HEAD = struct.Struct(">IBIBI")  # the head of a DATA frame and of the message that begins in it


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return _HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def window_update(stream_id: int, credit_bytes: int) -> bytes:
    return _CREDIT.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id, credit_bytes)


def rst_stream(stream_id: int, code: Code) -> bytes:
    return _CREDIT.pack(4 << 8 | RST_STREAM, 0, stream_id, code)


def goaway(last_stream_id: int, code: Code, reason: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream_id, code) + reason.encode()[:256])


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values))


def parse_settings(payload: bytes) -> Iterable[tuple[int, int]]:
    """REQUIRES: the payload's length is a multiple of six."""
    return _SETTING.iter_unpack(payload)


def headers(stream_id: int, block: bytes, flags: int, most_frame_bytes: int) -> bytes:
    """A header block as HEADERS, and as CONTINUATION what the peer takes in no single frame."""
    if len(block) <= most_frame_bytes:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    pieces = [block[at : at + most_frame_bytes] for at in range(0, len(block), most_frame_bytes)]
    middle = (frame(CONTINUATION, 0, stream_id, piece) for piece in pieces[1:-1])
    last = frame(CONTINUATION, END_HEADERS, stream_id, pieces[-1])
    return b"".join((frame(HEADERS, flags, stream_id, pieces[0]), *middle, last))


SETTINGS_ACK = frame(SETTINGS, ACK, 0)
KEEPALIVE_PING = frame(PING, 0, 0, b"collectd")
