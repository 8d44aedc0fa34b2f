"""Delivers what earlier instances of the agent left on disk: a second stream on the live stream's channel, one instance
after the other. It says Hello with the earlier instance's uid and `backlog`, and goodbye when all is acknowledged."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from agent_stub import native
from agent_stub.channel import METHOD
from agent_stub.conversation import State
from agent_stub.heard import Drained, Refused, Welcomed
from agent_stub.problems import Problems
from agent_stub.settings import Settings
from agent_stub.shelf import Shelf
from agent_stub.spooler import Spooler
from agent_stub.stream import Backoff, Stream, metadata
from agent_stub.wire import stream_pb2 as pb

WAIT_S = 1.0  # of the sender, unless woken
SILENT_S = 30.0  # without a word though something waits for its ack: the stream is given up, and tried again


class Backlog:
    """`lock` is the transport's. `wake` is called when a stream is over, and the next one may begin."""

    def __init__(
        self, settings: Settings, spooler: Spooler, lock: Any, problems: Problems, wake: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._spooler = spooler
        self._lock = lock
        self._problems = problems
        self._wake = wake
        self._backoff = Backoff(settings)
        self._next_s = float("-inf")
        self._reconnect_s: float | None = None
        self._stream: Stream | None = None
        self._shelf: Shelf | None = None
        self._call: Any = None

    def tick(self, channel: Any, now_s: float) -> None:
        """On the timer's thread, while the live stream is welcomed: begins, watches and ends streams."""
        if self._stream is not None:
            self._check(self._stream, now_s)
            if not self._stream.over:
                return
            stream = self._stream
            if not self.end():
                self._problems.warn("backlog", "what an earlier instance left is not delivered yet: %s", stream.error)
        if now_s >= self._next_s:
            self._begin(channel)

    def end(self) -> bool:
        """Ends the stream, if there is one. False when not all was acknowledged: that stays on disk."""
        stream, shelf, call = self._stream, self._shelf, self._call
        if stream is None or shelf is None:
            return True
        stream.end("closed")
        with self._lock:
            self._stream = self._shelf = self._call = None
            is_done = not shelf.talk.pending.held
            shelf.talk.lost()
        if call is not None:
            call.cancel()
        if is_done:
            self._backoff.reset()
        else:
            self._next_s = time.monotonic() + self._backoff.pause_s(stream.refused, self._reconnect_s)
            self._reconnect_s = None
        return is_done

    def _begin(self, channel: Any) -> None:
        with self._lock:
            shelf = self._spooler.next_backlog()
            if shelf is None:
                return
            stream = Stream(shelf.talk.open(), self._next_message)
            shelf.wake = stream.wake.set
            self._stream, self._shelf = stream, shelf
        call = self._call = channel.stream_stream(METHOD)(stream, metadata=metadata(self._settings))
        native.spawn(lambda: self._read(call, stream), "agent_stub-backlog")

    def _read(self, call: Any, stream: Stream) -> None:
        stream.read(call, self._hear, self._problems)
        self._wake()

    def _next_message(self, stream: Stream) -> tuple[bytes | None, float]:
        now_s = time.monotonic()
        with self._lock:
            if stream is not self._stream or self._shelf is None:
                return None, -1.0
            talk = self._shelf.talk
            if talk.state is State.OPEN and not talk.pending.held:
                talk.goodbye(pb.GOODBYE_KIND_EXIT, "backlog delivered")
            message = talk.next_message(now_s)
            if message is None and talk.goodbye_sent:
                return None, -1.0
            message = message or talk.next_backlog(now_s)
            self._spooler.look()
            return message, WAIT_S

    def _hear(self, stream: Stream, data: bytes) -> None:
        now_s, unix_ns = time.monotonic(), time.time_ns()
        with self._lock:
            if stream is not self._stream or self._shelf is None:
                return
            for event in self._shelf.talk.receive(data, now_s, unix_ns):
                if isinstance(event, Welcomed):
                    stream.welcomed_s = now_s
                elif isinstance(event, Refused):
                    stream.refused = event
                    stream.error = f"{pb.RefusalReason.Name(event.reason)}: {event.text}"
                elif isinstance(event, Drained):
                    self._reconnect_s = event.reconnect_within_s
            self._spooler.look()
        stream.wake.set()

    def _check(self, stream: Stream, now_s: float) -> None:
        if stream.welcomed_s is None:
            if now_s - stream.began_s > self._settings.handshake_s:
                stream.end(f"no answer to Hello within {self._settings.handshake_s:g} s")
        elif self._shelf is not None and now_s - self._shelf.talk.heard_s > SILENT_S:
            stream.end(f"nothing heard for {SILENT_S:g} s")
