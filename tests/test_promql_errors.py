"""What is no query, and what asks for too much: refused by kind, in words, with the place, and before it costs anything."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_promql_notation import MINUTE, Samples

from storage.columns import Columns
from storage.matchers import Matcher
from storage.promql import Engine, Limits, QueryError
from storage.promql.literals import plain_text
from storage.promql.tokens import outline, tokens

YEAR_MS = 365 * 24 * 60 * MINUTE


def refused(engine: Engine, expression: str) -> str:
    with pytest.raises(QueryError) as error:
        engine.instant(expression, 0)
    assert error.value.kind == "bad_data"
    return error.value.text


def outcome(engine: Engine, expression: str) -> str:
    """How a query ends."""
    try:
        engine.instant(expression, 5 * MINUTE)
    except QueryError as error:
        return error.kind
    return "answered"


@pytest.fixture
def engine() -> Engine:
    return Samples.load('m{a="1"} 1x10', MINUTE).engine()


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("", "1:1: parse error: no expression found in input"),
        ("m m", '1:3: parse error: unexpected identifier "m"'),
        ("1 +", "1:4: parse error: unexpected end of input"),
        ("m\n  + é ! n", "2:5: parse error: unexpected character: 'é'"),
        ("sum(m", "1:6: parse error: unclosed left parenthesis"),
        ("m)", "1:2: parse error: unexpected right parenthesis ')'"),
        ("m{a='1'", "1:8: parse error: unexpected end of input inside braces"),
        ("m[5m", "1:5: parse error: unexpected end of input inside brackets"),
        ("m offset", "1:9: parse error: unexpected end of input in offset, expected duration"),
        ("m @ x", '1:5: parse error: unexpected identifier "x"'),
        ("sum by", "1:7: parse error: unexpected end of input"),
        ("m + sum", None),  # a metric may be called so
        ("by (a) m", '1:8: parse error: unexpected identifier "m"'),
        ("'abc", "1:1: parse error: unterminated quoted string '"),
        ("{}", "1:1: parse error: vector selector must contain at least one non-empty matcher"),
        ('{a=~".*"}', "1:1: parse error: vector selector must contain at least one non-empty matcher"),
        ('m{__name__="n"}', '1:1: parse error: metric name must not be set twice: "m" or "n"'),
        ('m{a="1" or b="2"}', '1:1: parse error: unexpected identifier "or" in label matching, expected "," or "}"'),
        ("1 == 1", "1:3: parse error: comparisons between scalars must use BOOL modifier"),
        ("m + bool m", "1:3: parse error: bool modifier can only be used on comparison operators"),
        ("m + on(a) group_left(a) m", '1:3: parse error: label "a" must not occur in ON and GROUP clause at once'),
        ("m and 1", '1:1: parse error: set operator "and" not allowed in binary scalar expression'),
        ("m + fill(0) m", "1:1: parse error: binop fill modifiers are experimental and not enabled"),
        ("1 + rate(m)", '1:10: parse error: expected type range vector in call to function "rate", got instant vector'),
        ("abs(m, m)", '1:1: parse error: expected 1 argument(s) in call to "abs", got 2'),
        ("nothing(m)", '1:1: parse error: unknown function with name "nothing"'),
        ("info(m)", '1:1: parse error: function "info" is not enabled'),
        ("sum(m[5m])", "1:5: parse error: expected type instant vector in aggregation expression, got range vector"),
        ('topk("a", m)', "1:6: parse error: expected type scalar in aggregation parameter, got string"),
        ('+"a"', '1:1: parse error: unary expression only allowed on expressions of type scalar or instant vector, got "string"'),
        ("-m[5m]", '1:1: parse error: unary expression only allowed on expressions of type scalar or instant vector, got "range vector"'),
        ("m[0s]", "1:3: parse error: duration must be greater than 0"),
        ("m[300y]", "1:3: parse error: duration out of range"),
        ("m offset -300y", "1:10: parse error: duration out of range"),
        ("m[1_05m]", "1:1: parse error: bad number or duration syntax: 1_"),
        ("'\\400'", "1:1: parse error: invalid syntax"),
        ("m[1h / 0]", "1:6: parse error: division by zero"),
        ("m[1h - 1h]", "1:3: parse error: duration must be greater than 0"),
        ("m offset (1h % 0)", "1:14: parse error: modulo by zero"),
        ("m offset (9 ^ 9 ^ 9)", "1:10: parse error: duration is NaN or infinite"),
        ("m[step()]", "1:3: parse error: duration must be greater than 0"),
        ("m[other(1)]", "1:1: parse error: unexpected character inside brackets: 'o'"),
        ("m offset NaN", "1:10: parse error: duration out of range"),
        ("m offset -1e30", "1:10: parse error: duration out of range"),
        ("m @ Inf", "1:1: parse error: timestamp out of bounds for @ modifier: +Inf"),
        ("m @ 1e30", "1:1: parse error: timestamp out of bounds for @ modifier: 1000000000000000019884624838656.000000"),
        ("1e400", '1:1: parse error: error parsing number: strconv.ParseFloat: parsing "1e400": value out of range'),
        ("m{a='\\x41\\q'}", "1:1: parse error: unknown escape sequence U+0071 'q'"),
        ('label_replace(m, "a", +"b", "c", "d")', '1:23: parse error: unary expression only allowed on expressions of type scalar or instant vector, got "string"'),
        ("m[99999999999999999999y10m]", "1:3: parse error: duration out of range"),
        ("m[5m:1e30]", "1:6: parse error: duration out of range"),
        ('m{a=~"("}', "1:1: parse error: error parsing regexp: got `(`, expected RE2's syntax"),
        ('m{a=~"\\xff"}', '1:6: parse error: error parsing regexp: invalid UTF-8: "\\xff"'),
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused_with_its_place(engine: Engine, expression: str, text: str | None) -> None:
    if text is None:
        assert engine.instant(expression, 0).labels == []
    else:
        assert refused(engine, expression) == text


@pytest.mark.parametrize(
    "expression",
    ["(" * 10_000 + "m" + ")" * 10_000, "-" * 10_000 + "m", "abs(" * 10_000 + "m" + ")" * 10_000, "+".join(["m"] * 10_000), "(" * 10_000],
    ids=["parentheses", "signs", "calls", "a chain", "nothing inside"],
)  # fmt: skip
def test_deep_nesting_is_refused_before_it_is_parsed(engine: Engine, expression: str) -> None:
    assert "nested" in refused(engine, expression)


@pytest.mark.parametrize(
    "nested", ["({})", "-({})", "abs({})", "{} + m", "m or {}", "sum({})", "max_over_time({}[5m:1m])"]
)
def test_as_deep_as_is_allowed_there_is_an_answer(engine: Engine, nested: str) -> None:
    expression = "m"
    while outline(nested.format(expression)).depth <= Limits().depth:
        expression = nested.format(expression)
    assert len(expression) > 150
    assert len(engine.instant(expression, 0, deadline=lambda: None).labels) <= 1


def test_a_text_without_end_is_refused(engine: Engine) -> None:
    assert "characters" in refused(engine, "m + " * 100_000 + "m")


@given(st.text(alphabet="m01.e(){}[],:@\"=~!+-*/^<>% \n#abysu'`\\x", max_size=40))
@settings(deadline=None, max_examples=400)
def test_any_text_has_an_answer_or_is_refused(text: str) -> None:
    engine = Samples.load('m{a="1"} 1x10', MINUTE).engine(limits=Limits(samples=100_000))
    assert outcome(engine, text) in ("answered", "bad_data", "execution")


@given(st.text(alphabet="m01.e(){}[],:@\"=~!+-*/^<>% \n#abysu'`\\x", max_size=40))
@settings(deadline=None, max_examples=200)
def test_no_character_is_lost_between_tokens(text: str) -> None:
    listed = list(tokens(text))
    assert [text[token.start : token.start + len(token.text)] for token in listed] == [token.text for token in listed]
    if "\\" not in text and "_" not in text and "0" not in text:
        assert plain_text(text) == text


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "step_ms", "text"),
    [
        (0, 10 * YEAR_MS, 1000, "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)"),
        (0, 11_001, 1, "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)"),
        (0, 10, 0, 'invalid parameter "step": zero or negative query resolution step widths are not accepted. Try a positive integer'),
        (10, 0, 1, 'invalid parameter "end": end timestamp must not be before start time'),
    ],
)  # fmt: skip
def test_a_range_of_too_many_steps_reads_nothing(start_ms: int, end_ms: int, step_ms: int, text: str) -> None:
    samples = Samples.load("m 1")
    with pytest.raises(QueryError) as error:
        samples.engine().range("m", start_ms, end_ms, step_ms)
    assert (error.value.kind, error.value.text, samples.asked) == ("bad_data", text, [])


def many(series: int) -> Columns:
    """So many series with one sample at time 0."""
    samples = Samples([({"__name__": "m", "n": str(i)}, [(0, 1.0)]) for i in range(series)])
    return samples.columns


@pytest.mark.parametrize(
    ("limits", "expression", "text"),
    [
        (Limits(series=99), '{__name__=~".+"}', "selector found 100 series in query execution; expected at most 99"),
        (Limits(samples=99), "m", "query processing would load too many samples into memory in query execution"),
        (Limits(samples=500), "m", "query processing would load too many samples into memory in query execution"),
        (Limits(samples=2000), "m * on(n) m", None),
        (Limits(samples=2000), "sum_over_time(m[1000m:1m])", "query processing would load too many samples into memory in query execution"),
        (Limits(bytes=9000), "m", "query would take 9900 bytes for 100 series at 11 steps in query execution; expected at most 9000"),
    ],
)  # fmt: skip
def test_each_limit_is_a_named_error(limits: Limits, expression: str, text: str | None) -> None:
    columns = many(100)
    engine = Engine(lambda matchers, start_ms, end_ms: columns, limits=limits)
    if text is None:
        assert len(engine.range(expression, 0, 10, 1).labels) == 100
        return
    with pytest.raises(QueryError) as error:
        engine.range(expression, 0, 10, 1)
    assert (error.value.kind, error.value.text) == ("execution", text)


def test_limits_are_numbers_above_nothing() -> None:
    with pytest.raises(ValueError, match="limit series: got 0; expected a number above 0"):
        Limits(series=0)


@pytest.mark.parametrize(
    ("says", "kind", "text"),
    [
        (True, "timeout", "query timed out in expression evaluation"),
        ("timeout", "timeout", "query timed out in expression evaluation"),
        ("canceled", "canceled", "query was canceled in expression evaluation"),
    ],
)
def test_a_query_can_be_given_up(says: bool | str, kind: str, text: str) -> None:
    asked: list[int] = []

    def deadline() -> bool | str:
        asked.append(1)
        return says if len(asked) > 2 else False

    with pytest.raises(QueryError) as error:
        Samples.load("m 1").engine().instant("m + m + m", 0, deadline=deadline)
    assert (error.value.kind, error.value.text) == (kind, text)


def test_time_is_that_of_the_clock_which_is_given() -> None:
    now = iter([0.0, 1.0, 2.0, 11.0, 12.0])
    engine = Samples.load("m 1").engine(limits=Limits(seconds=10), clock=lambda: next(now))
    with pytest.raises(QueryError) as error:
        engine.instant("m + m + m + m", 0, deadline=lambda: False)
    assert error.value.kind == "timeout"


def test_an_expression_for_a_range_is_a_number_or_an_instant_vector(engine: Engine) -> None:
    for expression, kind in (("m[5m]", "range vector"), ('"a"', "string")):
        with pytest.raises(QueryError) as error:
            engine.range(expression, 0, 10, 1)
        assert error.value.text == f'invalid expression type "{kind}" for range query, must be Scalar or instant Vector'


def test_a_regular_expression_that_would_explode_takes_its_time_linearly() -> None:
    engine = Samples([({"__name__": "m", "a": "a" * 4000}, [(0, 1.0)])]).engine()
    assert engine.instant('m{a=~"(a*)*(a*)*(a*)*b"}', 0).labels == []
    assert "regexp" in refused(engine, 'm{a=~"((a{1,1000}){1,1000}){1,1000}"}')
    assert len(engine.instant('label_replace(m, "b", "$1", "a", "(a|aa)+c|(a+)+")', 0).labels) == 1


def test_one_engine_serves_several_threads() -> None:
    engine = Samples.load("\n".join(f'm{{n="{n}"}} 0+{n}x100' for n in range(20)), MINUTE).engine()
    expressions = ["sum(rate(m[5m]))", "topk(3, m)", "avg by (n) (m)", "m * 2", "quantile(0.5, m)"] * 6

    def ask(expression: str) -> list[float]:
        return engine.range(expression, 0, 50 * MINUTE, MINUTE).values.tolist()

    alone = [ask(expression) for expression in expressions]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, expressions)) == alone


def test_what_was_read_is_left_as_it_was() -> None:
    samples = Samples.load('m{le="1"} 1 2 stale 4\nm{le="+Inf"} 1 NaN 3 5', MINUTE)
    before = samples.columns.values.copy()
    samples.columns.values.flags.writeable = False
    for expression in (
        "-m",
        "rate(m[5m])",
        "sum(m)",
        "histogram_quantile(0.5, m)",
        "m or m",
        "stddev_over_time(m[5m])",
        "sort(m)",
    ):
        samples.engine().instant(expression, 3 * MINUTE)
    np.testing.assert_array_equal(samples.columns.values, before)


def test_a_read_that_fails_is_not_swallowed() -> None:
    def read(matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> Columns:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        Engine(read).instant("m", 0)
