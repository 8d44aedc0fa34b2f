"""The peers that take remote write: Debian's VictoriaMetrics and Prometheus, each a fresh process on a directory of its own."""

from __future__ import annotations

import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.harness import Session
from bench.machine import (
    BenchError,
    Child,
    directory_bytes,
    free_port,
    http_get,
    http_request,
    metric_sum,
    wait_idle,
    wait_until,
)

START_S = 30.0
FLUSH_S = 120.0
FLUSHED_S = 5.5  # VictoriaMetrics keeps fresh parts in memory for 5 s, also behind force_flush


@dataclass(frozen=True, slots=True)
class Stored:
    """What a server has on disk once everything is flushed and merged."""

    samples: int
    size_bytes: int  # samples and index


class PeerServer(Child):
    """A running peer."""

    def __init__(self, name: str, command: Sequence[str], *, port: int, core: int, directory: Path) -> None:
        super().__init__(command, core=core, log=directory / f"{name}.log")
        self.name = name
        self.port = port
        self.data = directory / name

    def ready(self) -> bool:
        """Whether it answers on its health page."""
        raise NotImplementedError

    def wait_ready(self) -> None:
        """Until `ready`."""
        wait_until(self.ready, self, timeout_s=START_S, what="readiness")

    def samples(self) -> int:
        """Samples that it has taken by remote write, by its own counter."""
        raise NotImplementedError

    def held(self) -> int:
        """Samples that it has now, in memory or on disk."""
        raise NotImplementedError

    def settle(self) -> None:
        """Until what the load has left it to do in the background is done."""
        wait_idle(self)

    def stored(self) -> Stored:
        """Flushes and merges all there is, and says what it has then on disk."""
        raise NotImplementedError

    def latest(self, metric: str, instance: str, time_ms: int) -> float | None:
        """The value that a query finds at this time; None for none."""
        query = urllib.parse.urlencode({"query": f'{metric}{{instance="{instance}"}}', "time": f"{time_ms / 1000:.3f}"})
        status, body = http_get(self.port, f"/api/v1/query?{query}")
        if status != 200:
            return None
        result = orjson.loads(body)["data"]["result"]
        return float(result[0]["value"][1]) if len(result) == 1 else None

    def metric(self, metric: str, containing: str = "") -> int:
        """A metric of its own."""
        text = self._answer("GET", "/metrics")
        return int(metric_sum(text.decode(), metric, containing=containing))

    def _answer(self, method: str, path: str) -> bytes:
        status, body = http_request(self.port, method, path, timeout_s=FLUSH_S)
        if status != 200:
            raise BenchError(f"{self.name} {path}: got status {status} with {body[:200]!r}, expected 200")
        return body


class VictoriaMetricsServer(PeerServer):
    """Flushed and merged by its own handlers."""

    def ready(self) -> bool:
        return http_get(self.port, "/health")[0] == 200

    def samples(self) -> int:
        return self.metric("vm_rows_inserted_total", 'type="promremotewrite"')

    def held(self) -> int:
        return self.metric("vm_rows", 'type="storage/')

    def settle(self) -> None:
        self._answer("GET", "/internal/force_flush")
        time.sleep(FLUSHED_S)
        wait_idle(self)

    def stored(self) -> Stored:
        self.settle()
        self._answer("GET", "/internal/force_merge")  # goes on behind the answer
        time.sleep(1.0)
        wait_idle(self)
        merging = self.metric("vm_active_merges") + self.metric("vm_active_force_merges")
        if merging:
            raise BenchError(f"{self.name}: got {merging} merges under way while idle, expected none")
        size = sum(directory_bytes(self.data / part) for part in ("data", "indexdb"))
        return Stored(self.held(), size)


class PrometheusServer(PeerServer):
    """Its head becomes a block by a snapshot."""

    def ready(self) -> bool:
        return http_get(self.port, "/-/ready")[0] == 200

    def samples(self) -> int:
        return self.metric("prometheus_tsdb_head_samples_appended_total")

    def held(self) -> int:
        total = 0
        # One metric at a time: `count_over_time` drops the name, and series of two metrics must not become the same.
        for metric in orjson.loads(self._answer("GET", "/api/v1/label/__name__/values"))["data"]:
            query = urllib.parse.quote(f"sum(count_over_time({metric}[1d]))")
            result = orjson.loads(self._answer("GET", f"/api/v1/query?query={query}"))["data"]["result"]
            total += int(result[0]["value"][1]) if result else 0
        return total

    def stored(self) -> Stored:
        answer: dict[str, Any] = orjson.loads(self._answer("POST", "/api/v1/admin/tsdb/snapshot"))
        snapshot = self.data / "snapshots" / answer["data"]["name"]
        blocks = [orjson.loads(meta.read_bytes()) for meta in snapshot.glob("*/meta.json")]
        return Stored(sum(block["stats"]["numSamples"] for block in blocks), directory_bytes(snapshot))


@dataclass(frozen=True, slots=True)
class Peer:
    """How one of them is started."""

    name: str
    binary: str
    options: tuple[str, ...]  # {port} and {dir} are filled in
    server: type[PeerServer]

    def installed(self) -> bool:
        """Whether its binary is on the PATH."""
        return shutil.which(self.binary) is not None

    def version(self) -> str:
        """Its version by its own word; of a build that does not say, by Debian's package."""
        for command in ([self.binary, "--version"], ["dpkg-query", "--show", self.binary]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
            except FileNotFoundError:
                continue
            lines = (done.stdout or done.stderr).strip().splitlines()
            if done.returncode == 0 and lines:
                return lines[0].split(" (")[0].replace(",", "").split()[-1]
        return "unknown"

    def start(self, directory: Path, core: int) -> PeerServer:
        """Starts it on what `directory` holds of it; ready when `wait_ready` returns."""
        port = free_port()
        (directory / "prometheus.yml").write_text("global: {}\n")
        options = [option.format(port=port, dir=directory) for option in self.options]
        return self.server(self.name, [self.binary, *options], port=port, core=core, directory=directory)


VICTORIAMETRICS = Peer(
    name="victoriametrics",
    binary="victoria-metrics",
    options=(
        "-httpListenAddr=127.0.0.1:{port}",
        "-storageDataPath={dir}/victoriametrics",
        "-loggerLevel=ERROR",
    ),
    server=VictoriaMetricsServer,
)
PROMETHEUS = Peer(
    name="prometheus",
    binary="prometheus",
    options=(
        "--config.file={dir}/prometheus.yml",
        "--storage.tsdb.path={dir}/prometheus",
        "--web.listen-address=127.0.0.1:{port}",
        "--web.enable-remote-write-receiver",
        "--web.enable-admin-api",
        "--log.level=error",
    ),
    server=PrometheusServer,
)
REMOTE_WRITE_PEERS = (VICTORIAMETRICS, PROMETHEUS)


def installed(session: Session) -> list[Peer]:
    """The peers to measure beside: none unless asked for; a note for each that is missing."""
    if not session.peers:
        return []
    for peer in REMOTE_WRITE_PEERS:
        if peer.installed():
            session.peer_versions[peer.name] = peer.version()
        else:
            session.note(f"{peer.name} is not installed: `apt-get install {peer.binary}`")
    return [peer for peer in REMOTE_WRITE_PEERS if peer.installed()]
