"""Selectors, time, and what is asked of them: lookback, staleness, offsets, @, subqueries, and what is read for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_promql_notation import MINUTE, Samples, matrix, vector

from storage.promql import Engine
from storage.store import Store
from storage.types import STALE_BITS, Meta, Shape

WORLD = """
    up{job="a",instance="1"} 1 0 1 1 1
    up{job="b",instance="1"} 0 0 0 0 0
    load{job="a",instance="1",mode="x"} 0+10x10
    gap 1 _ _ _ 5
    gone 1 2 stale _ _ 9
    odd NaN NaN NaN
    {"my.metric", "label.name"="v"} 3x10
    {"ünï", "ñ"="é"} 1x10
"""


@pytest.fixture
def engine() -> Engine:
    return Samples.load(WORLD, MINUTE).engine()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("up", {'up{instance="1", job="a"}': 1, 'up{instance="1", job="b"}': 0}),
        ('up{job="a"}', {'up{instance="1", job="a"}': 1}),
        ('up{job!="a"}', {'up{instance="1", job="b"}': 0}),
        ('up{job=~"a|c"}', {'up{instance="1", job="a"}': 1}),
        ('up{job!~"a|c"}', {'up{instance="1", job="b"}': 0}),
        ('up{mode=""}', {'up{instance="1", job="a"}': 1, 'up{instance="1", job="b"}': 0}),
        ('{__name__=~"u.",job="b"}', {'up{instance="1", job="b"}': 0}),
        ('{"my.metric"}', {'my.metric{label.name="v"}': 3}),
        ('{"my.metric","label.name"=~"v"}', {'my.metric{label.name="v"}': 3}),
        ('{"ünï","ñ"="é"}', {'ünï{ñ="é"}': 1}),
        ("nothing", {}),
        ("up offset 2m", {'up{instance="1", job="a"}': 0, 'up{instance="1", job="b"}': 0}),
        ("load offset -1m", {'load{instance="1", job="a", mode="x"}': 40}),
        ("load @ 60", {'load{instance="1", job="a", mode="x"}': 10}),
        ("load @ 60 offset 1m", {'load{instance="1", job="a", mode="x"}': 0}),
        ("load @ end()", {'load{instance="1", job="a", mode="x"}': 30}),
        ("sum(load @ start())", {"{}": 30}),
        ("1 + 2 * 3 ^ 2 ^ 0", {"{}": 7}),
        ("-2 ^ 2", {"{}": -4}),
        ("7 % -4", {"{}": 3}),
        ("1 / 0", {"{}": math.inf}),
        ("0x1F + 1_000 + 5m", {"{}": 1331}),
    ],
)
def test_selectors_find_what_they_ask_for(engine: Engine, expression: str, expected: dict[str, float]) -> None:
    assert vector(engine.instant(expression, 3 * MINUTE)) == expected


def test_a_sample_is_seen_until_it_is_as_old_as_the_lookback(engine: Engine) -> None:
    assert vector(engine.instant("gap", 5 * MINUTE - 1, lookback_ms=5 * MINUTE)) == {"gap": 5}
    early = Samples.load("once 7", MINUTE).engine()
    assert vector(early.instant("once", 5 * MINUTE - 1)) == {"once": 7}
    assert vector(early.instant("once", 5 * MINUTE)) == {}
    assert vector(early.instant("once", 5 * MINUTE, lookback_ms=5 * MINUTE + 1)) == {"once": 7}


def test_a_window_is_open_on_the_left(engine: Engine) -> None:
    counts = [engine.instant(f"count_over_time(gap[{ms}ms])", 4 * MINUTE).values.tolist() for ms in (240_000, 240_001)]
    assert counts == [[1.0], [2.0]]


def test_a_stale_marker_ends_a_series_until_its_next_sample(engine: Engine) -> None:
    assert matrix(engine.range("gone", 0, 6 * MINUTE, MINUTE)) == {
        "gone": {0: 1, MINUTE: 2, 5 * MINUTE: 9, 6 * MINUTE: 9}
    }
    assert engine.instant("gone[10m]", 6 * MINUTE).values.tolist() == [1, 2, 9]
    assert engine.instant("count_over_time(gone[4m])", 6 * MINUTE).values.tolist() == [1]


def test_a_not_a_number_is_a_sample(engine: Engine) -> None:
    result = engine.range("odd", 0, 2 * MINUTE, MINUTE)
    assert np.isnan(result.values).tolist() == [True, True, True]
    assert vector(engine.instant("count(odd)", 0)) == {"{}": 1}
    assert vector(engine.instant("count(odd == odd)", 0)) == {}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("load[2m:1m]", [(3, 30), (4, 40)]),
        ("load[2m:45s]", [(2.25, 20), (3, 30), (3.75, 30)]),  # multiples of 45 s, whenever the query is
        ("load[2m]", [(3, 30), (4, 40)]),
        ("load[3m:] offset 1m", [(1, 10), (2, 20), (3, 30)]),
        ("load[2m:1m] @ 60", [(0, 0), (1, 10)]),
        ("(load @ 60)[2m:1m]", [(3, 10), (4, 10)]),
    ],
)
def test_a_subquery_asks_at_multiples_of_its_step(
    engine: Engine, expression: str, expected: list[tuple[float, float]]
) -> None:
    result = engine.instant(expression, 4 * MINUTE)
    assert [(t / MINUTE, v) for t, v in zip(result.times_ms.tolist(), result.values.tolist(), strict=True)] == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("load offset (30 * 2)", 20),
        ("load offset 60 * 2", 40),  # without parentheses it is the vector that is multiplied
        ("load offset -(3m - 2m)", 40),
        ("load offset range()", 30),
        ("load offset 0s", 30),
        ("sum_over_time(load[1y2w3d4h5m6s7ms])", 60),
        ("sum_over_time(load[290y])", 60),
        ("count_over_time(load[1m + 2m])", 3),
        ("count_over_time(load[-1m + 3m])", 2),
        ("count_over_time(load[2 ^ 3 ^ 1 * 15])", 2),
        ("count_over_time(load[max_of(step(), 1m):min_of(30, 1h)])", 2),
        ("count_over_time(load[0x3C])", 1),
    ],
)
def test_durations_may_be_computed(engine: Engine, expression: str, expected: float) -> None:
    assert engine.instant(expression, 3 * MINUTE).values.tolist() == [expected]


def test_durations_may_depend_on_the_steps_of_the_query(engine: Engine) -> None:
    stepped = matrix(engine.range("count_over_time(load[step() * 2])", 2 * MINUTE, 4 * MINUTE, MINUTE)).popitem()[1]
    assert set(stepped.values()) == {2}
    whole = matrix(engine.range("count_over_time(load[range() + 1ms])", 2 * MINUTE, 4 * MINUTE, MINUTE)).popitem()[1]
    assert set(whole.values()) == {3}


def test_subqueries_nest_and_may_be_empty(engine: Engine) -> None:
    nested = engine.instant("max_over_time(sum_over_time(load[2m:1m])[3m:1m])", 4 * MINUTE)
    assert nested.values.tolist() == [70]
    assert engine.instant("sum_over_time(nothing[2m:1m])", 4 * MINUTE).labels == []
    assert engine.instant("sum_over_time(load[10s:1m])", 4 * MINUTE + 20_000).labels == []


def test_what_has_an_at_is_the_same_at_every_step(engine: Engine) -> None:
    steps = range(0, 3 * MINUTE + 1, MINUTE)
    for expression, value in (("sum(load @ 120)", 20.0), ("sum(rate(load[2m] @ 240)) * 60", 10.0)):
        assert matrix(engine.range(expression, 0, 3 * MINUTE, MINUTE))["{}"] == pytest.approx(
            dict.fromkeys(steps, value)
        )
    assert matrix(engine.range("load @ end()", 0, 2 * MINUTE, MINUTE)).popitem()[1] == {
        0: 20,
        MINUTE: 20,
        2 * MINUTE: 20,
    }
    predicted = matrix(engine.range("predict_linear(load[3m] @ 120, 0)", 0, 2 * MINUTE, MINUTE)).popitem()[1]
    assert predicted == pytest.approx({0: 0, MINUTE: 10, 2 * MINUTE: 20}, abs=1e-9)
    ages = matrix(engine.range("timestamp(load @ 120)", 0, MINUTE, MINUTE)).popitem()[1]
    assert ages == {0: 120, MINUTE: 120}


def test_selectors_with_the_same_matchers_are_read_once() -> None:
    samples = Samples.load("m 0+1x100", MINUTE)
    samples.engine().range("m / m + rate(m[5m]) + max_over_time(m[2m:1m])", 10 * MINUTE, 20 * MINUTE, MINUTE)
    assert samples.asked == [(("__name__=m",), 4 * MINUTE + 1, 20 * MINUTE + 1)]
    samples.asked.clear()
    samples.engine().instant("m - m offset 1h", 90 * MINUTE)
    assert [ask[1:] for ask in samples.asked] == [
        (85 * MINUTE + 1, 90 * MINUTE + 1),
        (25 * MINUTE + 1, 30 * MINUTE + 1),
    ]


def test_results_say_what_they_are(engine: Engine) -> None:
    kinds = {text: engine.instant(text, 0).kind for text in ("1", '"a"', "up", "up[1m]", "time()", "vector(1)")}
    assert kinds == {
        "1": "scalar",
        '"a"': "string",
        "up": "vector",
        "up[1m]": "matrix",
        "time()": "scalar",
        "vector(1)": "vector",
    }
    assert engine.instant("'a\\n'", 0).text == "a\n"
    assert engine.range("1", 0, 10, 5).kind == "matrix"
    stats = engine.instant("up + up", 0).stats
    assert (stats.samples, stats.series) == (2, 2)


def test_a_range_query_is_in_the_order_of_labels(engine: Engine) -> None:
    labels = engine.range('{__name__=~"up|load|gap"}', 0, MINUTE, MINUTE).labels
    assert [tuple(sorted(one.items())) for one in labels] == sorted(tuple(sorted(one.items())) for one in labels)


def test_the_engine_answers_from_a_store_and_sees_its_stale_markers() -> None:
    store = Store.in_memory()
    owner = (("instance", "1"), ("job", "a"))
    ids = store.head.declare(owner, [(Shape("calls_total", (("k", "v"),)), Meta("counter", "1", "", "calls"))], 10)
    plan = store.head.plan(ids)
    for k in range(20):
        store.append(plan, k * 15_000, np.array([float(k)]))
    engine = Engine(store.read)
    assert vector(engine.instant("increase(calls_total[1m]) / 4", 240_000)) == {'{instance="1", job="a", k="v"}': 1}
    store.end(owner, 300_000)
    assert vector(engine.instant("calls_total", 299_000)) != {}
    assert vector(engine.instant("calls_total", 301_000)) == {}
    assert (store.read([], 0, 400_000).values.view(np.int64) == STALE_BITS).sum() == 1
