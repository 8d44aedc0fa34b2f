"""Aggregations: over which series, with which numbers, and in which order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_promql_notation import MINUTE, STALE, Samples, matrix, vector

from storage.promql import Engine, QueryError
from storage.promql.xxhash import xxh64

INF, NAN = math.inf, math.nan
WORLD = """
    m{g="a",n="1"} 1
    m{g="a",n="2"} 2
    m{g="a",n="3"} NaN
    m{g="b",n="4"} 4
    m{g="b",n="5"} 4
    m{n="6"} -Inf
"""


@pytest.fixture
def engine() -> Engine:
    return Samples.load(WORLD, MINUTE).engine()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("sum by (g) (m)", {'{g="a"}': NAN, '{g="b"}': 8, "{}": -INF}),
        ("sum(m) by (g)", {'{g="a"}': NAN, '{g="b"}': 8, "{}": -INF}),
        ("sum without (n) (m)", {'{g="a"}': NAN, '{g="b"}': 8, "{}": -INF}),
        ("avg by (g) (m)", {'{g="a"}': NAN, '{g="b"}': 4, "{}": -INF}),
        ("min by (g) (m)", {'{g="a"}': 1, '{g="b"}': 4, "{}": -INF}),
        ("max by (g) (m)", {'{g="a"}': 2, '{g="b"}': 4, "{}": -INF}),
        ("count by (g) (m)", {'{g="a"}': 3, '{g="b"}': 2, "{}": 1}),
        ("group by (g) (m)", {'{g="a"}': 1, '{g="b"}': 1, "{}": 1}),
        ("stdvar by (g) (m)", {'{g="a"}': NAN, '{g="b"}': 0, "{}": NAN}),
        ("stddev(m{n=~'[125]'})", {"{}": math.sqrt(14 / 9)}),
        (
            "quantile by (g) (0.5, m)",
            {'{g="a"}': 1, '{g="b"}': 4, "{}": NAN},
        ),  # NaN is the least; infinity times nothing
        ("quantile by (g) (-1, m)", {'{g="a"}': -INF, '{g="b"}': -INF, "{}": -INF}),
        ("quantile(NaN, m)", {"{}": NAN}),
        ("count(m)", {"{}": 6}),
        ("count by (nothing) (m)", {"{}": 6}),
        ("sum by (g, __name__) (m{g='b'})", {'m{g="b"}': 8}),
        ("sum(nothing)", {}),
        ("topk(1, m)", {'m{g="b", n="4"}': 4}),
        ("topk by (g) (1, m)", {'m{g="a", n="2"}': 2, 'm{g="b", n="4"}': 4, 'm{n="6"}': -INF}),
        ("bottomk(2, m)", {'m{n="6"}': -INF, 'm{g="a", n="1"}': 1}),
        ("bottomk(9, m{g='a'})", {'m{g="a", n="1"}': 1, 'm{g="a", n="2"}': 2, 'm{g="a", n="3"}': NAN}),
        ("topk(0, m)", {}),
        ("topk(1.9, m{g='b'})", {'m{g="b", n="4"}': 4}),
        ("limitk(1, m{g='b'})", {'m{g="b", n="4"}': 4}),
        ("limitk by (g) (1, m{g!=''})", {'m{g="a", n="1"}': 1, 'm{g="b", n="4"}': 4}),
        ("limit_ratio(0, m)", {}),
        ("count(limit_ratio(0.5, m) or limit_ratio(-0.5, m))", {"{}": 6}),
        ("limit_ratio(0.5, m) and limit_ratio(-0.5, m)", {}),
        ('count_values("v", m)', {'{v="1"}': 1, '{v="2"}': 1, '{v="NaN"}': 1, '{v="4"}': 2, '{v="-Inf"}': 1}),
        ('count_values by (g) ("v", m{g="b"})', {'{g="b", v="4"}': 2}),
        ('count_values by (g) ("g", m{g="b"})', {'{g="4"}': 2}),
        ('count_values without (n) ("v", m{g="b"})', {'{g="b", v="4"}': 2}),
        ('count_values without (n, v) ("v", m{g="a"})', {'{g="a"}': 3}),
    ],
)
def test_groups_and_their_numbers(engine: Engine, expression: str, expected: dict[str, float]) -> None:
    np.testing.assert_equal(vector(engine.instant(expression, 0)), expected)


def test_the_best_come_first(engine: Engine) -> None:
    assert [labels["n"] for labels in engine.instant("topk(6, m)", 0).labels] == ["4", "5", "2", "1", "6", "3"]
    assert [labels["n"] for labels in engine.instant("bottomk(6, m)", 0).labels] == ["6", "1", "2", "4", "5", "3"]


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("topk(NaN, m)", "Parameter value is NaN"),
        ("bottomk(1e19, m)", "Scalar value 1e+19 overflows int64"),
        ("limit_ratio(NaN, m)", "Ratio value is NaN"),
        ('count_values("", m)', 'invalid label name ""'),
    ],
)
def test_a_parameter_that_means_nothing_is_refused(engine: Engine, expression: str, text: str) -> None:
    with pytest.raises(QueryError) as error:
        engine.instant(expression, 0)
    assert (error.value.kind, error.value.text) == ("execution", text)


def test_parameters_may_change_from_step_to_step() -> None:
    engine = Samples.load('m{n="1"} 1 5 3\nm{n="2"} 2 4 9\nk 1 2 0', MINUTE).engine()
    assert matrix(engine.range("topk(scalar(k), m)", 0, 2 * MINUTE, MINUTE)) == {
        'm{n="1"}': {MINUTE: 5},
        'm{n="2"}': {0: 2, MINUTE: 4},
    }
    assert matrix(engine.range("quantile(scalar(k) - 1, m)", 0, MINUTE, MINUTE)) == {"{}": {0: 1, MINUTE: 5}}


def test_an_average_does_not_overflow() -> None:
    engine = Samples.load('m{n="1"} 1e308\nm{n="2"} 1e308\nm{n="3"} 1e308\nm{n="4"} -1e308').engine()
    assert engine.instant("avg(m)", 0).values.tolist() == [pytest.approx(0.5e308, rel=1e-15)]
    assert engine.instant("sum(m)", 0).values.tolist() == [INF]
    assert engine.instant("avg(m{n!='4'})", 0).values.tolist() == [pytest.approx(1e308, rel=1e-15)]


@pytest.mark.parametrize("operation", ["sum", "avg", "stddev", "stdvar", "min", "max", "count", "group", "quantile"])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_aggregations_agree_with_their_definition(operation: str, data: st.DataObject) -> None:
    """Also where series come and go, and where a group is large."""
    large = data.draw(st.booleans())
    many = data.draw(st.integers(600, 700) if large else st.integers(1, 9))
    dice = np.random.default_rng(data.draw(st.integers(0, 1000)))
    values = np.round(dice.normal(0, 100, (many, 3)), 3)
    there = dice.random((many, 3)) < 0.8
    samples = [
        (
            {"__name__": "m", "g": str(i % 2), "n": str(i)},
            [(k * MINUTE, float(v) if t else STALE) for k, (v, t) in enumerate(zip(row, mask, strict=True))],
        )
        for i, (row, mask) in enumerate(zip(values, there, strict=True))
    ]
    expression = "quantile by (g) (0.3, m)" if operation == "quantile" else f"{operation} by (g) (m)"
    got = matrix(Samples(samples).engine().range(expression, 0, 2 * MINUTE, MINUTE))
    definition = {
        "sum": math.fsum, "avg": lambda v: math.fsum(v) / len(v), "stddev": np.std, "stdvar": np.var, "min": min, "max": max,
        "count": len, "group": lambda v: 1, "quantile": lambda v: np.quantile(v, 0.3),
    }[operation]  # fmt: skip
    for g in (0, 1):
        own = {k * MINUTE: [values[i, k] for i in range(g, many, 2) if there[i, k]] for k in range(3)}
        expected = {time: float(definition(v)) for time, v in own.items() if v}
        assert got.get(f'{{g="{g}"}}', {}) == pytest.approx(expected, rel=1e-10, abs=1e-9)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_the_hash_is_xxhash64(data: bytes, expected: int) -> None:
    assert xxh64(data) == expected
