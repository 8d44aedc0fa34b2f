"""A real collectord in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from bench.machine import BenchError, Child, free_port, http_get, metric_sum, wait_idle, wait_until

START_S = 20.0
SETTLE_S = 120.0
SETTLED_SHARE = 0.25  # of a core: pings of some hundred streams go on, and what it writes of itself
FLUSH_SOON = {"COLLECTORD_STORAGE_FLUSH_S": "3"}


class Collector(Child):
    """`collectord serve` on free loopback ports, its settings from the environment."""

    def __init__(self, directory: Path, core: int, settings: Mapping[str, str] | None = None) -> None:
        self.grpc_port = free_port()
        self.http_port = free_port()
        self.grpc = f"127.0.0.1:{self.grpc_port}"
        self.http = f"127.0.0.1:{self.http_port}"
        data = directory / "collectord"
        data.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "collectord", "serve", "--data-dir", str(data)]
        command += ["--grpc", self.grpc, "--http", self.http]
        env = {"COLLECTORD_LOG_LEVEL": "warning", **(settings or {})}
        super().__init__(command, core=core, log=directory / "collectord.log", env=env)

    def ready(self) -> bool:
        """What `/-/ready` says."""
        return http_get(self.http_port, "/-/ready")[0] == 200

    def wait_ready(self) -> None:
        """Until `ready`."""
        wait_until(self.ready, self, timeout_s=START_S, what="readiness")

    def metrics(self) -> str:
        """Its own metrics, Prometheus's text format."""
        return self._get("/metrics").decode()

    def metric(self, name: str) -> int:
        """One of them."""
        return int(metric_sum(self.metrics(), name))

    def samples(self) -> int:
        """Samples taken so far."""
        return self.metric("collectord_samples_total")

    def dropped(self) -> int:
        """Samples that it did not keep, for whatever reason."""
        return self.metric("collectord_dropped_samples_total")

    def latest(self, instance: str, metric: str) -> float | None:
        """The newest value of an instance's series; None when there is none, or more than one."""
        status, body = http_get(self.http_port, f"/api/agents/{instance}/latest?metric={metric}")
        samples = orjson.loads(body)["samples"] if status == 200 else []
        return float(samples[0]["value"]) if len(samples) == 1 else None

    def settle(self) -> None:
        """Until all that it has taken is in segments, and it has nothing more to do in the background.

        REQUIRES: its WAL becomes a segment by itself soon (`FLUSH_SOON`).
        """
        taken = self.samples()
        wait_until(lambda: self.in_segments() >= taken, self, timeout_s=SETTLE_S, what=f"{taken:,} samples in segments")
        wait_idle(self, share=SETTLED_SHARE)

    def in_segments(self) -> int:
        """Raw samples in segments: those of its agents, and what it writes of itself."""
        return int(metric_sum(self.metrics(), "collectord_segment_samples", containing='tier="raw"'))

    def json(self, path: str) -> Any:
        """An answer of its API."""
        return orjson.loads(self._get(path))

    def _get(self, path: str) -> bytes:
        status, body = http_get(self.http_port, path)
        if status != 200:
            raise BenchError(f"collectord {path}: got status {status} with {body[:200]!r}, expected 200")
        return body
