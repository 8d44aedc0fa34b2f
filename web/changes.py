"""The fleet as a stream of differences: what was told last, and what of it is no longer true. Pure; time comes in.

A told row is flat: the row's own fields, its figures beside them, ages as times (an age changes every second, a time
does not), numbers at four significant digits, points of sparklines at three. A change holds, by instance, the fields that
differ; a sparkline that moved on by k points is told as `<name>_tail`: k, then its k + 1 newest points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from web.source import Row

PLAIN = ("agent", "instance", "state", "reason", "version", "labels", "series", "dropped_total")
NUMBERS = ("rtt_ms", "uptime_ratio")
FIGURES = (
    "tasks_per_min",
    "error_ratio",
    "p95_s",
    "tokens_per_min",
    "context_ratio",
    "cpu_ratio",
    "memory_bytes",
    "loop_lag_s",
)
SPARKS = ("spark", "latency_spark")
SEEN_JUST_NOW_S = 5.0  # an agent heard from within this is told as "now": its age is no news
SAME_TIME_MS = 2000  # a time computed from an age wobbles by the age of the row (1 s) and by rounding
MOST_STEPS = 3  # a spark that moved on by more points is told whole

Told = dict[str, Any]


def significant(value: float | None) -> float | None:
    """Four significant digits: what a person can read, and noise below that is no change."""
    return None if value is None else float(f"{value:.4g}")


def point(value: float | None) -> float | None:
    """Three significant digits: a sparkline is some twenty pixels high."""
    return None if value is None else float(f"{value:.3g}")


def steady(time_ms: float, told_ms: float | None) -> int:
    """`time_ms`, or the time told before when it means the same."""
    if told_ms is not None and abs(time_ms - told_ms) < SAME_TIME_MS:
        return int(told_ms)
    return round(time_ms)


def flat(row: Row, now_ms: int, told: Told | None) -> Told:
    """The told form of a row, without its sparklines. `told` is what was said of this instance before."""
    out: Told = {name: row[name] for name in PLAIN}
    for name in NUMBERS:
        out[name] = significant(row[name])
    figures = row["figures"]
    for name in FIGURES:
        out[name] = significant(figures.get(name))
    same_state = told is not None and told["state"] == row["state"]
    out["since_ms"] = steady(now_ms - row["since_s"] * 1000, told["since_ms"] if told and same_state else None)
    out["seen_ms"] = None
    if row["last_seen_s"] > SEEN_JUST_NOW_S:
        out["seen_ms"] = steady(now_ms - row["last_seen_s"] * 1000, told["seen_ms"] if told else None)
    return out


def spark_tail(old: Sequence[float | None], new: Sequence[float | None]) -> list[float | None] | None:
    """[k, k + 1 newest points] when `new` is `old` moved on by k points (its newest point may differ), else None."""
    keep = len(new) - 1
    if len(old) != len(new):
        return None
    for k in range(min(MOST_STEPS, keep - 1) + 1):
        if old[k:keep] == new[: keep - k]:
            return [k, *map(point, new[keep - k :])]
    return None


class Changes:
    """What all subscribers have been told so far."""

    def __init__(self) -> None:
        self.told: dict[str, Told] = {}
        self._sparks: dict[str, tuple[Sequence[float | None], ...]] = {}

    def forget(self) -> None:
        self.told.clear()
        self._sparks.clear()

    def gone(self, instances: set[str]) -> list[str]:
        """Forgets and names the instances that are not among `instances`."""
        left = [instance for instance in self.told if instance not in instances]
        for instance in left:
            del self.told[instance], self._sparks[instance]
        return left

    def differences(self, rows: Sequence[Row], now_ms: int) -> dict[str, Told]:
        """By instance the fields that differ from what was told; all fields of an instance not told of before."""
        changed: dict[str, Told] = {}
        for row in rows:
            difference = self._difference(row, now_ms)
            if difference:
                changed[row["instance"]] = difference
        return changed

    def _difference(self, row: Row, now_ms: int) -> Told:
        instance = row["instance"]
        told = self.told.get(instance)
        now = flat(row, now_ms, told)
        sparks = tuple(row["figures"].get(name) or [] for name in SPARKS)
        if told is None:
            now.update({name: [point(v) for v in spark] for name, spark in zip(SPARKS, sparks, strict=True)})
            difference = dict(now)
        else:
            difference = {name: value for name, value in now.items() if told[name] != value}
            for name, old, new in zip(SPARKS, self._sparks[instance], sparks, strict=True):
                now[name] = told[name]
                if old != new:
                    difference.update(_spark_difference(name, old, new, now))
        self.told[instance] = now
        # Copies: the daemon may move its own lists on in place.
        self._sparks[instance] = tuple(list(spark) for spark in sparks)
        return difference


def _spark_difference(name: str, old: Sequence[float | None], new: Sequence[float | None], now: Told) -> Told:
    """The told difference of one sparkline; brings `now[name]` up to date."""
    tail = spark_tail(old, new)
    if tail is None:
        now[name] = [point(v) for v in new]
        return {name: now[name]}
    steps = int(tail[0] or 0)
    now[name] = now[name][steps : len(new) - 1] + tail[1:]
    return {f"{name}_tail": tail}
