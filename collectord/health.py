"""The three clocks and the state machine of one agent instance, and the common cause of many losses.

Sans-IO: nothing here reads a clock. Every `now_s` is one monotonic clock in seconds, the caller's.

The transport clock is phi accrual (Hayashibara, Defago, Yared, Katayama: "The phi accrual failure detector", 2004). The
arrivals that it learns from are the pongs, since those alone come at an interval that this side knows; any message at
all ends a silence. It departs from the paper for large fleets: mean and variance are exponentially weighted instead
of kept over a window of samples, and the deviation has a lower bound and the silence an acceptable pause, so that a
garbage collection does not look like a death.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from collectord.config import Health as HealthSettings

State = Literal["never-seen", "live", "busy", "stuck", "stale", "offline", "stopped", "flapping"]
Answer = str | None

HISTORY: Final = 1000  # entries of one instance: what the page shows at most
LEARNING_WEIGHT: Final = 1 / 32  # of the newest interval; half of what phi knows is then some 22 pongs old
_UP: Final = frozenset({"live", "busy", "stuck"})
_NOT_COUNTED: Final = frozenset({"never-seen", "stopped"})
_LADDER_S: Final = (5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)


def phi(silence_s: float, mean_s: float, deviation_s: float) -> float:
    """Suspicion that a silence is no accident: -log10 of the probability of a longer one, for normal intervals.

    REQUIRES: deviation_s > 0. Infinite where the probability is below what float64 can hold.
    """
    later = 0.5 * math.erfc((silence_s - mean_s) / (deviation_s * math.sqrt(2.0)))
    return -math.log10(later) if later > 0.0 else math.inf


def coarse(seconds: float) -> str:
    """An age that changes seldom: the largest rung of a ladder that it has passed, "12 s" -> "10 s", "90 s" -> "1 min".

    For reasons: a reason that counted seconds would be a new one every second.
    """
    rung = next((r for r in reversed(_LADDER_S) if r <= seconds), None)
    if rung is None:
        return f"{seconds:.1f} s"
    if rung < 60:
        return f"{rung} s"
    return f"{rung // 60} min" if rung < 3600 else f"{rung // 3600} h"


class AgentHealth:
    """What is known of one instance's liveness, and the state that follows from it.

    The methods named after events only store; `evaluate` decides, so that a second of a large fleet costs one pass.
    `state`, `reason` and `since_s` (when the state began) are as of the last `evaluate`; `history` holds
    (now_s, state, reason) of every change, oldest first.
    """

    __slots__ = (
        "_activity",
        "_busy_until_s",
        "_counted_at_s",
        "_deviation_s",
        "_down_s",
        "_expected_s",
        "_gone_at_s",
        "_gone_why",
        "_goodbye_kind",
        "_goodbye_reason",
        "_last_words",
        "_loop_lag_s",
        "_losses_s",
        "_mean_s",
        "_open",
        "_open_tasks",
        "_pong_at_s",
        "_progress_age_s",
        "_refusal",
        "_returns_at_s",
        "_returns_in_s",
        "_seen_at_s",
        "_settings",
        "_silence_s",
        "_suspicion",
        "_up_s",
        "_variance_s2",
        "history",
        "reason",
        "since_s",
        "state",
    )

    def __init__(self, settings: HealthSettings, now_s: float) -> None:
        self._settings = settings
        self.state: State = "never-seen"
        self.reason = "known, but has not connected yet"
        self.since_s = now_s
        self.history: deque[tuple[float, State, str]] = deque(maxlen=HISTORY)

        self._open = False
        self._seen_at_s = now_s  # the newest message of any kind
        self._pong_at_s: float | None = None
        self._mean_s = self._variance_s2 = 0.0  # of the intervals between pongs
        self._deviation_s = settings.min_deviation_s
        self._expected_s = math.inf  # a silence this long means nothing yet
        self._silence_s = self._suspicion = 0.0  # as of the last evaluate

        self._loop_lag_s = self._progress_age_s = 0.0
        self._open_tasks = 0
        self._busy_until_s = -math.inf
        self._activity = self._last_words = ""

        self._gone_at_s: float | None = None
        self._gone_why = self._refusal = ""
        self._goodbye_kind: str | None = None
        self._goodbye_reason = ""
        self._returns_at_s: float | None = None
        self._returns_in_s = 0.0
        self._losses_s: list[float] = []  # of connections, without goodbye, within the window

        self._up_s = self._down_s = 0.0
        self._counted_at_s = now_s

    # What happened

    def connected(self, now_s: float) -> None:
        """A stream of this instance was welcomed. What was known from the stream before is void."""
        self._open = True
        self._seen_at_s = now_s
        self._pong_at_s = None
        self._loop_lag_s = self._progress_age_s = 0.0
        self._open_tasks = 0
        self._busy_until_s = -math.inf
        self._activity = self._last_words = self._gone_why = self._refusal = self._goodbye_reason = ""
        self._goodbye_kind = self._returns_at_s = self._gone_at_s = None

    def arrival(self, now_s: float) -> None:
        """Any message of the agent: ends a silence. One that is older than a pause that was forgiven changes nothing."""
        self._seen_at_s = max(self._seen_at_s, now_s)

    def pong(
        self,
        now_s: float,
        loop_lag_s: float | None,
        open_tasks: int,
        progress_age_s: float,
        busy_for_s: float,
        activity: str,
    ) -> None:
        """An answer to a ping. `busy_for_s`: what is left of the declared busy time, 0 or less when there is none."""
        if self._pong_at_s is not None:
            self._learn(now_s - self._pong_at_s)
        self._pong_at_s = self._seen_at_s = now_s
        self._loop_lag_s = loop_lag_s or 0.0
        self._open_tasks = open_tasks
        self._progress_age_s = progress_age_s
        self._busy_until_s = now_s + busy_for_s if busy_for_s > 0 else -math.inf
        self._activity = activity

    def goodbye(self, now_s: float, kind: str, reason: str, expected_return_s: float | None) -> None:
        """The agent leaves on purpose. `kind`: exit, signal, reconnect or forced, as GoodbyeKind in lower case.

        `expected_return_s`: seconds from now until it means to be back; None: it did not say.
        """
        self._seen_at_s = now_s
        self._goodbye_kind = kind
        self._goodbye_reason = reason or kind
        self._returns_in_s = max(expected_return_s or 0.0, 0.0)
        self._returns_at_s = None if expected_return_s is None else now_s + self._returns_in_s

    def disconnected(self, now_s: float, why: str, refusal: str = "") -> None:
        """The stream ended. Without a goodbye this is a loss: the instance is offline with the next `evaluate`.

        `refusal`: why this side ended it; empty when it did not.
        """
        self._open = False
        self._gone_at_s = now_s
        self._gone_why = why
        self._refusal = refusal
        if self._goodbye_kind is None:
            self._losses_s.append(now_s)

    def last_words(self, text: str) -> None:
        """An exception that the agent reported; shown if it vanishes before it makes progress on a new stream."""
        self._last_words = text

    def forgive(self, now_s: float, pause_s: float) -> None:
        """This daemon itself was away for so long: silence during it is not the agent's."""
        self._seen_at_s = min(self._seen_at_s + pause_s, now_s)
        if self._pong_at_s is not None:
            self._pong_at_s = min(self._pong_at_s + pause_s, now_s)

    # What follows

    @property
    def crashed(self) -> bool:
        """Gone by its own doing, without a goodbye or with an exception's."""
        lost = not self._open and self._goodbye_kind is None and not self._refusal and self._gone_at_s is not None
        return lost or self._goodbye_kind == "forced"

    def evaluate(self, now_s: float, ping_interval_s: float) -> bool:
        """Decides state and reason from what happened so far; True when one of them changed.

        `ping_interval_s`: how often this agent is pinged at present; phi never expects pongs more often than that.
        """
        self._account(now_s)
        self._suspect(now_s, ping_interval_s)
        if self._losses_s and self._losses_s[0] < now_s - self._settings.flapping_window_s:
            oldest_s = now_s - self._settings.flapping_window_s
            self._losses_s = [t for t in self._losses_s if t >= oldest_s]
        for state, applies in _WHILE_OPEN if self._open else _WHILE_GONE:
            reason = applies(self, now_s)
            if reason is not None:
                return self._enter(now_s, state, reason)
        return False

    def uptime_ratio(self, now_s: float) -> float:
        """Share of the time since it was first connected in which the instance was there (live, busy or stuck), 0..1.

        Time after a goodbye counts neither way; 0 before the first connection.
        """
        up_s, down_s = self._up_s, self._down_s
        passed_s = max(now_s - self._counted_at_s, 0.0)
        if self._is_up():
            up_s += passed_s
        elif self.state not in _NOT_COUNTED:
            down_s += passed_s
        if up_s + down_s > 0:
            return up_s / (up_s + down_s)
        return 1.0 if self._is_up() else 0.0

    @property
    def silence_s(self) -> float:
        """Since the newest message, as of the last `evaluate`; 0 while no stream is open."""
        return self._silence_s

    @property
    def suspicion(self) -> float:
        """Phi as of the last `evaluate`."""
        return self._suspicion

    def _is_up(self) -> bool:
        return self.state in _UP or (self.state == "flapping" and self._open)

    def _account(self, now_s: float) -> None:
        passed_s, self._counted_at_s = max(now_s - self._counted_at_s, 0.0), now_s
        if self._is_up():
            self._up_s += passed_s
        elif self.state not in _NOT_COUNTED:
            self._down_s += passed_s

    def _learn(self, interval_s: float) -> None:
        """Exponentially weighted mean and variance (West, "Updating mean and variance estimates", 1979).

        An interval that was suspicious is not learned from: a process that was stopped for a minute must not be given
        minutes the next time.
        """
        if interval_s > self._expected_s and self._phi(interval_s) >= self._settings.phi:
            return
        if self._mean_s == 0.0:
            self._mean_s = interval_s
            return
        delta_s = interval_s - self._mean_s
        step_s = LEARNING_WEIGHT * delta_s
        self._mean_s += step_s
        self._variance_s2 = (1.0 - LEARNING_WEIGHT) * (self._variance_s2 + delta_s * step_s)
        self._deviation_s = max(math.sqrt(self._variance_s2), self._settings.min_deviation_s)

    def _suspect(self, now_s: float, ping_interval_s: float) -> None:
        self._silence_s = max(now_s - self._seen_at_s, 0.0) if self._open else 0.0
        self._expected_s = max(self._mean_s, ping_interval_s) + self._settings.acceptable_pause_s
        # Phi is below 0.31 in what was expected, which is most agents in most seconds.
        self._suspicion = self._phi(self._silence_s) if self._silence_s > self._expected_s else 0.0

    def _phi(self, silence_s: float) -> float:
        return phi(silence_s, self._expected_s, self._deviation_s)

    def _enter(self, now_s: float, state: State, reason: str) -> bool:
        if state == self.state and reason == self.reason:
            return False
        if state != self.state:
            self.since_s = now_s
        self.state, self.reason = state, reason
        self.history.append((now_s, state, reason))
        return True

    # The conditions of the tables below: a reason when the state holds, else None.

    def _never_seen(self, now_s: float) -> Answer:
        return self.reason if self._gone_at_s is None else None

    def _crashed(self, now_s: float) -> Answer:
        return f"crashed: {self._goodbye_reason}" if self._goodbye_kind == "forced" else None

    def _left(self, now_s: float) -> Answer:
        if self._goodbye_kind is None or self._goodbye_kind in ("reconnect", "forced"):
            return None
        if self._returns_at_s is None:
            return self._goodbye_reason
        if now_s > self._returns_at_s:
            return f"{self._goodbye_reason}; should have been back after {self._returns_in_s:.0f} s"
        return f"{self._goodbye_reason}; expected back after {self._returns_in_s:.0f} s"

    def _reconnecting(self, now_s: float) -> Answer:
        """The answer to a drain is a grace period, not a stop."""
        if self._goodbye_kind != "reconnect" or now_s > self._grace_until_s():
            return None
        return f"reconnecting: {self._goodbye_reason}"

    def _did_not_return(self, now_s: float) -> Answer:
        if self._goodbye_kind != "reconnect":
            return None
        return f"said that it would reconnect ({self._goodbye_reason}), and did not" + self._with_last_words()

    def _flapping_gone(self, now_s: float) -> Answer:
        """Gone for a moment between two connections; gone for good is offline."""
        gone_for_s = now_s - (self._gone_at_s or 0.0)
        return self._flapping(now_s) if gone_for_s < self._settings.offline_after_s else None

    def _cut_off(self, now_s: float) -> Answer:
        return f"cut off by collectord: {self._refusal}" if self._refusal else None

    def _vanished(self, now_s: float) -> Answer:
        why = f" ({self._gone_why})" if self._gone_why else ""
        return f"vanished without goodbye{why}{self._with_last_words()}"

    def _silent(self, now_s: float) -> Answer:
        if self._silence_s < self._settings.offline_after_s:
            return None
        return f"no sign of life, with the connection still open{self._with_last_words()}"

    def _stale(self, now_s: float) -> Answer:
        if self._suspicion < self._settings.phi:
            return None
        declared = ", though it had declared itself busy" if self._busy(now_s) else ""
        return f"answers no ping, with the connection still open{declared}"

    def _blocked(self, now_s: float) -> Answer:
        if self._loop_lag_s < self._settings.loop_blocked_s or self._busy(now_s):
            return None
        return f"event loop blocked for over {coarse(self._loop_lag_s)}{self._doing()}"

    def _no_progress(self, now_s: float) -> Answer:
        if not self._open_tasks or self._progress_age_s < self._settings.stuck_after_s or self._busy(now_s):
            return None
        tasks = "a task" if self._open_tasks == 1 else f"{self._open_tasks} tasks"
        return f"{tasks} open without progress for over {coarse(self._progress_age_s)}{self._doing()}"

    def _flapping(self, now_s: float) -> Answer:
        count = len(self._losses_s)
        if count < self._settings.flapping_changes:
            return None
        return f"lost its connection {count} times within {self._settings.flapping_window_s:.0f} s"

    def _busy(self, now_s: float) -> Answer:
        return f"declared itself busy{self._doing()}" if now_s < self._busy_until_s else None

    def _live(self, now_s: float) -> Answer:
        return "answers pings" if self._pong_at_s is not None else "connected"

    def _grace_until_s(self) -> float:
        if self._returns_at_s is not None:
            return self._returns_at_s
        return (self._gone_at_s or self._seen_at_s) + self._settings.offline_after_s

    def _doing(self) -> str:
        return f", in {self._activity}" if self._activity else ""

    def _with_last_words(self) -> str:
        return f"; last words: {self._last_words}" if self._last_words else ""


Rule = tuple[State, Callable[[AgentHealth, float], Answer]]

# The state machine: the first line whose condition holds is the state. The last line of each table always holds.
_WHILE_GONE: Final[tuple[Rule, ...]] = (
    ("never-seen", AgentHealth._never_seen),
    ("offline", AgentHealth._crashed),
    ("stopped", AgentHealth._left),
    ("live", AgentHealth._reconnecting),
    ("offline", AgentHealth._did_not_return),
    ("flapping", AgentHealth._flapping_gone),
    ("offline", AgentHealth._cut_off),
    ("offline", AgentHealth._vanished),
)
_WHILE_OPEN: Final[tuple[Rule, ...]] = (
    ("offline", AgentHealth._crashed),
    ("stopped", AgentHealth._left),
    ("offline", AgentHealth._silent),
    ("stale", AgentHealth._stale),
    ("stuck", AgentHealth._blocked),
    ("stuck", AgentHealth._no_progress),
    ("flapping", AgentHealth._flapping),
    ("busy", AgentHealth._busy),
    ("live", AgentHealth._live),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One report for many losses: `text` for people, `instances` those that it speaks for, in order of their loss."""

    text: str
    instances: tuple[str, ...]


class CommonCause:
    """Many agents lost at once, or this daemon's own pause: found out, and reported once.

    The caller tells every loss (an instance that became stale or offline), and asks for a verdict once a second.
    """

    WINDOW_S: Final = 5.0  # losses within this time are at once
    SETTLE_S: Final = 1.0  # a report waits for so long without another loss, so that it can give the whole number
    LEAST: Final = 5  # fewer losses are accidents in any fleet
    SHARE: Final = 0.3  # of the agents that were live

    __slots__ = ("_lost", "_newest_s", "_pause_reported", "_pause_s", "_paused_at_s")

    def __init__(self) -> None:
        self._lost: dict[str, float] = {}  # instance to when, in this order; bounded by the fleet within WINDOW_S
        self._newest_s = 0.0
        self._pause_s = 0.0
        self._paused_at_s = -math.inf
        self._pause_reported = True

    def lost(self, now_s: float, instance: str) -> None:
        """This instance just became stale or offline, without a goodbye. Twice within the window counts once."""
        self._drop_old(now_s)
        self._lost.setdefault(instance, now_s)
        self._newest_s = now_s

    def daemon_pause(self, now_s: float, pause_s: float) -> None:
        """This daemon was `pause_s` late for its own tick. The caller also tells every `AgentHealth.forgive`."""
        self._paused_at_s, self._pause_s, self._pause_reported = now_s, pause_s, False

    def verdict(self, now_s: float, live: int) -> Verdict | None:
        """A common cause that has not been reported yet, or None. `live`: agents that are up at present."""
        lost = tuple(self._lost)
        if not self._pause_reported:
            self._pause_reported = True
            self._lost.clear()
            return Verdict(f"collectord itself paused for {self._pause_s:.1f} s: silence during it is forgiven", lost)
        growing = now_s - self._newest_s < self.SETTLE_S
        if not lost or (growing and now_s - self._lost[lost[0]] < self.WINDOW_S):
            return None
        were_live = live + len(lost)
        if len(lost) < max(self.LEAST, self.SHARE * were_live):
            self._drop_old(now_s)
            return None
        self._lost.clear()
        cause = "their network, their host, a deployment"
        if now_s - self._paused_at_s < 2 * self.WINDOW_S:
            cause = f"collectord's own pause of {self._pause_s:.1f} s"
        return Verdict(f"{len(lost)} of {were_live} agents lost at once: look for one cause ({cause})", lost)

    def _drop_old(self, now_s: float) -> None:
        """The dict is in the order of time: old losses are at its front."""
        while self._lost:
            instance, when_s = next(iter(self._lost.items()))
            if now_s - when_s <= self.WINDOW_S:
                return
            del self._lost[instance]
