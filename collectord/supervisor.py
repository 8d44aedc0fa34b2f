"""What surrounds the daemon in its process: signals, the service manager's protocol, logs and limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TextIO, cast

import structlog
import uvloop

from collectord.config import Log


@dataclass(frozen=True, slots=True)
class Notifier:
    """The service manager's end of sd_notify(3): datagrams to `path`; with an empty path nothing is sent.

    `watchdog_s` is how long the manager waits for a sign of life, 0 when it does not.
    """

    path: str = ""
    watchdog_s: float = 0.0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], pid: int) -> Notifier:
        """Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. What is malformed counts as unset."""
        path = environ.get("NOTIFY_SOCKET", "")
        if not path.startswith(("/", "@")):
            return cls()
        usec, meant_for = environ.get("WATCHDOG_USEC", "0"), environ.get("WATCHDOG_PID", str(pid))
        watched = usec.isascii() and usec.isdigit() and meant_for == str(pid)
        return cls(path, int(usec) / 1e6 if watched else 0.0)

    def send(self, state: str) -> None:
        """One message, such as "READY=1". A manager that does not listen is no reason to stop: it is logged."""
        if not self.path:
            return
        address = "\0" + self.path[1:] if self.path.startswith("@") else self.path  # @: the abstract namespace
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(), address)
        except OSError as error:
            structlog.get_logger().warning("notify.failed", socket=self.path, error=str(error))

    async def feed_watchdog(self) -> None:
        """Pings from the event loop for as long as it turns: a blocked loop sends none, and the manager notices."""
        while self.watchdog_s > 0:
            self.send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 3)  # two may be late before the manager acts


@contextlib.asynccontextmanager
async def supervised(stop: asyncio.Event, notifier: Notifier) -> AsyncIterator[Callable[[str], None]]:
    """While inside: SIGTERM and SIGINT set `stop`, a second one leaves at once, and the service manager is kept told.

    Gives the function to call once the daemon serves, with a line for people.
    """
    loop = asyncio.get_running_loop()
    feeders: list[asyncio.Task[None]] = []
    asked = False

    def on_signal(number: int) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        stop.set()
        notifier.send("STOPPING=1")
        name = signal.Signals(number).name
        structlog.get_logger().info("stopping", because=name, hint="a second signal leaves at once")

    def ready(status: str) -> None:
        notifier.send(f"READY=1\nSTATUS={status}")
        feeders.append(loop.create_task(notifier.feed_watchdog()))

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield ready
    finally:
        for feeder in feeders:
            feeder.cancel()
        for number in numbers:
            loop.remove_signal_handler(number)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs the daemon's coroutine under uvloop to its end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def raise_file_limit() -> int:
    """Lifts the soft limit of open files to the hard one: every agent is one. Returns the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS reports a hard limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft


class LastingStream:
    """A stream of logs whose reader may go away: what cannot be written is lost, and the daemon goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def set_up_logs(log: Log, stream: TextIO | None = None) -> None:
    """Structured logs to `stream` (stderr): lines with colour for people on a terminal, JSON for machines."""
    stream = stream or sys.stderr
    lasting = LastingStream(stream)
    for_people = log.format == "console" or (log.format == "auto" and stream.isatty())
    colours = stream.isatty() and "NO_COLOR" not in os.environ
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if for_people else "iso", utc=not for_people),
    ]
    last: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors=colours)]
        if for_people
        else [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    )
    level = logging.getLevelNamesMapping()[log.level.upper()]
    structlog.configure(
        processors=shared + last,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", lasting)),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard module: the same lines, from their warnings on.
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler(lasting)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
