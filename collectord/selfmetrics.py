"""The daemon on itself, in Prometheus's text format: read from plain counters when somebody asks."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import psutil
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from collectord.distribution import Distribution

if TYPE_CHECKING:
    from collectord.daemon import Daemon


class SelfMetrics(Collector):
    """Collects from the daemon's parts; holds nothing."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._process = psutil.Process()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """The answer to GET /metrics."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._ingest()
        yield from self._streams()
        yield from self._memory()

    def _ingest(self) -> Iterator[Metric]:
        ingest, head = self._daemon.ingest, self._daemon.head
        yield _counter("collectord_samples", "samples written into the rings", ingest.samples)
        yield _counter("collectord_batches", "batches applied", ingest.batches)
        yield _counter("collectord_ticks", "ticks: points at which batches became acknowledgeable", ingest.ticks)
        yield _counter("collectord_overflow_samples", "samples that went to overflow series", ingest.overflow_samples)
        yield _counters("collectord_dropped_samples", "samples not kept", "reason", ingest.dropped)
        yield _gauge("collectord_series", "series in memory", head.index.series)
        yield _counter("collectord_series_refused", "series refused by a limit", self._daemon.service.refused_series)
        yield _counter("collectord_series_evicted", "idle series that left memory", head.evicted_series)

    def _streams(self) -> Iterator[Metric]:
        service, heartbeat, fleet = self._daemon.service, self._daemon.heartbeat, self._daemon.fleet
        yield _gauge("collectord_streams", "open streams", len(service.streams))
        yield _counter("collectord_streams_accepted", "streams welcomed", service.accepted)
        yield _counters("collectord_streams_refused", "streams refused", "reason", service.refused)
        yield _counter("collectord_streams_broken", "streams that ended without goodbye or refusal", service.broken)
        yield _counter("collectord_messages", "messages from agents", service.messages)
        yield _counters("collectord_violations", "messages against the contract", "kind", service.violations)
        yield _counter("collectord_pings", "pings sent", heartbeat.pings)
        yield _counter("collectord_polls", "polls sent", heartbeat.polls)
        yield _counter("collectord_agent_crashes", "instances that vanished without goodbye", fleet.crashes)
        yield _counter(
            "collectord_common_causes", "losses of many agents that were blamed on one cause", fleet.verdicts
        )
        states = Tally(agent.health.state for agent in fleet)
        family = GaugeMetricFamily("collectord_agents", "known instances by state", labels=["state"])
        for state, count in sorted(states.items()):
            family.add_metric([state], count)
        yield family
        yield _histogram("collectord_ping_rtt_seconds", "round trips of pings", service.round_trips)
        yield _histogram("collectord_ping_lateness_seconds", "pings, sent after they were due", heartbeat.lateness)

    def _memory(self) -> Iterator[Metric]:
        head = self._daemon.head
        yield _gauge("collectord_ring_bytes", "memory of the rings", head.ring_bytes)
        yield _gauge("collectord_ring_limit_bytes", "rings.memory_bytes", head.memory_bytes)
        with self._process.oneshot():
            cpu, memory = self._process.cpu_times(), self._process.memory_info()
            yield _counter("process_cpu_seconds", "CPU time of the daemon", cpu.user + cpu.system)
            yield _gauge("process_resident_memory_bytes", "resident memory of the daemon", memory.rss)
            yield _gauge("process_start_time_seconds", "start of the daemon, Unix time", self._process.create_time())
        yield _info(self._daemon)


def _info(daemon: Daemon) -> Metric:
    family = GaugeMetricFamily("collectord_build_info", "1; the version as a label", labels=["version"])
    family.add_metric([daemon.version], 1)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _histogram(name: str, text: str, values: Distribution) -> Metric:
    return HistogramMetricFamily(name, text, buckets=values.buckets(), sum_value=values.sum_s)
