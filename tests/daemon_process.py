"""A real daemon in a process of its own, for tests that must not share its memory or its loop."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).parent.parent
START_S = 20.0


class DaemonProcess:
    """`collectord serve` with this TOML; ports are free ones unless `grpc` names an address (to start again where it was)."""

    def __init__(self, folder: Path, toml: str = "", grpc: str = "127.0.0.1:0") -> None:
        config = folder / "collectord.toml"
        config.write_text(f'{toml}\n[log]\nformat = "json"\n')
        command = [sys.executable, "-m", "collectord", "serve", "--config", str(config), "--grpc", grpc]
        command += ["--http", "127.0.0.1:0", "--data-dir", str(folder / "data")]
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
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

    def stop(self) -> int:
        """SIGTERM, as systemd would; returns the exit status."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=15)
            raise AssertionError(
                "the daemon did not stop within 15 s of SIGTERM:\n" + "".join(self.log[-30:])
            ) from None

    def eventually_shows(self, instance: str, **fields: Any) -> None:
        """Until the row of this instance has these values."""

        def last() -> dict[str, Any]:
            row = self.agents().get(instance, {})
            return {name: row.get(name) for name in fields}

        eventually(lambda: last() == fields, what=lambda: f"{instance}: got {last()}, expected {fields}")


def eventually(holds: Callable[[], Any], within_s: float = 15.0, what: Callable[[], str] | None = None) -> Any:
    """Polls until `holds()` is true and returns that; fails after `within_s` with what it was last."""
    deadline_s = time.monotonic() + within_s
    while True:
        last = holds()
        if last:
            return last
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what() if what else holds.__name__}"
        time.sleep(0.05)
