"""The fleet as differences: what a viewer that applies them ends up with is what the daemon has."""

from __future__ import annotations

import random
from typing import Any

import pytest
from web_source import START_MS, a_fleet, a_row, live_on

from web.changes import Changes, significant, spark_tail, steady


def applied(shown: dict[str, dict[str, Any]], changed: dict[str, Any], gone: list[str]) -> None:
    """What the page does with a change (store.js: merge)."""
    for instance, difference in changed.items():
        row = shown.setdefault(instance, {})
        for name, value in difference.items():
            if name.endswith("_tail"):
                spark = name.removesuffix("_tail")
                row[spark] = row[spark][int(value[0]) : -1] + value[1:]
            else:
                row[name] = value
    for instance in gone:
        del shown[instance]


@pytest.mark.parametrize(
    ("old", "new", "tail"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0, 3.0]),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 9.0], [0, 9.0]),
        ([1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0], [1, 4.0, 5.0]),
        ([1.0, None, 3.0, 4.0], [None, 3.0, 7.0, None], [1, 7.0, None]),
        ([1.0, 2.0, 3.0], [7.0, 8.0, 9.0], None),
        ([1.0, 2.0], [1.0, 2.0, 3.0], None),
        ([], [], None),
    ],
)
def test_a_sparkline_that_moved_on_is_told_by_its_newest_points(
    old: list[float | None], new: list[float | None], tail: list[float | None] | None
) -> None:
    assert spark_tail(old, new) == tail


def test_unchanged_rows_are_not_told_again() -> None:
    changes = Changes()
    rows = [a_row("a", "1"), a_row("b", "2")]
    assert set(changes.differences(rows, START_MS)) == {"1", "2"}
    later = [a_row("a", "1", since_s=121.0, last_seen_s=0.9), a_row("b", "2", since_s=121.2)]
    assert changes.differences(later, START_MS + 1000) == {}


def test_only_the_field_that_moved_is_told() -> None:
    changes = Changes()
    changes.differences([a_row("a", "1")], START_MS)
    moved = changes.differences([a_row("a", "1", since_s=121.0, cpu_ratio=0.5)], START_MS + 1000)
    assert moved == {"1": {"cpu_ratio": 0.5}}


def test_a_new_state_brings_its_own_since() -> None:
    changes = Changes()
    changes.differences([a_row("a", "1")], START_MS)
    moved = changes.differences([a_row("a", "1", "stale", since_s=0.5)], START_MS + 1000)
    assert moved["1"]["state"] == "stale"
    assert moved["1"]["since_ms"] == START_MS + 500


def test_an_age_is_told_once_an_agent_falls_silent_and_then_stands_still() -> None:
    changes = Changes()
    changes.differences([a_row("a", "1", last_seen_s=4.0)], START_MS)
    silent = changes.differences([a_row("a", "1", since_s=130.0, last_seen_s=14.0)], START_MS + 10_000)
    assert silent == {"1": {"seen_ms": START_MS - 4000}}
    assert changes.differences([a_row("a", "1", since_s=131.0, last_seen_s=15.0)], START_MS + 11_000) == {}


def test_the_lists_of_the_daemon_may_move_on_in_place() -> None:
    changes, spark = Changes(), [1.0, 2.0, 3.0]
    row = a_row("a", "1", spark=spark)
    changes.differences([row], START_MS)
    spark[:] = [2.0, 3.0, 4.0]
    assert changes.differences([row], START_MS) == {"1": {"spark_tail": [1, 3.0, 4.0]}}


def test_differences_applied_in_order_give_what_a_newcomer_is_told() -> None:
    rng, fleet = random.Random(3), a_fleet(40)
    changes, shown = Changes(), {}
    for turn in range(30):
        rows = list(fleet.rows())
        applied(shown, changes.differences(rows, fleet.now_ms()), changes.gone({row["instance"] for row in rows}))
        assert shown == changes.told
        live_on(fleet, rng, 1.0)
        if turn % 7 == 3:
            del fleet.fleet[rng.choice(list(fleet.fleet))]
            row = a_row(f"new-{turn}", f"n{turn}")
            fleet.fleet[row["instance"]] = row
    assert {row["agent"] for row in fleet.rows()} == {row["agent"] for row in shown.values()}


@pytest.mark.parametrize(("value", "told"), [(None, None), (0.0, 0.0), (1 / 3, 0.3333), (123_456.0, 123_500.0)])
def test_numbers_are_told_at_four_digits(value: float | None, told: float | None) -> None:
    assert significant(value) == told


def test_times_that_wobble_stand_still() -> None:
    assert steady(10_900.0, 10_000.0) == 10_000
    assert steady(13_000.4, 10_000.0) == 13_000
