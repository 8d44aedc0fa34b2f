"""gRPC's message compression, receiving side only: bounded, so that a small message cannot become a large one."""

from __future__ import annotations

import zlib

import grpc

from collectord.http2.status import CallError

IDENTITY = "identity"
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
ACCEPTED = (IDENTITY, *sorted(_WINDOW_BITS))


class Compressed(bytes):
    """A message as it came, not inflated yet: inflating is the reader's, so that a queue holds small ones."""

    __slots__ = ()


def inflate(message: bytes, encoding: str, most_bytes: int) -> bytes:
    """Raises CallError for what is no such stream, or inflates to more than `most_bytes`."""
    inflator = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        data = inflator.decompress(message, most_bytes + 1)
    except zlib.error as error:
        raise CallError(grpc.StatusCode.INTERNAL, f"got a message that is no {encoding}: {error}") from error
    if len(data) > most_bytes:
        details = f"got a message that inflates to more than {most_bytes} bytes, expected at most that"
        raise CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
    if not inflator.eof or inflator.unused_data:
        raise CallError(grpc.StatusCode.INTERNAL, f"got a {encoding} message that is cut short or has a tail")
    return data
