"""One stream on a gRPC channel: what goes out, what comes in, and how long to wait before the next one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from agent_stub import native
from agent_stub.channel import grpc
from agent_stub.conversation import ProtocolError
from agent_stub.heard import Refused
from agent_stub.problems import Problems
from agent_stub.settings import Settings
from agent_stub.wire import stream_pb2 as pb

CALL_REFUSALS = {  # gRPC's status by name
    "UNAUTHENTICATED": pb.REFUSAL_REASON_UNAUTHENTICATED,
    "PERMISSION_DENIED": pb.REFUSAL_REASON_UNAUTHENTICATED,
    "UNIMPLEMENTED": pb.REFUSAL_REASON_VERSION,
}
SLOW_REFUSALS = {pb.REFUSAL_REASON_UNAUTHENTICATED, pb.REFUSAL_REASON_VERSION, pb.REFUSAL_REASON_MALFORMED}


class Stream:
    """As an iterator it is what gRPC's sender thread consumes.

    `source(stream)` gives (the next message, 0), or (None, how long to wait unless woken); a negative wait: never again.
    """

    def __init__(self, hello: bytes, source: Callable[[Stream], tuple[bytes | None, float]]) -> None:
        self.began_s = time.monotonic()
        self.welcomed_s: float | None = None
        self.cut_s = float("inf")  # a drain's deadline
        self.over = False
        self.error = ""
        self.refused: Refused | None = None
        self.wake = native.Wake()
        self._source = source
        self._hello: bytes | None = hello

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._hello is not None:
            hello, self._hello = self._hello, None
            return hello
        while not self.over:
            message, wait_s = self._source(self)
            if message is not None:
                return message
            if wait_s < 0:
                break
            self.wake.wait(wait_s)
        raise StopIteration

    def read(self, call: Any, hear: Callable[[Stream, bytes], None], problems: Problems) -> None:
        """On a thread of its own: hears the collector until the stream is over."""
        error = "the collector ended the stream"
        try:
            for data in call:
                hear(self, data)
                if self.over:
                    break
        except ProtocolError as broken:
            error = str(broken)
        except grpc.RpcError as failed:
            code = failed.code().name
            error = f"{code}: {failed.details()}"
            if code in CALL_REFUSALS and self.refused is None:
                self.refused = Refused(CALL_REFUSALS[code], error, 0.0)
        except Exception as unexpected:  # noqa: BLE001  the reader must end its stream whatever happens
            error = repr(unexpected)
            problems.warn("reader", "reading the stream failed: %s", error, exception=unexpected)
        self.end(error)

    def end(self, error: str) -> None:
        self.error = self.error or error
        self.over = True
        self.wake.set()


def metadata(settings: Settings) -> tuple[tuple[str, str], ...]:
    """What goes along with every stream."""
    return (("authorization", f"Bearer {settings.token}"),) if settings.token else ()


class Backoff:
    """Random waits that double with every stream that did not last; a refusal may ask for more."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._attempts = 0

    def reset(self) -> None:
        """A stream did last."""
        self._attempts = 0

    def pause_s(self, refused: Refused | None, reconnect_within_s: float | None = None) -> float:
        """How long to wait before the next stream. `reconnect_within_s`: a drain's hint, which goes before all else."""
        settings = self._settings
        most_s = min(settings.backoff_max_s, settings.backoff_first_s * 2.0 ** min(self._attempts, 30))
        self._attempts += 1
        pause_s = random.uniform(0.0, most_s)
        if reconnect_within_s is not None:
            return random.uniform(0.0, reconnect_within_s)
        if refused is not None:
            if refused.reason in SLOW_REFUSALS:
                pause_s = max(pause_s, settings.slow_retry_s)
            pause_s = max(pause_s, refused.retry_after_s * random.uniform(1.0, 1.5))
        return pause_s
