"""One HTTP/2 connection, server's side, without a socket: bytes in, calls and bytes out.

`receive` is the hottest loop of the daemon: a DATA frame that holds one whole message is queued in place. Whatever else
comes goes through `inbound.py`, one function a kind of frame.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Protocol

from hpack import Decoder

from collectord.http2 import frames, inbound
from collectord.http2.budget import RESET_COST, Budget
from collectord.http2.frames import FRAME_HEAD_BYTES, MESSAGE_FRAME_HEAD, Code, ConnectionFaultError, StreamFaultError
from collectord.http2.limits import (
    CONCURRENT_STREAMS,
    CONNECTION_CREDIT_BYTES,
    CONNECTION_WINDOW_BYTES,
    CONTROL_FRAME_BYTES,
    FRAME_BYTES,
    HEADER_LIST_BYTES,
    LINGERING_STREAMS,
    MOST_QUEUED_MESSAGES,
    SEND_FRAME_BYTES,
    STREAM_WINDOW_BYTES,
    Limits,
    Shared,
)
from collectord.http2.receiver import Receiver
from collectord.http2.request import Request
from collectord.http2.sender import Sender
from collectord.http2.status import CallError
from collectord.http2.stream import Stream

GREETING = frames.settings(
    (
        (frames.SETTINGS_MAX_CONCURRENT_STREAMS, CONCURRENT_STREAMS),
        (frames.SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES),
        (frames.SETTINGS_MAX_FRAME_SIZE, FRAME_BYTES),
        (frames.SETTINGS_MAX_HEADER_LIST_SIZE, HEADER_LIST_BYTES),
    )
) + frames.window_update(0, CONNECTION_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES)
_LEAST_MESSAGE_FRAME_BYTES = FRAME_HEAD_BYTES + frames.MESSAGE_HEAD_BYTES
_UNHEARD_BYTES = 1 << 16  # smaller frames are put together without asking the server's allowance


class Outside(Protocol):
    """What a connection needs of the world."""

    def write(self, data: bytes) -> None: ...
    def on_request(self, stream: Stream, request: Request) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def count(self, kind: str) -> None: ...


class Connection:
    """Raises ConnectionFaultError out of `receive` when the peer breaks the protocol; then only `close` may be called."""

    __slots__ = (
        "__weakref__",
        "_held",
        "_need",
        "_outside",
        "_queued",
        "_rest",
        "_whole",
        "block",
        "blocked",
        "budget",
        "closed",
        "decoder",
        "going_away",
        "greeted",
        "highest_id",
        "limits",
        "lingering",
        "on_request",
        "paused",
        "peer_frame",
        "peer_window",
        "reading_paused",
        "running",
        "send_frame",
        "send_window",
        "settled",
        "shared",
        "shrink_table",
        "stream_window",
        "streams",
        "taken",
        "window",
        "write",
    )

    def __init__(self, outside: Outside, limits: Limits, shared: Shared, now_s: Callable[[], float]) -> None:
        self.limits, self.shared = limits, shared
        self.budget = Budget(now_s)
        self.write: Callable[[bytes], None] = outside.write
        self.on_request = outside.on_request
        self.streams: dict[int, Stream] = {}
        self.running = 0  # handlers' tasks, with those whose streams are closed
        self.highest_id = 0  # of the peer's streams
        self.lingering: OrderedDict[int, None] = OrderedDict()  # closed by us; the peer may not know yet
        self.going_away = False  # no new streams
        self.closed = False
        self.greeted = False  # the preface has come
        self.settled = False  # and the peer's first settings
        self.stream_window = (
            frames.DEFAULT_WINDOW_BYTES
        )  # of a new stream; STREAM_WINDOW_BYTES when the peer knows that
        self.decoder = Decoder(max_header_list_size=HEADER_LIST_BYTES)
        self.block: inbound.HeaderBlock | None = None  # while it is continued
        self.window = CONNECTION_WINDOW_BYTES  # that the peer may still send
        self.taken = 0  # bytes that credit is due for
        self.send_window = frames.DEFAULT_WINDOW_BYTES
        self.peer_window = frames.DEFAULT_WINDOW_BYTES  # of a new stream
        self.peer_frame = frames.DEFAULT_FRAME_BYTES
        self.send_frame = frames.DEFAULT_FRAME_BYTES  # the smaller of the peer's limit and ours
        self.shrink_table = False  # the peer's HPACK table is to be declared empty before the next block
        self.paused = False  # the transport's buffer is full
        self.reading_paused = False
        self.blocked: set[Sender] = set()  # waiting for room
        self._outside = outside
        self._whole: dict[int, Receiver] = {}  # streams whose next byte begins a message
        self._rest: bytes | bytearray = b""  # of a frame that has not come in full
        self._need = 0  # its length
        self._held = 0  # bytes of the server's allowance
        self._queued = 0  # messages, since they were last counted

    def receive(self, data: bytes) -> None:
        """What came from the peer, cut anywhere. Raises ConnectionFaultError."""
        if self._need:
            if len(self._rest) + len(data) < self._need:
                self._collect(data)
                return
            data = self._joined(data)
        unpack, whole = MESSAGE_FRAME_HEAD.unpack_from, self._whole
        at, size, used, messages = 0, len(data), 0, 0
        most_bytes = self.limits.message_bytes
        if not self.settled:
            at = self._receive_preface(data)
        last_start = size - _LEAST_MESSAGE_FRAME_BYTES
        while at < size:
            if at <= last_start:
                # A length five above the message's, of kind 0: DATA with one whole message. No flags, not compressed.
                kind_and_length, flags, stream_id, compressed, length = unpack(data, at)
                if kind_and_length == (length + 5) << 8 and not flags and not compressed and length <= most_bytes:
                    end = at + 14 + length
                    receiver = whole.get(stream_id)
                    if receiver is not None and end <= size and (window := receiver.window - length - 5) >= 0:
                        receiver.window = window
                        receiver.messages.append(data[at + 14 : end])
                        if (waiter := receiver.waiter) is not None:
                            receiver.waiter = None
                            if not waiter.done():
                                waiter.set_result(None)
                        used += length + 5
                        messages += 1
                        at = end
                        continue
            self.window -= used
            used = 0
            at = self._receive_frame(data, at)
        if messages:
            self.budget.earned += messages
            self._queued += messages
            if self._queued > MOST_QUEUED_MESSAGES:
                self._count_queued()
        if used > self.window:
            self.spend_window(used)
        self.window -= used

    def _receive_preface(self, data: bytes) -> int:
        """Where the first frame begins; 0 while the preface is incomplete."""
        if self.greeted or self.closed:
            return 0
        start = data[: len(frames.PREFACE)]
        if not frames.PREFACE.startswith(start):
            raise ConnectionFaultError("preface", Code.PROTOCOL_ERROR, f"got {start!r}, expected HTTP/2's preface")
        if len(start) < len(frames.PREFACE):
            return self._keep(data, 0, len(frames.PREFACE))
        self.greeted = True
        return len(frames.PREFACE)

    def _collect(self, data: bytes) -> None:
        """More of a frame, not the last of it. Copies no byte twice, however small the pieces are."""
        if self._need > _UNHEARD_BYTES:
            self._hold(len(data))
        if type(self._rest) is bytes:
            self._rest = bytearray(self._rest)
        self._rest += data

    def _hold(self, size: int) -> None:
        if not self.shared.hold(size):
            reason = "the server holds all the incomplete frames it may; come back later"
            raise ConnectionFaultError("memory", Code.ENHANCE_YOUR_CALM, reason)
        self._held += size

    def _joined(self, data: bytes) -> bytes:
        data = b"".join((self._rest, data))
        self.shared.release(self._held)
        self._rest, self._need, self._held = b"", 0, 0
        return data

    def _receive_frame(self, data: bytes, at: int) -> int:
        """Any frame, the slow way; returns where the next one begins, which is the end when this one is incomplete."""
        if self.closed:
            return len(data)  # read and let go, so that the peer gets our last words
        body = at + FRAME_HEAD_BYTES
        if body > len(data):
            return self._keep(data, at, FRAME_HEAD_BYTES)
        length, kind = int.from_bytes(data[at : at + 3], "big"), data[at + 3]
        self._check_head(length, kind)
        end = body + length
        if end > len(data):
            return self._keep(data, at, FRAME_HEAD_BYTES + length)
        stream_id = int.from_bytes(data[at + 5 : body], "big") & frames.STREAM_ID_MASK
        self._take_frame(kind, data[at + 4], stream_id, data[body:end])
        return end

    def _check_head(self, length: int, kind: int) -> None:
        most = FRAME_BYTES if kind == frames.DATA else CONTROL_FRAME_BYTES
        if length > most:
            reason = f"got a frame of kind {kind} with {length} bytes, expected at most {most}"
            raise ConnectionFaultError("frame_size", Code.FRAME_SIZE_ERROR, reason)
        if not self.settled and kind != frames.SETTINGS:
            reason = f"got a frame of kind {kind} first, expected SETTINGS"
            raise ConnectionFaultError("preface", Code.PROTOCOL_ERROR, reason)

    def _keep(self, data: bytes, at: int, need: int) -> int:
        """What begins at `at` has `need` bytes, more than have come."""
        if need > _UNHEARD_BYTES:
            self._hold(len(data) - at)
        self._rest, self._need = data[at:], need
        return len(data)

    def _take_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self.block is not None and kind != frames.CONTINUATION:
            reason = f"got a frame of kind {kind} within a header block, expected CONTINUATION"
            raise ConnectionFaultError("interleaving", Code.PROTOCOL_ERROR, reason)
        try:
            inbound.TAKE.get(kind, inbound.take_unknown)(self, flags, stream_id, payload)
        except StreamFaultError as fault:
            self._outside.count(fault.kind)
            self.budget.spend(RESET_COST)  # as if the peer had reset it: it can make us do so at will
            self._reset(stream_id, fault.code)
        except CallError as fault:
            self._outside.count("call_" + fault.code.name.lower())
            self.streams[stream_id].fail(fault.code, fault.details)

    def _reset(self, stream_id: int, code: Code) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.reset(code)
        else:
            self.write(frames.rst_stream(stream_id, code))
            self.linger(stream_id)

    def spend_window(self, size: int) -> None:
        """DATA took `size` bytes of the connection's window. Raises ConnectionFaultError."""
        self.window -= size
        if self.window < 0:
            reason = f"got {-self.window} bytes of DATA more than the connection's window, expected none"
            raise ConnectionFaultError("flow_control", Code.FLOW_CONTROL_ERROR, reason)

    def _count_queued(self) -> None:
        """The windows bound bytes, not messages: of very many small ones the handlers have to read first."""
        self._queued = sum(len(stream.receiver.messages) for stream in self.streams.values())
        if self._queued > MOST_QUEUED_MESSAGES:
            self._outside.count("reading_paused")
            self.reading_paused = True
            self._outside.pause_reading()

    def resume_reading(self) -> None:
        self.reading_paused = False
        self._outside.resume_reading()

    def give_credit(self, receiver: Receiver) -> None:
        """Let the peer send as much more as was taken, where that is enough to be worth a frame."""
        if 2 * receiver.taken >= receiver.grant and not receiver.ended:
            grant = max(
                self.shared.window_bytes, receiver.grant - receiver.taken
            )  # a smaller window is got by withholding
            credit = grant - receiver.grant + receiver.taken
            receiver.grant, receiver.taken = grant, 0
            receiver.window += credit
            if credit:
                self.write(frames.window_update(receiver.id, credit))
        self.give_connection_credit()

    def give_connection_credit(self) -> None:
        if self.taken >= CONNECTION_CREDIT_BYTES:
            self.window += self.taken
            self.write(frames.window_update(0, self.taken))
            self.taken = 0

    def suspend(self) -> None:
        """A header block goes on in the next frame: until it ends, nothing may take the short way."""
        self._whole.clear()

    def resume(self) -> None:
        for stream in self.streams.values():
            self.track(stream.receiver)

    def track(self, receiver: Receiver) -> None:
        """Say whether the next byte of a stream begins a message, after it changed."""
        if receiver.whole and not receiver.ended:
            self._whole[receiver.id] = receiver
        else:
            self._whole.pop(receiver.id, None)

    def acknowledged(self) -> None:
        """The peer has our settings: what it sent until now may have been more than they allow."""
        less, self.stream_window = self.stream_window - STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES
        for stream in self.streams.values():
            stream.receiver.window -= less
            stream.receiver.grant -= less
            self.give_credit(stream.receiver)  # which may be due with the smaller window

    def forget(self, stream: Stream) -> None:
        """A stream is closed."""
        self.shared.end_stream()
        self.streams.pop(stream.id, None)
        self._whole.pop(stream.id, None)
        if not stream.receiver.ended:
            self.linger(stream.id)

    def linger(self, stream_id: int) -> None:
        self.lingering[stream_id] = None
        if len(self.lingering) > LINGERING_STREAMS:
            self.lingering.popitem(last=False)

    def headers(self, stream_id: int, block: bytes, flags: int) -> bytes:
        """A header block as frames, as the peer's settings want it."""
        if self.shrink_table:
            self.shrink_table = False
            block = b"\x20" + block  # a dynamic table of no bytes (RFC 7541, section 6.3)
        return frames.headers(stream_id, block, flags, self.peer_frame)

    def set_peer_frame(self, size: int) -> None:
        self.peer_frame = size
        self.send_frame = min(size, SEND_FRAME_BYTES)

    def wake_blocked(self, senders: Iterable[Sender] | None = None) -> None:
        """Something may be sent again."""
        for sender in deque(self.blocked if senders is None else senders):
            sender.wake()

    def go_away(self) -> None:
        """Take no new streams."""
        if not self.going_away:
            self.going_away = True
            self.write(frames.goaway(self.highest_id, Code.NO_ERROR))

    def close(self) -> None:
        """The connection is gone: so are its calls, and what it held."""
        self.closed = True
        self.write = _into_the_void
        self.shared.release(self._held)
        self._rest, self._need, self._held = b"", 0, 0
        for stream in list(self.streams.values()):
            stream.abandon()


def _into_the_void(_: bytes) -> None:
    """Where a lost connection's bytes go."""
