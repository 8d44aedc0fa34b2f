"""The machine under the bench: pinning, processor time, child processes that always end."""

from __future__ import annotations

import contextlib
import http.client
import os
import platform
import resource
import socket
import stat
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
IDLE_SHARE = 0.05  # of a core: what a server uses that does nothing but look at its clock


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
        self.started_s = time.monotonic()
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
        """Processor time (user and system) and resident memory of it and all that it started, now: of those, what is theirs
        alone.
        """
        cpu_s, resident_bytes = 0.0, 0
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):  # its time is its parent's by now
                times = process.cpu_times()
                cpu_s += times.user + times.system + times.children_user + times.children_system
                own = process is self._ps
                resident_bytes += process.memory_info().rss if own else process.memory_full_info().uss
        return Usage(cpu_s, resident_bytes)

    def family(self) -> list[psutil.Process]:
        """It, and all that it started and that run."""
        return [self._ps, *self._ps.children(recursive=True)]

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

    def kill(self) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        self.process.kill()
        self.process.wait()

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


def peak_bytes(child: Child) -> int:
    """The most resident memory that a running child, and each that it started, has had, together."""
    peak_kib = 0
    for process in child.family():
        with contextlib.suppress(FileNotFoundError):  # it has ended
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak_kib += int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    return peak_kib << 10


def wait_idle(child: Child, *, share: float = IDLE_SHARE, timeout_s: float = 60.0) -> None:
    """Until the child uses less than `share` of a core over half a second, twice in a row.

    Raises BenchError when it ends first or the time is over.
    """
    deadline, quiet = time.monotonic() + timeout_s, 0
    while quiet < 2:
        child.check_alive()
        begin, before = time.monotonic(), child.usage().cpu_s
        time.sleep(0.5)
        used = (child.usage().cpu_s - before) / (time.monotonic() - begin)
        quiet = quiet + 1 if used < share else 0
        if not quiet and time.monotonic() > deadline:
            raise BenchError(f"{child.command[0]}: got {used:.0%} of a core after {timeout_s:g} s, expected it idle")


def directory_bytes(directory: Path) -> int:
    """Sizes of all files below, as `ls` gives them. A file that goes away meanwhile does not count."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def http_get(port: int, path: str, *, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """One GET from loopback; status 0 while nobody answers."""
    return http_request(port, "GET", path, timeout_s=timeout_s)


def http_request(port: int, method: str, path: str, *, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """One request without a body to loopback; status 0 while nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, path)
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
