"""The generator and the agent process against a real collectord."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import workload
from bench.collector import Collector
from bench.commands import LoadProcess
from bench.machine import BenchError, metric_sum, running

AGENTS, SERIES = 5, 120


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    with running(Collector(tmp_path, core=0)) as one:
        one.wait_ready()
        yield one


def load_process(collector: Collector, tmp_path: Path, *more: str) -> LoadProcess:
    arguments = ("--grpc", collector.grpc, "--agents", str(AGENTS), *more)
    return LoadProcess("bench.load", *arguments, core=0, log=tmp_path / "load.log")


def test_every_sample_of_a_flood_arrives_and_is_acknowledged(collector: Collector, tmp_path: Path) -> None:
    with running(load_process(collector, tmp_path, "--series", str(SERIES))) as load:
        assert load.do("connect")["agents"] == AGENTS
        assert metric_sum(collector.metrics(), "collectord_streams") == AGENTS
        declared = load.do("declare")["samples"]
        assert declared == AGENTS * SERIES == collector.samples()
        sent = load.do("flood", seconds=0.2)
        assert sent["samples"] == sent["messages"] * SERIES > 0
        assert collector.samples() == declared + sent["samples"]
        assert collector.dropped() == 0
        load.do("close")
        assert {row["state"] for row in collector.json("/api/agents")} <= {"stopped", "live"}


def test_rows_are_as_many_as_asked_for_and_steps_apart(collector: Collector, tmp_path: Path) -> None:
    with running(load_process(collector, tmp_path, "--series", "30", "--steps", "7", "--back-s", "900")) as load:
        load.do("connect")
        load.do("declare")
        rows = load.do("rows", count=40, step_ms=10_000)
        assert rows["samples"] == AGENTS * 30 * 40
        assert collector.samples() == AGENTS * 30 * 41
        for index in range(AGENTS):
            _, instance, _ = workload.agent_name(index)
            expected = workload.make_values(AGENTS, 30, 7)[index, 41 % 7, 25]
            assert collector.latest(instance, "bench_size_25_bytes") == expected
            detail = collector.json(f"/api/agents/{instance}/latest?metric=bench_size_25_bytes")
            assert detail["samples"][0]["time_ms"] == rows["last_ms"]
        assert collector.latest("bench-00099", "bench_size_25_bytes") is None
        load.do("close")


def test_a_probe_hears_of_every_message_that_it_is_safe(collector: Collector, tmp_path: Path) -> None:
    arguments = ("--grpc", collector.grpc, "--index", str(AGENTS), "--series", str(SERIES))
    with running(LoadProcess("bench.probe", *arguments, core=0, log=tmp_path / "probe.log")) as probe:
        assert probe.do("declare") == {"samples": SERIES}
        seen = probe.do("probe", seconds=0.5)
        assert seen["samples"] == 20 * SERIES
        assert 0 < seen["ack_ms"]["p50"] <= seen["ack_ms"]["p99"] <= seen["ack_ms"]["max"]
        assert collector.samples() == 21 * SERIES
        collector.stop()
        with pytest.raises(BenchError, match="the probe's stream"):
            probe.do("probe", seconds=0.1)


def test_a_settled_collector_has_everything_in_segments(tmp_path: Path) -> None:
    with running(Collector(tmp_path, core=0, settings={"COLLECTORD_STORAGE_FLUSH_S": "0.5"})) as collector:
        collector.wait_ready()
        with running(load_process(collector, tmp_path, "--series", str(SERIES))) as load:
            load.do("connect")
            load.do("declare")
            load.do("rows", count=10, step_ms=1000)
            collector.settle()
            assert collector.in_segments() >= AGENTS * SERIES * 11
            load.do("close")


def test_paced_agents_answer_pings(collector: Collector, tmp_path: Path) -> None:
    with running(load_process(collector, tmp_path, "--working")) as load:
        load.do("connect")
        load.do("declare")
        load.do("pace", interval_s=0.5)
        seen = load.do("window", seconds=4.0)
        assert seen["pings"] >= AGENTS
        assert seen["rtt_ms"]["p50"] > 0
        assert 0.8 * 8 * AGENTS <= seen["messages"] <= 1.2 * 8 * AGENTS
        assert {row["state"] for row in collector.json("/api/agents")} == {"live"}
        load.do("close")


def test_a_generator_whose_collector_goes_away_says_so(collector: Collector, tmp_path: Path) -> None:
    with running(load_process(collector, tmp_path)) as load:
        load.do("connect")
        collector.stop()
        with pytest.raises(BenchError, match="the stream of agent"):
            load.do("declare")


def test_the_agent_process_records_through_the_stub(collector: Collector, tmp_path: Path) -> None:
    process = LoadProcess("bench.agent", "--endpoint", collector.grpc, core=0, log=tmp_path / "agent.log")
    with running(process):
        done = process.do("work", seconds=1.0, per_s=1000)
        assert done["recorded"] == pytest.approx(1000, abs=20)
        assert 0 < done["cpu_s"] < done["seconds"]
        process.do("close")
        assert process.process.wait(10) == 0
    assert collector.samples() > 0
