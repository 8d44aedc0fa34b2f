"""Series are declared once, found by label, appended in batches, bounded in memory and evicted when idle."""

import numpy as np
import pytest

from storage.head import LEAST_SLOTS, REFUSED, Head
from storage.types import Meta, Shape, absent, labels_of

META = Meta("gauge", "1", "", "x")
MANY = 1 << 20


def head(memory_bytes: int = 64 << 20, slots: int = 600, series: int = MANY) -> Head:
    return Head(memory_bytes, slots, series)


def labels(instance: str) -> tuple:
    return labels_of({"job": "j", "instance": instance})


def shapes(*names: str, **own: str) -> list:
    return [(Shape(name, labels_of(own)), META) for name in names]


def declare(store: Head, instance: str, *names: str, limit: int = MANY, **own: str) -> np.ndarray:
    return store.declare(labels(instance), shapes(*names, **own), limit)


def at(store: Head, ids: np.ndarray, *steps_ms: int) -> list:
    return store.matrix(ids, np.array(steps_ms, dtype=np.int64), 300_000).tolist()


def test_a_series_declared_twice_keeps_its_id() -> None:
    store = head()
    first = declare(store, "a", "m", "n")
    assert declare(store, "a", "n", "o").tolist()[0] == first.tolist()[1]
    assert store.index.series == 3


def test_a_series_named_twice_in_one_declaration_is_one() -> None:
    store = head()
    assert len(set(declare(store, "a", "m", "m").tolist())) == 1


@pytest.mark.parametrize(
    ("equal", "expected"),
    [
        ({}, ["a-x", "a-y", "b-x"]),
        ({"instance": "a"}, ["a-x", "a-y"]),
        ({"kind": "x"}, ["a-x", "b-x"]),
        ({"kind": "x", "instance": "b"}, ["b-x"]),
        ({"job": "j", "kind": "y"}, ["a-y"]),
        ({"other": ""}, ["a-x", "a-y", "b-x"]),
        ({"kind": "z"}, []),
        ({"instance": "c"}, []),
    ],
)
def test_select_finds_series_by_their_labels(equal: dict, expected: list) -> None:
    store = head()
    declare(store, "a", "m", kind="x")
    declare(store, "a", "m", kind="y")
    declare(store, "b", "m", kind="x")
    declare(store, "b", "other", kind="x")
    found = [store.labels(int(i)) for i in store.select("m", equal)]
    assert sorted(f"{f['instance']}-{f['kind']}" for f in found) == expected


def test_select_gives_the_same_for_few_and_for_many_owners() -> None:
    store = head()
    for i in range(5000):
        declare(store, f"i{i}", "m")
    assert len(store.select("m", {"job": "j"})) == 5000
    assert store.labels(int(store.select("m", {"instance": "i77"})[0]))["instance"] == "i77"


def test_a_batch_over_several_groups_lands_whole() -> None:
    store = head()
    first = declare(store, "a", *(f"m{i}" for i in range(40)))
    second = declare(store, "a", *(f"n{i}" for i in range(3)))
    mixed = np.array([second[2], first[7], second[0], first[0]])
    store.append(store.plan(mixed), 1000, np.array([1.0, 2.0, 3.0, 4.0]))
    assert at(store, mixed, 1000) == [[1.0], [2.0], [3.0], [4.0]]
    assert store.latest[mixed].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_latest_is_the_newest_sample_and_not_a_late_one() -> None:
    store = head()
    plan = store.plan(declare(store, "a", "m"))
    for time_ms, value in ((2000, 2.0), (1000, 1.0)):
        store.append(plan, time_ms, np.array([value]))
    assert store.latest[plan.ids].tolist() == [2.0]
    assert at(store, plan.ids, 1000, 2000) == [[1.0, 2.0]]


def test_latest_follows_each_series_and_not_its_group() -> None:
    store = head()
    ids = declare(store, "a", "m", "n")
    early, late = store.plan(ids[:1]), store.plan(ids[1:])
    for second in range(1, 40):
        store.append(late, 1000 * second + 500, np.array([float(second)]))
        store.append(early, 1000 * second, np.array([10.0 * second]))
        assert store.latest[ids].tolist() == [10.0 * second, float(second)]
    store.append(store.plan(ids), 2000, np.array([-1.0, -1.0]))
    assert store.latest[ids].tolist() == [390.0, 39.0]


def test_series_that_are_declared_apart_share_a_group_with_nothing() -> None:
    store = head()
    apart = store.declare(labels("a"), shapes("up", "state"), MANY, apart=True)
    others = declare(store, "a", "m", "n")
    assert not {id(g) for g in store.groups_of(apart)} & {id(g) for g in store.groups_of(others)}
    assert store.groups_of(apart)[0].width == 2


def test_an_absent_cell_leaves_the_latest_value() -> None:
    store = head()
    plan = store.plan(declare(store, "a", "m", "n"))
    store.append(plan, 1000, np.array([1.0, 2.0]))
    partly = absent((2,))
    partly[0] = 5.0
    store.append(plan, 2000, partly)
    assert store.latest[plan.ids].tolist() == [5.0, 2.0]


def test_too_late_samples_are_counted() -> None:
    store = head(slots=16)
    plan = store.plan(declare(store, "a", "m", "n"))
    for second in range(100, 130):
        assert store.append(plan, 1000 * second, np.zeros(2)) == 0
    assert store.append(plan, 1000, np.zeros(2)) == 2
    assert store.late_samples == 2


def test_the_limit_of_an_instance_refuses_what_is_over_it_only() -> None:
    store = head()
    ids = declare(store, "a", "m", "n", "o", limit=2)
    assert (ids == REFUSED).tolist() == [False, False, True]
    assert (declare(store, "b", "o", limit=2) != REFUSED).all()


def test_the_limit_of_the_head_holds_for_everyone() -> None:
    store = head(series=2)
    declare(store, "a", "m")
    assert (declare(store, "b", "m", "n") == REFUSED).tolist() == [False, True]


def test_memory_stays_within_the_budget_and_old_rings_make_room() -> None:
    budget = 4 << 20
    store = head(memory_bytes=budget, slots=4096)
    plan = store.plan(declare(store, "first", *(f"m{i}" for i in range(100))))
    for second in range(6000):
        store.append(plan, 1000 * second, np.full(100, float(second)))
    assert 0.4 * budget < store.ring_bytes <= budget
    for i in range(60):
        assert (declare(store, f"i{i}", *(f"m{j}" for j in range(100))) != REFUSED).all()
        assert store.ring_bytes <= budget
    assert store.latest[plan.ids[0]] == 5999.0
    assert at(store, plan.ids[:1], 5_999_000, 5_990_000) == [[5999.0, 5990.0]]


def test_series_are_refused_only_when_every_ring_is_as_short_as_it_may_be() -> None:
    row_bytes = 8 * 101
    store = head(memory_bytes=64 * row_bytes * 3)
    declared = [declare(store, f"i{i}", *(f"m{j}" for j in range(100))) for i in range(40)]
    accepted = sum(bool((ids != REFUSED).all()) for ids in declared)
    assert 3 <= accepted < 40
    assert store.ring_bytes <= 64 * row_bytes * 3
    assert accepted * LEAST_SLOTS * row_bytes <= store.memory_bytes


def test_idle_groups_leave_memory_unless_a_stream_holds_them() -> None:
    store = head()
    idle, held, fresh = (declare(store, name, *(f"m{i}" for i in range(50))) for name in "abc")
    for ids, time_ms in ((idle, 0), (held, 0), (fresh, 90_000)):
        store.append(store.plan(ids), time_ms, np.ones(50))
    for group in store.groups_of(held):
        group.holders += 1
    before = store.ring_bytes
    assert store.evict_idle(now_ms=100_000, idle_ms=60_000) == 50
    assert store.ring_bytes < before
    assert sorted(store.labels(int(i))["instance"] for i in store.select("m3")) == ["b", "c"]


def test_evicted_ids_are_used_again() -> None:
    store = head()
    for generation in range(200):
        ids = declare(store, f"pod-{generation}", *(f"m{i}" for i in range(50)))
        store.append(store.plan(ids), 1000 * generation, np.ones(50))
        store.evict_idle(now_ms=1000 * generation, idle_ms=5000)
    assert len(store.latest) <= 1024
    assert store.index.series <= 7 * 50


def test_nothing_is_kept_of_instances_that_came_and_went() -> None:
    store = head()
    for generation in range(3000):
        own = {"pid": str(generation)}
        declare(store, f"pod-{generation}", "target_info", f"m{generation}", **own)
        store.evict_idle(now_ms=1, idle_ms=0)
    sizes = [len(held) for held in vars(store.index).values() if hasattr(held, "__len__")]
    assert max(sizes) <= 1024, vars(store.index)
    assert store.index.metrics() == []
    assert len(store._owners) == 0
    assert len(store._groups) == 1


def test_refused_series_leave_no_trace_in_the_index() -> None:
    store = head()
    declare(store, "a", *(f"m{i}" for i in range(5000)), limit=10)
    assert len(store.index.metrics()) == 10


def test_an_instance_that_ends_has_no_value_any_more() -> None:
    store = head()
    ids = declare(store, "a", "m", "n")
    store.append(store.plan(ids), 1000, np.array([1.0, 2.0]))
    for plan, time_ms, markers in store.ends(labels("a"), 2000):
        store.append(plan, time_ms, markers)
    assert np.isnan(store.latest[ids]).all()
    assert np.isnan(store.matrix(ids, np.array([2500]), 300_000)).all()
    assert at(store, ids, 1500) == [[1.0], [2.0]]


def test_series_that_come_one_by_one_share_few_groups() -> None:
    store = head()
    for i in range(500):
        declare(store, "a", f"m{i}")
    assert len(store.groups_of(np.concatenate([store.select(f"m{i}") for i in range(500)]))) <= 6
