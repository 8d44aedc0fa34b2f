"""How often a duration was how long, since the start: one comparison of bounds and two additions an observation."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Distribution:
    """Counts by upper bound, as a Prometheus histogram has them."""

    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound as text, observations up to it), cumulative, the last one +Inf."""
        total, out = 0, []
        for bound, count in zip([*map(repr, BOUNDS_S), "+Inf"], self._counts, strict=True):
            total += count
            out.append((bound, float(total)))
        return out
