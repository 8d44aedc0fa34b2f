"""From a decoded header list to a gRPC request, or to what is wrong with it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import NamedTuple

from collectord.http2.frames import Code, StreamFaultError
from collectord.http2.status import Metadatum

_PSEUDO = {b":method", b":scheme", b":path", b":authority"}
_CONNECTION_SPECIFIC = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
_NOT_METADATA = {b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"}
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # a token of RFC 9110 without capitals
_BAD_VALUE = re.compile(rb"[\0\r\n]")
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class NotGrpcError(Exception):
    """Not a gRPC call: answered with an HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Request(NamedTuple):
    """What a call begins with; also the `details` that GenericRpcHandler.service is given."""

    method: str  # "/package.Service/Method"
    invocation_metadata: tuple[Metadatum, ...]
    timeout_s: float | None
    encoding: str


def parse(headers: Iterable[tuple[bytes, bytes]]) -> Request:
    """Raises StreamFaultError for a malformed header list, NotGrpcError for what is no gRPC call."""
    pseudo, fields = _split(headers)
    named = dict(fields)
    if pseudo.get(b":method") != b"POST":
        raise NotGrpcError(405, f"got method {_text(pseudo.get(b':method', b''))!r}, expected POST")
    if not pseudo.get(b":path", b"").startswith(b"/") or not pseudo.get(b":scheme"):
        raise _malformed("got no :path or :scheme, expected both")
    if not _is_grpc(named.get(b"content-type", b"")):
        kind = _text(named.get(b"content-type", b""))
        raise NotGrpcError(415, f"got content-type {kind!r}, expected application/grpc")
    return Request(
        _text(pseudo[b":path"]),
        tuple(_metadatum(name, value) for name, value in fields if name not in _NOT_METADATA),
        _timeout_s(named.get(b"grpc-timeout")),
        _text(named.get(b"grpc-encoding", b"identity")),
    )


def check_trailers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """A request's trailers say nothing in gRPC, but have to be well formed. Raises StreamFaultError."""
    pseudo, _ = _split(headers)
    if pseudo:
        raise _malformed("got pseudo-header fields in trailers, expected none")


def _split(headers: Iterable[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """Pseudo-header fields, which come first and once each, and the others."""
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if _BAD_VALUE.search(value):
            raise _malformed(f"got a control character in the value of {_text(name)!r}, expected none")
        if name.startswith(b":"):
            if fields or name in pseudo or name not in _PSEUDO:
                raise _malformed(f"got {_text(name)!r}, expected each pseudo-header field once and before others")
            pseudo[name] = value
        elif not _NAME.fullmatch(name) or name in _CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
            raise _malformed(f"got header field {_text(name)!r}, expected none that HTTP/2 forbids")
        else:
            fields.append((name, value))
    return pseudo, fields


def _is_grpc(content_type: bytes) -> bool:
    kind = content_type.lower()
    return kind == b"application/grpc" or kind.startswith((b"application/grpc+", b"application/grpc;"))


def _metadatum(name: bytes, value: bytes) -> Metadatum:
    if not name.endswith(b"-bin"):
        return Metadatum(_text(name), _text(value))
    try:
        return Metadatum(_text(name), base64.b64decode(value + b"=" * (-len(value) % 4), validate=True))
    except binascii.Error as error:
        raise _malformed(f"got {_text(name)!r} with a value that is no base64: {error}") from error


def _timeout_s(value: bytes | None) -> float | None:
    if value is None:
        return None
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise _malformed(f"got grpc-timeout {_text(value)!r}, expected up to eight digits and a unit")
    return int(found[1]) * _UNIT_S[found[2]]


def _text(data: bytes) -> str:
    return data.decode("latin-1")


def _malformed(reason: str) -> StreamFaultError:
    return StreamFaultError("malformed_request", Code.PROTOCOL_ERROR, reason)
