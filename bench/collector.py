"""A real collectord in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from bench.machine import BenchError, Child, free_port, http_get, metric_sum, wait_until

START_S = 20.0


class Collector(Child):
    """`collectord serve` on free loopback ports, its settings from the environment."""

    def __init__(self, directory: Path, core: int, settings: Mapping[str, str] | None = None) -> None:
        self.grpc_port = free_port()
        self.http_port = free_port()
        self.grpc = f"127.0.0.1:{self.grpc_port}"
        self.http = f"127.0.0.1:{self.http_port}"
        data = directory / "collectord"
        data.mkdir()
        command = [sys.executable, "-m", "collectord", "serve", "--data-dir", str(data)]
        command += ["--grpc", self.grpc, "--http", self.http]
        env = {"COLLECTORD_LOG_LEVEL": "warning", **(settings or {})}
        super().__init__(command, core=core, log=directory / "collectord.log", env=env)

    def wait_ready(self) -> None:
        """Until `/-/ready` says so."""
        wait_until(lambda: http_get(self.http_port, "/-/ready")[0] == 200, self, timeout_s=START_S, what="readiness")

    def metrics(self) -> str:
        """Its own metrics, Prometheus's text format."""
        return self._get("/metrics").decode()

    def samples(self) -> int:
        """Samples in its rings so far."""
        return int(metric_sum(self.metrics(), "collectord_samples_total"))

    def dropped(self) -> int:
        """Samples that it did not keep, for whatever reason."""
        return int(metric_sum(self.metrics(), "collectord_dropped_samples_total"))

    def json(self, path: str) -> Any:
        """An answer of its API."""
        return orjson.loads(self._get(path))

    def _get(self, path: str) -> bytes:
        status, body = http_get(self.http_port, path)
        if status != 200:
            raise BenchError(f"collectord {path}: got status {status} with {body[:200]!r}, expected 200")
        return body
