"""Thousands of connected agents, each sending 100 metrics once a second: CPU, memory, pings."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from pathlib import Path

from bench.collector import Collector
from bench.commands import LoadProcess
from bench.harness import Figure, Session
from bench.machine import BenchError, cores_for_bench, metric_sum, raise_file_limit, running

CPU = Figure("server_cpu_percent", "% of a core", higher_is_better=False)
RSS = Figure("server_rss_mb", "MB", higher_is_better=False)
PER_CONNECTION = Figure("memory_per_connection_kb", "kB", higher_is_better=False)
RTT_P50 = Figure("ping_rtt_p50_ms", "ms", higher_is_better=False)
RTT_P99 = Figure("ping_rtt_p99_ms", "ms", higher_is_better=False)
PINGS = Figure("pings_per_s", "1/s", higher_is_better=True)
LATENESS = Figure("ping_lateness_p99_ms", "ms", higher_is_better=False)
SEND_LATE = Figure("load_lateness_p99_ms", "ms", higher_is_better=False)
LOAD_CPU = Figure("load_cpu_percent", "% of a core", higher_is_better=False)

AGENTS = 5000
SERIES = 100
WINDOWS = 3
WINDOW_S = 15.0
WARM_S = 10.0
LATE_LOAD_MS = 50.0
FILES_BESIDE = 200  # open files of a process besides its connections


def run(session: Session) -> None:
    """One fleet, watched over several windows."""
    agents = session.agents or (200 if session.quick else AGENTS)
    limit = raise_file_limit()
    if agents + FILES_BESIDE > limit:
        raise BenchError(f"--agents: got {agents}, expected at most {limit - FILES_BESIDE} (open files, `ulimit -Hn`)")
    server_core, load_core = cores_for_bench()
    case = str(agents)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        collector = Collector(directory, server_core)
        stack.enter_context(running(collector))
        collector.wait_ready()
        arguments = ("--grpc", collector.grpc, "--agents", case, "--series", str(SERIES), "--steps", "10")
        load = LoadProcess("bench.load", *arguments, core=load_core, log=directory / "load.log")
        stack.enter_context(running(load))
        empty = collector.usage()
        load.do("connect")
        load.do("window", seconds=0.5 if session.quick else 2.0)
        session.add(case, PER_CONNECTION, (collector.usage().rss_bytes - empty.rss_bytes) / agents / 1e3)
        load.do("declare")
        load.do("pace", interval_s=1.0)
        load.do("window", seconds=1.0 if session.quick else WARM_S)
        for _ in session.rounds(WINDOWS, f"{agents} agents at 1 Hz"):
            _window(session, case, collector, load, agents)
        load.do("close")
    late_ms = max(session.values(case, SEND_LATE))
    if late_ms > LATE_LOAD_MS:
        session.note(
            f"the load was late by {late_ms:.0f} ms at p99 in its worst window: it, or what else runs on this machine, "
            "is in the round trips too"
        )
    session.note(
        "ping round trip: from the collector's stamp in the ping to the pong's arrival, as the collector measured it; "
        "lateness: from when a ping was due to when it was written"
    )


def _window(session: Session, case: str, collector: Collector, load: LoadProcess, agents: int) -> None:
    seconds = 3.0 if session.quick else WINDOW_S
    metrics_before, before, begin = collector.metrics(), collector.usage(), time.monotonic()
    seen = load.do("window", seconds=seconds)
    after, took_s = collector.usage(), time.monotonic() - begin
    metrics_after = collector.metrics()
    expected = agents * seconds
    arrived = _grown(metrics_before, metrics_after, "collectord_samples_total") / SERIES
    if arrived < 0.95 * expected:
        raise BenchError(f"{arrived:,.0f} batches arrived in {seconds:g} s, expected {expected:,.0f} at 1 Hz")
    if dropped := _grown(metrics_before, metrics_after, "collectord_dropped_samples_total"):
        raise BenchError(f"collectord: {dropped:,.0f} samples dropped in {seconds:g} s, expected none")
    if seen["rtt_ms"] is None:
        raise BenchError(f"pings: got {seen['pings']} in {seconds:g} s and no round trip, expected some of every agent")
    session.add(case, CPU, 100 * (after.cpu_s - before.cpu_s) / took_s)
    session.add(case, RSS, after.rss_bytes / 1e6)
    session.add(case, RTT_P50, seen["rtt_ms"]["p50"])
    session.add(case, RTT_P99, seen["rtt_ms"]["p99"])
    session.add(case, PINGS, seen["pings"] / seen["seconds"])
    late_s = histogram_quantile(metrics_after, "collectord_ping_lateness_seconds", 0.99, before=metrics_before)
    session.add(case, LATENESS, 1e3 * late_s)
    session.add(case, SEND_LATE, seen["send_late_ms"]["p99"])
    session.add(case, LOAD_CPU, 100 * seen["cpu_share"])


def _grown(before: str, after: str, name: str) -> float:
    return metric_sum(after, name) - metric_sum(before, name)


def histogram_quantile(text: str, name: str, q: float, before: str = "") -> float:
    """Quantile of a histogram in Prometheus's text format, linear inside its bucket; beyond the last finite bound: that bound.

    `before`: the same metrics earlier, to leave out what they had counted. Raises BenchError when the histogram is missing
    or empty.
    """
    earlier = dict(_buckets(before, name))
    buckets = [(edge, count - earlier.get(edge, 0.0)) for edge, count in _buckets(text, name)]
    if not buckets or buckets[-1][1] == 0:
        raise BenchError(
            f"{name}: got {'an empty histogram' if buckets else 'no such metric'}, expected observations in it"
        )
    rank = q * buckets[-1][1]
    low_edge, low_count = 0.0, 0.0
    for edge, count in buckets:
        if math.isinf(edge):
            break
        if count >= rank:
            return low_edge + (edge - low_edge) * (rank - low_count) / max(count - low_count, 1.0)
        low_edge, low_count = edge, count
    return low_edge


def _buckets(text: str, name: str) -> list[tuple[float, float]]:
    """(upper bound, cumulative count), ascending."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}_bucket{{")]
    return sorted((float(line.split('le="', 1)[1].split('"', 1)[0]), float(line.rpartition(" ")[2])) for line in lines)
