"""The fleet's figures, out of a real head, under a clock of the test's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectord import figures
from collectord.figures import (
    MOST_BOUNDS,
    POINTS,
    SLOTS,
    TASK_BUCKET,
    TASK_COUNT,
    TOKEN_COUNTERS,
    FleetFigures,
    unknown,
)
from storage.head import Head
from storage.types import Meta, Shape, labels_of

META = Meta("counter", "1", "", "")
BOUNDS = ("0.1", "1", "10", "+Inf")
START_MS = 1_700_000_000_000
MINUTE_S = 60
RESTART = 50


class Fleet:
    """A head and its figures; `report` sets series of one instance, `passes` ticks second by second."""

    def __init__(self) -> None:
        self.head = Head(memory_bytes=1 << 28, slots=64, series_limit=1_000_000)
        self.figures = FleetFigures(self.head)
        self.now_ms = START_MS

    def report(self, instance: str, metric: str, value: float, **labels: str) -> None:
        owner = labels_of({"job": "agent", "instance": instance})
        ids = self.head.declare(owner, [(Shape(metric, labels_of(labels)), META)], 1 << 20)
        self.head.append(self.head.plan(ids), self.now_ms, np.array([value]))

    def tasks(self, instance: str, total: float, kind: str = "parse", outcome: str = "ok") -> None:
        self.report(instance, TASK_COUNT, total, agent_task_type=kind, outcome=outcome)

    def latencies(self, instance: str, cumulative: Mapping[str, float], kind: str = "parse") -> None:
        for bound, count in cumulative.items():
            self.report(instance, TASK_BUCKET, count, agent_task_type=kind, outcome="ok", le=bound)

    def tick(self) -> None:
        self.figures.tick(self.now_ms)

    def passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_ms += 1000
            self.tick()

    def known(self, *instances: str) -> Fleet:
        """Have them known for three seconds, so that a series that appears now began at zero."""
        for instance in instances:
            self.report(instance, "process_memory_usage_bytes", 0.5)
        self.tick()
        self.passes(3)
        return self


def test_nothing_is_known_before_the_first_series() -> None:
    fleet = Fleet()
    fleet.tick()
    assert fleet.figures.rows() == {}
    assert fleet.figures.row("a") == unknown()
    assert set(unknown()) == {*figures.FIGURES, "spark", "latency_spark"}
    assert len(unknown()["spark"]) == POINTS


def test_gauges_are_the_newest_values_and_what_is_missing_is_none() -> None:
    fleet = Fleet()
    fleet.report("a", "process_memory_usage_bytes", 1e8)
    fleet.report("b", "gen_ai_context_utilization_ratio", 0.4, gen_ai_agent_name="x")
    fleet.report("b", "gen_ai_context_utilization_ratio", 0.9, gen_ai_agent_name="y")
    fleet.report("b", "agent_loop_lag_seconds", 0.003)
    fleet.tick()
    a, b = fleet.figures.row("a"), fleet.figures.row("b")
    assert (a["memory_bytes"], a["context_ratio"], a["loop_lag_s"]) == (1e8, None, None)
    assert (b["memory_bytes"], b["context_ratio"], b["loop_lag_s"]) == (None, 0.9, 0.003)
    assert [a[k] for k in ("tasks_per_min", "error_ratio", "p95_s", "tokens_per_min", "cpu_ratio")] == [None] * 5
    fleet.report("b", "gen_ai_context_utilization_ratio", 0.1, gen_ai_agent_name="y")
    fleet.passes(1)
    assert fleet.figures.row("b")["context_ratio"] == 0.4


def test_cpu_is_time_spent_by_time_passed_in_all_modes() -> None:
    fleet = Fleet().known("a")
    for second in range(1, 61):
        fleet.report("a", "process_cpu_time_seconds_total", 0.2 * second, cpu_mode="user")
        fleet.report("a", "process_cpu_time_seconds_total", 0.05 * second, cpu_mode="system")
        fleet.passes(1)
    assert fleet.figures.row("a")["cpu_ratio"] == pytest.approx(0.25, rel=0.08)


def test_a_gauge_that_is_not_a_number_is_unknown() -> None:
    fleet = Fleet()
    for i, value in enumerate((float("nan"), float("inf"), float("-inf"))):
        fleet.report(f"i{i}", "process_memory_usage_bytes", value)
        fleet.report(f"i{i}", "agent_loop_lag_seconds", value)
    fleet.tick()
    assert [(r["memory_bytes"], r["loop_lag_s"]) for r in fleet.figures.rows().values()] == [(None, None)] * 3


def test_a_steady_rate_is_found_and_stays() -> None:
    fleet = Fleet().known("a")
    for second in range(150):
        fleet.tasks("a", 2.0 * (second + 1))
        fleet.report("a", TOKEN_COUNTERS[0], 100.0 * (second + 1), gen_ai_request_model="m")
        fleet.report("a", TOKEN_COUNTERS[1], 10.0 * (second + 1), gen_ai_request_model="m")
        fleet.passes(1)
        if second > MINUTE_S:
            row = fleet.figures.row("a")
            assert row["tasks_per_min"] == pytest.approx(120, rel=0.03)
            assert row["tokens_per_min"] == pytest.approx(6600, rel=0.03)
    spark = fleet.figures.row("a")["spark"]
    assert spark[-20:] == [120.0] * 20
    assert spark[:25] == [None] * 25


def test_a_young_instance_is_divided_by_its_age() -> None:
    fleet = Fleet().known("a")
    fleet.tasks("a", 10)
    fleet.passes(7)  # 10 tasks in the 10 s since it appeared
    assert fleet.figures.row("a")["tasks_per_min"] == pytest.approx(60)


def test_work_done_before_this_daemon_saw_it_is_no_rate() -> None:
    fleet = Fleet()
    fleet.tasks("a", 1_000_000)
    fleet.tick()
    fleet.passes(2)
    assert fleet.figures.row("a")["tasks_per_min"] == 0.0
    fleet.tasks("a", 1_000_003)
    fleet.passes(1)
    assert fleet.figures.row("a")["tasks_per_min"] == pytest.approx(3 * 60 / 3)


def test_a_counter_that_fell_began_again_at_zero() -> None:
    fleet = Fleet().known("a")
    fleet.tasks("a", 100)
    fleet.passes(1)
    fleet.tasks("a", 5)
    fleet.passes(6)
    assert fleet.figures.row("a")["tasks_per_min"] == pytest.approx(105 * 60 / 10)


def test_a_stale_marker_in_between_counts_nothing_twice() -> None:
    fleet = Fleet().known("a")
    for total in (100, float("nan"), 101):
        fleet.tasks("a", total)
        fleet.passes(1)
    assert fleet.figures.row("a")["tasks_per_min"] == pytest.approx(101 * 60 / 6)


def test_what_is_older_than_a_minute_is_out() -> None:
    fleet = Fleet().known("a")
    fleet.tasks("a", 60)
    fleet.latencies("a", dict.fromkeys(BOUNDS, 60))
    fleet.passes(50)
    assert fleet.figures.row("a")["tasks_per_min"] > 0
    assert fleet.figures.row("a")["p95_s"] is not None
    fleet.passes(11)
    row = fleet.figures.row("a")
    assert (row["tasks_per_min"], row["error_ratio"], row["p95_s"]) == (0.0, None, None)
    assert [p for p in row["spark"] if p] == [720.0]


def test_errors_are_a_share_of_all_tasks_of_all_types() -> None:
    fleet = Fleet().known("a", "b")
    fleet.tasks("a", 6, "parse", "ok")
    fleet.tasks("a", 2, "parse", "error")
    fleet.tasks("a", 1, "search", "error")
    fleet.tasks("a", 3, "search", "cancelled")
    fleet.tasks("b", 4, "parse", "ok")
    fleet.passes(1)
    assert fleet.figures.row("a")["error_ratio"] == pytest.approx(3 / 12)
    assert fleet.figures.row("b")["error_ratio"] == 0.0


def test_p95_is_interpolated_in_its_bucket_over_all_types_of_task() -> None:
    fleet = Fleet().known("a")
    fleet.latencies("a", {"0.1": 50, "1": 50, "10": 50, "+Inf": 50})
    fleet.latencies("a", {"0.1": 0, "1": 50, "10": 50, "+Inf": 50}, kind="search")
    fleet.passes(3)
    expected = 0.1 + 0.9 * (95 - 50) / 50
    assert fleet.figures.row("a")["p95_s"] == pytest.approx(expected)
    fleet.passes(5)
    assert [p for p in fleet.figures.row("a")["latency_spark"] if p is not None] == [pytest.approx(expected, abs=1e-4)]


def test_instances_may_have_bounds_of_their_own() -> None:
    fleet = Fleet().known("a", "b")
    fleet.latencies("a", {"0.1": 0, "1": 100, "10": 100, "+Inf": 100})
    fleet.passes(1)
    before = fleet.figures.row("a")["p95_s"]
    fleet.latencies("b", {"0.5": 0, "5": 100, "+Inf": 100})
    fleet.passes(1)
    assert before == pytest.approx(0.1 + 0.9 * 0.95)
    # Bounds of the other only make a bucket narrower, never wrong.
    assert fleet.figures.row("a")["p95_s"] == pytest.approx(0.5 + 0.5 * 0.95)
    assert fleet.figures.row("b")["p95_s"] == pytest.approx(1.0 + 4.0 * 0.95)


def test_a_thousand_bounds_of_one_agent_neither_grow_without_end_nor_spoil_the_others() -> None:
    fleet = Fleet().known("a", "b", "evil")
    for instance in ("a", "b"):
        fleet.latencies(instance, {"0.1": 0, "1": 100, "10": 100, "+Inf": 100})
    fleet.latencies("evil", {str(2 + i / 1000): 100 for i in range(1000)} | {"+Inf": 100, "<b>": 7})
    fleet.passes(1)
    assert fleet.figures.row("a")["p95_s"] == pytest.approx(0.1 + 0.9 * 0.95)
    assert fleet.figures.size_bytes < 3 * (MOST_BOUNDS + 30) * SLOTS * 8 + 100_000


def test_instances_that_left_are_forgotten_and_their_ids_begin_anew() -> None:
    fleet = Fleet().known("a")
    fleet.tasks("a", 1000)
    fleet.passes(10)
    fleet.head.evict_idle(fleet.now_ms + 3_600_000, 1)
    fleet.passes(1)
    assert fleet.figures.rows() == {}
    fleet.known("b")
    fleet.tasks("b", 1007)  # takes an id that "a" had, and with it 1000 as the value before
    fleet.passes(1)
    row = fleet.figures.row("b")
    assert row["tasks_per_min"] == pytest.approx(1007 * 60 / 4)
    assert row["memory_bytes"] == 0.5
    assert [p for p in row["spark"] if p is not None] in ([], [0.0])


def test_rows_are_used_again_when_instances_come_and_go() -> None:
    fleet = Fleet()
    sizes = []
    for i in range(50):
        fleet.known(f"i{i}")
        fleet.head.evict_idle(fleet.now_ms + 3_600_000, 1)
        fleet.passes(1)
        sizes.append(fleet.figures.size_bytes)
    assert sizes[-1] <= sizes[1]


def test_a_clock_that_jumps_neither_breaks_nor_invents() -> None:
    fleet = Fleet().known("a")
    fleet.tasks("a", 60)
    fleet.passes(1)
    fleet.now_ms += 86_400_000
    fleet.tick()
    row = fleet.figures.row("a")
    assert (row["tasks_per_min"], row["spark"][-2:]) == (0.0, [0.0, 0.0])
    fleet.now_ms -= 3_600_000
    fleet.tasks("a", 61)
    fleet.tick()
    assert fleet.figures.row("a")["tasks_per_min"] is not None


@given(st.lists(st.lists(st.integers(0, RESTART), min_size=3, max_size=3), min_size=1, max_size=40))
def test_every_task_is_counted_once_whatever_the_ticks(steps: list[list[int]]) -> None:
    """Against the plain sum of three instances."""
    fleet = Fleet().known("i0", "i1", "i2")
    totals, counted = [0.0] * 3, [0.0] * 3
    for i in range(3):
        fleet.tasks(f"i{i}", 0)
    fleet.passes(1)
    for step in steps:
        for i, done in enumerate(step):
            if done == RESTART:
                totals[i] = 0.0
                fleet.tasks(f"i{i}", 0)
                fleet.tick()
            else:
                totals[i] += done
                counted[i] += done
                fleet.tasks(f"i{i}", totals[i])
        fleet.passes(1)
    fleet.passes(10)
    for i in range(3):
        points = [p for p in fleet.figures.row(f"i{i}")["spark"] if p is not None]
        assert sum(points) * 5 / 60 == pytest.approx(counted[i])
