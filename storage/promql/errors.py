"""What a query can end with, and the limits that end it before it harms anybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BAD_DATA: Final = "bad_data"
EXECUTION: Final = "execution"
TIMEOUT: Final = "timeout"
CANCELED: Final = "canceled"

SAME_LABELSET: Final = "vector cannot contain metrics with the same labelset"
TOO_MANY_SAMPLES: Final = "query processing would load too many samples into memory in query execution"


class QueryError(Exception):
    """A query that gives no result. kind: bad_data, execution, timeout or canceled, as Prometheus' API names them."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


def position(text: str, start: int) -> str:
    """Line and column of a place in an expression as Prometheus counts them: from 1, the column in bytes of UTF-8."""
    before = text[:start]
    line_start = before.rfind("\n") + 1
    return f"{before.count(chr(10)) + 1}:{len(before[line_start:].encode('utf-8', 'surrogatepass')) + 1}"


def parse_error(text: str, start: int, reason: str) -> QueryError:
    """An expression that means nothing, with the place."""
    return QueryError(BAD_DATA, f"{position(text, start)}: parse error: {reason}")


def failed(text: str) -> QueryError:
    """An expression that means something, but not for the samples that it met."""
    return QueryError(EXECUTION, text)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one query may use. Each is checked before the memory that it speaks of is taken."""

    series: int = 500_000  # that one selector may find
    samples: int = 50_000_000  # held at a time, as --query.max-samples of Prometheus
    seconds: float = 120.0  # of the clock that the engine was given; without a clock nobody counts
    bytes: int = 2 << 30  # of one matrix
    points_a_series: int = 11_000  # steps of a range query after its first, as Prometheus' API has it
    depth: int = 150  # nested expressions: the parser's stack ends at some thousand, Python's at one thousand

    def __post_init__(self) -> None:
        for name in ("series", "samples", "seconds", "bytes", "points_a_series", "depth"):
            if getattr(self, name) <= 0:
                raise ValueError(f"limit {name}: got {getattr(self, name)}; expected a number above 0")
