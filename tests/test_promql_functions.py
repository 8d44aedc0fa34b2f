"""Each function gives what Prometheus' documentation says, for ordinary numbers and for NaN, infinity and nothing at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from test_promql_notation import MINUTE, Samples, matrix, vector

from storage.promql import Engine, QueryError
from storage.promql.functions import FUNCTIONS
from storage.promql.text import general, plain

INF, NAN = math.inf, math.nan


def one(engine: Engine, expression: str, time_ms: int = 0) -> list[float]:
    """The values of an instant query."""
    return engine.instant(expression, time_ms).values.tolist()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("abs(v)", [2.5, 2.5, NAN, INF, INF]),
        ("ceil(v)", [-2, 3, NAN, INF, -INF]),
        ("floor(v)", [-3, 2, NAN, INF, -INF]),
        ("round(v)", [-2, 3, NAN, INF, -INF]),  # ties up
        ("round(v, 2)", [-2, 2, NAN, INF, -INF]),
        ("sgn(v)", [-1, 1, NAN, 1, -1]),
        ("clamp(v, -1, 1)", [-1, 1, NAN, 1, -1]),
        ("clamp(v, 1, -1)", []),
        ("clamp_min(v, 0)", [0, 2.5, NAN, INF, 0]),
        ("clamp_max(v, 0)", [-2.5, 0, NAN, 0, -INF]),
        ("clamp_min(v, NaN)", [NAN, NAN, NAN, INF, NAN]),
        ("clamp_max(v, NaN)", [NAN, NAN, NAN, NAN, -INF]),
        ("exp(v)", [math.exp(-2.5), math.exp(2.5), NAN, INF, 0]),
        ("ln(v)", [NAN, math.log(2.5), NAN, INF, NAN]),
        ("log2(v)", [NAN, math.log2(2.5), NAN, INF, NAN]),
        ("log10(v)", [NAN, math.log10(2.5), NAN, INF, NAN]),
        ("sqrt(v)", [NAN, math.sqrt(2.5), NAN, INF, NAN]),
        ("deg(v)", [-2.5 * 180 / math.pi, 2.5 * 180 / math.pi, NAN, INF, -INF]),
        ("rad(v)", [-2.5 * math.pi / 180, 2.5 * math.pi / 180, NAN, INF, -INF]),
        ("-v", [2.5, -2.5, NAN, -INF, INF]),
        ("v * 0", [-0.0, 0, NAN, NAN, NAN]),
        ("v / 0", [-INF, INF, NAN, INF, -INF]),
        ("v % 2", [-0.5, 0.5, NAN, NAN, NAN]),
        ("histogram_count(v)", []),
        ("histogram_stddev(v)", []),
    ],
)
def test_functions_of_one_number(expression: str, expected: Sequence[float]) -> None:
    engine = Samples.load(
        "\n".join(f'v{{n="{n}"}} {x}' for n, x in enumerate(["-2.5", "2.5", "NaN", "+Inf", "-Inf"]))
    ).engine()
    np.testing.assert_allclose(one(engine, expression), expected, rtol=1e-15)


@pytest.mark.parametrize(
    "name", ["sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "atanh"]
)
def test_trigonometry(name: str) -> None:
    engine = Samples.load("v 0.5").engine()
    assert one(engine, f"{name}(v)") == [pytest.approx(getattr(math, name)(0.5), rel=1e-14)]
    assert one(engine, "acosh(v + 1)") == [pytest.approx(math.acosh(1.5), rel=1e-14)]
    assert one(engine, "pi()") == [math.pi]


def test_every_function_takes_not_a_number_and_stale_series_without_an_error() -> None:
    engine = Samples.load('v{le="1",x="a"} NaN stale 3 NaN\nv{le="+Inf",x="a"} stale NaN stale -Inf', MINUTE).engine()
    arguments = {
        "quantile_over_time": "0.5, v[5m]", "predict_linear": "v[5m], 60", "histogram_quantile": "0.5, v",
        "histogram_fraction": "0, 1, v", "clamp": "v, 0, 1", "clamp_min": "v, 0", "clamp_max": "v, 0", "pi": "", "time": "",
        "label_join": 'v, "a", "-", "x"', "label_replace": 'v, "a", "$1", "x", "(.*)"', "vector": "1", "scalar": "v",
        "holt_winters": "v[5m], 0.5, 0.5", "double_exponential_smoothing": "v[5m], 0.5, 0.5",
    }  # fmt: skip
    over = {"absent_over_time", "changes", "delta", "deriv", "idelta", "increase", "irate", "rate", "resets"}
    for name in FUNCTIONS:
        given = arguments.get(name) or ("v[5m]" if name in over or name.endswith("_over_time") else "v")
        for expression in (f"{name}({'' if name in ('pi', 'time') else given})",):
            assert engine.range(expression, 0, 5 * MINUTE, MINUTE).kind == "matrix", expression


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("minute(t)", [26.0]),
        ("hour(t)", [12.0]),
        ("day_of_month(t)", [29.0]),
        ("day_of_week(t)", [4.0]),
        ("day_of_year(t)", [60.0]),
        ("days_in_month(t)", [29.0]),
        ("month(t)", [2.0]),
        ("year(t)", [2024.0]),
        ("year(vector(-1))", [1969.0]),
        ("hour(vector(-1))", [23.0]),
        ("day_of_week(vector(-86400))", [3.0]),
        ("year(vector(NaN))", [NAN]),
        ("minute()", [1.0]),
        ("year()", [1970.0]),
        ("time()", [60.5]),
    ],
)
def test_dates(expression: str, expected: list[float]) -> None:
    engine = Samples.load("t 1709209602.9 1709209602.9").engine()  # 2024-02-29 12:26:42
    np.testing.assert_equal(one(engine, expression, 60_500), expected)


def test_scalars_and_vectors_become_each_other() -> None:
    engine = Samples.load('a 1 2\nb{x="1"} 3\nb{x="2"} 4', MINUTE).engine()
    assert matrix(engine.range("vector(scalar(a)) + 1", 0, MINUTE, MINUTE)) == {"{}": {0: 2, MINUTE: 3}}
    assert np.isnan(one(engine, "scalar(b)")).all()
    assert np.isnan(one(engine, "scalar(nothing)")).all()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("absent(nothing)", {"{}": 1}),
        ('absent(nothing{a="1",b!="2",c=~"3"})', {'{a="1"}': 1}),
        ('absent(nothing{a="1",a="2",b="3"})', {'{b="3"}': 1}),
        ("absent(a)", {}),
        ("absent(sum(nothing))", {"{}": 1}),
        ('absent_over_time(nothing{a="1"}[5m])', {'{a="1"}': 1}),
        ("absent_over_time(a[5m])", {}),
        ('absent_over_time({__name__=~"a|b"}[5m])', {}),
        ("present_over_time(a[5m])", {"{}": 1}),
    ],
)
def test_presence(expression: str, expected: dict[str, float]) -> None:
    assert vector(Samples.load("a 1\nb 1").engine().instant(expression, 0)) == expected


def test_absence_is_of_each_step() -> None:
    engine = Samples.load("a _ 1 stale _ 1", MINUTE).engine()
    assert matrix(engine.range("absent(a)", 0, 4 * MINUTE, MINUTE)) == {"{}": {0: 1, 2 * MINUTE: 1, 3 * MINUTE: 1}}


def test_timestamps_are_those_of_the_samples_or_of_the_evaluation() -> None:
    engine = Samples.load("a 1 1", MINUTE).engine()
    assert one(engine, "timestamp(a)", 90_000) == [60.0]
    assert one(engine, "timestamp(a * 1)", 90_000) == [90.0]
    assert one(engine, "timestamp(a offset 1m)", 90_000) == [0.0]


def test_sorting_is_for_instants() -> None:
    engine = Samples.load('v{n="a"} 2\nv{n="b"} NaN\nv{n="c"} 1\nv{n="d"} 3').engine()
    assert [labels["n"] for labels in engine.instant("sort(v)", 0).labels] == ["c", "a", "d", "b"]
    assert [labels["n"] for labels in engine.instant("sort_desc(v)", 0).labels] == ["d", "a", "c", "b"]
    warned = engine.range("sort(v)", 0, MINUTE, MINUTE)
    assert warned.warnings == [
        "PromQL warning: sort is ineffective for range queries since results are always ordered by labels (1:1)"
    ]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('label_replace(v, "dst", "$1-${2}", "src", "(.*)-(.*)")', {'v{dst="x-y", src="x-y"}': 1}),
        ('label_replace(v, "dst", "$a", "src", "(?P<a>.).*")', {'v{dst="x", src="x-y"}': 1}),
        (
            'label_replace(v, "dst", "$1a", "src", "(.*)")',
            {'v{src="x-y"}': 1},
        ),  # the group is called "1a": there is none
        ('label_replace(v, "dst", "$$", "src", ".*")', {'v{dst="$", src="x-y"}': 1}),
        ('label_replace(v, "dst", "z", "src", "x")', {'v{src="x-y"}': 1}),  # the whole value has to match
        ('label_replace(v, "src", "", "src", ".*")', {"v": 1}),
        ('label_replace(v, "__name__", "w", "src", ".*")', {'w{src="x-y"}': 1}),
        ('label_replace(v, "dst", "new", "none", "")', {'v{dst="new", src="x-y"}': 1}),
        ('label_join(v, "dst", "+", "src", "none", "src")', {'v{dst="x-y++x-y", src="x-y"}': 1}),
        ('label_join(v, "src", "")', {"v": 1}),
        ('label_join(v, "my.label", "", "src")', {'v{my.label="x-y", src="x-y"}': 1}),
    ],
)
def test_labels_are_made_of_others(expression: str, expected: dict[str, float]) -> None:
    assert vector(Samples.load('v{src="x-y"} 1').engine().instant(expression, 0)) == expected


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ('label_replace(v, "a", "", "b", "(")', "invalid regular expression in label_replace(): ("),
        ('label_replace(v, "", "", "b", "c")', "invalid destination label name in label_replace(): "),
        ('label_join(v, "", "-", "a")', "invalid destination label name in label_join(): "),
        ('label_join(v, "a", "-", "")', "invalid source label name in label_join(): "),
        ('label_replace(v, "n", "same", "n", ".*")', "vector cannot contain metrics with the same labelset"),
        ('label_replace(v, "\\xff", "", "b", "c")', "invalid destination label name in label_replace(): \ufffd"),
        ('count_values("a\\xc5z", v)', 'invalid label name "a\\xc5z"'),
        ("holt_winters(v[5m], 0, 0.5)", "invalid smoothing factor. Expected: 0 < sf < 1, got: 0.000000"),
        ("holt_winters(v[5m], 0.5, 1)", "invalid trend factor. Expected: 0 < tf < 1, got: 1.000000"),
        ('rate({__name__=~"v|w"}[5m])', "vector cannot contain metrics with the same labelset"),
        ('abs({__name__=~"v|w"})', "vector cannot contain metrics with the same labelset"),
    ],
)
def test_what_means_nothing_is_an_error_in_prometheus_words(expression: str, text: str) -> None:
    engine = Samples.load('v{n="1"} 1 2\nv{n="2"} 1 2\nw{n="1"} 1 2', MINUTE).engine()
    with pytest.raises(QueryError) as error:
        engine.instant(expression, MINUTE)
    assert (error.value.kind, error.value.text) == ("execution", text)


def test_series_that_follow_each_other_become_one() -> None:
    engine = Samples.load('{"a", "k"="1"} 1 1 stale\n{"b", "k"="1"} _ _ 5 6', MINUTE).engine()
    assert matrix(engine.range('-{k="1"}', 0, 3 * MINUTE, MINUTE)) == {
        '{k="1"}': {0: -1, MINUTE: -1, 2 * MINUTE: -5, 3 * MINUTE: -6}
    }


# Histograms

BUCKETS = """
    h_bucket{le="0.1"} 0 1
    h_bucket{le="1"} 10 2
    h_bucket{le="10"} 10 3
    h_bucket{le="+Inf"} 10 4
"""


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("histogram_quantile(0.5, h_bucket)", [0.55]),
        ("histogram_quantile(0, h_bucket)", [NAN]),  # nothing of nothing in the first bucket
        ("histogram_quantile(1, h_bucket)", [1.0]),
        ("histogram_quantile(-1, h_bucket)", [-INF]),
        ("histogram_quantile(2, h_bucket)", [INF]),
        ("histogram_quantile(NaN, h_bucket)", [NAN]),
        ("histogram_quantile(0.9, h_bucket offset -1m)", [10.0]),
        ("histogram_quantile(0.5, h_bucket{le!='+Inf'})", [NAN]),  # the last bucket has to be endless
        ("histogram_quantile(0.5, h_bucket{le='+Inf'})", [NAN]),
        ("histogram_quantile(0.5, h_bucket * 0)", [NAN]),
        ("histogram_quantile(0.5, label_replace(h_bucket, 'le', '-1', 'le', '0.1'))", [0.0]),
        ("histogram_fraction(0, 0.55, h_bucket)", [0.5]),
        ("histogram_fraction(-Inf, +Inf, h_bucket)", [1.0]),
        ("histogram_fraction(1, 0, h_bucket)", [0.0]),
        ("histogram_fraction(NaN, 1, h_bucket)", [NAN]),
    ],
)
def test_classic_histograms(expression: str, expected: list[float]) -> None:
    np.testing.assert_allclose(one(Samples.load(BUCKETS, MINUTE).engine(), expression), expected, rtol=1e-14)


def test_a_histogram_may_lose_a_bucket_for_a_step() -> None:
    engine = Samples.load('h{le="1"} 5 5\nh{le="2"} 5 stale\nh{le="4"} 10 10\nh{le="+Inf"} 10 10', MINUTE).engine()
    found = matrix(engine.range("histogram_quantile(0.75, h)", 0, MINUTE, MINUTE))["{}"]
    assert found == {0: 3.0, MINUTE: 2.5}


def test_buckets_that_fall_are_mended_and_mentioned() -> None:
    engine = Samples.load('h{le="1"} 5x1\nh{le="2"} 3x1\nh{le="4"} 8x1\nh{le="+Inf"} 10x1', MINUTE).engine()
    result = engine.range("histogram_quantile(0.6, h)", 0, MINUTE, MINUTE)
    assert result.values.tolist() == [pytest.approx(2 + 2 / 3)] * 2
    assert result.infos == [
        "PromQL info: input to histogram_quantile needed to be fixed for monotonicity (see "
        "https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile), from buckets 2 to 2, "
        "with a max diff of 2, over 2 samples from 1970-01-01T00:00:00Z to 1970-01-01T00:01:00Z (1:25)"
    ]


@pytest.mark.parametrize(
    ("expression", "warnings", "infos"),
    [
        ("rate(m[5m])", [], ['PromQL info: metric might not be a counter, name does not end in _total/_sum/_count/_bucket: "m" (1:6)']),
        ("rate(m_total[5m])", [], []),
        ("1 +\n  increase(m[5m])", [], ['PromQL info: metric might not be a counter, name does not end in _total/_sum/_count/_bucket: "m" (2:12)']),
        ("quantile_over_time(1.5, m[5m])", ["PromQL warning: quantile value should be between 0 and 1, got 1.5 (1:20)"], []),
        ("quantile(-1, m)", ["PromQL warning: quantile value should be between 0 and 1, got -1 (1:10)"], []),
        ("histogram_quantile(NaN, m)", [
            "PromQL warning: quantile value should be between 0 and 1, got NaN (1:20)",
            'PromQL warning: bucket label "le" is missing or has a malformed value of "" (1:25)',
        ], []),
        ("limit_ratio(2, m)", ["PromQL warning: ratio value should be between -1 and 1, got 2, capping to 1 (1:13)"], []),
        ("sum(m)", [], []),
    ],
)  # fmt: skip
def test_annotations_say_what_is_odd_and_where(expression: str, warnings: list[str], infos: list[str]) -> None:
    result = Samples.load("m 1 2\nm_total 1 2", MINUTE).engine().instant(expression, MINUTE)
    assert (result.warnings, result.infos) == (warnings, infos)


@pytest.mark.parametrize(
    ("value", "as_f", "as_g"),
    [
        (0.1, "0.1", "0.1"),
        (1e21, "1000000000000000000000", "1e+21"),
        (123456789.0, "123456789", "1.23456789e+08"),
        (1e-7, "0.0000001", "1e-07"),
        (-0.0, "-0", "-0"),
        (NAN, "NaN", "NaN"),
        (-INF, "-Inf", "-Inf"),
        (2.5e10, "25000000000", "2.5e+10"),
        (250000.0, "250000", "250000"),
        (1000000.0, "1000000", "1e+06"),
    ],
)
def test_numbers_are_printed_as_in_go(value: float, as_f: str, as_g: str) -> None:
    assert plain(value) == as_f
    assert general(value) == as_g
