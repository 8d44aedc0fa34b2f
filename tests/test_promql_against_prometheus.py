"""The engine and the real Prometheus, asked the same of the same samples, say the same.

Debian's Prometheus is 2.42, the engine speaks version 3's language: what changed in between is a table of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from storage.promql import Engine, QueryError, Result
from storage.settings import StoreSettings
from storage.store import Store
from storage.types import Labels, Meta, Shape, absent, labels_of
from tests import promql_expressions as asked
from tests.promql_expressions import GROUPS, INSTANTS_MS, RANGES_MS, written
from tests.promql_peer import CUT_MS, END_MS, NAN, Answer, Prometheus, Series, dataset, prometheus_with

OWNER_LABELS = ("instance", "job")
CHUNK = 40  # expressions of a test
SHOWN = 160  # characters of an answer in a table
FLUSHED_MS = END_MS + 60_000
NEARLY = 1e-12  # of the greater one
UNKNOWN = Meta("gauge", "", "", "")

SUMMED = "version 3 sums with a compensation for what rounding lost, 2.42 without: the last digits differ"
APPROXIMATE = "Go's own function is not rounded as the C library's: the last digits differ"
LOOSE = {
    r"\b(sum|avg)\b": SUMMED,
    r"\b(stddev|stdvar)\b": "rounding depends on the order of series, which is the store's",
    r"\bavg_over_time\b": "version 3 divides the compensated sum, 2.42 carries the mean along: the last digits differ",
    r"\b(exp|ln|log2|log10)\b": APPROXIMATE,
    r"\b(a?sin|a?cos|a?tan)h?\b": APPROXIMATE,
    r"\batan2\b": APPROXIMATE,
    r"\^": APPROXIMATE,
}
"""What an expression holds, and why its values may then differ by `NEARLY`."""


@dataclass(frozen=True)
class When:
    """An instant, or a range when there is a step."""

    start_ms: int
    end_ms: int = 0
    step_ms: int = 0


@dataclass(frozen=True)
class Changed:
    """Version 3 gives `expression` another meaning than 2.42: it says what 2.42 says to `says`, or just `says`."""

    expression: str
    says: str | Answer
    why: str
    when: When = When(INSTANTS_MS[0])


def text(value: float) -> str:
    return "NaN" if math.isnan(value) else repr(value)


def shown(answer: Answer) -> str:
    """Short enough for a table."""
    if answer.kind == "error":
        return f"error {answer.fault}: {answer.text}"
    series = [
        "{" + ", ".join(f"{k}={v}" for k, v in labels) + "} " + " ".join(f"{text(v)}@{t}" for t, v in samples)
        for labels, samples in list(answer.series.items())[:2]
    ]
    return f"{answer.kind} of {len(answer.series)} {answer.text} " + "; ".join(series)


def same_value(ours: float, theirs: float, loose: bool) -> bool:
    if math.isnan(ours) or math.isnan(theirs):
        return math.isnan(ours) and math.isnan(theirs)
    if ours == theirs:
        return loose or ours != 0 or math.copysign(1, ours) == math.copysign(1, theirs)
    return loose and math.isclose(ours, theirs, rel_tol=NEARLY)


def same_words(ours: str, theirs: str) -> bool:
    """Of two series that stand in each other's way either may come first, and one pair of many may be named."""
    plain = [re.sub(r"group .*? on the|\[.*?\]", "", words) for words in (ours, theirs)]
    return plain[0] == plain[1]


def difference(ours: Answer, theirs: Answer, loose: bool) -> str:
    """Empty when they say the same."""
    if ours.kind != theirs.kind:
        return "kind"
    if ours.kind == "error":
        if ours.fault != theirs.fault:
            return "fault"
        return "" if ours.fault == "bad_data" or same_words(ours.text, theirs.text) else "words"
    if ours.text != theirs.text:
        return "text"
    if missing := theirs.series.keys() - ours.series.keys():
        return f"lacks {dict(sorted(missing)[0])}"
    if more := ours.series.keys() - theirs.series.keys():
        return f"has besides {dict(sorted(more)[0])}"
    for labels, expected in theirs.series.items():
        got = ours.series[labels]
        if [time_ms for time_ms, _ in got] != [time_ms for time_ms, _ in expected]:
            return f"times of {dict(labels)}: got {[t for t, _ in got][:6]}, expected {[t for t, _ in expected][:6]}"
        for (time_ms, value), (_, wanted) in zip(got, expected, strict=True):
            if not same_value(value, wanted, loose):
                return f"{dict(labels)} at {time_ms}: got {text(value)}, expected {text(wanted)}"
    return ""


def is_loose(expression: str) -> bool:
    return any(re.search(pattern, expression.lower()) for pattern in LOOSE)


# The store and the engine


def fill(store: Store, series: Sequence[Series]) -> None:
    """What is older than the cut is in segments, the rest in rings: most reads join the two."""
    by_owner: dict[Labels, list[Series]] = {}
    for one in series:
        owner = labels_of({key: value for key, value in one.labels if key in OWNER_LABELS})
        by_owner.setdefault(owner, []).append(one)
    rows: list[tuple[int, Labels]] = []
    matrices = {}
    plans = {}
    for owner, members in by_owner.items():
        times = np.unique(np.concatenate([one.times for one in members]))
        values = absent((len(times), len(members)))
        for column, one in enumerate(members):
            values[np.searchsorted(times, one.times), column] = one.values
        ids = store.head.declare(owner, [(shape_of(one.labels), UNKNOWN) for one in members], 1 << 20)
        plans[owner] = store.head.plan(ids)
        matrices[owner] = dict(zip(times.tolist(), values, strict=True))
        rows += [(time_ms, owner) for time_ms in times.tolist()]
    flushed = False
    for time_ms, owner in sorted(rows):
        if time_ms >= CUT_MS and not flushed:
            store.flush(CUT_MS)
            flushed = True
        store.append(plans[owner], time_ms, matrices[owner][time_ms])
    store.commit(FLUSHED_MS)


def shape_of(labels: Labels) -> Shape:
    own = {key: value for key, value in labels if key not in (*OWNER_LABELS, "__name__")}
    return Shape(dict(labels)["__name__"], labels_of(own))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store.open(tmp_path_factory.mktemp("promql") / "data", StoreSettings(least_free_bytes=0))
    fill(opened, dataset())
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus_with(tmp_path_factory.mktemp("prometheus"), dataset()) as running:
        yield running


@pytest.fixture(scope="session")
def engine(store: Store) -> Engine:
    return Engine(store.read)


def answer_of(engine: Engine, expression: str, when: When) -> Answer:
    """What our engine says."""
    try:
        if when.step_ms:
            return as_answer(engine.range(expression, when.start_ms, when.end_ms, when.step_ms))
        return as_answer(engine.instant(expression, when.start_ms))
    except QueryError as error:
        return Answer("error", text=error.text, fault=error.kind)


def as_answer(result: Result) -> Answer:
    found: dict[Labels, list[tuple[int, float]]] = {}
    for labels, times, values in result.series():
        name = labels_of(labels)
        assert name not in found, f"the engine answers with {labels} twice"
        found[name] = list(zip(times.tolist(), values.tolist(), strict=True))
    return Answer(result.kind, found, result.text)


def answer_from(prometheus: Prometheus, expression: str, when: When) -> Answer:
    """What Prometheus says."""
    if when.step_ms:
        return prometheus.range(expression, when.start_ms, when.end_ms, when.step_ms)
    return prometheus.instant(expression, when.start_ms)


# What is compared


def whens(group: str, number: int) -> list[When]:
    """When the n-th expression of a group is asked: at one instant, over one range, and now and then over another."""
    instant = When(INSTANTS_MS[number % len(INSTANTS_MS)])
    if group == "ranges":
        return [When(at_ms) for at_ms in INSTANTS_MS]
    return [instant, *(When(*RANGES_MS[i]) for i in {0, number % 3})]


CHUNKS = [(group, first) for group, expressions in GROUPS.items() for first in range(0, len(expressions), CHUNK)]


def table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Expression, what differs, what we say and what they say."""
    lines = [f"{len(rows)} of the answers differ: expression | what differs | ours | theirs"]
    lines += [" | ".join([row[0], *(cell[:SHOWN] for cell in row[1:])]) for row in rows]
    return "\n".join(lines)


@pytest.mark.parametrize(("group", "first"), CHUNKS, ids=[f"{group}-{first}" for group, first in CHUNKS])
def test_the_engine_says_what_prometheus_says(group: str, first: int, engine: Engine, prometheus: Prometheus) -> None:
    wrong = []
    for number, expression in enumerate(GROUPS[group][first : first + CHUNK], first):
        for when in whens(group, number):
            ours, theirs = answer_of(engine, expression, when), answer_from(prometheus, expression, when)
            if differs := difference(ours, theirs, is_loose(expression)):
                asked = (
                    f"{expression}   [{when.start_ms}]"
                    if not when.step_ms
                    else f"{expression}   [by {when.step_ms} ms]"
                )
                wrong.append((asked, differs, shown(ours), shown(theirs)))
    assert not wrong, table(wrong)


SORTED = (
    "sort(load)",
    "sort_desc(load)",
    'sort(odd{kind=~"nan|inf|neg_inf|constant|zero"})',
    'sort_desc(odd{kind=~"nan|inf|neg_inf|constant|zero"})',
    "sort(fleet_temperature)",
    "sort_desc(rate(http_requests_total[5m]))",
    "topk(7, fleet_temperature)",
    "bottomk(7, fleet_temperature)",
)


@pytest.mark.parametrize("expression", SORTED)
def test_a_sorted_vector_comes_in_prometheus_order(expression: str, engine: Engine, prometheus: Prometheus) -> None:
    when = When(INSTANTS_MS[0])
    ours, theirs = answer_of(engine, expression, when), answer_from(prometheus, expression, when)
    values = [[text(samples[0][1]) for samples in answer.series.values()] for answer in (ours, theirs)]
    assert len(values[1]) > 3
    assert values[0] == values[1]


IN_PROMETHEUS_WORDS = written(r"""
load + ; (load ; load{ ; load{job="api" ; {} ; {job!="x"} ; load{__name__="up"} ; load[5m] + 1 ; load offset ; 1e400
load offset 5m offset 5m ; load @ 1 @ 2 ; load @ NaN ; rate(load) ; rate(load[5m], 1) ; rate() ; rate(1) ; topk(3)
abs("a") ; abs(1) ; unknown(load) ; vector(load) ; scalar(1) ; time(1) ; clamp(load, 1)
label_replace(load, "a", "b", "c") ; label_join(load, "") ; 1 == 1 ; 1 > load bool ; load == bool ; load and 1
"a" + 1 ; -"a" ; load +* up ; 1 bool + 2 ; load and on (job) group_left up ; load == on (job) group_left (job) up
histogram_quantile(load, 0.5) ; load bool + up
""")


@pytest.mark.parametrize("expression", IN_PROMETHEUS_WORDS)
def test_a_mistake_is_told_in_prometheus_words_with_its_place(
    expression: str, engine: Engine, prometheus: Prometheus
) -> None:
    when = When(INSTANTS_MS[0])
    ours, theirs = answer_of(engine, expression, when), answer_from(prometheus, expression, when)
    assert theirs.fault == "bad_data"
    assert ours.text == theirs.text.removeprefix('invalid parameter "query": ')


@pytest.mark.parametrize("steps", [10_999, 11_000, 11_001])
def test_the_same_number_of_points_is_too_many(steps: int, engine: Engine, prometheus: Prometheus) -> None:
    when = When(INSTANTS_MS[0], INSTANTS_MS[0] + steps * 1000, 1000)
    ours, theirs = answer_of(engine, "solo", when), answer_from(prometheus, "solo", when)
    assert difference(ours, theirs, loose=False) == ""
    assert ours.fault == ("bad_data" if steps == 11_001 else "")


# What version 3 changed

OPEN = "ranges and lookbacks are open on the left"
FILTER = "a comparison that filters wants unique matches too, also of elements that it drops"
ZERO = "the way back to zero bounds also the way that is taken where the window begins before the series"
RENAMED = "holt_winters has a new name"
EXACT = 'sum_over_time(odd{kind="cancel"}[5m]) / count_over_time(odd{kind="cancel"}[5m])'
CHANGED = [
    Changed("count_over_time(aligned[1m])", "count_over_time(aligned[59s])", OPEN),
    Changed("sum_over_time(aligned[1m])", "sum_over_time(aligned[59s])", OPEN),
    Changed("increase(aligned[15s])", "nothing", OPEN),
    Changed("aligned_once", "nothing", OPEN),
    Changed("count_over_time(vector(1)[5m:1m] @ 1700001000)", "vector(5)", OPEN),
    Changed(
        "increase(late_total[5m])",
        "delta(late_total[5m])",
        ZERO,
    ),
    Changed("rate(late_total[4m])", "delta(late_total[4m]) / 240", ZERO),
    Changed("double_exponential_smoothing(load[5m], 0.5, 0.5)", "holt_winters(load[5m], 0.5, 0.5)", RENAMED),
    Changed("double_exponential_smoothing(odd[5m], 0.1, 0.9)", "holt_winters(odd[5m], 0.1, 0.9)", RENAMED),
    Changed("double_exponential_smoothing(life[4m], 1.5, 0.9)", "holt_winters(life[4m], 1.5, 0.9)", RENAMED),
    Changed("topk(-1e300, load)", "nothing", "less than one is nothing, however much less"),
    Changed("angle atan2 0.5", "(angle atan2 0.5) + 0", "atan2 drops the metric's name as other arithmetic does"),
    Changed('avg_over_time(odd{kind="cancel"}[5m])', EXACT, "the mean is the compensated sum's"),
    Changed(
        'stdvar_over_time(odd{kind="huge"}[5m])', 'clamp_min(odd{kind="huge"}, Inf)', "a sum that overflows is infinite"
    ),
    Changed('stddev(odd{kind="inf"})', "vector(NaN)", "of something infinite"),
    Changed('stdvar(odd{kind="nan"})', "vector(NaN)", "of NaN alone"),
    Changed('page_views{note=~"line.break"}', r'page_views{note="line\nbreak"}', "a dot is any character"),
    Changed(
        'label_replace(page_views, "new", "$1", "note", "(l.*)")',
        'label_replace(page_views, "new", "$1", "note", "((?s:l.*))")',
        "a dot is any character",
    ),
    Changed(
        'label_replace(solo, "a-b", "x", "", "")',
        Answer("vector", {(("__name__", "solo"), ("a-b", "x")): [(INSTANTS_MS[0], 7.0)]}),
        "names are UTF-8",
    ),
    Changed("sum_over_time(load[4m + 60])", "sum_over_time(load[5m])", "durations are calculated"),
    Changed("load offset (2 * 30s)", "load offset 1m", "durations are calculated"),
    Changed(
        '-{__name__=~"relay_."}',
        '{__name__=~"relay_."} * -1',
        "one after the other is no conflict",
        When(*RANGES_MS[0]),
    ),
    Changed("vector(1_000)", "vector(1000)", "numbers may be grouped"),
    Changed("abs(first_over_time(load[5m]))", "abs(load offset 4m45s)", "a function that 2.42 has not"),
    Changed('{"solo"}', "solo", "quoted names"),
    Changed('{"load", job="api"}', 'load{job="api"}', "quoted names"),
    Changed('load{"job"="api"}', 'load{job="api"}', "quoted names"),
    Changed('sum by ("job") (load)', "sum by (job) (load)", "quoted names"),
    Changed('load + on ("job", instance) up', "load + on (job, instance) up", "quoted names"),
    Changed("sum_over_time(load[300])", "sum_over_time(load[5m])", "a number of seconds is a duration"),
    Changed("load offset 60", "load offset 1m", "a number of seconds is a duration"),
    Changed("vector(5m)", "vector(300)", "a duration is a number of seconds"),
    Changed(
        "topk(NaN, load)",
        Answer("error", fault="execution", text="Parameter value is NaN"),
        "the error has words of its own",
    ),
    Changed(
        'left_side > on (x) (right_side{x="1"} * 6)',
        Answer(
            "error",
            fault="execution",
            text="multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)",
        ),
        FILTER,
    ),
    Changed(
        "histogram_fraction(0, 1, latency_seconds_bucket)",
        'sum without (le) (latency_seconds_bucket{le="1"}) / sum without (le) (latency_seconds_bucket{le="+Inf"})',
        "takes classic histograms too",
    ),
]


@pytest.mark.parametrize("changed", CHANGED, ids=[changed.expression for changed in CHANGED])
def test_version_3_has_changed(changed: Changed, engine: Engine, prometheus: Prometheus) -> None:
    when = changed.when
    ours, before = answer_of(engine, changed.expression, when), answer_from(prometheus, changed.expression, when)
    says = answer_from(prometheus, changed.says, when) if isinstance(changed.says, str) else changed.says
    assert difference(before, says, loose=False), f"2.42 says so too: {shown(before)}"
    assert not difference(ours, says, is_loose(changed.expression)), table(
        [(changed.expression, changed.why, shown(ours), shown(says))]
    )


def test_a_window_that_an_at_holds_stays_while_the_time_goes_on(engine: Engine, prometheus: Prometheus) -> None:
    """2.42 lets the window move along: what it says at each time alone is right."""
    when = When(*RANGES_MS[0])
    for expression in ("predict_linear(load[5m] @ 1700001203, 60)", "predict_linear(load[5m] @ end() offset 1m, 60)"):
        times = range(when.start_ms, when.end_ms + 1, when.step_ms)
        alone = [prometheus.instant(expression.replace("end()", str(when.end_ms / 1000)), time_ms) for time_ms in times]
        says = Answer("matrix", {labels: [one.series[labels][0] for one in alone] for labels in alone[0].series})
        assert difference(answer_of(engine, expression, when), says, loose=False) == ""
        assert difference(answer_from(prometheus, expression, when), says, loose=False)


# That the comparison is one


def test_the_store_holds_what_prometheus_was_given(store: Store) -> None:
    found = store.read([], 0, 1 << 62)
    counts = found.counts
    names = [
        labels_of({"__name__": shape.metric, **dict(shape.labels), **dict(owner)})
        for owner, shape in ((found.owners[o], found.shapes[s]) for o, s in zip(found.owner, found.shape, strict=True))
    ]
    place = {name: i for i, name in enumerate(names)}
    for one in dataset():
        i = place.pop(one.labels)
        first, start = found.edges[found.vector[i]], found.start[i]
        np.testing.assert_array_equal(found.times[first : first + counts[i]], one.times)
        bits = found.values[start : start + counts[i]].view(np.int64)
        np.testing.assert_array_equal(bits, one.values.view(np.int64))
    assert not place
    assert store.segments is not None
    assert [segment.info.max_ms < CUT_MS for segment in store.segments.all("raw")] == [True]


def test_expressions_are_many_and_most_find_something(prometheus: Prometheus) -> None:
    assert len({expression for group in GROUPS.values() for expression in group}) >= 500
    generated = [prometheus.range(expression, *RANGES_MS[0]) for expression in GROUPS["generated"]]
    assert sum(bool(answer.series) for answer in generated) > 0.9 * len(generated)
    assert not [answer.text for answer in generated if answer.kind == "error"]


def test_every_function_and_operator_is_asked_in_several_contexts() -> None:
    expressions = [expression for group in GROUPS.values() for expression in group]
    functions = [*asked.MATH, *asked.DATES, *asked.OVER_TIME, *asked.OTHERS]
    called = {f"{name}(": sum(f"{name}(" in one for one in expressions) for name in functions}
    applied = {sign: sum(f"{sign} " in one for one in expressions) for sign in asked.OPERATOR_SIGNS}
    folded = {
        name: sum(one.startswith(f"{name} ") for one in expressions) for name in [*asked.AGGREGATES, *asked.DEVIATIONS]
    }
    folded |= {
        f"{name}(": sum(f"{name}(" in one for one in expressions)
        for name in ("topk", "bottomk", "quantile", "count_values")
    }
    assert len(functions) == 69  # all of 2.42 but holt_winters, which version 3 does not have
    assert {name: count for name, count in {**called, **applied, **folded}.items() if count < 3} == {}


def vector(value: float, time_ms: int = 5, **labels: str) -> Answer:
    return Answer("vector", {labels_of(labels): [(time_ms, value)]})


UNLIKE = {
    "the last digit": (vector(0.1), vector(np.nextafter(0.1, 1)), False),
    "more than nearly": (vector(1 + 1e-11), vector(1), True),
    "the sign of zero": (vector(-0.0), vector(0.0), False),
    "a number for NaN": (vector(1), vector(NAN), True),
    "NaN for a number": (vector(NAN), vector(1), True),
    "the time": (vector(1, 5), vector(1, 6), True),
    "a label": (vector(1, a="b"), vector(1, a="c"), True),
    "one too few": (Answer("vector"), vector(1), True),
    "one too many": (vector(1), Answer("vector"), True),
    "the kind": (vector(1), Answer("matrix", vector(1).series), True),
    "the text": (Answer("string", text="a"), Answer("string", text="b"), True),
    "no error": (vector(1), Answer("error", fault="bad_data"), True),
    "another error": (Answer("error", fault="bad_data"), Answer("error", fault="execution"), True),
    "other words": (Answer("error", fault="execution", text="x"), Answer("error", fault="execution", text="y"), True),
}
ALIKE = {
    "NaN": (vector(NAN), vector(NAN), False),
    "nearly": (vector(1 + 1e-13), vector(1), True),
    "the order of series": (
        Answer("vector", {**vector(1, a="1").series, **vector(1, a="2").series}),
        Answer("vector", {**vector(1, a="2").series, **vector(1, a="1").series}),
        False,
    ),
    "what a parser says": (
        Answer("error", fault="bad_data", text="x"),
        Answer("error", fault="bad_data", text="y"),
        False,
    ),
    "which two stand in the way": (
        Answer("error", fault="execution", text="found for the match group {a} on the right: [{b}, {c}]"),
        Answer("error", fault="execution", text="found for the match group {d} on the right: [{c}, {b}]"),
        False,
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_the_comparison_sees(case: str) -> None:
    assert difference(*UNLIKE[case])


@pytest.mark.parametrize("case", ALIKE)
def test_the_comparison_looks_past(case: str) -> None:
    assert difference(*ALIKE[case]) == ""
