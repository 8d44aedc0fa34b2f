"""Bound handles and the registry: what is recorded is what is read, whatever the agent throws at them."""

from __future__ import annotations

import decimal
import logging
import math
import sys
import threading

import numpy as np
import pytest

from agent_stub import instruments, semconv
from agent_stub.problems import Problems
from agent_stub.registry import Registry


def new_registry(max_series: int = 1000) -> Registry:
    registry = Registry(max_series, Problems(), lambda: None)
    registry.sleeping = True
    return registry


class Hostile:
    """An object whose every method fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__

    def __float__(self) -> float:
        raise RuntimeError("no float")


NO_AMOUNTS = ["5", b"5", None, -1, -0.5, math.nan, math.inf, -math.inf, 10**400, 1j, [], object(), Hostile()]
AMOUNTS = [
    (1, 1.0),
    (0, 0.0),
    (2.5, 2.5),
    (True, 1.0),
    (np.float32(0.5), 0.5),
    (np.int64(7), 7.0),
    (decimal.Decimal("1.5"), 1.5),
]


@pytest.mark.parametrize(("amount", "total"), AMOUNTS)
def test_a_counter_takes_numbers_of_every_kind(amount: object, total: float) -> None:
    counter = new_registry().counter("n")
    counter.add(amount)
    assert counter.values() == (total,)
    assert type(counter.value) is float


@pytest.mark.parametrize("amount", NO_AMOUNTS, ids=lambda a: type(a).__name__)
def test_what_is_no_amount_is_ignored_and_counted_and_raises_nothing(amount: object) -> None:
    registry = new_registry()
    counter, histogram = registry.counter("n"), registry.histogram("h")
    counter.add(amount)
    histogram.record(amount)
    assert counter.values() == (0.0,)
    assert sum(histogram.values()) == 0
    assert registry.invalid == 2


def test_small_floats_of_numpy_do_not_make_a_counter_imprecise() -> None:
    counter = new_registry().counter("n")
    counter.add(2**24)
    for _ in range(3):
        counter.add(np.float32(1))
    assert counter.value == 2**24 + 3


@pytest.mark.parametrize("value", [0, -3.5, math.inf, -math.inf, np.float64(2)], ids=str)
def test_a_gauge_takes_any_number(value: float) -> None:
    registry = new_registry()
    gauge = registry.gauge("g")
    gauge.set(value)
    assert gauge.values() == (float(value),)


def test_a_gauge_takes_nan_and_refuses_text() -> None:
    registry = new_registry()
    gauge = registry.gauge("g")
    gauge.set(math.nan)
    assert math.isnan(gauge.value)
    gauge.set("12")
    gauge.set(Hostile())
    gauge.set(10**400)
    assert math.isnan(gauge.value)
    assert registry.invalid == 3


def test_a_histogram_puts_a_value_on_a_bound_below_it_and_accumulates() -> None:
    histogram = new_registry().histogram("h", "s", bounds=[1, 2, 5])
    for value in (0.5, 1, 1.5, 5, 7):
        histogram.record(value)
    # cumulative by bound, the count of all (+Inf), the sum, the count of all
    assert histogram.values() == (2, 3, 4, 5, 15.0, 5)
    assert histogram.definition.width == 6


@pytest.mark.parametrize("name", sorted(semconv.BUCKETS))
def test_buckets_of_known_names_ascend_and_are_theirs(name: str) -> None:
    bounds = semconv.BUCKETS[name]
    assert list(bounds) == sorted(set(bounds))
    assert new_registry().histogram(name).bounds == bounds


def test_the_buckets_are_those_of_opentelemetry() -> None:
    assert (
        pytest.approx((0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92))
        == semconv.INFERENCE_BUCKETS_S
    )
    assert (semconv.AGENT_BUCKETS_S[0], semconv.AGENT_BUCKETS_S[-1]) == (0.1, 409.6)
    assert semconv.CALLS_BUCKETS == (1, 2, 4, 8, 16, 32, 64, 128)


@pytest.mark.parametrize("bounds", [[], ["a"], [math.nan], [math.inf], list(range(257)), 5, [None]])
def test_unusable_bucket_bounds_give_the_defaults_and_are_counted(bounds: object) -> None:
    registry = new_registry()
    assert registry.histogram("h", bounds=bounds).bounds == semconv.DEFAULT_BUCKETS
    assert registry.invalid == 1


@pytest.mark.parametrize("classes", [instruments.CLASSES, {1: instruments.ExactCounter, 4: instruments.ExactHistogram}])
def test_threads_hammering_one_handle_lose_nothing(classes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_stub.registry.CLASSES", {**instruments.CLASSES, **classes})
    registry = new_registry()
    counter, histogram = registry.counter("n"), registry.histogram("h", bounds=[1.0])
    rounds, threads = 20_000, 8
    begin = threading.Barrier(threads)

    def hammer() -> None:
        begin.wait()
        for _ in range(rounds):
            counter.add(1)
            histogram.record(0.5)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=hammer) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert counter.value == rounds * threads
    assert histogram.values() == (rounds * threads,) * 2 + (rounds * threads / 2, rounds * threads)


def test_the_same_name_and_labels_give_the_same_handle_in_any_order() -> None:
    registry = new_registry()
    assert registry.counter("n", labels={"a": 1, "b": "2"}) is registry.counter("n", labels={"b": "2", "a": "1"})
    assert len(registry.handles) == 1


def test_labels_that_are_equal_as_numbers_but_not_as_text_are_different_series() -> None:
    registry = new_registry()
    for value in (1, 1.0, True):
        registry.counter("n", labels={"a": value}).add()
    assert [dict(h.definition.labels)["a"] for h in registry.handles] == ["1", "1.0", "True"]


def test_a_name_of_another_kind_is_refused_and_what_is_recorded_into_it_counted() -> None:
    registry = new_registry()
    registry.counter("n")
    gauge = registry.gauge("n")
    gauge.set(1.0)
    gauge.set(2.0)
    assert registry.invalid == 3
    assert len(registry.handles) == 1
    assert registry.take_changed() == []


def test_series_beyond_the_bound_share_one_overflow_series_a_metric_and_are_counted() -> None:
    registry = new_registry(max_series=10)
    for i in range(1000):
        registry.counter("n", labels={"user": i}).add()
    overflow = registry.counter("n", labels={"user": "yet another"})
    assert dict(overflow.definition.labels) == {"otel_metric_overflow": "true"}
    assert overflow.value == 990
    assert len(registry.handles) == 11
    assert registry.overflowed == 991
    assert len(registry._cache) < 50


def test_unbounded_names_do_not_grow_memory_without_bound() -> None:
    registry = new_registry(max_series=10)
    for i in range(3000):
        registry.counter(f"n{i}").add()
    assert len(registry.handles) <= 10 + 1000
    assert len(registry._kinds) <= 40


HOSTILE_LABELS = [
    ("a lone surrogate", {"a": "x\ud800y"}, "x?y", True),
    ("bytes that are no text", {"a": b"\xff"}, "b'\\xff'", False),
    ("a megabyte", {"a": "é" * 500_000}, "é" * 512, True),
    ("a number", {"a": 5}, "5", False),
    ("nothing", {"a": None}, "", False),
    ("a NUL", {"a": "x\0y"}, "x\0y", False),
    ("markup", {"a": "<script>"}, "<script>", False),
    ("no text at all", {"a": Hostile()}, "<Hostile without text>", False),
]


@pytest.mark.parametrize(
    ("labels", "kept", "counted"), [c[1:] for c in HOSTILE_LABELS], ids=[c[0] for c in HOSTILE_LABELS]
)
def test_hostile_label_values_are_made_fit_and_counted(labels: dict, kept: str, counted: bool) -> None:
    registry = new_registry()
    handle = registry.counter("n", labels=labels)
    handle.add()
    assert dict(handle.definition.labels)["a"] == kept
    assert handle.definition.to_wire().SerializeToString()
    assert registry.invalid == int(counted)


def test_too_many_labels_are_cut_and_counted() -> None:
    registry = new_registry()
    handle = registry.counter("n", labels={f"l{i}": "v" for i in range(40)})
    assert len(handle.definition.labels) == 32
    assert registry.invalid == 1


@pytest.mark.parametrize("name", ["", None, 5, "x" * 300, "a\udcff"])
def test_hostile_names_raise_nothing(name: object) -> None:
    registry = new_registry()
    registry.counter(name).add()
    registry.gauge(name, unit="u" * 99, description="d" * 5000)
    assert registry.invalid > 0
    for handle in registry.handles:
        assert 1 <= len(handle.definition.name.encode()) <= 256


def test_only_changed_handles_are_taken_each_once() -> None:
    registry = new_registry()
    a, b = registry.counter("a"), registry.counter("b")
    a.add()
    a.add()
    assert registry.take_changed() == [a]
    assert registry.take_changed() == []
    b.add()
    a.add()
    assert registry.take_changed() == [b, a]


def test_a_sleeping_sender_is_woken_once() -> None:
    woken: list[int] = []
    registry = Registry(10, Problems(), lambda: woken.append(1))
    registry.sleeping = True
    counter = registry.counter("n")
    counter.add()
    counter.add()
    registry.gauge("g").set(1)
    assert woken == [1]


def test_a_problem_is_logged_once_a_minute_and_kind(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    problems = Problems(lambda: now[0])
    with caplog.at_level(logging.WARNING, "agent_stub"):
        for now[0] in (0.0, 1.0, 59.0):
            problems.warn("k", "first")
            problems.warn("other", "second")
        now[0] = 61.0
        problems.warn("k", "third")
    assert [r.getMessage() for r in caplog.records] == ["first", "second", "third"]


def test_a_logging_handler_that_raises_does_not_reach_the_agent() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("broken handler")

    handler = Broken()
    logger = logging.getLogger("agent_stub")
    logger.addHandler(handler)
    try:
        new_registry().counter("n").add("no number")
    finally:
        logger.removeHandler(handler)
