"""The series that the daemon writes about an instance: up, agent_state, round trip, loop lag, progress, target_info."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import numpy as np

from collectord.naming import label_name, le_value
from storage.head import REFUSED, Plan
from storage.rings import RingGroup
from storage.store import Store
from storage.types import VALUE, Labels, Meta, Shape, Vector, absent, labels_of

STATES = ("never-seen", "live", "busy", "stuck", "stale", "offline", "stopped", "flapping")
UP = frozenset({"live", "busy", "stuck"})
RTT_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MOST_INFO_LABELS = 64

_UP, _STATE, _LAG, _PROGRESS = 0, 1, 1 + len(STATES), 2 + len(STATES)
_RTT = 3 + len(STATES)  # first bucket
_SUM = _RTT + len(RTT_BOUNDS_S) + 1
_COUNT = _SUM + 1

_OWN: list[tuple[Shape, Meta]] = [
    (Shape("up", ()), Meta("gauge", "1", "1 while the instance answers, else 0", "up")),
    *(
        (
            Shape("agent_state", (("state", state),)),
            Meta("gauge", "1", "1 for the instance's state, else 0", "agent.state"),
        )
        for state in STATES
    ),
    (Shape("agent_loop_lag_seconds", ()), Meta("gauge", "s", "how late the agent's event loop runs", "agent.loop.lag")),
    (
        Shape("agent_progress_age_seconds", ()),
        Meta("gauge", "s", "since the last progress in a task", "agent.progress.age"),
    ),
    *(
        (
            Shape("agent_ping_rtt_seconds_bucket", (("le", le),)),
            Meta("histogram", "s", "ping round trip", "agent.ping.rtt"),
        )
        for le in [*map(le_value, RTT_BOUNDS_S), "+Inf"]
    ),
    (Shape("agent_ping_rtt_seconds_sum", ()), Meta("histogram", "s", "ping round trip", "agent.ping.rtt")),
    (Shape("agent_ping_rtt_seconds_count", ()), Meta("histogram", "s", "ping round trip", "agent.ping.rtt")),
]


DERIVED_SERIES = len(_OWN) + 1  # of every instance; not the agent's to run out of


class Derived:
    """One instance's own series of the daemon. Values collect in one vector, written as one row."""

    __slots__ = ("_groups", "_plan", "_store", "_values")

    def __init__(self, store: Store, labels: Labels, attributes: Mapping[str, str]) -> None:
        info = labels_of({label_name(k): v for k, v in list(attributes.items())[:MOST_INFO_LABELS] if v})
        series = [*_OWN, (Shape("target_info", info), Meta("gauge", "", "attributes of the instance", "target_info"))]
        head = store.head
        ids = head.declare(labels, series, limit=1 << 31, apart=True)  # not the agent's to run out of
        self._store = store
        kept = ids[ids != REFUSED]
        self._plan: Plan | None = (
            head.plan(kept, recurring=True) if len(kept) == len(ids) else None
        )  # None: memory is full
        self._groups: list[RingGroup] = head.groups_of(kept)
        for group in self._groups:
            group.holders += 1
        self._values: Vector = absent((len(series),))
        self._values[:_LAG] = 0.0
        self._values[_RTT:] = 0.0
        self._values[-1] = 1.0  # target_info

    @classmethod
    def silent(cls) -> Derived:
        """For a stream that only delivers what an earlier instance left: nothing is said of that instance's life."""
        derived = cls.__new__(cls)
        derived._plan, derived._groups, derived._values = None, [], absent((DERIVED_SERIES,))
        return derived

    def round_trip(self, rtt_s: float, loop_lag_s: float | None, progress_age_s: float | None) -> None:
        """Take one pong in."""
        values = self._values
        values[_RTT + bisect_left(RTT_BOUNDS_S, rtt_s) : _SUM] += 1
        values[_SUM] += rtt_s
        values[_COUNT] += 1
        if loop_lag_s is not None:
            values[_LAG] = loop_lag_s
        if progress_age_s is not None:
            values[_PROGRESS] = progress_age_s

    def write(self, now_ms: int, state: str) -> None:
        """One row, with the state as it is now."""
        if self._plan is None:
            return
        values = self._values
        values[_UP] = state in UP
        values[_STATE:_LAG] = 0.0
        values[_STATE + STATES.index(state)] = 1.0
        self._store.append_own(self._plan, now_ms, np.array(values, dtype=VALUE))

    def release(self) -> None:
        """The instance is forgotten: its series may be evicted."""
        for group in self._groups:
            group.holders -= 1
        self._groups = []
