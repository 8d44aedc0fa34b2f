"""A real daemon in a process of its own, for tests that must not share its memory or its loop."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).parent.parent
START_S, STOP_S = 20.0, 15.0
UNPRIVILEGED = (
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search,-fowner",
)  # root without them asks for permission
LEAST_PORT, MOST_PORT = 20_000, 32_000  # below the range that connections are given their own ports from


def arguments(folder: Path, toml: str = "", grpc: str = "127.0.0.1:0") -> list[str]:
    """Of `collectord`, to serve with this TOML and `folder`/data, its page on a free port."""
    config = folder / "collectord.toml"
    config.write_text(f'{toml}\n[log]\nformat = "json"\n')
    data = str(folder / "data")
    return ["serve", "--config", str(config), "--grpc", grpc, "--http", "127.0.0.1:0", "--data-dir", data]


def free_address() -> str:
    """One that a daemon can be started on again and again: no connection takes its port meanwhile."""
    while True:
        address = "127.0.0.1", random.randint(LEAST_PORT, MOST_PORT)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(address)
            return f"{address[0]}:{address[1]}"


def refused_start(arguments: Sequence[str], *, unprivileged: bool = False) -> tuple[int, str]:
    """Runs a daemon that is not to get as far as serving; exit code and all that it said."""
    command = [sys.executable, "-m", "collectord", *arguments]
    if unprivileged and os.geteuid() == 0:
        command = [*UNPRIVILEGED, *command]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=START_S, check=False)
    return ran.returncode, ran.stdout + ran.stderr


class ServingDaemon:
    """What can be asked of a daemon that serves. `grpc`, `page`: where."""

    grpc: str
    page: str

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.page + path, timeout=10) as answer:
            return bytes(answer.read())

    def agents(self) -> dict[str, dict[str, Any]]:
        """/api/agents by instance; it may be a second old."""
        return {row["instance"]: row for row in json.loads(self.get("/api/agents"))}

    def counters(self) -> dict[str, float]:
        """/metrics: "name{label=value}" to value; a name without labels stands alone."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics").decode()):
            for sample in family.samples:
                labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found

    def eventually_shows(self, instance: str, **fields: Any) -> None:
        """Until the row of this instance has these values."""

        def last() -> dict[str, Any]:
            row = self.agents().get(instance, {})
            return {name: row.get(name) for name in fields}

        eventually(lambda: last() == fields, what=lambda: f"{instance}: got {last()}, expected {fields}")


class DaemonProcess(ServingDaemon):
    """`collectord serve` with this TOML; ports are free ones unless `grpc` names an address (to start again where it was).

    `environ`: COLLECTORD_... on top of this process's own.
    """

    def __init__(
        self, folder: Path, toml: str = "", grpc: str = "127.0.0.1:0", environ: Mapping[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "collectord", *arguments(folder, toml, grpc)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environ or {}),
        )
        self.log: list[str] = []
        self._serving: queue.Queue[dict[str, str] | None] = queue.Queue()
        threading.Thread(target=self._read_log, daemon=True).start()
        serving = self._serving.get(timeout=START_S)
        if serving is None:
            raise RuntimeError("the daemon ended before it served:\n" + "".join(self.log))
        self.grpc, self.page = serving["grpc"], serving["page"].rstrip("/")

    def _read_log(self) -> None:
        """Reads to the end, so that the daemon never waits for whoever reads its log."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if '"serving"' in line:
                self._serving.put(json.loads(line))
        self._serving.put(None)

    def stop(self) -> int:
        """SIGTERM, as systemd would; returns the exit status."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"the daemon did not stop within {STOP_S:g} s of SIGTERM:\n" + "".join(self.log[-30:])
            ) from None

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(timeout=STOP_S)


NURSERY = """
import json, os, sys
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # as the command line does, before it imports what follows
from collectord import cli, daemon, supervisor
from collectord.demo import show
for line in sys.stdin:
    child = os.fork()
    if not child:
        print(json.dumps({"nursery": "born", "pid": os.getpid()}), flush=True)
        os._exit(cli.main(json.loads(line)))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("\\n" + json.dumps({"nursery": "ended", "status": status}), flush=True)  # a killed one may have left half a line
"""


class DaemonNursery:
    """Starts daemons in a tenth of the time, one after the other: each a process of its own, forked from one that has imported
    everything and done nothing else. What a daemon does from its command line on is the same.
    """

    def __init__(
        self, folder: Path, toml: str = "", grpc: str = "127.0.0.1:0", environ: Mapping[str, str] | None = None
    ):
        self.log: list[str] = []
        self._arguments = arguments(folder, toml, grpc)
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environ or {}),
        )
        threading.Thread(target=self._read_log, daemon=True).start()
        self._pid = 0

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.append(line)
            if '"nursery"' in line or '"serving"' in line:
                self._said.put(json.loads(line))

    def _next(self, name: str) -> dict[str, Any]:
        """The next thing said, which must have this name in it."""
        try:
            said = self._said.get(timeout=START_S)
        except queue.Empty:
            said = {}
        assert name in said, f"expected {name!r}, got {said}; the log's end:\n" + "".join(self.log[-30:])
        return said

    def start(self) -> ServingDaemon:
        """A daemon that serves. REQUIRES: the one before has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._arguments) + "\n")
        self._process.stdin.flush()
        self._pid = self._next("pid")["pid"]
        said, daemon = self._next("page"), ServingDaemon()
        daemon.grpc, daemon.page = said["grpc"], said["page"].rstrip("/")
        return daemon

    @property
    def pid(self) -> int:
        """Of the daemon that runs; 0 when none does."""
        return self._pid

    def end(self, by: signal.Signals) -> int:
        """Ends the daemon that runs, by this signal; returns its exit status (-9 after SIGKILL)."""
        os.kill(self._pid, by)
        self._pid = 0
        return int(self._next("status")["status"])

    def close(self) -> None:
        """Ends everything."""
        if self._pid:
            with suppress(ProcessLookupError):  # it ended by itself
                os.kill(self._pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=STOP_S)


def eventually(holds: Callable[[], Any], within_s: float = 15.0, what: Callable[[], str] | None = None) -> Any:
    """Polls until `holds()` is true and returns that; fails after `within_s` with what it was last."""
    deadline_s = time.monotonic() + within_s
    while True:
        last = holds()
        if last:
            return last
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what() if what else holds.__name__}"
        time.sleep(0.05)


# Between the free space and what the daemon asks for: what else runs here may take some meanwhile.
SPARE_BYTES = 1 << 30


@contextmanager
def no_space(folder: Path, _pid: int) -> Iterator[None]:
    """Less free space than storage.least_free_bytes."""
    filler = folder / "filler"
    try:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 2 * SPARE_BYTES)
        yield
    finally:
        filler.unlink()


@contextmanager
def no_writes(_folder: Path, pid: int) -> Iterator[None]:
    """Every write of the daemon to a file fails (EFBIG)."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


async def comes_true(holds: Callable[[], Any], within_s: float = 15.0) -> None:
    """As `eventually`, while what else runs on this loop goes on."""
    await asyncio.to_thread(eventually, holds, within_s)
