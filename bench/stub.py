"""What recording costs an agent: a call through a bound handle, and the whole of a working agent."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.collector import Collector
from bench.commands import LoadProcess
from bench.harness import OURS, Figure, Session
from bench.machine import cores_for_bench, running

NS = Figure("ns_per_call", "ns", higher_is_better=False)
CPU = Figure("cpu_percent", "% of a core", higher_is_better=False)
RSS = Figure("rss_above_grpc_mb", "MB", higher_is_better=False)

ROUNDS = 15
CALL_S = 0.05  # of one case in one round
OVERHEAD_ROUNDS = 3
OVERHEAD_S = 20.0
OVERHEAD_WARM_S = 3.0
RECORDINGS_PER_S = 1000

Calls = dict[str, dict[str, tuple[str, dict[str, Any]]]]
"""Case, then whose, then a statement and the names in it."""


def run(session: Session) -> None:
    """Calls first, in this process; then two agent processes in turn, one of them without the stub."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server_core, load_core = cores_for_bench()
        collector = Collector(directory, server_core)
        stack.enter_context(running(collector))
        collector.wait_ready()
        with pinned(load_core):
            _calls(session, collector.grpc)
        _overhead(session, collector.grpc, directory, load_core)
    session.note(
        "calls: a connected agent with its background thread at work; garbage collection off, as timeit has it"
    )
    session.note("overhead: CPU above the same process without the stub; memory above a process that only imports grpc")


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """This thread, and those it starts, on one core for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _calls(session: Session, endpoint: str) -> None:
    import agent_stub

    mon = agent_stub.start("bench-stub", endpoint=endpoint)
    try:
        calls: Calls = {
            "counter": {OURS: ("f(1)", {"f": mon.counter("bench.calls", model="m").add})},
            "gauge": {OURS: ("f(1.5)", {"f": mon.gauge("bench.level", model="m").set})},
            "histogram": {OURS: ("f(0.25)", {"f": mon.histogram("bench.duration", unit="s", model="m").record})},
            "task": {OURS: ("with task('answer'): pass", {"task": mon.task})},
        }
        if session.peers:
            _add_prometheus_client(calls)
            _add_opentelemetry(calls)
        _time(session, calls)
    finally:
        mon.close("bench is over")


def _add_prometheus_client(calls: Calls) -> None:
    import prometheus_client as pc

    registry = pc.CollectorRegistry()
    counter = pc.Counter("calls", "calls", ["model"], registry=registry).labels("m")
    gauge = pc.Gauge("level", "level", ["model"], registry=registry).labels("m")
    histogram = pc.Histogram("duration_seconds", "seconds", ["model"], registry=registry).labels("m")
    calls["counter"]["prometheus_client"] = ("f(1)", {"f": counter.inc})
    calls["gauge"]["prometheus_client"] = ("f(1.5)", {"f": gauge.set})
    calls["histogram"]["prometheus_client"] = ("f(0.25)", {"f": histogram.observe})
    # Its nearest to a task: a timed block, without the outcome, the open count and the progress.
    calls["task"]["prometheus_client"] = ("with timed(): pass", {"timed": histogram.time})


def _add_opentelemetry(calls: Calls) -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider

    meter = MeterProvider(metric_readers=[InMemoryMetricReader()]).get_meter("bench")
    own = {"a": {"model": "m"}}
    calls["counter"]["opentelemetry"] = ("f(1, a)", {"f": meter.create_counter("calls").add, **own})
    calls["gauge"]["opentelemetry"] = ("f(1.5, a)", {"f": meter.create_gauge("level").set, **own})
    calls["histogram"]["opentelemetry"] = ("f(0.25, a)", {"f": meter.create_histogram("duration").record, **own})
    # Its nearest to a task: a span that nobody exports.
    span = TracerProvider().get_tracer("bench").start_as_current_span
    calls["task"]["opentelemetry"] = ("with span('answer'): pass", {"span": span})


def _time(session: Session, calls: Calls) -> None:
    # Names are bound as locals of the timed loop: a handle is a local or an attribute in real code, never slower.
    timers = {
        (case, who): timeit.Timer(
            statement, setup="; ".join(f"{n} = _{n}" for n in names), globals={f"_{n}": v for n, v in names.items()}
        )
        for case, by in calls.items()
        for who, (statement, names) in by.items()
    }
    loops = {}
    for key, timer in timers.items():
        count, took_s = timer.autorange()
        loops[key] = max(1, round(count * CALL_S / took_s))
    for _ in session.rounds(ROUNDS, "calls"):
        for (case, who), timer in timers.items():
            count = loops[case, who]
            session.add(case, NS, 1e9 * timer.timeit(count) / count, who)


def _overhead(session: Session, endpoint: str, directory: Path, core: int) -> None:
    warm_s, seconds = (0.5, 1.0) if session.quick else (OVERHEAD_WARM_S, OVERHEAD_S)
    for _ in session.rounds(OVERHEAD_ROUNDS, "overhead"):
        with contextlib.ExitStack() as stack:
            both = []
            for name, where in (("with", endpoint), ("without", "")):
                process = LoadProcess("bench.agent", "--endpoint", where, core=core, log=directory / f"{name}.log")
                both.append(stack.enter_context(running(process)))
            cpu_s, rss = [], []
            for process in both:
                process.do("work", seconds=warm_s, per_s=RECORDINGS_PER_S)
                done = process.do("work", seconds=seconds, per_s=RECORDINGS_PER_S)
                cpu_s.append(done["cpu_s"] / done["seconds"])
                rss.append(process.usage().rss_bytes)
                time.sleep(0.1)
                process.do("close")
            session.add("overhead", CPU, 100 * (cpu_s[0] - cpu_s[1]))
            session.add("overhead", RSS, (rss[0] - rss[1]) / 1e6)
