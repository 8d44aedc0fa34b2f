"""One query while it runs: its limits, what it has read, what it has to say, and the steps that a node is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from storage.columns import Columns
from storage.matchers import Matcher
from storage.promql.errors import (
    CANCELED,
    EXECUTION,
    TIMEOUT,
    TOO_MANY_SAMPLES,
    Limits,
    QueryError,
    failed,
)
from storage.promql.notes import Notes
from storage.types import Times

Read = Callable[[Sequence[Matcher], int, int], Columns]
Deadline = Callable[[], bool | str | None]
"""Says whether to give up: nothing or False to go on, True or "timeout", or "canceled"."""

CELL_BYTES = 9  # of a matrix: a float64 and whether it is there


@dataclass(slots=True)
class Stats:
    """samples: read by all selectors. series: that they found. peak_samples: the largest matrix, and what was read before."""

    samples: int = 0
    series: int = 0
    peak_samples: int = 0


@dataclass(slots=True)
class Query:
    """What all nodes of one query share."""

    text: str
    read: Read
    limits: Limits
    lookback_ms: int
    subquery_step_ms: int
    start_ms: int
    end_ms: int
    step_ms: int  # 0 for an instant query
    deadline: Deadline | None = None
    notes: Notes = field(default_factory=Notes)
    stats: Stats = field(default_factory=Stats)
    columns: dict[tuple[Matcher, ...], list[tuple[int, int, Columns | None]]] = field(default_factory=dict)
    values: dict[object, object] = field(default_factory=dict)  # of selectors, by node and steps

    def check(self) -> None:
        """Raises QueryError when the query is to be given up."""
        asked = self.deadline() if self.deadline is not None else None
        if asked == CANCELED:
            raise QueryError(CANCELED, "query was canceled in expression evaluation")
        if asked:
            raise QueryError(TIMEOUT, "query timed out in expression evaluation")

    def charge(self, series: int, steps: int) -> None:
        """Before a matrix of so many cells is made. Raises QueryError where a limit forbids it."""
        cells = series * steps
        if cells > self.limits.samples:
            raise failed(TOO_MANY_SAMPLES)
        if cells * CELL_BYTES > self.limits.bytes:
            raise QueryError(
                EXECUTION,
                f"query would take {cells * CELL_BYTES} bytes for {series} series at {steps} steps in query execution; "
                f"expected at most {self.limits.bytes}",
            )
        self.stats.peak_samples = max(self.stats.peak_samples, cells + self.stats.samples)


@dataclass(frozen=True, slots=True)
class Context:
    """The steps that a node is asked for: start_ms, start_ms + step_ms ... up to end_ms, T of them."""

    query: Query
    start_ms: int
    end_ms: int
    step_ms: int  # above 0, also where there is one step only

    @property
    def count(self) -> int:
        """T."""
        return max((self.end_ms - self.start_ms) // self.step_ms + 1, 0)

    @property
    def steps_ms(self) -> Times:
        """The steps. int64, shape (T,)."""
        return self.start_ms + np.arange(self.count, dtype=np.int64) * self.step_ms

    @property
    def is_single(self) -> bool:
        """Whether this could be an instant query, whose result keeps its order."""
        return self.start_ms == self.end_ms

    def at_start(self) -> Context:
        """The first step alone."""
        return Context(self.query, self.start_ms, self.start_ms, self.step_ms)

    def time_of(self, at: int | str) -> int:
        """What an @ means, Unix ms: start() and end() are those of the whole query."""
        if isinstance(at, int):
            return at
        return self.query.start_ms if at == "start" else self.query.end_ms
