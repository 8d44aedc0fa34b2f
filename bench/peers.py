"""The peers that take remote write: Debian's VictoriaMetrics and Prometheus, each a fresh process on an empty directory."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import BenchError, Child, free_port, http_get, metric_sum, wait_until

START_S = 30.0


@dataclass(frozen=True, slots=True)
class Peer:
    """How one of them is started, and which counter of its own says how many samples it took."""

    name: str
    binary: str
    options: tuple[str, ...]  # {port} and {dir} are filled in
    ready_path: str
    counter: str
    counter_containing: str = ""

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
        """Starts it; ready when `wait_ready` returns."""
        port = free_port()
        (directory / "prometheus.yml").write_text("global: {}\n")
        options = [option.format(port=port, dir=directory) for option in self.options]
        return PeerServer(self, [self.binary, *options], port=port, core=core, log=directory / f"{self.name}.log")


class PeerServer(Child):
    """A running peer."""

    def __init__(self, peer: Peer, command: Sequence[str], *, port: int, core: int, log: Path) -> None:
        super().__init__(command, core=core, log=log)
        self.peer = peer
        self.port = port

    def wait_ready(self) -> None:
        """Until it answers on its health page."""
        wait_until(
            lambda: http_get(self.port, self.peer.ready_path)[0] == 200, self, timeout_s=START_S, what="readiness"
        )

    def samples(self) -> int:
        """Samples that it has taken by remote write, by its own counter."""
        status, text = http_get(self.port, "/metrics")
        if status != 200:
            raise BenchError(f"{self.peer.name} /metrics: got status {status}, expected 200")
        return int(metric_sum(text.decode(), self.peer.counter, containing=self.peer.counter_containing))


VICTORIAMETRICS = Peer(
    name="victoriametrics",
    binary="victoria-metrics",
    options=(
        "-httpListenAddr=127.0.0.1:{port}",
        "-storageDataPath={dir}/victoriametrics",
        "-loggerLevel=ERROR",
    ),
    ready_path="/health",
    counter="vm_rows_inserted_total",
    counter_containing='type="promremotewrite"',
)
PROMETHEUS = Peer(
    name="prometheus",
    binary="prometheus",
    options=(
        "--config.file={dir}/prometheus.yml",
        "--storage.tsdb.path={dir}/prometheus",
        "--web.listen-address=127.0.0.1:{port}",
        "--web.enable-remote-write-receiver",
        "--log.level=error",
    ),
    ready_path="/-/ready",
    counter="prometheus_tsdb_head_samples_appended_total",
)
REMOTE_WRITE_PEERS = (VICTORIAMETRICS, PROMETHEUS)
