"""Label sets are found by matchers, as a list of dictionaries would be searched, and nothing is kept of what left."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from storage.labels import METRIC_NAME, LabelIndex, Postings, shape_labels, split
from storage.matchers import Matcher
from storage.types import Labels, Shape, labels_of

NAMES = ("a", "b", "c")
VALUES = ("x", "y", "xy", "yx")
label_sets = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), max_size=3).map(labels_of), max_size=12
)
matchers = st.one_of(
    st.builds(
        Matcher, st.sampled_from((*NAMES, "d")), st.sampled_from(("=", "!=")), st.sampled_from(("", *VALUES, "z"))
    ),
    st.builds(
        Matcher,
        st.sampled_from((*NAMES, "d")),
        st.sampled_from(("=~", "!~")),
        st.sampled_from(("", "x|y", "x|z|", ".*", ".+", "x.*", ".*y", "[xy]", "[xy]?", "z")),
    ),
)


def holds(labels: Labels, wanted: list[Matcher]) -> bool:
    own = dict(labels)
    return all(matcher.matches(own.get(matcher.name, "")) for matcher in wanted)


def added(sets: list[Labels]) -> LabelIndex:
    index = LabelIndex()
    for number, labels in enumerate(sets):
        index.add(number, labels)
    return index


@settings(max_examples=400, deadline=None)
@given(label_sets, st.lists(matchers, max_size=3), st.booleans())
def test_select_finds_what_a_search_through_all_sets_finds(sets: list, wanted: list, at_once: bool) -> None:
    index = LabelIndex.of(sets) if at_once else added(sets)
    assert list(index.select(wanted)) == [number for number, labels in enumerate(sets) if holds(labels, wanted)]


@settings(max_examples=200, deadline=None)
@given(label_sets, st.data())
def test_what_is_removed_is_as_if_it_had_never_been(sets: list, data: st.DataObject) -> None:
    index = added(sets)
    gone = data.draw(st.sets(st.integers(0, len(sets) - 1))) if sets else set()
    for number in gone:
        index.remove(number, sets[number])
    left = {number: dict(labels) for number, labels in enumerate(sets) if number not in gone}
    assert len(index) == len(left)
    assert list(index.select([])) == list(left)
    assert index.names() == sorted({name for labels in left.values() for name in labels})
    for name in NAMES:
        held = [labels[name] for labels in left.values() if name in labels]
        assert index.values(name) == sorted(set(held))
        assert dict(index.cardinality(name, most=99)) == {value: held.count(value) for value in held}
        assert index.value_counts().get(name, 0) == len(set(held))
        for value in VALUES:
            assert index.has(name, value) == (value in held)
            assert list(index.select([Matcher(name, "=", value)])) == [
                n for n, x in left.items() if x.get(name) == value
            ]


@settings(max_examples=100, deadline=None)
@given(label_sets, st.sets(st.integers(0, 11)))
def test_names_and_values_can_be_asked_of_some_sets_alone(sets: list, some: set) -> None:
    index = LabelIndex.of(sets)
    among = [dict(labels) for number, labels in enumerate(sets) if number in some]
    assert index.names(BitMap(some)) == sorted({name for labels in among for name in labels})
    for name in NAMES:
        assert index.values(name, BitMap(some)) == sorted({labels[name] for labels in among if name in labels})


def test_numbers_need_not_be_dense() -> None:
    index = LabelIndex()
    for number in (7, 4_000_000_000):
        index.add(number, labels_of({"a": "x"}))
    assert list(index.select([Matcher("a", "=~", "x|y")])) == [7, 4_000_000_000]
    assert list(index.select([Matcher("a", "!=", "x")])) == []


def test_the_largest_come_first_and_equal_ones_by_value() -> None:
    index = LabelIndex.of([labels_of({"a": value}) for value in ("q", "r", "r", "b", "s", "s")])
    assert index.cardinality("a", most=3) == [("r", 2), ("s", 2), ("b", 1)]
    assert index.cardinality("a", most=2, weigh=lambda number: 10 - number) == [("r", 17), ("s", 11)]
    assert index.cardinality("other", most=3) == []


def test_a_pattern_is_held_against_each_value_once(monkeypatch: pytest.MonkeyPatch) -> None:
    index = LabelIndex.of([labels_of({"a": "xyz"[i % 3], "b": str(i)}) for i in range(3000)])
    seen: list[list[str]] = []
    among = Matcher.among
    monkeypatch.setattr(Matcher, "among", lambda self, values: seen.append(list(values)) or among(self, values))
    assert len(index.select([Matcher("a", "=~", "[xy]"), Matcher("b", "=", "7")])) == 1
    assert len(index.select([Matcher("a", "!~", "x|y")])) == 1000
    assert [sorted(values) for values in seen] == [["x", "y", "z"]]


def test_what_select_gives_is_the_callers_own() -> None:
    index = LabelIndex.of([labels_of({"a": "x"}), labels_of({"a": "x", "b": "y"})])
    for wanted in ([], [Matcher("a", "=", "x")], [Matcher("c", "=", "")]):
        index.select(wanted).clear()
        assert list(index.select(wanted)) == [0, 1]


def test_a_shape_is_found_by_its_metric_too() -> None:
    shapes = [Shape("m_total", labels_of({"kind": "x"})), Shape("n", ())]
    index = LabelIndex.of(shape_labels(shape) for shape in shapes)
    assert list(index.select([Matcher(METRIC_NAME, "=~", "m_.*")])) == [0]
    assert list(index.select([Matcher("kind", "=", "")])) == [1]


def test_matchers_are_parted_by_whose_label_they_ask_for() -> None:
    asked = [Matcher(name, "=", "x") for name in ("job", METRIC_NAME, "kind", "instance")]
    of_owner, of_shape = split(asked)
    assert [m.name for m in of_owner] == ["job", "instance"]
    assert [m.name for m in of_shape] == [METRIC_NAME, "kind"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5))))
def test_postings_are_as_a_dictionary_of_sets(toggles: list) -> None:
    """Each pair goes in when it is out, and out when it is in."""
    postings, model = Postings[int](), dict[int, set[int]]()
    for key, number in toggles:
        if number in model.get(key, ()):
            model[key].remove(number)
            if not model[key]:
                del model[key]
            assert postings.discard(key, number) == (key not in model)
        else:
            model.setdefault(key, set()).add(number)
            postings.add(key, number)
        assert {key: set(postings.get(key)) for key in postings} == model
        assert [postings.count(key) for key in range(4)] == [len(model.get(key, ())) for key in range(4)]
        assert set(postings.union([0, 2, 3])) == model.get(0, set()) | model.get(2, set())
        assert set(postings.among(BitMap([number]))) == {key for key, held in model.items() if number in held}
        assert (len(postings), 0 in postings) == (len(model), 0 in model)
