"""The daemon's surroundings: the service manager is told, a blocked loop is noticed, signals stop in two steps."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from collectord.config import Log
from collectord.supervisor import Notifier, raise_file_limit, set_up_logs, supervised


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """NOTIFY_SOCKET's value, and the service manager's end of it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@collectord-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.settimeout(5.0)
        yield name, sock


@pytest.fixture
def plain_logs() -> Iterator[None]:
    """Puts back how logs were set up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_messages_reach_the_manager(manager: tuple[str, socket.socket]) -> None:
    name, sock = manager
    Notifier(name).send("READY=1\nSTATUS=page")
    assert sock.recv(1024) == b"READY=1\nSTATUS=page"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Notifier()),
        ({"NOTIFY_SOCKET": "relative"}, Notifier()),
        ({"NOTIFY_SOCKET": "/run/x"}, Notifier("/run/x")),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000"}, Notifier("@x", 30.0)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, Notifier("@x", 30.0)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, Notifier("@x")),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"}, Notifier("@x")),
    ],
)
def test_the_environment_says_whom_to_tell(environ: dict[str, str], expected: Notifier) -> None:
    assert Notifier.from_environ(environ, pid=7) == expected


def test_an_absent_manager_is_no_reason_to_stop(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "nobody")).send("READY=1")
    Notifier().send("READY=1")


async def test_the_loop_feeds_the_watchdog_only_while_it_turns(manager: tuple[str, socket.socket]) -> None:
    name, sock = manager
    feeding = asyncio.create_task(Notifier(name, watchdog_s=0.03).feed_watchdog())
    for _ in range(3):
        assert await asyncio.to_thread(sock.recv, 1024) == b"WATCHDOG=1"
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sock.recv(1024):  # what was sent before the loop is blocked
            pass
    sock.settimeout(0.2)
    with pytest.raises(TimeoutError):  # the loop is blocked by this very read
        sock.recv(1024)
    feeding.cancel()


async def test_a_signal_stops_and_the_manager_hears_each_stage(manager: tuple[str, socket.socket]) -> None:
    name, sock = manager
    stop = asyncio.Event()
    async with supervised(stop, Notifier(name, watchdog_s=60.0)) as ready:
        ready("page http://127.0.0.1:1/")
        assert sock.recv(1024) == b"READY=1\nSTATUS=page http://127.0.0.1:1/"
        assert await asyncio.to_thread(sock.recv, 1024) == b"WATCHDOG=1"
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 5.0)
        assert sock.recv(1024) == b"STOPPING=1"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


SLOW_TO_STOP = """
import asyncio, sys
from collectord.supervisor import Notifier, run, supervised

async def main():
    stop = asyncio.Event()
    async with supervised(stop, Notifier()):
        print("ready", flush=True)
        await stop.wait()
        print("stopping", flush=True)
        await asyncio.sleep(60)

run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_leaves_at_once(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW_TO_STOP], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in ("ready\n", "stopping\n"):
            while (got := process.stdout.readline()) != line:  # the log of the first signal stands between them
                assert got
            process.send_signal(number)
        assert process.wait(timeout=10.0) == 128 + number


def test_the_soft_limit_of_files_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowered = min(256, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowered, hard))
    try:
        assert raise_file_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("plain_logs")
def test_logs_are_json_where_no_terminal_reads_them() -> None:
    out = io.StringIO()
    set_up_logs(Log(level="info"), out)
    structlog.get_logger().debug("unseen")
    structlog.get_logger().info("serving", port=1)
    logging.getLogger("some.library").warning("low on %s", "disk")
    try:
        raise ValueError("bad")
    except ValueError:
        structlog.get_logger().exception("failed")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["serving", "low on disk", "failed"]
    assert lines[0]["port"] == 1
    assert lines[0]["timestamp"].endswith("Z")
    assert lines[1]["level"] == "warning"
    assert lines[2]["exception"][0]["exc_value"] == "bad"


@pytest.mark.usefixtures("plain_logs")
def test_logs_are_lines_for_people_when_asked() -> None:
    out = io.StringIO()
    set_up_logs(Log(level="debug", format="console"), out)
    structlog.get_logger().debug("serving", port=1)
    assert "serving" in out.getvalue()
    assert "port=1" in out.getvalue()
    assert "\x1b" not in out.getvalue()


@pytest.mark.usefixtures("plain_logs")
def test_a_log_that_nobody_reads_any_more_stops_nothing() -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", buffering=1)
    os.close(reader)
    set_up_logs(Log(), stream)
    structlog.get_logger().info("serving")
    logging.getLogger("some.library").warning("low on disk")
    with pytest.raises(BrokenPipeError):
        stream.write("a line\n")  # it really was broken
    with contextlib.suppress(BrokenPipeError):
        stream.close()
