"""A `Source` for tests of the web room: rows by hand, real storage behind the charts, the clock as an argument."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from storage.settings import StoreSettings
from storage.store import Store
from storage.types import Meta, Shape, labels_of
from web.source import Row

START_MS = 1_750_000_000_000
SPARK_POINTS = 60
LE = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
COUNTER, GAUGE = Meta("counter", "1", "", ""), Meta("gauge", "1", "", "")
NAMES = ("research", "indexer", "planner", "reviewer", "summarizer", "crawler", "support", "billing")
REASONS = {
    "live": "answers pings, 2 tasks open",
    "busy": "declared busy for 9 min: in tool compile",
    "stuck": "no progress for 4 min 10 s: in tool browser.open, event loop blocked 12 s",
    "stale": "no answer to a ping for 6 s",
    "offline": "vanished without goodbye; last words: MemoryError in chunk()",
    "stopped": "work done",
    "flapping": "lost its connection 7 times in 5 min",
    "never-seen": "expected by the configuration, has not said hello",
}
EMPTY_DETAIL: dict[str, Any] = {
    "client": "agent_stub/0.1.0 python/3.11",
    "attributes": {},
    "address": "127.0.0.1:51514",
    "clock_offset_s": 0.0004,
    "activity": "tool browser.open",
    "open_tasks": 2,
    "history": [],
    "marks": [],
    "dependencies": [],
    "events": [],
    "logs": [],
    "config_hash": "",
    "drops": {},
    "other_instances": [],
}


def a_row(agent: str, instance: str, state: str = "live", **changes: Any) -> Row:
    """A row of a healthy agent, with whatever is said to differ; unknown names are figures."""
    row: Row = {
        "agent": agent,
        "instance": instance,
        "state": state,
        "reason": REASONS[state],
        "since_s": 120.0,
        "last_seen_s": 0.3,
        "rtt_ms": 0.31,
        "version": "1.4.2",
        "labels": {"host.name": "host-1"},
        "uptime_ratio": 0.999,
        "series": 112,
        "samples_total": 48_211,
        "dropped_total": 0,
        "figures": {
            "tasks_per_min": 12.0,
            "error_ratio": 0.004,
            "p95_s": 2.1,
            "tokens_per_min": 18_200.0,
            "context_ratio": 0.61,
            "cpu_ratio": 0.12,
            "memory_bytes": 310.0 * 2**20,
            "loop_lag_s": 0.002,
            "spark": [None] * SPARK_POINTS,
            "latency_spark": [None] * SPARK_POINTS,
        },
    }
    for name, value in changes.items():
        (row if name in row else row["figures"])[name] = value
    return row


class FakeFleet:
    """Implements `web.source.Source`."""

    def __init__(self, rows: Sequence[Row] = (), *, http: str = "127.0.0.1:4318", now_ms: int = START_MS) -> None:
        self.store = Store.in_memory(StoreSettings(memory_bytes=256 << 20, slots=4096, series_limit=100_000))
        self.head = self.store.head
        self.fleet: dict[str, Row] = {row["instance"]: row for row in rows}
        self.details: dict[str, dict[str, Any]] = {}
        self.clock_ms = now_ms
        self.http = http
        self.looks = 0  # how often somebody asked for the rows
        self.not_ready = ""

    def now_ms(self) -> int:
        return self.clock_ms

    def rows(self) -> Sequence[Row]:
        self.looks += 1
        return list(self.fleet.values())

    def row(self, instance: str) -> Row | None:
        return self.fleet.get(instance)

    def detail(self, instance: str) -> Row | None:
        row = self.fleet.get(instance)
        if row is None:
            return None
        started_ms = self.clock_ms - 3_600_000
        return {**row, "started_ms": started_ms, **EMPTY_DETAIL, **self.details.get(instance, {})}

    def totals(self) -> dict[str, Any]:
        return {
            "version": "0.1.0",
            "started_ms": START_MS - 7_200_000,
            "grpc": "127.0.0.1:4317",
            "http": self.http,
            "samples_per_s": 41_200.0 if self.fleet else 0.0,
            "samples_total": 9_000_000,
            "series": 112 * len(self.fleet),
            "streams": len(self.fleet),
            "memory_bytes": 180 << 20,
            "ring_bytes": self.head.ring_bytes,
            "ring_limit_bytes": self.head.memory_bytes,
        }

    def metrics_text(self) -> bytes:
        return b"# TYPE collectord_streams gauge\ncollectord_streams 3\n"

    def ready(self) -> tuple[bool, str]:
        return not self.not_ready, self.not_ready

    def append(self, row: Row, series: dict[tuple[str, tuple[tuple[str, str], ...]], Any], times_ms: Any) -> None:
        """Samples of one instance: by (metric, labels) float64 values, shape (T,), at times_ms, shape (T,)."""
        owner = labels_of({"job": row["agent"], "instance": row["instance"]})
        ids = self.head.declare(owner, [(Shape(m, labels_of(dict(of))), COUNTER) for m, of in series], 10_000)
        plan = self.head.plan(ids)
        columns = np.array(list(series.values()), dtype=np.float64)
        for at, time_ms in enumerate(times_ms):
            self.head.append(plan, int(time_ms), np.ascontiguousarray(columns[:, at]))


def an_hour_of_work(fleet: FakeFleet, row: Row, seed: int = 1) -> None:
    """Fills the charts of one agent with an hour at 5 s that ends now."""
    rng = np.random.default_rng(seed)
    times_ms = fleet.clock_ms - np.arange(719, -1, -1) * 5000
    count = len(times_ms)
    wave = 1 + 0.5 * np.sin(np.arange(count) / 40)
    series: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
    for kind, rate in (("search", 0.9), ("summarize", 0.4), ("plan", 0.15)):
        for outcome, share in (("ok", 0.97), ("error", 0.03)):
            of = (("agent_task_type", kind), ("outcome", outcome))
            done = np.cumsum(rng.poisson(rate * share * wave))
            series["agent_task_duration_seconds_count", of] = done
            for at, le in enumerate((*LE, math.inf)):
                share_below = 1 - math.exp(-le / 1.1) if at < len(LE) else 1.0
                bucket = (*of, ("le", "+Inf" if math.isinf(le) else f"{le:g}"))
                series["agent_task_duration_seconds_bucket", bucket] = np.floor(done * share_below)
    for name, rate in (("input", 900), ("output", 260), ("cache_read_input", 500)):
        series[f"gen_ai_client_inference_usage_{name}_tokens_total", ()] = np.cumsum(rng.poisson(rate * wave))
    series["gen_ai_context_utilization_ratio", ()] = 0.2 + (np.arange(count) % 180) / 260
    series["agent_task_queue_length", ()] = rng.poisson(3 * wave)
    for mode, rate in (("user", 0.55), ("system", 0.08)):
        series["process_cpu_time_seconds_total", (("cpu_mode", mode),)] = np.cumsum(rng.gamma(4, rate / 4, count))
    series["process_memory_usage_bytes", ()] = (280 + np.cumsum(rng.normal(0.05, 0.8, count))) * 2**20
    for way, rate in (("read", 3e5), ("write", 9e4)):
        io = np.cumsum(rng.gamma(1, rate * 5, count))
        series["process_disk_io_bytes_total", (("disk_io_direction", way),)] = io
    for way, rate in (("receive", 5e4), ("transmit", 1.4e4)):
        io = np.cumsum(rng.gamma(2, rate * 2.5, count))
        series["system_network_io_bytes_total", (("network_io_direction", way),)] = io
    series["agent_loop_lag_seconds", ()] = rng.gamma(2, 0.0008, count)
    fleet.append(row, series, times_ms)


def a_fleet(count: int, seed: int = 7, http: str = "127.0.0.1:4318", now_ms: int = START_MS) -> FakeFleet:
    """Many agents, most of them well."""
    rng = random.Random(seed)
    fleet = FakeFleet(http=http, now_ms=now_ms)
    states = ["live"] * 88 + ["busy"] * 6 + ["stopped"] * 2 + ["stuck", "offline", "stale", "flapping"]
    for at in range(count):
        state = rng.choice(states) if at > 3 else ("live", "stuck", "offline", "busy")[at]
        here = state in ("live", "busy", "stuck", "flapping")
        rate = rng.lognormvariate(2.2, 0.8)
        row = a_row(
            f"{NAMES[at % len(NAMES)]}-{at // len(NAMES) + 1}",
            f"{rng.getrandbits(64):016x}",
            state,
            since_s=rng.expovariate(1 / 4000),
            last_seen_s=0.4 if here else 38.0 + at % 50,
            rtt_ms=rng.lognormvariate(-1, 0.5) if here else None,
            version=rng.choice(["1.4.2", "1.4.2", "1.4.2", "1.4.1", "1.5.0-rc1"]),
            labels={"host.name": f"host-{at % 12}", "deployment.environment.name": "prod" if at % 5 else "canary"},
            tasks_per_min=rate if here else None,
            error_ratio=max(0.0, rng.gauss(0.004, 0.006)) if here else None,
            p95_s=rng.lognormvariate(0.5, 0.7) if here else None,
            tokens_per_min=rate * rng.uniform(300, 3000) if here and at % 7 else None,
            context_ratio=rng.uniform(0.05, 0.95) if here and at % 7 else None,
            cpu_ratio=rng.lognormvariate(-2, 0.8) if here else None,
            memory_bytes=rng.uniform(90, 900) * 2**20 if here else None,
            spark=_walk(rng, rate, here),
            latency_spark=_walk(rng, 2.0, here),
        )
        fleet.fleet[row["instance"]] = row
    return fleet


def _walk(rng: random.Random, level: float, here: bool) -> list[float | None]:
    points: list[float | None] = []
    at = level
    for n in range(SPARK_POINTS):
        at = max(0.0, at + rng.gauss(0, level / 8) + (level - at) * 0.2)
        points.append(at if here or n < 40 else None)
    return points


def live_on(fleet: FakeFleet, rng: random.Random, seconds: float) -> None:
    """Time passes: figures move, sparklines every fifth second."""
    before_s = fleet.clock_ms // 1000
    fleet.clock_ms += round(seconds * 1000)
    shift = fleet.clock_ms // 5000 != before_s // 5
    for row in fleet.fleet.values():
        row["since_s"] += seconds
        figures = row["figures"]
        if row["state"] not in ("live", "busy", "stuck", "flapping"):
            row["last_seen_s"] += seconds
            continue
        for name in ("tasks_per_min", "p95_s", "tokens_per_min", "cpu_ratio"):
            if figures[name] is not None and rng.random() < 0.4:
                figures[name] *= rng.uniform(0.95, 1.05)
        if shift:
            for name, figure in (("spark", "tasks_per_min"), ("latency_spark", "p95_s")):
                figures[name] = [*figures[name][1:], figures[figure] * rng.uniform(0.8, 1.2)]
