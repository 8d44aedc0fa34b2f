from __future__ import annotations

import pytest

from bench.harness import Figure, Session, ratio, spread
from bench.machine import BenchError

RATE = Figure("rate", "1/s", higher_is_better=True)
COST = Figure("cost", "ns", higher_is_better=False)
KEYS = {"bench", "case", "figure", "unit", "median", "spread", "peers", "ratios"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2, 3, 4, 5], 2.0), ([5, 1, 4, 2, 3], 2.0), ([7], 0.0), ([0, 0, 0, 100], 25.0)],
)
def test_spread_is_the_interquartile_range(values: list[float], expected: float) -> None:
    assert spread(values) == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "higher_is_better", "expected"),
    [(6.0, 2.0, True, 3.0), (2.0, 6.0, True, 1 / 3), (2.0, 6.0, False, 3.0), (6.0, 2.0, False, 1 / 3)],
)
def test_a_ratio_above_one_means_that_ours_is_better(
    ours: float, theirs: float, higher_is_better: bool, expected: float
) -> None:
    assert ratio(ours, theirs, higher_is_better=higher_is_better) == pytest.approx(expected)


def test_rows_hold_the_medians_of_ours_and_of_every_peer() -> None:
    session = Session("example")
    for value in (10.0, 30.0, 20.0):
        session.add("one", RATE, value)
        session.add("one", RATE, value / 10, "peer")
    session.add("two", COST, 5.0)
    one, two = session.rows()
    assert (one.median, one.spread, one.peers, one.ratios) == (20.0, 10.0, {"peer": 2.0}, {"peer": 10.0})
    assert (two.case, two.figure, two.unit, two.peers, two.ratios) == ("two", "cost", "ns", {}, {})


def test_a_row_as_json_has_exactly_the_keys_of_the_fixed_interface() -> None:
    session = Session("example")
    session.add("one", RATE, 1.0)
    assert set(session.rows()[0].as_json()) == KEYS


def test_figures_of_peers_alone_are_an_error() -> None:
    session = Session("example")
    session.add("one", RATE, 1.0, "peer")
    with pytest.raises(BenchError, match="expected ours too"):
        session.rows()


@pytest.mark.parametrize(("quick", "expected"), [(False, [0, 1, 2, 3, 4]), (True, [0])])
def test_quick_takes_one_round(quick: bool, expected: list[int]) -> None:
    assert list(Session("example", quick=quick).rounds(5, "rounds")) == expected


def test_a_note_is_kept_once() -> None:
    session = Session("example")
    session.note("mind this")
    session.note("mind this")
    assert session.notes == ["mind this"]
