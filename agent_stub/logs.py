"""A logging handler that sends the agent's log records on the stream."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from agent_stub.text import attribute, clean
from agent_stub.wire import stream_pb2 as pb

BODY_BYTES = 64 * 1024
LOGGER_BYTES = 256
OWN_LOGGERS = ("agent_stub", "grpc", "h2", "hpack")  # what they log while sending would be sent, and logged, and ...
SEVERITIES = (
    (logging.CRITICAL, pb.SEVERITY_FATAL),
    (logging.ERROR, pb.SEVERITY_ERROR),
    (logging.WARNING, pb.SEVERITY_WARN),
    (logging.INFO, pb.SEVERITY_INFO),
    (logging.DEBUG, pb.SEVERITY_DEBUG),
)


def severity(level: int) -> int:
    """OpenTelemetry's severity number of one of logging's levels."""
    return next((number for least, number in SEVERITIES if level >= least), pb.SEVERITY_TRACE)


class StreamHandler(logging.Handler):
    """Queues records; never waits, never raises, never feeds on its own output."""

    def __init__(self, put: Callable[[pb.LogRecord], None], level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._put = put
        self._formatter = logging.Formatter()
        self._busy = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".", 1)[0] in OWN_LOGGERS or getattr(self._busy, "inside", False):
            return
        self._busy.inside = True
        try:
            self._put(self._to_wire(record))
        except Exception:  # noqa: BLE001  a record's arguments are the agent's, and may raise anything
            self._put(
                pb.LogRecord(time_unix_ms=int(record.created * 1000), body=f"unprintable record of {record.name:.200}")
            )
        finally:
            self._busy.inside = False

    def _to_wire(self, record: logging.LogRecord) -> pb.LogRecord:
        body = self.format(record) if self.formatter else self._plain(record)
        wire = pb.LogRecord(
            time_unix_ms=int(record.created * 1000),
            severity=severity(record.levelno),  # type: ignore[arg-type]
            body=clean(body, BODY_BYTES),
            logger=clean(record.name, LOGGER_BYTES),
            attributes=[
                attribute("code.file.path", record.pathname),
                attribute("code.line.number", record.lineno),
                attribute("code.function.name", record.funcName),
                attribute("thread.name", record.threadName),
            ],
        )
        cut_bytes = len(body.encode("utf-8", "replace")) - len(wire.body.encode())
        if cut_bytes > 0:
            wire.attributes.append(attribute("log.truncated_bytes", cut_bytes))
        return wire

    def _plain(self, record: logging.LogRecord) -> str:
        """The message and the stack, without the time and level that travel beside it."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + self._formatter.formatException(record.exc_info)
        return text
