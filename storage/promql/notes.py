"""Annotations: what a query has to say besides its result, in Prometheus' words (util/annotations/annotations.go)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from storage.promql.errors import position
from storage.promql.text import general, quoted

_FORCED: Final = (
    "PromQL info: input to histogram_quantile needed to be fixed for monotonicity (see "
    "https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile)"
)


@dataclass(slots=True)
class Forced:
    """Buckets that had to be made monotonic: where, when, by how much, how often."""

    first_ms: int
    last_ms: int
    lowest: float
    highest: float
    most: float
    count: int

    def add(self, other: Forced) -> None:
        """What another step had."""
        self.first_ms, self.last_ms = min(self.first_ms, other.first_ms), max(self.last_ms, other.last_ms)
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        self.most = max(self.most, other.most)
        self.count += other.count


@dataclass(slots=True)
class Notes:
    """Each once, by text and place in the expression."""

    warnings: dict[tuple[str, int], None] = field(default_factory=dict)
    infos: dict[tuple[str, int], None] = field(default_factory=dict)
    forced: dict[int, Forced] = field(default_factory=dict)

    def bad_quantile(self, quantile: float, start: int) -> None:
        """A quantile that is not from 0 to 1."""
        text = f"PromQL warning: quantile value should be between 0 and 1, got {general(quantile)}"
        self.warnings[text, start] = None

    def bad_ratio(self, ratio: float, capped: float, start: int) -> None:
        """A ratio that is not from -1 to 1."""
        text = f"PromQL warning: ratio value should be between -1 and 1, got {general(ratio)}, capping to {capped:g}"
        self.warnings[text, start] = None

    def bad_bucket(self, word: str, start: int) -> None:
        """A series that is no bucket, because its label le is no number."""
        text = f'PromQL warning: bucket label "le" is missing or has a malformed value of {quoted(word)}'
        self.warnings[text, start] = None

    def sort_in_range(self, start: int) -> None:
        """Sorting where there is more than one step."""
        text = "PromQL warning: sort is ineffective for range queries since results are always ordered by labels"
        self.warnings[text, start] = None

    def not_counter(self, metric: str, start: int) -> None:
        """A rate of what is not named like a counter."""
        text = "PromQL info: metric might not be a counter, name does not end in _total/_sum/_count/_bucket:"
        self.infos[f"{text} {quoted(metric)}", start] = None

    def forced_monotonic(self, forced: Forced, start: int) -> None:
        """Buckets that fall."""
        if start in self.forced:
            self.forced[start].add(forced)
        else:
            self.forced[start] = forced

    def texts(self, expression: str) -> tuple[list[str], list[str]]:
        """Warnings and infos, each with its place in the expression."""
        warnings = [f"{text} ({position(expression, start)})" for text, start in self.warnings]
        infos = [f"{text} ({position(expression, start)})" for text, start in self.infos]
        infos += [f"{_forced(it)} ({position(expression, start)})" for start, it in self.forced.items()]
        return warnings, infos


def _forced(it: Forced) -> str:
    since, until = (
        datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for ms in (it.first_ms, it.last_ms)
    )
    return (
        f"{_FORCED}, from buckets {general(it.lowest)} to {general(it.highest)}, with a max diff of "
        f"{general(it.most, 2)}, over {it.count} samples from {since} to {until}"
    )
