"""Rounds, medians, spreads and rows: what every bench has in common.

A bench is a function `run(session)`. It takes its measurements round by round, ours and each peer's in turn, so that a
drift of the machine meets all of them, and hands every single figure to `session.add`. Rows are made at the end.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.machine import BenchError

OURS = "collectord"


@dataclass(frozen=True, slots=True)
class Figure:
    """What is measured. `higher_is_better` decides which way a ratio is taken."""

    name: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report, and one object of the JSON."""

    bench: str
    case: str
    figure: str
    unit: str
    median: float
    spread: float  # interquartile range over the rounds
    peers: dict[str, float]  # their medians
    ratios: dict[str, float]  # ours against theirs; above 1: ours is better

    def as_json(self) -> dict[str, Any]:
        """The fixed interface's object."""
        return asdict(self)


def spread(values: Sequence[float]) -> float:
    """Interquartile range, quartiles interpolated linearly; 0 for a single value."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low)


def ratio(ours: float, theirs: float, *, higher_is_better: bool) -> float:
    """How many times better ours is than theirs."""
    return ours / theirs if higher_is_better else theirs / ours


@dataclass(slots=True)
class Session:
    """One bench under way: its settings, what it has measured, and its progress bar."""

    bench: str
    peers: bool = False
    quick: bool = False
    agents: int | None = None
    progress: Progress | None = None
    notes: list[str] = field(default_factory=list)
    peer_versions: dict[str, str] = field(default_factory=dict)
    _values: dict[tuple[str, Figure], dict[str, list[float]]] = field(default_factory=dict)

    def add(self, case: str, figure: Figure, value: float, who: str = OURS) -> None:
        """One measurement of one round."""
        self._values.setdefault((case, figure), {}).setdefault(who, []).append(value)

    def values(self, case: str, figure: Figure, who: str = OURS) -> list[float]:
        """All measurements so far, in order."""
        return list(self._values.get((case, figure), {}).get(who, ()))

    def note(self, text: str) -> None:
        """A sentence that must stand beside the figures. Each is shown once."""
        if text not in self.notes:
            self.notes.append(text)

    def rounds(self, count: int, what: str) -> Iterator[int]:
        """0 .. count-1 (one round when quick), with progress."""
        return self.steps(1 if self.quick else count, what)

    def steps(self, count: int, what: str) -> Iterator[int]:
        """0 .. count-1, with progress."""
        task = self.progress.add_task(f"{self.bench}: {what}", total=count) if self.progress else None
        for index in range(count):
            yield index
            if self.progress is not None and task is not None:
                self.progress.advance(task)

    def rows(self) -> list[Row]:
        """Raises BenchError when nothing of ours was measured."""
        return [self._row(case, figure, by) for (case, figure), by in self._values.items()]

    def _row(self, case: str, figure: Figure, by: dict[str, list[float]]) -> Row:
        if OURS not in by:
            raise BenchError(
                f"{self.bench} {case} {figure.name}: got figures of {', '.join(by)} only, expected ours too"
            )
        median = statistics.median(by[OURS])
        peers = {who: statistics.median(values) for who, values in by.items() if who != OURS}
        ratios = {who: ratio(median, theirs, higher_is_better=figure.higher_is_better) for who, theirs in peers.items()}
        return Row(self.bench, case, figure.name, figure.unit, median, spread(by[OURS]), peers, ratios)


@dataclass(frozen=True, slots=True)
class Bench:
    """An entry of `--list`."""

    name: str
    what: str
    run: Callable[[Session], None]


def progress_bar() -> Progress:
    """Shown on a terminal; silent elsewhere."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), transient=True
    )
