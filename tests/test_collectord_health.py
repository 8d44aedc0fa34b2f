"""The three clocks: every state is reached by what should reach it, left again, and says why."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectord.config import Health as Settings
from collectord.health import HISTORY, AgentHealth, CommonCause, coarse, phi

SETTINGS = Settings()
PING_S = 1.0


class Agent:
    """An agent under a clock of its own; each verb lets its time pass second by second, as the daemon would see it."""

    def __init__(self, **settings: float) -> None:
        self.now_s = 1000.0
        self.health = AgentHealth(Settings(**settings), self.now_s)
        self.seen: list[str] = []

    def evaluate(self) -> bool:
        changed = self.health.evaluate(self.now_s, PING_S)
        if changed:
            self.seen.append(self.health.state)
        return changed

    def connect(self) -> Agent:
        self.health.connected(self.now_s)
        self.evaluate()
        return self

    def pong(
        self, *, lag_s: float | None = None, tasks: int = 0, age_s: float = 0.0, busy_s: float = 0.0, doing: str = ""
    ) -> Agent:
        self.health.pong(self.now_s, lag_s, tasks, age_s, busy_s, doing)
        self.evaluate()
        return self

    def run(self, seconds: int) -> Agent:
        for _ in range(seconds):
            self.now_s += 1
            self.pong()
        return self

    def silence(self, seconds: int) -> Agent:
        for _ in range(seconds):
            self.now_s += 1
            self.evaluate()
        return self

    def goodbye(self, kind: str = "exit", reason: str = "work done", returns_s: float | None = None) -> Agent:
        self.health.goodbye(self.now_s, kind, reason, returns_s)
        self.health.disconnected(self.now_s, "closed")
        self.evaluate()
        return self

    def vanish(self, why: str = "connection reset") -> Agent:
        self.health.disconnected(self.now_s, why)
        self.evaluate()
        return self

    @property
    def said(self) -> tuple[str, str]:
        return self.health.state, self.health.reason


def test_an_agent_that_never_connected_is_never_seen() -> None:
    agent = Agent()
    assert not agent.evaluate()
    assert agent.said == ("never-seen", "known, but has not connected yet")
    assert agent.health.uptime_ratio(agent.now_s) == 0.0


def test_an_agent_that_answers_stays_live_without_a_new_reason() -> None:
    agent = Agent().connect().run(600)
    assert agent.said == ("live", "answers pings")
    assert [state for _, state, _ in agent.health.history] == ["live", "live"]  # connected, then answers
    assert agent.health.since_s == 1000.0
    assert agent.health.uptime_ratio(agent.now_s) == 1.0


def test_kill_9_is_offline_at_once_and_keeps_the_last_words() -> None:
    agent = Agent().connect().run(10)
    agent.health.last_words("MemoryError in chunk()")
    agent.vanish()
    assert agent.said == ("offline", "vanished without goodbye (connection reset); last words: MemoryError in chunk()")
    assert agent.health.since_s == agent.now_s
    assert not agent.silence(3600).evaluate(), "the reason of one that is gone does not change by itself"
    assert agent.connect().run(1).said == ("live", "answers pings")
    assert agent.vanish().said == ("offline", "vanished without goodbye (connection reset)"), "words of the life before"


def test_sigstop_is_stale_then_offline_and_sigcont_is_live_again() -> None:
    agent = Agent().connect().run(60)
    agent.seen.clear()
    assert agent.silence(4).said[0] == "live", "inside the acceptable pause"
    assert agent.silence(4).said == ("stale", "answers no ping, with the connection still open")
    assert agent.silence(30).said == ("offline", "no sign of life, with the connection still open")
    assert agent.run(1).said == ("live", "answers pings")
    assert agent.seen == ["stale", "offline", "live"]


def test_a_stop_of_a_minute_buys_no_patience_for_the_next_one() -> None:
    agent = Agent().connect().run(60)
    for _ in range(5):
        agent.silence(60)
        agent.health.arrival(agent.now_s)  # a batch before the first pong: an ended silence, and still no lesson
        agent.evaluate()
        agent.run(5)
    assert agent.silence(8).said[0] == "stale"


def test_batches_without_pongs_are_signs_of_life() -> None:
    agent = Agent().connect()
    for _ in range(120):
        agent.now_s += 1
        agent.health.arrival(agent.now_s)
        agent.evaluate()
    assert agent.seen == ["live"]


def test_phi_learns_a_slow_network() -> None:
    """Pongs that come every 9 s by their own nature are no reason for suspicion, once they are known."""
    agent = Agent(acceptable_pause_s=6.0).connect()
    for _ in range(200):
        agent.silence(4)
        agent.now_s += 5
        agent.pong()
    agent.seen.clear()
    agent.silence(12)
    assert agent.seen == []
    assert agent.silence(12).said[0] == "stale"


@pytest.mark.parametrize("interval_s", [1.0, 5.0, 30.0])
def test_a_larger_ping_interval_is_waited_for(interval_s: float) -> None:
    health = AgentHealth(Settings(offline_after_s=300), 0.0)
    health.connected(0.0)
    health.evaluate(interval_s + SETTINGS.acceptable_pause_s, interval_s)
    assert health.state == "live"
    health.evaluate(interval_s + SETTINGS.acceptable_pause_s + 5.7 * SETTINGS.min_deviation_s, interval_s)
    assert health.state == "stale"


@pytest.mark.parametrize(
    ("pong", "state", "reason"),
    [
        ({"lag_s": 4.9, "doing": "tool browser.open"}, "live", "answers pings"),
        (
            {"lag_s": 12, "doing": "tool browser.open"},
            "stuck",
            "event loop blocked for over 10 s, in tool browser.open",
        ),
        ({"lag_s": 61, "busy_s": 5}, "busy", "declared itself busy"),
        ({"lag_s": None, "tasks": 0, "age_s": 9000}, "live", "answers pings"),
        ({"tasks": 1, "age_s": 59}, "live", "answers pings"),
        ({"tasks": 1, "age_s": 61}, "stuck", "a task open without progress for over 1 min"),
        (
            {"tasks": 3, "age_s": 700, "doing": "llm"},
            "stuck",
            "3 tasks open without progress for over 10 min, in llm",
        ),
        ({"tasks": 1, "age_s": 700, "busy_s": 60, "doing": "build"}, "busy", "declared itself busy, in build"),
        ({"busy_s": -1}, "live", "answers pings"),
        ({"busy_s": 600}, "busy", "declared itself busy"),
    ],
)
def test_a_pong_decides(pong: dict[str, float], state: str, reason: str) -> None:
    agent = Agent().connect().run(5)
    assert agent.pong(**pong).said == (state, reason)
    assert agent.run(1).said == ("live", "answers pings"), "and the next pong takes it back"


def test_a_busy_time_ends_by_itself_and_the_stuck_task_shows() -> None:
    agent = Agent(acceptable_pause_s=20).connect().pong(tasks=1, age_s=600, busy_s=10)
    assert agent.said[0] == "busy"
    assert agent.silence(9).said[0] == "busy"
    assert agent.silence(1).said[0] == "stuck"


def test_silence_of_a_busy_agent_is_stale_and_says_so() -> None:
    agent = Agent().connect().pong(busy_s=600)
    assert agent.silence(8).said == (
        "stale",
        "answers no ping, with the connection still open, though it had declared itself busy",
    )


def test_a_reason_of_a_growing_block_changes_on_rungs_only() -> None:
    agent = Agent().connect()
    for second in range(1, 601):
        agent.now_s += 1
        agent.pong(lag_s=float(second))
    reasons = [reason for _, state, reason in agent.health.history if state == "stuck"]
    assert [r.removeprefix("event loop blocked for over ") for r in reasons] == [
        "5 s", "10 s", "20 s", "30 s", "1 min", "2 min", "5 min", "10 min",
    ]  # fmt: skip
    assert agent.health.since_s == 1005.0, "a new reason is not a new state"


@pytest.mark.parametrize(
    ("kind", "reason", "returns_s", "after_s", "state", "said"),
    [
        ("exit", "work done", None, 0, "stopped", "work done"),
        ("exit", "", None, 0, "stopped", "exit"),
        ("signal", "SIGTERM", None, 3600, "stopped", "SIGTERM"),
        ("exit", "nightly pause", 600, 60, "stopped", "nightly pause; expected back after 600 s"),
        ("exit", "nightly pause", 600, 601, "stopped", "nightly pause; should have been back after 600 s"),
        ("forced", "ValueError: no such chunk", None, 0, "offline", "crashed: ValueError: no such chunk"),
        ("reconnect", "collector restarts", None, 29, "live", "reconnecting: collector restarts"),
        ("reconnect", "collector restarts", 5, 4, "live", "reconnecting: collector restarts"),
        (
            "reconnect",
            "collector restarts",
            5,
            6,
            "offline",
            "said that it would reconnect (collector restarts), and did not",
        ),
        (
            "reconnect",
            "collector restarts",
            None,
            31,
            "offline",
            "said that it would reconnect (collector restarts), and did not",
        ),
    ],
)
def test_a_goodbye_decides(
    kind: str, reason: str, returns_s: float | None, after_s: int, state: str, said: str
) -> None:
    agent = Agent().connect().run(5).goodbye(kind, reason, returns_s).silence(after_s)
    assert agent.said == (state, said)
    assert agent.connect().run(1).said == ("live", "answers pings")


def test_a_goodbye_counts_before_the_stream_has_ended() -> None:
    agent = Agent().connect().run(5)
    agent.health.goodbye(agent.now_s, "signal", "SIGTERM", None)
    agent.silence(60)
    assert agent.said == ("stopped", "SIGTERM")


def lose(agent: Agent, times: int) -> Agent:
    for _ in range(times):
        agent.run(3).vanish()
        agent.silence(1).connect()
    return agent


def test_losses_within_the_window_are_flapping_until_it_has_passed() -> None:
    agent = lose(Agent(flapping_changes=4, flapping_window_s=100).connect(), 3)
    assert agent.run(1).said[0] == "live"
    lose(agent, 1)
    assert agent.said == ("flapping", "lost its connection 4 times within 100 s")
    assert agent.run(110).said[0] == "live"


def test_a_flapping_agent_that_stays_away_is_offline() -> None:
    agent = lose(Agent(flapping_changes=4).connect(), 4).vanish()
    assert agent.said == ("flapping", "lost its connection 5 times within 300 s")
    assert agent.silence(31).said[0] == "offline"


def test_what_a_flapping_agent_does_worse_comes_first() -> None:
    agent = lose(Agent(flapping_changes=2).connect(), 3)
    assert agent.pong(lag_s=10).said[0] == "stuck"
    assert agent.pong(busy_s=10).said[0] == "flapping"
    assert agent.silence(10).said[0] == "stale"
    assert agent.goodbye().said[0] == "stopped"


def test_goodbyes_are_not_losses() -> None:
    agent = Agent(flapping_changes=2).connect()
    for _ in range(10):
        agent.run(1).goodbye("reconnect", "drain").connect()
    assert set(agent.seen) == {"live"}


def test_uptime_is_the_share_of_time_that_was_not_announced_away() -> None:
    agent = Agent().connect().run(60).vanish().silence(20).connect().run(20).goodbye().silence(5000)
    assert agent.health.uptime_ratio(agent.now_s) == pytest.approx(80 / 100)
    assert agent.connect().run(100).health.uptime_ratio(agent.now_s) == pytest.approx(180 / 200)


def test_history_is_bounded() -> None:
    agent = Agent(flapping_changes=10_000).connect()
    for _ in range(HISTORY):
        agent.vanish()
        agent.connect()
    assert len(agent.health.history) == HISTORY
    assert agent.health.history[-1][1:] == agent.said


def test_a_pause_of_the_daemon_is_forgiven() -> None:
    agent, other = Agent().connect().run(60), Agent().connect().run(60)
    for each in (agent, other):
        each.now_s += 25
    agent.health.forgive(agent.now_s, 25)
    agent.evaluate()
    other.evaluate()
    assert (agent.said[0], other.said[0]) == ("live", "stale")
    assert agent.silence(8).said[0] == "stale", "but only the pause is forgiven"


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.001, 1e3), st.floats(0, 1e6))
def test_phi_is_no_less_for_a_longer_silence(
    silence_s: float, mean_s: float, deviation_s: float, more_s: float
) -> None:
    assert 0.0 <= phi(silence_s, mean_s, deviation_s) <= phi(silence_s + more_s, mean_s, deviation_s)


@pytest.mark.parametrize(
    ("deviations", "expected"),
    [(0, math.log10(2)), (1, 0.799546), (3, 2.869665), (5.612, 8.0), (1000, math.inf)],
)
def test_phi_is_the_tail_of_the_normal_distribution(deviations: float, expected: float) -> None:
    assert phi(10 + 2 * deviations, 10, 2) == pytest.approx(expected, abs=1e-3)


@given(st.floats(5, 1e7))
def test_a_coarse_age_never_says_more_than_has_passed(seconds: float) -> None:
    number, unit = coarse(seconds).split()
    assert 0 < int(number) * {"s": 1, "min": 60, "h": 3600}[unit] <= seconds


EVENTS = st.one_of(
    st.tuples(st.just("connect")),
    st.tuples(st.just("vanish")),
    st.tuples(st.just("goodbye"), st.sampled_from(["exit", "signal", "reconnect", "forced"])),
    st.tuples(st.just("run"), st.integers(1, 5)),
    st.tuples(st.just("silence"), st.integers(1, 50)),
)


@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_the_last_change_is_what_is_said(events: list[tuple[str, object]]) -> None:
    agent = Agent(flapping_changes=3)
    for verb, *arguments in events:
        if verb == "run" and not agent.seen:
            continue  # no pong before a connection
        getattr(agent, verb)(*arguments)
        assert not agent.evaluate(), "evaluating twice at one time changes nothing"
        assert 0.0 <= agent.health.uptime_ratio(agent.now_s) <= 1.0
        if agent.health.history:
            assert agent.health.history[-1][1:] == agent.said
            assert agent.said[1]
    changes = [(state, reason) for _, state, reason in agent.health.history]
    assert all(a != b for a, b in pairwise(changes))


def lost_at(cause: CommonCause, *times_s: float) -> None:
    for i, now_s in enumerate(times_s):
        cause.lost(now_s, f"i{i}")


@pytest.mark.parametrize(
    ("times_s", "live", "blamed"),
    [
        ([10.0] * 4, 0, 0),  # fewer than five are accidents
        ([10.0] * 5, 6, 5),
        ([10.0] * 5, 1000, 0),  # far from 30 %
        ([10.0] * 400, 600, 400),
        ([10.0, 12.0, 14.0, 16.0, 18.0, 20.0], 0, 0),  # too slow to be one thing
        ([10.0, 11.0, 12.0, 13.0, 14.0], 5, 5),
    ],
)
def test_many_losses_at_once_are_blamed_on_one_cause_once(times_s: list[float], live: int, blamed: int) -> None:
    cause = CommonCause()
    lost_at(cause, *times_s)
    verdicts = [cause.verdict(max(times_s) + i, live) for i in range(30)]
    found = [v for v in verdicts if v is not None]
    assert [len(v.instances) for v in found] == ([blamed] if blamed else [])
    if blamed:
        assert found[0].text.startswith(f"{blamed} of {live + blamed} agents lost at once")


def test_a_verdict_waits_for_the_whole_number() -> None:
    cause = CommonCause()
    verdicts = []
    for second in range(10):
        if second < 4:
            for i in range(10):
                cause.lost(100.0 + second, f"i{second}-{i}")
        verdicts.append(cause.verdict(100.0 + second, live=20))
    assert [len(v.instances) for v in verdicts if v is not None] == [40]


def test_a_pause_of_the_daemon_is_reported_once_with_those_it_made_look_silent() -> None:
    cause = CommonCause()
    cause.lost(100.0, "a")
    cause.daemon_pause(100.0, 7.25)
    verdict = cause.verdict(100.0, live=3)
    assert verdict is not None
    assert verdict.instances == ("a",)
    assert verdict.text == "collectord itself paused for 7.2 s: silence during it is forgiven"
    assert cause.verdict(101.0, live=3) is None


def test_losses_right_after_a_pause_are_blamed_on_it() -> None:
    cause = CommonCause()
    cause.daemon_pause(100.0, 30.0)
    assert cause.verdict(100.0, live=8) is not None
    lost_at(cause, *[103.0] * 6)
    verdict = cause.verdict(105.0, live=2)
    assert verdict is not None
    assert "collectord's own pause of 30.0 s" in verdict.text
