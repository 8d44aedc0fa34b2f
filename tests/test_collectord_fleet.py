"""What is known of instances outlives their streams, and one agent's return is told apart from another's."""

import numpy as np
import pytest

from agent_stub.wire import stream_pb2 as wire
from collectord.config import Config
from collectord.derived import STATES, Derived
from collectord.fleet import SUPERSEDED_S, Agent, Fleet
from storage.settings import StoreSettings
from storage.store import Store
from storage.types import labels_of

NOW_MS = 1_700_000_000_000


class House:
    """A fleet and its clock."""

    def __init__(self) -> None:
        self.store = Store.in_memory(StoreSettings(memory_bytes=16 << 20, slots=100, series_limit=100_000))
        self.head = self.store.head
        self.fleet = Fleet(Config(), self.store)
        self.now_s = 1000.0

    @property
    def now_ms(self) -> int:
        return NOW_MS + int(1000 * self.now_s)

    def hello(self, instance: str, agent: str = "a", version: str = "1", host: str = "h") -> Agent:
        attributes = [wire.Attribute(key="host.name", text=host)]
        said = wire.Hello(agent=agent, instance=instance, version=version, attributes=attributes, connection=1)
        return self.fleet.admit(said, "ipv4:127.0.0.1:1", self.now_s, self.now_ms)

    def sweep(self, seconds: float = 1.0) -> None:
        for _ in range(max(round(seconds), 1)):
            self.now_s += min(seconds, 1.0)
            self.fleet.sweep(self.now_s, self.now_ms, 1.0)

    def gone(self, agent: Agent) -> None:
        self.fleet.ended(agent, "connection reset", "", self.now_s, self.now_ms)

    def latest(self, metric: str, **labels: str) -> float:
        [found] = self.head.select(metric, labels)
        return float(self.head.latest[found])


@pytest.fixture
def house() -> House:
    return House()


def test_an_instance_that_vanishes_is_offline_at_once_and_a_crash(house: House) -> None:
    agent = house.hello("i1")
    house.sweep()
    house.gone(agent)
    assert agent.health.state == "offline"
    assert "vanished without goodbye" in agent.health.reason
    assert house.fleet.crashes == 1
    assert house.latest("up", instance="i1") == 0.0
    assert house.latest("agent_state", instance="i1", state="offline") == 1.0


def test_up_and_state_are_written_every_interval(house: House) -> None:
    house.hello("i1")
    house.sweep(5)
    assert house.latest("up", instance="i1", job="a") == 1.0
    states = {state: house.latest("agent_state", instance="i1", state=state) for state in STATES}
    assert [state for state, value in states.items() if value] == ["live"]


def test_a_stopped_instance_ends_its_series(house: House) -> None:
    agent = house.hello("i1")
    house.sweep()
    agent.health.goodbye(house.now_s, "exit", "done", None)
    house.gone(agent)
    assert agent.health.state == "stopped"
    assert np.isnan(house.latest("up", instance="i1"))
    house.sweep(3)
    assert np.isnan(house.latest("up", instance="i1"))
    assert house.fleet.crashes == 0


def test_a_new_instance_of_a_crashed_agent_carries_the_mark_and_replaces_it_soon(house: House) -> None:
    first = house.hello("i1")
    house.sweep()
    house.gone(first)
    house.sweep(5)
    second = house.hello("i2", version="2")
    assert [mark["kind"] for mark in second.marks] == ["crash", "restart", "version"]
    assert second.marks[0]["time_ms"] == house.now_ms - 5000
    assert set(house.fleet.agents) == {"i1", "i2"}
    second.last_seen_s = house.now_s + SUPERSEDED_S + 2
    house.sweep(SUPERSEDED_S + 2)
    assert set(house.fleet.agents) == {"i2"}


def test_an_agent_of_the_same_name_on_another_host_replaces_nobody(house: House) -> None:
    house.gone(house.hello("i1", host="h1"))
    second = house.hello("i2", host="h2")
    assert not second.marks
    assert not house.fleet.agents["i1"].superseded


def test_a_reconnect_with_another_version_is_a_mark(house: House) -> None:
    house.gone(house.hello("i1", version="1"))
    agent = house.hello("i1", version="2")
    assert [(mark["kind"], mark["text"]) for mark in agent.marks] == [("version", "1 to 2")]


def test_instances_that_left_are_forgotten_in_the_end(house: House) -> None:
    house.gone(house.hello("i1"))
    house.now_s += Config().health.forget_after_s + 1
    house.sweep()
    assert len(house.fleet) == 0


def test_many_losses_at_once_are_one_event(house: House) -> None:
    agents = [house.hello(f"i{i}", agent=f"a{i}") for i in range(20)]
    house.sweep()
    for agent in agents[:12]:
        house.gone(agent)
    for _ in range(10):
        for agent in agents[12:]:
            agent.last_seen_s = house.now_s
        house.sweep()
    assert [event["kind"] for event in house.fleet.events] == ["fleet.common_cause"]
    assert house.fleet.events[0]["fields"]["instances"] == 12


def test_the_daemons_own_pause_makes_nobody_stale(house: House) -> None:
    agents = [house.hello(f"i{i}") for i in range(6)]
    house.sweep()
    house.now_s += 120
    house.sweep()
    assert {agent.health.state for agent in agents} == {"live"}
    assert "paused" in house.fleet.events[0]["fields"]["text"]


def test_an_exception_is_the_last_words(house: House) -> None:
    agent = house.hello("i1")
    fields = [
        wire.Attribute(key="exception.type", text="MemoryError"),
        wire.Attribute(key="code.function.name", text="chunk"),
    ]
    house.fleet.take_events(agent, [wire.Event(time_unix_ms=1, kind="agent.exception", fields=fields)])
    house.sweep()
    house.gone(agent)
    assert "last words: MemoryError in chunk()" in agent.health.reason


def test_events_and_logs_keep_the_newest(house: House) -> None:
    agent = house.hello("i1")
    house.fleet.take_events(agent, [wire.Event(time_unix_ms=i, kind=f"k{i}") for i in range(300)])
    house.fleet.take_logs(agent, [wire.LogRecord(time_unix_ms=i, body="x" * 5000, severity=18) for i in range(300)])  # type: ignore[arg-type]
    assert [len(agent.events), agent.events[0]["kind"]] == [200, "k299"]
    assert [len(agent.logs), agent.logs[0]["severity"], len(agent.logs[0]["body"])] == [200, "ERROR", 2048]


def test_round_trips_become_a_histogram() -> None:
    store = Store.in_memory(StoreSettings(memory_bytes=16 << 20, slots=100, series_limit=100_000))
    head = store.head
    derived = Derived(store, labels_of({"job": "a", "instance": "i"}), {"host.name": "h"})
    for rtt_s in (0.0004, 0.003, 3.0):
        derived.round_trip(rtt_s, 0.25, 1.5)
    derived.write(NOW_MS, "live")

    def latest(metric: str, **labels: str) -> float:
        return float(head.latest[head.select(metric, labels)[0]])

    buckets = [latest("agent_ping_rtt_seconds_bucket", le=le) for le in ("0.0005", "0.005", "1", "+Inf")]
    assert buckets == [1, 2, 2, 3]
    assert latest("agent_ping_rtt_seconds_count") == 3
    assert latest("agent_ping_rtt_seconds_sum") == pytest.approx(3.0034)
    assert latest("agent_loop_lag_seconds") == 0.25
    assert latest("target_info", host_name="h") == 1
