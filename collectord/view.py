"""The daemon as the web application sees it: `web.source.Source` over fleet and figures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psutil

from collectord.fleet import Agent
from web.source import Row

if TYPE_CHECKING:
    from collectord.daemon import Daemon


class View:
    """Rows are made when asked for; figures come from the newest tick of `FleetFigures`."""

    def __init__(self, daemon: Daemon) -> None:
        self.store = daemon.store
        self.head = daemon.head
        self._daemon = daemon
        self._process = psutil.Process()
        self._rate_at: tuple[float, int] = (time.monotonic(), 0)
        self.samples_per_s = 0.0

    def tick(self, now_s: float) -> None:
        """Once a second: the sample rate."""
        before_s, before = self._rate_at
        samples = self._daemon.ingest.samples
        if now_s > before_s:
            self.samples_per_s = (samples - before) / (now_s - before_s)
        self._rate_at = (now_s, samples)

    def now_ms(self) -> int:
        return self._daemon.now_ns() // 1_000_000

    def rows(self) -> Sequence[Row]:
        now_s = time.monotonic()
        return [self._row(agent, now_s) for agent in self._daemon.fleet]

    def row(self, instance: str) -> Row | None:
        agent = self._daemon.fleet.agents.get(instance)
        return self._row(agent, time.monotonic()) if agent is not None else None

    def _row(self, agent: Agent, now_s: float) -> Row:
        health = agent.health
        return {
            "agent": agent.name,
            "instance": agent.instance,
            "state": health.state,
            "reason": health.reason + ("; it runs again since" if agent.superseded else ""),
            "since_s": round(now_s - health.since_s, 3),
            "last_seen_s": round(now_s - agent.last_seen_s, 3),
            "rtt_ms": round(agent.round_trip.rtt_s * 1e3, 3) if agent.round_trip is not None else None,
            "version": agent.version,
            "labels": agent.attributes,
            "uptime_ratio": round(health.uptime_ratio(now_s), 6),
            "series": agent.series,
            "samples_total": agent.samples_total,
            "dropped_total": agent.dropped_total,
            "figures": self._daemon.figures.row(agent.instance),
        }

    def detail(self, instance: str) -> Row | None:
        agent = self._daemon.fleet.agents.get(instance)
        if agent is None:
            return None
        now_s, now_ms = time.monotonic(), self.now_ms()
        return self._row(agent, now_s) | {
            "started_ms": agent.started_ms,
            "client": agent.client,
            "attributes": agent.attributes,
            "address": agent.address,
            "clock_offset_s": agent.round_trip.clock_offset_s if agent.round_trip is not None else None,
            "activity": agent.activity,
            "open_tasks": agent.open_tasks,
            "history": [
                {"time_ms": now_ms - int(1000 * (now_s - at_s)), "state": state, "reason": reason}
                for at_s, state, reason in agent.health.history
            ],
            "marks": list(agent.marks),
            "dependencies": list(agent.dependencies.values()),
            "events": list(agent.events),
            "logs": list(agent.logs),
            "config_hash": agent.config_hash,
            "drops": agent.agent_drops,
            "other_instances": [
                {"instance": other.instance, "state": other.health.state, "started_ms": other.started_ms}
                for other in self._daemon.fleet
                if other.name == agent.name and other is not agent
            ],
        }

    def totals(self) -> Mapping[str, Any]:
        daemon = self._daemon
        return {
            "version": daemon.version,
            "started_ms": daemon.started_ms,
            "grpc": daemon.grpc_address,
            "http": daemon.http_address,
            "samples_per_s": round(self.samples_per_s, 1),
            "samples_total": daemon.ingest.samples,
            "series": self.head.index.series,
            "streams": len(daemon.service.streams),
            "memory_bytes": self._process.memory_info().rss,
            "ring_bytes": self.head.ring_bytes,
            "ring_limit_bytes": self.head.memory_bytes,
        }

    def metrics_text(self) -> bytes:
        return self._daemon.metrics.text()

    def ready(self) -> tuple[bool, str]:
        if self._daemon.service.draining:
            return False, "shutting down"
        return True, ""
