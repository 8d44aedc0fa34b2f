"""Series written as in Prometheus' own tests, `up{job="a"} 0+10x10 _ stale`, as something that an engine can read.

The notation: a value, `_` for none, `stale` for a stale marker; x and a number repeats so many times more, with + or - a step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from storage.columns import Columns, cut, from_loose, take
from storage.matchers import Matcher
from storage.promql import Engine, Result
from storage.store import Store
from storage.types import STALE_BITS, Labels, Shape

MINUTE = 60_000
STALE = float(np.int64(STALE_BITS).view(np.float64))

_SERIES = re.compile(
    r"(?P<name>[a-zA-Z_:][\w:.]*)?\s*(?:\{(?P<labels>(?:[^}\"]|\"(?:[^\"\\]|\\.)*\")*)\})?\s*(?P<values>.*)"
)
_LABEL = re.compile(r"""("(?:[^"\\]|\\.)*"|[\w.:]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|'[^']*'))?""")
_NUMBER = r"(?:NaN|Inf|[\d.]+(?:e[-+]?\d+)?)"
_ITEM = re.compile(rf"(?P<first>[-+]?{_NUMBER}|_|stale)(?P<step>[-+]{_NUMBER})?(?:x(?P<times>\d+))?", re.IGNORECASE)


def expanded(text: str) -> list[float | None]:
    """The values of a sequence; None where there is none."""
    values: list[float | None] = []
    for item in text.split():
        found = _ITEM.fullmatch(item)
        assert found, f"got {item!r}; expected a value, _ or stale, perhaps with a step and x and a number"
        first, step, times = found["first"], float(found["step"] or 0), int(found["times"] or 0)
        if first == "_":
            values += [None] * max(times, 1)
        elif first == "stale":
            values += [STALE] * (times + 1)
        else:
            begin = float(first)
            values += [begin + step * k for k in range(times + 1)] if found["times"] else [begin]
    return values


def labels_in(text: str) -> tuple[dict[str, str], str]:
    """The labels of a series with its name among them, and what stands behind."""
    found = _SERIES.fullmatch(text.strip())
    assert found, text
    labels = {"__name__": found["name"]} if found["name"] else {}
    for name, value in _LABEL.findall(found["labels"] or ""):
        bare = name.strip('"')
        if value:
            labels[bare] = value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        else:
            labels["__name__"] = bare
    return labels, found["values"]


class Samples:
    """Series to read from."""

    def __init__(self, series: Iterable[tuple[dict[str, str], Sequence[tuple[int, float]]]]) -> None:
        owners: list[Labels] = []
        shapes: list[Shape] = []
        rows: list[tuple[int, int, float]] = []
        for labels, samples in series:
            rest = dict(labels)
            name = rest.pop("__name__", "")
            owners.append(tuple(sorted((key, rest.pop(key)) for key in ("instance", "job") if key in rest)))
            shapes.append(Shape(name, tuple(sorted(rest.items()))))
            rows += [(len(owners) - 1, time, value) for time, value in samples]
        numbers = np.array([row[0] for row in rows], np.int32)
        times = np.array([row[1] for row in rows], np.int64)
        values = np.array([row[2] for row in rows], np.float64)
        self.columns = from_loose(owners, shapes, numbers, numbers, times, values)
        self.asked: list[tuple[tuple[str, ...], int, int]] = []

    @classmethod
    def load(cls, text: str, step_ms: int = 5 * MINUTE) -> Samples:
        """One series a line, the first value at time 0."""
        series = []
        for line in filter(None, map(str.strip, text.splitlines())):
            labels, values = labels_in(line)
            series.append((labels, [(k * step_ms, v) for k, v in enumerate(expanded(values)) if v is not None]))
        return cls(series)

    def read(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> Columns:
        """As `Store.read`."""
        self.asked.append((tuple(f"{m.name}{m.op}{m.value}" for m in matchers), start_ms, end_ms))
        columns = self.columns
        wanted = []
        for i in range(columns.series):
            shape = columns.shapes[columns.shape[i]]
            labels = {**dict(columns.owners[columns.owner[i]]), **dict(shape.labels), "__name__": shape.metric}
            if all(matcher.matches(labels.get(matcher.name, "")) for matcher in matchers):
                wanted.append(i)
        return cut(take(columns, np.array(wanted, np.int64)), start_ms, end_ms)

    def engine(self, **settings: object) -> Engine:
        """An engine that reads from here."""
        return Engine(self.read, **settings)  # type: ignore[arg-type]


def vector(result: Result) -> dict[str, float]:
    """The values of an instant query by their labels, written as Prometheus writes them."""
    return {named(labels): float(values[0]) for labels, _, values in result.series()}


def matrix(result: Result) -> dict[str, dict[int, float]]:
    """Time to value of a range query, by labels."""
    return {
        named(labels): dict(zip(times.tolist(), values.tolist(), strict=True))
        for labels, times, values in result.series()
    }


def named(labels: dict[str, str]) -> str:
    inner = ", ".join(f'{key}="{value}"' for key, value in sorted(labels.items()) if key != "__name__")
    return labels.get("__name__", "") + (f"{{{inner}}}" if inner or "__name__" not in labels else "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 2 3", [1, 2, 3]),
        ("0+10x2", [0, 10, 20]),
        ("5-1x3", [5, 4, 3, 2]),
        ("7x2", [7, 7, 7]),
        ("1 _ 2 _x2 3", [1, None, 2, None, None, 3]),
        ("-1.5+0.5x1 +Inf", [-1.5, -1, float("inf")]),
    ],
)
def test_a_sequence_is_expanded(text: str, expected: list[float | None]) -> None:
    assert expanded(text) == expected


def test_a_line_is_a_series_with_its_labels() -> None:
    assert labels_in('up{job="a", x="\\"q\\""} 1 2') == ({"__name__": "up", "job": "a", "x": '"q"'}, "1 2")
    assert labels_in('{"my.metric", "a.b"="c"} 1') == ({"__name__": "my.metric", "a.b": "c"}, "1")


def test_what_was_loaded_is_read_as_from_a_store(tmp_path: Path) -> None:
    samples = Samples.load('up{job="a",instance="x",k="1"} 1 2 _ stale')
    columns = samples.read([Matcher("__name__", "=", "up"), Matcher("k", "=~", "1|2")], 0, 10 * MINUTE)
    assert columns.times.tolist() == [0, 5 * MINUTE]
    assert samples.read([Matcher("k", "=", "2")], 0, 10 * MINUTE).series == 0
    assert Store.read.__annotations__["return"] == "Columns"
