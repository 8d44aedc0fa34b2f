"""Operators between vectors: which elements meet, what the results are called, and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_promql_notation import MINUTE, Samples, matrix, vector

from storage.promql import Engine, QueryError
from storage.promql.labels import Column, LabelTable, concatenated, joint_codes
from storage.types import Labels

WORLD = """
    a{x="1",y="p"} 1
    a{x="2",y="q"} 2
    b{x="1",y="p"} 10
    b{x="3",y="r"} 30
    many{x="1",m="u"} 5
    many{x="1",m="v"} 7
    info{x="1",version="9"} 1
    twice{x="1",y="p",k="1"} 1
    twice{x="1",y="p",k="2"} 1
"""


@pytest.fixture
def engine() -> Engine:
    return Samples.load(WORLD, MINUTE).engine()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a + b", {'{x="1", y="p"}': 11}),
        ("a - on(x) b", {'{x="1"}': -9}),
        ("a * ignoring(y) b", {'{x="1"}': 10}),
        ("b atan2 a", {'{x="1", y="p"}': math.atan2(10, 1)}),
        ("b ^ a % 4", {'{x="1", y="p"}': 2}),
        ("a < b", {'a{x="1", y="p"}': 1}),
        ("a > b", {}),
        ("a > bool b", {'{x="1", y="p"}': 0}),
        ("a < on(x) b", {'{x="1"}': 1}),
        ("a > 1", {'a{x="2", y="q"}': 2}),
        ("1 < a", {'a{x="2", y="q"}': 2}),
        ("1 < bool a", {'{x="1", y="p"}': 0, '{x="2", y="q"}': 1}),
        ("2 - a", {'{x="1", y="p"}': 1, '{x="2", y="q"}': 0}),
        ("1 > bool 2", {"{}": 0}),
        ("a and b", {'a{x="1", y="p"}': 1}),
        ("a unless b", {'a{x="2", y="q"}': 2}),
        ("a or b", {'a{x="1", y="p"}': 1, 'a{x="2", y="q"}': 2, 'b{x="3", y="r"}': 30}),
        ("a and on() nothing", {}),
        ("a unless on() nothing", {'a{x="1", y="p"}': 1, 'a{x="2", y="q"}': 2}),
        ("a or on(y) b", {'a{x="1", y="p"}': 1, 'a{x="2", y="q"}': 2, 'b{x="3", y="r"}': 30}),
        ("many and on(x) a", {'many{m="u", x="1"}': 5, 'many{m="v", x="1"}': 7}),
        ("many * on(x) group_left a", {'{m="u", x="1"}': 5, '{m="v", x="1"}': 7}),
        ("many * on(x) group_left(version) info", {'{m="u", version="9", x="1"}': 5, '{m="v", version="9", x="1"}': 7}),
        (
            "info * on(x) group_right(version) many",
            {'{m="u", version="9", x="1"}': 5, '{m="v", version="9", x="1"}': 7},
        ),
        ("many - on(x) group_left(m) info", {}),
        ("info / on(x) group_right many", {'{m="u", x="1"}': 1 / 5, '{m="v", x="1"}': 1 / 7}),
        ("many > on(x) group_left a", {'many{m="u", x="1"}': 5, 'many{m="v", x="1"}': 7}),
        ("nothing + a", {}),
        ("a + nothing", {}),
    ],
)
def test_elements_meet_by_their_labels(engine: Engine, expression: str, expected: dict[str, float]) -> None:
    if "group_left(m) info" in expression:
        with pytest.raises(QueryError, match="grouping labels must ensure unique matches"):
            engine.instant(expression, 0)
        return
    got = vector(engine.instant(expression, 0))
    assert got == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (
            "a + on(x) twice",
            'found duplicate series for the match group {x="1"} on the right hand-side of the operation: '
            '[{__name__="twice", k="1", x="1", y="p"}, {__name__="twice", k="2", x="1", y="p"}];many-to-many matching not '
            "allowed: matching labels must be unique on one side",
        ),
        (
            "twice + ignoring(k, version, y) group_right info",
            'found duplicate series for the match group {x="1"} on the left hand-side of the operation: '
            '[{__name__="twice", k="1", x="1", y="p"}, {__name__="twice", k="2", x="1", y="p"}];many-to-many matching not '
            "allowed: matching labels must be unique on one side",
        ),
        (
            "twice + on(x) info",
            "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)",
        ),
        (
            "twice > on(x) info",
            "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)",
        ),
        ("many + on(x) group_left(m) info", "multiple matches for labels: grouping labels must ensure unique matches"),
        ('{x="1"} * 2', "vector cannot contain metrics with the same labelset"),
    ],
)
def test_what_meets_more_than_once_is_refused_in_prometheus_words(engine: Engine, expression: str, text: str) -> None:
    with pytest.raises(QueryError) as error:
        engine.instant(expression, 0)
    assert (error.value.kind, error.value.text) == ("execution", text)


def test_matching_is_of_each_step() -> None:
    engine = Samples.load(
        'l{x="1",k="1"} 1 1 stale\nl{x="1",k="2"} _ _ 2 2\nr{x="1",k="3"} 10 stale _ 10\nr{x="1",k="4"} _ 20 20 stale',
        MINUTE,
    ).engine()
    assert matrix(engine.range("l + on(x) r", 0, 3 * MINUTE, MINUTE)) == {
        '{x="1"}': {0: 11, MINUTE: 21, 2 * MINUTE: 22, 3 * MINUTE: 12}
    }
    assert matrix(engine.range("l or on(x) r", 0, 3 * MINUTE, MINUTE)) == {
        'l{k="1", x="1"}': {0: 1, MINUTE: 1},
        'l{k="2", x="1"}': {2 * MINUTE: 2, 3 * MINUTE: 2},
    }
    with pytest.raises(QueryError, match="found duplicate series"):
        engine.range("r + on(x) (l or (l offset 2m))", 0, 3 * MINUTE, MINUTE)


# Label tables against plain dictionaries

label_sets: st.SearchStrategy[Labels] = st.dictionaries(
    st.sampled_from("abc"), st.sampled_from(["1", "2"]), max_size=3
).map(lambda d: tuple(sorted(d.items())))
some = settings(deadline=None, max_examples=150)


@st.composite
def tables(draw: st.DrawFn) -> tuple[LabelTable, list[Labels]]:
    """Label sets in one part or in several."""
    sets = draw(st.lists(label_sets, min_size=1, max_size=6))
    table = LabelTable.listed(sets)
    if draw(st.booleans()):
        words = draw(st.lists(st.sampled_from(["", "x", "y"]), min_size=len(sets), max_size=len(sets)))
        column = Column(np.arange(len(sets)), words)
        name = draw(st.sampled_from("acd"))
        table = table.with_column(name, column)
        sets = [
            tuple(sorted({**dict(s), name: w}.items())) if w else tuple(p for p in s if p[0] != name)
            for s, w in zip(sets, words, strict=True)
        ]
    return table, sets


@given(tables(), st.sets(st.sampled_from("abcd"), max_size=3))
@some
def test_a_table_does_what_dictionaries_do(given_: tuple[LabelTable, list[Labels]], names: set[str]) -> None:
    table, sets = given_
    assert table.texts() == sets
    assert table.dicts() == [dict(labels) for labels in sets]
    assert [table.one(i) for i in range(len(sets))] == sets
    assert table.without(names).texts() == [tuple(p for p in s if p[0] not in names) for s in sets]
    assert table.only(names).texts() == [tuple(p for p in s if p[0] in names) for s in sets]
    for name in names:
        column = table.column(name)
        assert [column.words[c] for c in column.codes.tolist()] == [dict(s).get(name, "") for s in sets]
    rows = np.arange(len(sets))[::-1]
    assert table.take(rows).texts() == sets[::-1]
    assert table.has_duplicates() == (len(set(sets)) < len(sets))


@given(tables(), tables(), st.sets(st.sampled_from("abcd"), max_size=2))
@some
def test_numbers_are_equal_when_label_sets_are(
    first: tuple[LabelTable, list[Labels]], second: tuple[LabelTable, list[Labels]], names: set[str]
) -> None:
    left, right = first[0].without(names), second[0].without(names)
    codes = np.concatenate(joint_codes([left, right])).tolist()
    sets = left.texts() + right.texts()
    for (code, labels), (other_code, other) in itertools.combinations(zip(codes, sets, strict=True), 2):
        assert (code == other_code) == (labels == other)
    assert concatenated(left, right).texts() == sets
