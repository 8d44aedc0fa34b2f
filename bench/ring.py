"""The rings alone: rows into `storage.head`, and the matrices that readers take out of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from bench.harness import Figure, Session
from storage import functions
from storage.head import Head
from storage.types import Meta, Shape, labels_of

ROWS = Figure("rows_per_s", "rows/s", higher_is_better=True)
SAMPLES = Figure("samples_per_s", "samples/s", higher_is_better=True)
CELLS = Figure("cells_per_s", "cells/s", higher_is_better=True)

WIDTHS = (10, 100, 1000, 10_000)
AGENTS = 100  # instances that take turns, so that no ring stays in the first-level cache
ROUNDS = 9
ROUND_S = 0.2
SLOTS = 600
START_MS = 1_700_000_000_000


def run(session: Session) -> None:
    """Appending by width, then reading by shape."""
    for width in WIDTHS:
        _append(session, width)
    _read(session)


def filled(agents: int, width: int, rows: int) -> tuple[Head, list[np.ndarray[tuple[int], np.dtype[np.int64]]]]:
    """A head with `rows` rows, a second apart, of each agent; and each agent's series ids."""
    head = Head(4 << 30, SLOTS, agents * width)
    ids = []
    rng = np.random.default_rng(1)
    series = [(Shape(f"bench_{i}_total", ()), Meta("counter", "1", "", f"bench.{i}")) for i in range(width)]
    for agent in range(agents):
        ids.append(head.declare(labels_of({"job": "bench", "instance": f"{agent:04}"}), series, width))
    for own in ids:
        plan = head.plan(own)
        values = rng.poisson(5, (rows, width)).cumsum(axis=0).astype(float)
        for row in range(rows):
            head.append(plan, START_MS + 1000 * row, values[row])
    return head, ids


def _append(session: Session, width: int) -> None:
    agents = max(1, min(AGENTS, 200_000 // width))
    head, ids = filled(agents, width, 1)
    plans = [head.plan(own) for own in ids]
    values = np.random.default_rng(2).normal(50, 2, width)
    time_ms = START_MS
    for _ in session.rounds(ROUNDS, f"append, width {width}"):
        rows, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < ROUND_S:
            time_ms += 1000
            for plan in plans:
                head.append(plan, time_ms, values)
            rows += len(plans)
        per_s = rows / (time.perf_counter() - begin)
        session.add(f"append {width}", ROWS, per_s)
        session.add(f"append {width}", SAMPLES, per_s * width)


def _read(session: Session) -> None:
    """5 minutes of 10 metrics of every agent by 5 s steps, as a page does, and the passes over that matrix."""
    head, ids = filled(AGENTS, 100, 300)
    wanted = np.concatenate([own[:10] for own in ids])
    steps = np.arange(60, dtype=np.int64) * 5000 + START_MS
    matrix = head.matrix(wanted, steps, 15_000)
    bounds = np.array([0.01 * 2**i for i in range(14)] + [np.inf])
    buckets = np.abs(np.random.default_rng(3).normal(5, 1, (15, 1000, 60))).cumsum(axis=0)
    work: dict[str, tuple[int, Callable[[], object]]] = {
        "matrix 1000x60": (matrix.size, lambda: head.matrix(wanted, steps, 15_000)),
        "increase 1000x60": (matrix.size, lambda: functions.increase(matrix)),
        "histogram_quantile 1000x60": (
            buckets[0].size,
            lambda: functions.histogram_quantile(0.95, bounds, buckets.reshape(15, -1)),
        ),
    }
    for _ in session.rounds(ROUNDS, "reads"):
        for case, (cells, call) in work.items():
            calls, begin = 0, time.perf_counter()
            while time.perf_counter() - begin < ROUND_S:
                call()
                calls += 1
            session.add(case, CELLS, calls * cells / (time.perf_counter() - begin))
