"""All benches by name."""

from __future__ import annotations

from bench import fleet, freshness, ingest, page, ring, stub
from bench.harness import Bench
from bench.machine import BenchError

BENCHES = (
    Bench(
        "stub",
        "what recording costs an agent: ns a call, CPU and memory (peers: prometheus_client, OpenTelemetry)",
        stub.run,
    ),
    Bench("ring", "rows into the rings, a second's read of them, and the vectorised functions", ring.run),
    Bench(
        "ingest",
        "samples per server CPU-second through gRPC (peers: VictoriaMetrics, Prometheus by remote write)",
        ingest.run,
    ),
    Bench("fleet", "thousands of connected agents at 1 Hz: CPU, memory a connection, ping round trip", fleet.run),
    Bench("freshness", "from a recording in an agent to its value over HTTP", freshness.run),
    Bench("page", "first paint and longest task in Chromium with a thousand agents", page.run),
)


def by_name(name: str) -> Bench:
    """Raises BenchError for a name that is not there."""
    for bench in BENCHES:
        if bench.name == name:
            return bench
    raise BenchError(f"bench: got {name!r}, expected one of {', '.join(bench.name for bench in BENCHES)}")
