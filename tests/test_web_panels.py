"""The charts of one agent, over real rings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from web_source import START_MS, FakeFleet, a_row, an_hour_of_work

from web.expressions import MOST_LINES, Newest, Quantiles, Range, Rate, Reader, Share, windowed_rate
from web.panels import MOST_STEPS, PANELS, evaluate, range_of

NOW_MS = START_MS // 10_000 * 10_000


def reader_of(series: dict[tuple[str, tuple[tuple[str, str], ...]], Any], step_ms: int = 10_000) -> Reader:
    """An agent with these series, a sample each 10 s up to NOW_MS, read over the last ten minutes."""
    fleet, row = FakeFleet(now_ms=NOW_MS), a_row("a", "1")
    count = len(next(iter(series.values())))
    fleet.append(row, series, NOW_MS - np.arange(count - 1, -1, -1) * 10_000)
    return Reader(fleet.store, "1", Range(NOW_MS - 600_000, NOW_MS, step_ms))


def test_a_steady_counter_has_a_steady_rate() -> None:
    reader = reader_of({("c_total", ()): np.arange(100) * 20.0})
    ((name, values),) = Rate("c_total", "c", scale=60).lines(reader)
    assert name == "c"
    assert len(values) == 61
    np.testing.assert_allclose(values, 120.0)


def test_a_counter_that_began_again_does_not_fall() -> None:
    reader = reader_of({("c_total", ()): [*np.arange(50) * 20.0, *np.arange(50) * 20.0]})
    ((_, values),) = Rate("c_total", "c").lines(reader)
    assert np.nanmin(values) >= 0
    assert np.nanmax(values) == pytest.approx(2.0)


def test_a_window_that_knows_only_a_part_is_not_too_low() -> None:
    known = np.array([[np.nan, np.nan, 5.0, 10.0, 15.0]])
    np.testing.assert_allclose(windowed_rate(known, 3, 1.0), [[5.0, 5.0]])
    assert np.isnan(windowed_rate(np.full((1, 5), np.nan), 3, 1.0)).all()


def test_before_the_first_sample_nothing_is_known() -> None:
    ((_, values),) = Newest("g", "g").lines(reader_of({("g", ()): np.full(10, 7.0)}))
    assert np.isnan(values[:45]).all()
    assert values[-1] == 7.0


def test_series_are_summed_by_label_and_the_rest_is_named_other() -> None:
    many = {("g", (("kind", f"k{n:02d}"),)): np.full(100, float(n)) for n in range(12)}
    lines = dict(Newest("g", "g", "kind").lines(reader_of(many)))
    assert len(lines) == MOST_LINES
    assert lines["k11"][-1] == 11.0
    assert sum(values[-1] for values in lines.values()) == sum(range(12))
    assert lines["other"][-1] == 0 + 1 + 2 + 3 + 4


def test_the_error_ratio_counts_errors_among_all_and_is_unknown_without_tasks() -> None:
    count = ("agent_task_duration_seconds_count", (("outcome", "ok"),))
    failed = ("agent_task_duration_seconds_count", (("outcome", "error"),))
    done = np.minimum(np.arange(100), 60) * 3.0
    ((_, values),) = Share(count[0], "errors", {"outcome": "error"}).lines(reader_of({count: done, failed: done / 3}))
    np.testing.assert_allclose(values[:15], 0.25)
    assert np.isnan(values[-1])


def test_quantiles_are_those_of_the_window() -> None:
    grown = np.arange(100) * 10.0
    series = {
        ("h_bucket", (("le", "1"), ("kind", "x"))): grown * 0.5,
        ("h_bucket", (("le", "2"), ("kind", "x"))): grown,
        ("h_bucket", (("le", "+Inf"), ("kind", "x"))): grown,
    }
    lines = dict(Quantiles("h", (0.5, 0.95)).lines(reader_of(series)))
    np.testing.assert_allclose(lines["p50"], 1.0)
    np.testing.assert_allclose(lines["p95"], 1.9)
    ((name, _),) = Quantiles("h", (0.95,), "kind").lines(reader_of(series))
    assert name == "x"


def test_another_agents_series_stay_out() -> None:
    fleet = FakeFleet(now_ms=NOW_MS)
    for instance, value in (("1", 1.0), ("2", 100.0)):
        fleet.append(a_row("a", instance), {("g", ()): [value]}, [NOW_MS])
    ((_, values),) = Newest("g", "g").lines(Reader(fleet.store, "1", Range(NOW_MS - 10_000, NOW_MS, 10_000)))
    assert values[-1] == 1.0


def test_an_agent_at_work_fills_its_charts() -> None:
    fleet, row = FakeFleet(now_ms=NOW_MS), a_row("a", "1")
    an_hour_of_work(fleet, row)
    panels = {panel["id"]: panel for panel in evaluate(fleet.store, "1", range_of({}, NOW_MS))}
    assert list(panels) == [panel.id for panel in PANELS]
    assert [line["name"] for line in panels["tasks"]["lines"]] == ["plan", "search", "summarize"]
    assert [line["name"] for line in panels["latency"]["lines"]] == ["p50", "p95", "p99"]
    assert [line["name"] for line in panels["cpu"]["lines"]] == ["system", "user"]
    assert panels["gpu"]["lines"] == []
    lengths = {len(line["values"]) for panel in panels.values() for line in panel["lines"]}
    assert len(lengths) == 1
    assert all(
        value is None or math.isfinite(value)
        for panel in panels.values()
        for line in panel["lines"]
        for value in line["values"]
    )


def test_ranges_lie_on_multiples_of_their_step() -> None:
    over = range_of({"from": "1003.2", "to": "1601", "step": "15"}, NOW_MS)
    assert (over.start_ms, over.end_ms, over.step_ms) == (990_000, 1_590_000, 15_000)
    assert len(over.steps_ms) == 41


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"from": "x"}, "from: got 'x', expected seconds"),
        ({"from": "nan"}, "from: got 'nan', expected seconds"),
        ({"to": "-5"}, "to: got '-5', expected seconds"),
        ({"from": "200", "to": "100"}, "from, to: got 200 to 100"),
        ({"step": "0"}, "step: got 0, expected 1 second or more"),
        ({"from": "0", "to": "100000", "step": "1"}, f"expected at most {MOST_STEPS}"),
    ],
)
def test_a_range_that_cannot_be_is_named(query: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match="got") as error:
        range_of(query, NOW_MS)
    assert said in str(error.value)
