"""Received sequence numbers are remembered exactly, in whatever order they come."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from storage.sequences import MOST_RANGES, Sequences


def test_numbers_in_order_are_one_range() -> None:
    had = Sequences()
    assert all(had.add(n) for n in range(1, 1000))
    assert list(had) == [(1, 999)]


def test_a_number_is_new_only_once() -> None:
    had = Sequences()
    assert had.add(5)
    assert not had.add(5)


def test_what_the_sender_no_longer_holds_counts_as_received() -> None:
    had = Sequences()
    had.add(7)
    had.add_below(5)
    assert list(had) == [(1, 4), (7, 7)]
    had.add_below(7)
    assert list(had) == [(1, 7)]
    had.add_below(3)
    assert list(had) == [(1, 7)]


def test_ranges_are_bounded_by_closing_the_oldest_gap() -> None:
    had = Sequences()
    for n in range(1, 2 * (MOST_RANGES + 11), 2):
        had.add(n)
    assert len(had) == MOST_RANGES
    assert 2 in had
    assert 2 * MOST_RANGES not in had


@given(st.lists(st.integers(1, 60), max_size=120))
def test_ranges_agree_with_a_set(numbers: list[int]) -> None:
    had, model = Sequences(), set()
    for n in numbers:
        assert had.add(n) == (n not in model)
        model.add(n)
    ranges = list(had)
    assert {n for first, last in ranges for n in range(first, last + 1)} == model
    assert all(after[0] > before[1] + 1 for before, after in itertools.pairwise(ranges))
    assert all((n in had) == (n in model) for n in range(62))
