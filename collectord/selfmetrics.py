"""The daemon on itself, in Prometheus's text format: read from plain counters when somebody asks."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from collectord.distribution import Distribution
from storage.format import TIERS

if TYPE_CHECKING:
    from collectord.daemon import Daemon


_KEEPER_COUNTS = {
    "flushes": "closed WAL files made into segments",
    "merges": "segments made out of several",
    "rollups": "segments rolled up",
    "expired_segments": "segments removed by retention",
    "keeper_failures": "pieces of background work that failed, to be tried again",
    "makers_lost": "processes that ended in the middle of making a segment",
}
_SEGMENT_GAUGES = (
    ("collectord_segment_bytes", "segments on disk"),
    ("collectord_segment_samples", "samples in segments"),
    ("collectord_segments", "segments"),
)


class SelfMetrics(Collector):
    """Collects from the daemon's parts; holds nothing."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._process = psutil.Process()
        self._background_s = 0.0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """The answer to GET /metrics."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._ingest()
        yield from self._store()
        yield from self._streams()
        yield from self._queries()
        yield from self._memory()

    def _ingest(self) -> Iterator[Metric]:
        ingest, head = self._daemon.ingest, self._daemon.head
        yield _counter("collectord_samples", "samples written into the rings", ingest.samples)
        yield _counter("collectord_batches", "batches applied", ingest.batches)
        committer = self._daemon.committer
        yield _counter("collectord_ticks", "commits begun", committer.ticks)
        yield _histogram(
            "collectord_commit_seconds", "from the first message of a commit to its end", committer.latency
        )
        yield _counter("collectord_overflow_samples", "samples that went to overflow series", ingest.overflow_samples)
        yield _counters("collectord_dropped_samples", "samples not kept", "reason", ingest.dropped)
        yield _gauge("collectord_series", "series in memory", head.index.series)
        yield _counter("collectord_series_refused", "series refused by a limit", self._daemon.service.refused_series)
        yield _counter("collectord_series_evicted", "idle series that left memory", head.evicted_series)

    def _store(self) -> Iterator[Metric]:
        store, service = self._daemon.store, self._daemon.service
        refused = service.refused_messages
        yield _counter(
            "collectord_messages_not_taken",
            "durable messages left to their agents while nothing could be taken",
            refused,
        )
        yield _gauge(
            "collectord_refusing", "1 while nothing is taken (disk full, or failing)", float(bool(service.refusal))
        )
        wal, keeper, segments, found = store.wal, store.keeper, store.segments, store.recovered
        if wal is None or keeper is None or segments is None:
            return
        yield _gauge("collectord_unclean_shutdown", "1 when the last shutdown was not clean", float(found.unclean))
        yield _gauge(
            "collectord_recovered_samples", "samples that the start found in the WAL, at most", found.wal_samples
        )
        yield _gauge("collectord_torn_bytes", "torn tails that the start cut", found.torn_bytes)
        damage = CounterMetricFamily(
            "collectord_damage_bytes", "bytes lost to damaged files", labels=["file", "offset", "reason"]
        )
        for error in store.damage:
            damage.add_metric([error.path.name, str(error.offset_bytes), error.reason], error.size_bytes)
        yield damage
        yield _counter(
            "collectord_lost_samples", "samples lost to damage", found.lost_samples + keeper.counts["lost_samples"]
        )
        yield _gauge("collectord_wal_bytes", "what is in no segment yet", wal.size_bytes)
        yield _counter("collectord_wal_written_bytes", "written to the WAL", wal.written_bytes)
        yield _counter("collectord_wal_commits", "commits that succeeded", wal.commits)
        yield _counter("collectord_wal_failures", "commits that failed", wal.failures)
        for name, text in _KEEPER_COUNTS.items():
            yield _counter(f"collectord_{name}", text, keeper.counts[name])
        sizes, samples, files = (GaugeMetricFamily(*described, labels=["tier"]) for described in _SEGMENT_GAUGES)
        for tier in TIERS:
            infos = [segment.info for segment in segments.all(tier)]
            sizes.add_metric([tier], sum(info.size_bytes for info in infos))
            samples.add_metric([tier], sum(info.samples for info in infos))
            files.add_metric([tier], len(infos))
        yield from (sizes, samples, files)

    def _streams(self) -> Iterator[Metric]:
        service, heartbeat, fleet = self._daemon.service, self._daemon.heartbeat, self._daemon.fleet
        yield _gauge("collectord_streams", "open streams", len(service.streams))
        yield _counter("collectord_streams_accepted", "streams welcomed", service.accepted)
        yield _counters("collectord_streams_refused", "streams refused", "reason", service.refused)
        yield _counter("collectord_streams_broken", "streams that ended without goodbye or refusal", service.broken)
        yield _counter("collectord_messages", "messages from agents", service.messages)
        yield _counters("collectord_violations", "messages against the contract", "kind", service.violations)
        server = self._daemon.server
        faults = {kind: count for kind, count in server.counts.items() if kind not in ("connections", "calls")}
        yield _gauge("collectord_http2_connections", "open connections of gRPC clients", len(server.protocols))
        yield _counters("collectord_http2_faults", "connections and calls that broke a rule or a bound", "kind", faults)
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

    def _queries(self) -> Iterator[Metric]:
        queries = self._daemon.queries
        yield _counters("collectord_queries", "queries that ended, by success or error", "outcome", queries.outcomes)
        yield _gauge("collectord_queries_running", "queries that have a thread", queries.running)
        yield _gauge("collectord_queries_waiting", "queries that wait for one", queries.waiting)
        yield _histogram("collectord_query_seconds", "from a query's admission to its end", self._daemon.query_seconds)

    def _memory(self) -> Iterator[Metric]:
        head = self._daemon.head
        yield _gauge("collectord_ring_bytes", "memory of the rings", head.ring_bytes)
        yield _gauge("collectord_ring_limit_bytes", "rings.memory_bytes", head.memory_bytes)
        with self._process.oneshot():
            cpu, memory = self._process.cpu_times(), self._process.memory_info()
            yield _counter("process_cpu_seconds", "CPU time of the daemon", cpu.user + cpu.system)
            yield _gauge("process_resident_memory_bytes", "resident memory of the daemon", memory.rss)
            yield _gauge("process_start_time_seconds", "start of the daemon, Unix time", self._process.create_time())
        cpu_s, resident_bytes = self._background()
        yield _counter("collectord_background_cpu_seconds", "CPU time of the processes that make segments", cpu_s)
        yield _gauge("collectord_background_resident_bytes", "their resident memory, now", resident_bytes)
        yield _info(self._daemon)

    def _background(self) -> tuple[float, int]:
        """CPU seconds of the processes that make segments, and resident bytes of the one that runs."""
        maker, cpu_s, resident_bytes = self._daemon.keeping.process, 0.0, 0
        pid = maker.pid if maker is not None else None
        if pid is not None:
            with suppress(psutil.NoSuchProcess):
                child = psutil.Process(pid)
                times = child.cpu_times()
                cpu_s, resident_bytes = times.user + times.system, child.memory_info().rss
        ended = self._process.cpu_times()
        self._background_s = max(self._background_s, cpu_s + ended.children_user + ended.children_system)
        return self._background_s, resident_bytes  # one that ended in between is in both, or in none


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
