"""How a call ends, and header blocks as this server writes them: literals only, so no table has to be kept."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote

import grpc

_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_STATUS_200 = b"\x88"  # entry 8 of HPACK's static table


class Metadatum(NamedTuple):
    """A pair as handlers see it; the value is bytes where the key ends in -bin."""

    key: str
    value: str | bytes


Metadata = Iterable[tuple[str, str | bytes]]


class CallError(Exception):
    """Ends a call with a status that is not its handler's."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


def _length(size: int) -> bytes:
    """An HPACK integer with a prefix of seven bits (RFC 7541, section 5.1)."""
    if size < 127:
        return bytes((size,))
    size -= 127
    encoded = bytearray(b"\x7f")
    while size >= 128:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


def field(name: bytes, value: bytes) -> bytes:
    """A literal header field without indexing, its name a literal too."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def metadata_block(metadata: Metadata) -> bytes:
    return b"".join(field(key.lower().encode("ascii"), _value(key, value)) for key, value in metadata)


def _value(key: str, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else bytes(value)
    return base64.b64encode(data).rstrip(b"=") if key.lower().endswith("-bin") else data


ACCEPT_ENCODING = field(b"grpc-accept-encoding", b"identity,deflate,gzip")
_CONTENT_TYPE = field(b"content-type", b"application/grpc")
INITIAL = _STATUS_200 + _CONTENT_TYPE + ACCEPT_ENCODING
_OK = field(b"grpc-status", b"0")


def trailers(code: grpc.StatusCode, details: str = "", metadata: Metadata = ()) -> bytes:
    """The header block that ends a call."""
    if code is grpc.StatusCode.OK and not details:
        block = _OK
    else:
        block = field(b"grpc-status", str(code.value[0]).encode())
        if details:
            block += field(b"grpc-message", quote(details, safe=_PRINTABLE, errors="replace").encode("ascii"))
    return block + metadata_block(metadata) if metadata else block


def http_error(status: int, details: str) -> bytes:
    """The header block for what is no gRPC call: a browser is to see an error too."""
    start = field(b":status", str(status).encode()) + _CONTENT_TYPE
    return start + trailers(grpc.StatusCode.INTERNAL, details)
