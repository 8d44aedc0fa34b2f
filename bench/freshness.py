"""How old a value is when it can first be read: from the recording in an agent to an answer over HTTP that holds it."""

from __future__ import annotations

import contextlib
import http.client
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bench import agent
from bench.collector import Collector
from bench.commands import LoadProcess
from bench.harness import Figure, Session
from bench.machine import BenchError, cores_for_bench, running

P50 = Figure("visible_p50_ms", "ms", higher_is_better=False)
P99 = Figure("visible_p99_ms", "ms", higher_is_better=False)

ROUNDS = 3
EVENTS = 200  # of each round
POLL_S = 0.002
PHASE_S = 0.25  # recordings come at random within more than two of the stub's flush intervals
GIVE_UP_S = 15.0
METRIC = "bench_recorded_total"


def run(session: Session) -> None:
    """Default settings on both sides."""
    server_core, load_core = cores_for_bench()
    events = 20 if session.quick else EVENTS
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        collector = Collector(directory, server_core)
        stack.enter_context(running(collector))
        collector.wait_ready()
        process = LoadProcess("bench.agent", "--endpoint", collector.grpc, core=load_core, log=directory / "agent.log")
        stack.enter_context(running(process))
        reader = Reader(collector, instance_of(collector, agent.NAME))
        stack.callback(reader.close)
        _seen_after_ms(process, reader)  # the first one also declares the series
        chance = random.Random(5)
        for _ in session.rounds(ROUNDS, f"{events} events"):
            ages_ms = []
            for _ in range(events):
                time.sleep(chance.uniform(0, PHASE_S))
                ages_ms.append(_seen_after_ms(process, reader))
            p50, p99 = np.percentile(ages_ms, [50, 99])
            session.add("default", P50, float(p50))
            session.add("default", P99, float(p99))
        process.do("close")
    session.note(f"asked every {1e3 * POLL_S:g} ms over one HTTP connection; {events} events a round, at random phases")


class Reader:
    """Asks for the newest value of the agent's counter over one keep-alive connection."""

    def __init__(self, collector: Collector, instance: str) -> None:
        self._path = f"/api/agents/{instance}/latest?metric={METRIC}"
        self._connection = http.client.HTTPConnection("127.0.0.1", collector.http_port, timeout=10)

    def value(self) -> float:
        """The counter's value, 0 while there is none."""
        self._connection.request("GET", self._path)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise BenchError(f"{self._path}: got status {answer.status} with {body[:200]!r}, expected 200")
        samples: list[dict[str, Any]] = orjson.loads(body)["samples"]
        return max((float(sample["value"]) for sample in samples), default=0.0)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def instance_of(collector: Collector, name: str) -> str:
    """The instance uid of the one agent of that name, once it is connected."""
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        found = [row["instance"] for row in collector.json("/api/agents") if row["agent"] == name]
        if found:
            return str(found[0])
        time.sleep(0.1)
    raise BenchError(f"/api/agents: {name!r} not there after {GIVE_UP_S:g} s, expected it to be connected")


def _seen_after_ms(process: LoadProcess, reader: Reader) -> float:
    recorded = process.do("record")
    deadline = time.monotonic() + GIVE_UP_S
    while reader.value() < recorded["total"]:
        if time.monotonic() > deadline:
            raise BenchError(
                f"recording {recorded['total']}: not visible after {GIVE_UP_S:g} s, expected it within one"
            )
        time.sleep(POLL_S)
    return float(time.time_ns() - recorded["unix_ns"]) / 1e6
