"""`/federate`: the newest sample of each selected series as text, for a Prometheus that scrapes this daemon."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from storage.columns import Columns
from storage.labels import METRIC_NAME
from storage.matchers import Matcher
from storage.promql.text import general
from storage.types import STALE_BITS
from web.queries import Ticket

FEDERATE_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_METRIC: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ESCAPED: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})

Sample = tuple[tuple[tuple[str, str], ...], float, int]
"""Labels with the name, value, Unix ms."""


def federated(ticket: Ticket, selectors: Sequence[Sequence[Matcher]], now_ms: int, lookback_ms: int) -> bytes:
    """The text. Each series once, by metric; one that has ended is left out."""
    found: dict[tuple[tuple[str, str], ...], Sample] = {}
    for matchers in selectors:
        columns = ticket.read(matchers, now_ms - lookback_ms, now_ms + 1)
        ticket.check()
        found.update((sample[0], sample) for sample in _newest(columns))
    lines: list[str] = []
    metric = ""
    for labels, value, time_ms in sorted(found.values(), key=_by_metric):
        name = dict(labels)[METRIC_NAME]
        if name != metric:
            metric = name
            lines.append(f"# TYPE {name if _METRIC.fullmatch(name) else _quoted(name)} untyped\n")
        lines.append(f"{_series(name, labels)} {general(value) if value else 0} {time_ms}\n")
    return "".join(lines).encode("utf-8", "replace")


def _by_metric(sample: Sample) -> tuple[str, tuple[tuple[str, str], ...]]:
    return dict(sample[0])[METRIC_NAME], sample[0]


def _newest(columns: Columns) -> Iterator[Sample]:
    """The last sample of each series, but for stale markers."""
    last = columns.start + columns.counts - 1
    values = columns.values[last]
    times = columns.times[columns.edges[columns.vector + 1] - 1]
    rows = zip(columns.owner.tolist(), columns.shape.tolist(), values.tolist(), times.tolist(), strict=True)
    ended = values.view("i8") == STALE_BITS
    for (owner, shape, value, time_ms), is_ended in zip(rows, ended.tolist(), strict=True):
        metric, own = columns.shapes[shape]
        if not is_ended and metric:
            yield tuple(sorted(((METRIC_NAME, metric), *columns.owners[owner], *own))), value, time_ms


def _series(name: str, labels: Sequence[tuple[str, str]]) -> str:
    """Metric and labels; `instance` always, or the one who scrapes would put its own there."""
    own = [(key, value) for key, value in labels if key != METRIC_NAME]
    if not any(key == "instance" for key, _ in own):
        own.append(("instance", ""))
    texts = [f"{key if _LABEL.fullmatch(key) else _quoted(key)}={_quoted(value)}" for key, value in own]
    if _METRIC.fullmatch(name):
        return f"{name}{{{','.join(texts)}}}"
    return f"{{{','.join([_quoted(name), *texts])}}}"


def _quoted(text: str) -> str:
    return f'"{text.translate(_ESCAPED)}"'
