"""The machine under the bench: pinning, processor time, child processes that always end."""

from __future__ import annotations

import contextlib
import http.client
import os
import platform
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

SERVER_CORE = 0
LOAD_CORE = 1
LOG_TAIL_BYTES = 2000


class BenchError(RuntimeError):
    """A bench whose figures would be wrong or could not be taken; the text says what was got and what was expected."""


def cores_for_bench() -> tuple[int, int]:
    """The server's core and the load's. The same core twice where this machine lends only one."""
    lent = sorted(os.sched_getaffinity(0))
    return lent[0], lent[-1]


def raise_file_limit() -> int:
    """Raises the number of open files to what is allowed; children inherit it. Returns the new limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    """A loopback TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used since its start."""

    cpu_s: float
    rss_bytes: int


class Child:
    """A process pinned to one core, its output in a file. `stop` ends it, politely first."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        core: int,
        log: Path,
        env: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        pinned = ["taskset", "--cpu-list", str(core), *command]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                pinned,
                stdin=stdin,
                stdout=out if stdout is None else stdout,
                stderr=out,
                env={**os.environ, **(env or {})},
            )
        self._ps = psutil.Process(self.process.pid)

    def usage(self) -> Usage:
        """Processor time (user and system, all threads) and resident memory, now."""
        with self._ps.oneshot():
            times = self._ps.cpu_times()
            return Usage(times.user + times.system, self._ps.memory_info().rss)

    def tail(self) -> str:
        """The end of what it wrote."""
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

    def check_alive(self) -> None:
        """Raises BenchError when the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise BenchError(
                f"{self.command[0]}: ended with status {code}, expected it to run. Its last words:\n{self.tail()}"
            )

    def stop(self) -> None:
        """SIGTERM, and after 5 s SIGKILL."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


AnyChild = TypeVar("AnyChild", bound=Child)


@contextlib.contextmanager
def running(child: AnyChild) -> Iterator[AnyChild]:
    """Stops the child at the end of the block, also on errors and on Ctrl-C."""
    try:
        yield child
    finally:
        child.stop()


def wait_until(ready: Callable[[], bool], child: Child, *, timeout_s: float, what: str) -> None:
    """Polls `ready` every 50 ms. Raises BenchError when the child ends first or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        child.check_alive()
        if time.monotonic() > deadline:
            raise BenchError(
                f"{child.command[0]}: {what} not reached in {timeout_s:g} s. Its last words:\n{child.tail()}"
            )
        time.sleep(0.05)


def http_get(port: int, path: str, *, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """One GET from loopback; status 0 while nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def metric_sum(text: str, name: str, *, containing: str = "") -> float:
    """Sum of all series of a metric in Prometheus's text format whose label block holds `containing`."""
    total = 0.0
    for line in text.splitlines():
        head, _, value = line.rpartition(" ")
        if head.partition("{")[0] == name and containing in head:
            total += float(value)
    return total


def busy_cores(sample_s: float = 1.0) -> float:
    """How many cores this machine's processes use now, over a sample."""
    return float(psutil.cpu_percent(sample_s)) / 100 * (psutil.cpu_count() or 1)


def describe() -> dict[str, str]:
    """The machine and the versions, for the head of a report."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor() or "unknown",
    )
    server, load = cores_for_bench()
    return {
        "cpu": f"{model}, {psutil.cpu_count()} cores",
        "cores": f"server on {server}, load on {load}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
