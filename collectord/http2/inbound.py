"""What a connection does with each kind of frame, but for DATA that holds one whole message (connection.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpack import HPACKError

from collectord.http2 import frames, request
from collectord.http2.budget import HEADER_BYTES_A_UNIT, RESET_COST
from collectord.http2.frames import Code, ConnectionFaultError, StreamFaultError
from collectord.http2.limits import CONCURRENT_STREAMS, HEADER_LIST_BYTES, RUNNING_CALLS
from collectord.http2.stream import Stream

if TYPE_CHECKING:
    from collectord.http2.connection import Connection

TINY_BYTES = 1024  # of DATA that completes no message: costs as a frame without one


@dataclass
class HeaderBlock:
    """A header block whose end has not come."""

    stream_id: int
    flags: int
    fragments: bytearray = field(default_factory=bytearray)
    continued: bool = False


def take_data(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    connection.spend_window(len(payload))
    body = _without_padding(flags, payload)
    stream = connection.streams.get(stream_id)
    if stream is None or stream.receiver.ended:
        _take_late_data(connection, stream, stream_id, len(payload))
        return
    receiver = stream.receiver
    receiver.window -= len(payload)
    if receiver.window < 0:
        reason = f"got {-receiver.window} bytes more than the stream's window, expected none"
        raise StreamFaultError("flow_control", Code.FLOW_CONTROL_ERROR, reason)
    if len(payload) > len(body):
        receiver.give_back(len(payload) - len(body))
    completed = receiver.receive(body)
    connection.budget.earned += completed
    if flags & frames.END_STREAM:
        receiver.end()
    elif not completed and len(body) < TINY_BYTES:
        connection.budget.spend()
    connection.track(receiver)


def _take_late_data(connection: Connection, stream: Stream | None, stream_id: int, size: int) -> None:
    """DATA for a stream that takes none: what it used of the connection's window is given back."""
    _check_not_idle(connection, frames.DATA, stream_id)
    connection.taken += size
    connection.budget.spend()
    if stream is not None:
        connection.give_credit(stream.receiver)
        raise StreamFaultError("closed_stream", Code.STREAM_CLOSED, "got DATA after END_STREAM, expected none")
    connection.give_connection_credit()


def take_headers(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    if not stream_id % 2:
        raise _protocol("stream_id", f"got HEADERS on stream {stream_id}, expected an odd one")
    body = _without_padding(flags, payload)
    if flags & frames.HAS_PRIORITY:
        if len(body) < 5:
            raise _frame_size("HEADERS with a priority", len(body), "at least 5")
        body = body[5:]
    connection.block = HeaderBlock(stream_id, flags)
    _take_fragment(connection, flags, body)


def take_continuation(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    if connection.block is None or connection.block.stream_id != stream_id:
        raise _protocol("interleaving", f"got CONTINUATION on stream {stream_id}, expected one after its HEADERS")
    connection.budget.spend()
    connection.block.continued = True
    _take_fragment(connection, flags, payload)


def _take_fragment(connection: Connection, flags: int, fragment: bytes) -> None:
    block = connection.block
    assert block is not None
    block.fragments += fragment
    if len(block.fragments) > HEADER_LIST_BYTES:
        reason = f"got a header block of more than {HEADER_LIST_BYTES} bytes, expected at most that"
        raise ConnectionFaultError("header_block", Code.ENHANCE_YOUR_CALM, reason)
    if not flags & frames.END_HEADERS:
        connection.suspend()
        return
    connection.block = None
    if block.continued:
        connection.resume()
    _take_block(connection, block)


def _take_block(connection: Connection, block: HeaderBlock) -> None:
    """Decode in any case: the connection's table depends on every block."""
    connection.budget.spend(1 + len(block.fragments) // HEADER_BYTES_A_UNIT)
    try:
        headers = [
            (bytes(name), bytes(value)) for name, value in connection.decoder.decode(bytes(block.fragments), True)
        ]
    except (HPACKError, ValueError, IndexError) as error:
        reason = f"got a header block that cannot be decoded: {error}"
        raise ConnectionFaultError("hpack", Code.COMPRESSION_ERROR, reason) from error
    stream = connection.streams.get(block.stream_id)
    ends = bool(block.flags & frames.END_STREAM)
    if stream is not None:
        _take_trailers(connection, stream, headers, ends)
    elif block.stream_id > connection.highest_id:
        connection.highest_id = block.stream_id
        _begin(connection, block.stream_id, headers, ends)
    elif block.stream_id not in connection.lingering:
        raise _protocol(
            "stream_id", f"got stream {block.stream_id} after {connection.highest_id}, expected a higher id"
        )


def _take_trailers(connection: Connection, stream: Stream, headers: list[tuple[bytes, bytes]], ends: bool) -> None:
    if stream.receiver.ended:
        raise StreamFaultError("closed_stream", Code.STREAM_CLOSED, "got HEADERS after END_STREAM, expected none")
    if not ends:
        raise StreamFaultError("malformed_request", Code.PROTOCOL_ERROR, "got trailers without END_STREAM, expected it")
    request.check_trailers(headers)
    try:
        stream.receiver.end()
    finally:
        connection.track(stream.receiver)


def _begin(connection: Connection, stream_id: int, headers: list[tuple[bytes, bytes]], ends: bool) -> None:
    full = len(connection.streams) >= CONCURRENT_STREAMS or connection.running >= RUNNING_CALLS
    if full or connection.going_away:
        reason = f"got a stream beside {len(connection.streams)}, expected at most {CONCURRENT_STREAMS}"
        raise StreamFaultError("refused_stream", Code.REFUSED_STREAM, reason)
    try:
        call = request.parse(headers)
    except request.NotGrpcError as fault:
        stream = _add(connection, stream_id, ends)
        stream.finish_http(fault.status, fault.reason)
    else:
        connection.on_request(_add(connection, stream_id, ends), call)


def _add(connection: Connection, stream_id: int, ends: bool) -> Stream:
    stream = connection.streams[stream_id] = Stream(connection, stream_id)
    connection.shared.begin_stream()
    stream.receiver.ended = ends
    connection.track(stream.receiver)
    return stream


def take_priority(connection: Connection, _flags: int, stream_id: int, payload: bytes) -> None:
    """Deprecated, and of no use here."""
    connection.budget.spend()
    if not stream_id:
        raise _protocol("stream_id", "got PRIORITY on stream 0, expected a stream's")
    if len(payload) != 5:
        raise _frame_size("PRIORITY", len(payload), "5")


def take_rst_stream(connection: Connection, _flags: int, stream_id: int, payload: bytes) -> None:
    connection.budget.spend(RESET_COST)
    if len(payload) != 4:
        raise _frame_size("RST_STREAM", len(payload), "4")
    _check_not_idle(connection, frames.RST_STREAM, stream_id)
    stream = connection.streams.get(stream_id)
    if stream is not None:
        stream.receiver.ended = True  # it says no more: nothing of it can be late
        stream.abandon()


def take_settings(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    connection.budget.spend()
    if stream_id:
        raise _protocol("stream_id", f"got SETTINGS on stream {stream_id}, expected 0")
    if flags & frames.ACK:
        if not connection.settled:
            raise _protocol("preface", "got SETTINGS with ACK first, expected settings")
        if payload:
            raise _frame_size("SETTINGS with ACK", len(payload), "0")
        connection.acknowledged()
        return
    if len(payload) % 6:
        raise _frame_size("SETTINGS", len(payload), "a multiple of 6")
    connection.budget.spend(len(payload) // 6)
    for key, value in frames.parse_settings(payload):
        _set(connection, key, value)
    connection.settled = True
    connection.write(frames.SETTINGS_ACK)
    connection.wake_blocked()


def _set(connection: Connection, key: int, value: int) -> None:
    if key == frames.SETTINGS_INITIAL_WINDOW_SIZE:
        _set_window(connection, value)
    elif key == frames.SETTINGS_MAX_FRAME_SIZE:
        if not frames.DEFAULT_FRAME_BYTES <= value <= frames.MOST_FRAME_BYTES:
            raise _protocol("settings", f"got MAX_FRAME_SIZE {value}, expected 16384 to 16777215")
        connection.set_peer_frame(value)
    elif key == frames.SETTINGS_ENABLE_PUSH and value > 1:
        raise _protocol("settings", f"got ENABLE_PUSH {value}, expected 0 or 1")
    elif key == frames.SETTINGS_HEADER_TABLE_SIZE and value < frames.DEFAULT_TABLE_BYTES:
        connection.shrink_table = True


def _set_window(connection: Connection, value: int) -> None:
    """Applies to the streams there are too, which may leave them less than nothing (RFC 9113, section 6.9.2)."""
    change = value - connection.peer_window
    largest = max((stream.sender.window for stream in connection.streams.values()), default=0)
    if value > frames.MOST_WINDOW_BYTES or largest + change > frames.MOST_WINDOW_BYTES:
        reason = f"got INITIAL_WINDOW_SIZE {value}, expected no window above {frames.MOST_WINDOW_BYTES}"
        raise ConnectionFaultError("window_overflow", Code.FLOW_CONTROL_ERROR, reason)
    connection.peer_window = value
    for stream in connection.streams.values():
        stream.sender.window += change


def take_push_promise(_connection: Connection, _flags: int, _stream_id: int, _payload: bytes) -> None:
    raise _protocol("push", "got PUSH_PROMISE, expected none from a client")


def take_ping(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    connection.budget.spend()
    if stream_id:
        raise _protocol("stream_id", f"got PING on stream {stream_id}, expected 0")
    if len(payload) != 8:
        raise _frame_size("PING", len(payload), "8")
    if not flags & frames.ACK:
        connection.write(frames.frame(frames.PING, frames.ACK, 0, payload))


def take_goaway(connection: Connection, _flags: int, stream_id: int, payload: bytes) -> None:
    """The client will begin nothing more; what it has begun goes on, and then it closes the connection."""
    connection.budget.spend()
    if stream_id:
        raise _protocol("stream_id", f"got GOAWAY on stream {stream_id}, expected 0")
    if len(payload) < 8:
        raise _frame_size("GOAWAY", len(payload), "at least 8")


def take_window_update(connection: Connection, _flags: int, stream_id: int, payload: bytes) -> None:
    connection.budget.spend()
    if len(payload) != 4:
        raise _frame_size("WINDOW_UPDATE", len(payload), "4")
    credit = int.from_bytes(payload, "big") & frames.STREAM_ID_MASK
    if not stream_id:
        connection.send_window = _widened(connection.send_window, credit, ConnectionFaultError)
        connection.wake_blocked()
        return
    _check_not_idle(connection, frames.WINDOW_UPDATE, stream_id)
    stream = connection.streams.get(stream_id)
    if stream is not None:
        stream.sender.window = _widened(stream.sender.window, credit, StreamFaultError)
        stream.sender.wake()


def _widened(window: int, credit: int, fault: type[ConnectionFaultError | StreamFaultError]) -> int:
    if not credit:
        raise fault("window_update", Code.PROTOCOL_ERROR, "got WINDOW_UPDATE of 0, expected at least 1")
    if window + credit > frames.MOST_WINDOW_BYTES:
        reason = f"got a window of {window + credit} bytes, expected at most {frames.MOST_WINDOW_BYTES}"
        raise fault("window_overflow", Code.FLOW_CONTROL_ERROR, reason)
    return window + credit


def take_unknown(connection: Connection, _flags: int, _stream_id: int, _payload: bytes) -> None:
    """Kinds that are not known are left alone (RFC 9113, section 4.1)."""
    connection.budget.spend()


def _check_not_idle(connection: Connection, kind: int, stream_id: int) -> None:
    if not stream_id % 2 or stream_id > connection.highest_id:
        reason = f"got a frame of kind {kind} on stream {stream_id}, expected one that was begun"
        raise _protocol("idle_stream", reason)


def _without_padding(flags: int, payload: bytes) -> bytes:
    if not flags & frames.PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise _protocol("padding", f"got a frame of {len(payload)} bytes with more padding, expected less")
    return payload[1 : len(payload) - payload[0]]


def _protocol(kind: str, reason: str) -> ConnectionFaultError:
    return ConnectionFaultError(kind, Code.PROTOCOL_ERROR, reason)


def _frame_size(what: str, size: int, expected: str) -> ConnectionFaultError:
    reason = f"got {what} of {size} bytes, expected {expected}"
    return ConnectionFaultError("frame_size", Code.FRAME_SIZE_ERROR, reason)


TAKE: Mapping[int, Callable[[Connection, int, int, bytes], None]] = {
    frames.DATA: take_data,
    frames.HEADERS: take_headers,
    frames.PRIORITY: take_priority,
    frames.RST_STREAM: take_rst_stream,
    frames.SETTINGS: take_settings,
    frames.PUSH_PROMISE: take_push_promise,
    frames.PING: take_ping,
    frames.GOAWAY: take_goaway,
    frames.WINDOW_UPDATE: take_window_update,
    frames.CONTINUATION: take_continuation,
}
