"""What the web application asks of the daemon: the seam between `web` and `collectord`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from storage.store import Store

Row = dict[str, Any]
"""One agent instance, ready for JSON. Always has:

agent: str, instance: str, state: str (never-seen, live, busy, stuck, stale, offline, stopped, flapping), reason: str,
since_s: float (in this state), last_seen_s: float (ago), rtt_ms: float | None, version: str, labels: dict[str, str]
(resource attributes by OpenTelemetry's names), uptime_ratio: float (0..1), series: int, samples_total: int,
dropped_total: int, and figures: dict with tasks_per_min, error_ratio, p95_s, tokens_per_min, context_ratio, cpu_ratio
(of one core), memory_bytes, loop_lag_s: each float or None when unknown, spark: list[float | None] (tasks a minute, 60
points of 5 s, newest last), latency_spark: the same of p95_s.
"""


class Source(Protocol):
    """Given by the daemon; every method is quick (no I/O) and called on the event loop."""

    store: Store

    def now_ms(self) -> int:
        """The daemon's clock, Unix time in milliseconds."""

    def rows(self) -> Sequence[Row]:
        """All known instances, including those that left and are not yet forgotten. Figures are at most 1 s old."""

    def row(self, instance: str) -> Row | None:
        """One of them."""

    def detail(self, instance: str) -> Row | None:
        """The row, and: started_ms, client: str, attributes: dict, address: str, clock_offset_s: float | None, activity: str,
        open_tasks: int, history: list of {time_ms, state, reason} (oldest first, at most 1,000), marks: list of
        {time_ms, kind, text} (version changes, crashes, restarts), dependencies: list of {name, ok, reason, since_ms},
        events: list of {time_ms, kind, severity, fields} (newest first, at most 200), logs: list of {time_ms, severity,
        logger, body} (newest first, at most 200), config_hash: str, drops: dict of reason to samples,
        other_instances: list of {instance, state, started_ms} of the same agent.
        """

    def totals(self) -> Mapping[str, Any]:
        """version: str, started_ms: int, grpc: "host:port", http: "host:port", samples_per_s: float, samples_total: int,
        series: int, streams: int, memory_bytes: int, ring_bytes: int, ring_limit_bytes: int.
        """

    def metrics_text(self) -> bytes:
        """The daemon's own metrics in Prometheus's text format."""

    def ready(self) -> tuple[bool, str]:
        """Whether it serves, and a sentence why not."""
