"""What a peer may use of this server: every bound in one place.

Memory of hostile peers, in the worst case: a connection holds at most CONNECTION_WINDOW_BYTES of messages that no
handler has read (some eight times that if all are of two bytes, hence MOST_QUEUED_MESSAGES), and what it was sent of
incomplete messages and frames is taken from one allowance of the whole server (`Shared`).
Ten thousand connections whose handlers do not read: 10,000 x 512 KiB = 5 GiB. Handlers that do read hold next to none.
"""

from __future__ import annotations

from dataclasses import dataclass

STREAM_WINDOW_BYTES = 1 << 14  # of a new stream
MOST_WINDOW_BYTES = 1 << 18  # 5 MB/s from an agent that is 50 ms away
LEAST_WINDOW_BYTES = 1 << 13
ALL_WINDOWS_BYTES = 2 << 20  # what streams share when they are many: work for some 50 ms, so that nobody waits longer
CONNECTION_WINDOW_BYTES = 1 << 19
TURN_BYTES = 1 << 9  # of one stream that its handler reads before the others have their turn; one message at least
CONNECTION_CREDIT_BYTES = CONNECTION_WINDOW_BYTES // 2
FRAME_BYTES = 1 << 20  # a large batch in one frame: fewer pieces to put together
CONTROL_FRAME_BYTES = 1 << 15  # of any frame but DATA: twice a header block
HEADER_LIST_BYTES = 1 << 14  # decoded, and of the block before
CONCURRENT_STREAMS = 100
RUNNING_CALLS = 2 * CONCURRENT_STREAMS  # with those that were reset and are not done yet
MOST_QUEUED_MESSAGES = 1 << 13  # of a connection; with more it is not read from until its handlers read
LINGERING_STREAMS = 2 * CONCURRENT_STREAMS  # ended by us first: the peer may not know yet
SEND_FRAME_BYTES = 1 << 18  # at most, whatever the peer takes: other streams have their turn in between
WRITE_BUFFER_BYTES = 1 << 18  # from here on write() waits
MOST_UNREAD_REPLY_BYTES = 1 << 20  # a peer that sends, and does not read what it is answered, is cut off


@dataclass(frozen=True)
class Limits:
    """Settings of a server."""

    message_bytes: int = 4 << 20
    connections: int = 10_000
    incomplete_bytes: int = 1 << 30  # of messages and frames that have begun, of all connections together
    preface_s: float = 10.0  # from the connection to the client's preface
    keepalive_s: float = 60.0  # of silence until a ping
    keepalive_answer_s: float = 20.0  # for anything to come after it
    close_s: float = 5.0  # for the last words to be written to a peer that was cut off


class Shared:
    """What all connections share: the allowance for what has come of incomplete messages and frames, and the windows.

    window_bytes: a stream's, from its next credit on, by how many streams there are.
    """

    __slots__ = ("_streams", "held_bytes", "most_bytes", "window_bytes")

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held_bytes = 0
        self._streams = 0
        self._share()

    def begin_stream(self) -> None:
        self._streams += 1
        self._share()

    def end_stream(self) -> None:
        self._streams -= 1
        self._share()

    def _share(self) -> None:
        share_bytes = ALL_WINDOWS_BYTES // max(self._streams, 1)
        self.window_bytes = max(LEAST_WINDOW_BYTES, min(MOST_WINDOW_BYTES, share_bytes))

    def hold(self, size_bytes: int) -> bool:
        """Take of the allowance; False, and nothing taken, when there is too little left."""
        if self.held_bytes + size_bytes > self.most_bytes:
            return False
        self.held_bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
