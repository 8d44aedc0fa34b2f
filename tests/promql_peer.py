"""The real Prometheus on a loopback port, what it answers, and the samples that it and the store are given.

Samples go in by remote write: it carries every bit of a double, stale markers among them, and times in milliseconds,
which OpenMetrics text does not. Debian's Prometheus is 2.42.

No sample lies on the grid of times that is asked for, nor a whole range or lookback before it: there Prometheus 2 and 3
differ (ranges closed on the left, and open). Times asked for end in .321 s, `@` names whole or half seconds that are no
whole multiple of a subquery's step, and no sample's time ends in .000, .321 or .500.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cramjam
import numpy as np
import numpy.typing as npt
import orjson

from bench import remote_write
from bench.bulk import sample_rows
from bench.machine import cores_for_bench, running, wait_until
from bench.peers import PROMETHEUS, PeerServer
from storage.types import STALE_BITS, Labels, Times, Vector, labels_of

ANSWER_S = 30.0
LOADED_S = 20.0
BEGIN_MS = 1_700_000_000_000  # 14 November 2023
END_MS = BEGIN_MS + 45 * 60_000
FIRST_S = -25 * 60  # samples begin so long before, so that hardly a window reaches back to where there were none
CUT_MS = BEGIN_MS + 26 * 60_000  # samples before it are in segments, what follows in rings
SPACING_MS = 15_000
OFFSET_MS = 137
FORBIDDEN_MS = (0, 321, 500)
STALE = float(np.int64(STALE_BITS).view(np.float64))
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Series:
    """One series. times: int64, shape (K,), Unix ms, strictly ascending; values: float64, shape (K,), any bits."""

    labels: Labels
    times: Times
    values: Vector


@dataclass(frozen=True)
class Answer:
    """What an engine says to one expression, in a form that does not show which engine it was.

    Of a matrix `series` is in no order that means anything; of a vector it is the order in which the elements came.
    """

    kind: str  # vector, matrix, scalar, string, error
    series: Mapping[Labels, Sequence[tuple[int, float]]] = field(default_factory=dict)  # Unix ms, value
    text: str = ""  # of a string, and what is said of an error
    fault: str = ""  # of an error, in the HTTP API's terms: bad_data, execution, ...


class Prometheus:
    """A running one. Made by `prometheus_with`."""

    def __init__(self, server: PeerServer) -> None:
        self._server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_S)

    def close(self) -> None:
        self._connection.close()

    def instant(self, expression: str, time_ms: int) -> Answer:
        """/api/v1/query."""
        return self._ask("/api/v1/query", query=expression, time=_seconds(time_ms))

    def range(self, expression: str, start_ms: int, end_ms: int, step_ms: int) -> Answer:
        """/api/v1/query_range."""
        times = {"start": _seconds(start_ms), "end": _seconds(end_ms), "step": _seconds(step_ms)}
        return self._ask("/api/v1/query_range", query=expression, **times)

    def load(self, series: Sequence[Series]) -> None:
        """Puts samples in; returns when all are there. The older go first: of what is an hour late nothing is taken."""
        before = self._server.samples()
        for older in (True, False):
            parts = [_part(one, (one.times < CUT_MS) == older) for one in series]
            self._write([part for part in parts if len(part.times)])
        sent = sum(len(one.times) for one in series)
        arrived = f"{sent} samples"
        wait_until(lambda: self._server.samples() - before == sent, self._server, timeout_s=LOADED_S, what=arrived)

    def _write(self, series: Sequence[Series]) -> None:
        body = bytes(cramjam.snappy.compress_raw(b"".join(map(_time_series, series))))
        headers = {
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "snappy",
            "X-Prometheus-Remote-Write-Version": "0.1.0",
        }
        status, answer = self._exchange("POST", "/api/v1/write", body, headers)
        assert status == 204, f"remote write: got status {status} with {answer[:300]!r}, expected 204"

    def _ask(self, path: str, **parameters: str) -> Answer:
        form = urllib.parse.urlencode(parameters).encode()
        _, body = self._exchange("POST", path, form, {"Content-Type": "application/x-www-form-urlencoded"})
        said: dict[str, Any] = orjson.loads(body)
        if said["status"] == "error":
            return Answer("error", text=said["error"], fault=said["errorType"])
        return _read(said["data"]["resultType"], said["data"]["result"])

    def _exchange(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        self._connection.request(method, path, body, dict(headers))
        answer = self._connection.getresponse()
        return answer.status, answer.read()


def _seconds(time_ms: int) -> str:
    return f"{time_ms / 1000:.3f}"


def _part(series: Series, wanted: npt.NDArray[np.bool_]) -> Series:
    return Series(series.labels, series.times[wanted], series.values[wanted])


def _time_series(series: Series) -> bytes:
    labels = b"".join([remote_write.label(name, value) for name, value in series.labels])
    return remote_write.field(1, labels + sample_rows(series.times, series.values).tobytes())


def _read(kind: str, result: Any) -> Answer:
    """The API's JSON. Prometheus prints as few digits as give the same double back."""
    if kind == "string":
        return Answer(kind, text=result[1])
    if kind == "scalar":
        return Answer(kind, {(): [_sample(result)]})
    found = {}
    for one in result:
        labels = tuple(sorted(one["metric"].items()))
        assert labels not in found, f"Prometheus answers with {labels} twice"
        found[labels] = [_sample(pair) for pair in (one["values"] if kind == "matrix" else [one["value"]])]
    return Answer(kind, found)


def _sample(pair: Sequence[Any]) -> tuple[int, float]:
    return round(pair[0] * 1000), float(pair[1])


@contextlib.contextmanager
def prometheus_with(directory: Path, series: Sequence[Series]) -> Iterator[Prometheus]:
    """Prometheus with these samples. Its process, and no other, ends with the block, whatever happens in it."""
    assert PROMETHEUS.installed(), "Prometheus is not installed: apt-get install prometheus"
    for one in series:
        assert (np.diff(one.times) > 0).all(), f"times of {one.labels} do not ascend"
    with running(PROMETHEUS.start(directory, core=cores_for_bench()[0])) as server:
        server.wait_ready()
        with contextlib.closing(Prometheus(server)) as prometheus:
            prometheus.load(series)
            yield prometheus


# The samples


class Dataset:
    """Series are added by verbs; the same for every run."""

    def __init__(self) -> None:
        self.series: list[Series] = []
        self._random = np.random.default_rng(42)

    def add(self, times: Sequence[int], values: Sequence[float], **labels: str) -> None:
        """times: ms after BEGIN_MS. A label `name` is the metric's name."""
        named = {("__name__" if key == "name" else key): value for key, value in labels.items() if value}
        bits = np.array([STALE_BITS if value is STALE else 0 for value in values], np.int64)
        numbers = np.where(bits != 0, bits.view(np.float64), np.array(values, np.float64))
        at = BEGIN_MS + np.array(times, np.int64)
        at += np.isin(at % 1000, FORBIDDEN_MS)
        self.series.append(Series(labels_of(named), at, numbers))

    def grid(
        self, first_s: float = FIRST_S, last_s: float = 2700, spacing_ms: int = SPACING_MS, shift_ms: int = 0
    ) -> list[int]:
        """Times of a scrape."""
        return list(range(int(first_s * 1000) + OFFSET_MS + shift_ms, int(last_s * 1000), spacing_ms))

    def counter(
        self, times: Sequence[int], resets: int = 0, whole: bool = True, origin: float = 200, **labels: str
    ) -> None:
        """Grows by a random walk from a random value; falls to nearly zero at random places."""
        steps = self._random.integers(0, 40, len(times)).astype(float)
        if not whole:
            steps = self._random.random(len(times)) * 3
        values = origin + np.cumsum(steps)
        for place in sorted(self._random.choice(len(times), resets, replace=False)):
            values[place:] -= values[place] - steps[place] / 4
        self.add(times, values.tolist(), **labels)

    def gauge(self, times: Sequence[int], mean: float = 50, spread: float = 20, **labels: str) -> None:
        """Random floats of 52 bits."""
        self.add(times, (mean + spread * self._random.standard_normal(len(times))).tolist(), **labels)

    def cycle(self, values: Sequence[float], times: Sequence[int] | None = None, **labels: str) -> None:
        """The same few values again and again."""
        at = self.grid() if times is None else times
        self.add(at, [values[i % len(values)] for i in range(len(at))], **labels)

    def histogram(self, times: Sequence[int], bounds: Sequence[str], growths: Sequence[float], **labels: str) -> None:
        """Buckets of whole counts. growths: of each bucket, on average from sample to sample."""
        noise = self._random.random(len(times)) + 0.5
        for bound, growth in zip(bounds, growths, strict=True):
            values = np.floor(np.cumsum(noise * growth))
            self.add(times, values.tolist(), **{**labels, "le": bound})


def _services(data: Dataset) -> None:
    """Counters, gauges and constants of targets, for joins one to one and many to one."""
    bounds = ("0.05", "0.1", "0.25", "1", "2.5", "+Inf")
    for number, (job, instance) in enumerate(itertools.product(("api", "web"), ("a:1", "b:1", "c:1"))):
        times = data.grid(shift_ms=2111 * number)
        target: dict[str, Any] = {"job": job, "instance": instance}
        for method, code in itertools.product(("GET", "POST"), ("200", "404", "500")):
            data.counter(times, number % 3, whole=False, name="http_requests_total", method=method, code=code, **target)
        data.counter(times, 1, whole=False, origin=1e6, name="cpu_seconds_total", **target)
        for code in ("404", "500"):
            data.counter(times, name="errors_total", code=code, **target)
        data.gauge(times, 2e9, 3e8, name="memory_bytes", **target)
        data.gauge(times, 40 + number, 9, name="load", **target)
        data.cycle([1], times, name="build_info", version=f"1.{number % 2}", branch="main", **target)
        data.cycle([1, 1, 1, 0, 1, 1, 0], times, name="up", **target)
        data.cycle([3 + number], times, name="workers", **target)
        growths = np.cumsum([3, 5.5, 2, 0.25 * number, 1, 0.5]).tolist()
        data.histogram(times, bounds, growths, name="latency_seconds_bucket", **target)
        data.counter(times, name="latency_seconds_count", **target)
        data.counter(times, whole=False, name="latency_seconds_sum", **target)
    for job, limit in (("api", 3e9), ("web", 2.5e9), ("batch", 1e9)):
        data.cycle([limit], name="limit_bytes", job=job)
    data.cycle([7], name="solo")
    for number in range(90):
        place: dict[str, Any] = {"instance": f"i-{number:03}", "zone": "abc"[number % 3], "rack": f"r{number % 7}"}
        times = data.grid(spacing_ms=60_000, shift_ms=number * 571)
        data.gauge(times, 100 + number, 5, name="fleet_temperature", job="fleet", **place)


def _odd(data: Dataset) -> None:
    """What doubles can hold, and what time series do."""
    for kind, values in {
        "nan": [NAN], "inf": [INF], "neg_inf": [-INF], "zero": [0.0], "neg_zero": [-0.0], "constant": [42.5],
        "both_inf": [INF, 1.5, -INF], "some_inf": [1, 2, INF, 4], "mixed": [1, NAN, 3, -2],
        "huge": [1.7e308, 1.6e308, 1.1e308], "tiny": [2.3e-308, 3e-308], "subnormal": [5e-324, 1e-310],
        "third": [1 / 3, 0.1, 2 / 3], "large": [2**53 + 2.0, 2**53], "cancel": [1e16, 1, -1e16, 3],
    }.items():  # fmt: skip
        data.cycle(values, name="odd", kind=kind)
    for number, value in enumerate([-10.5, -1, -0.75, -0.5, 0, 0.25, 0.5, 1, 1.5, 2.5, 10, 1000.5, -3]):
        data.cycle([value, value / 2], name="angle", place=f"p{number:02}")
    for number, value in enumerate([3, 1, 2, 2, 5, 1, 4, 9, 2]):
        data.cycle([value], name="ranks", place=f"p{number:02}", group="xy"[number % 2])
    for year, moment_s in {
        "1970": 0,
        "1969": -86_401,
        "2020": 1583020799,
        "2000": 951782399,
        "2099": 4102444799.75,
    }.items():
        data.cycle(
            [moment_s], name="moment", case=year
        )  # the last second of a leap day among them, and of the day before
    walk = np.random.default_rng(3)
    for number in range(4):
        data.gauge(np.unique(walk.integers(1, 2_700_000, 120)).tolist(), name="irregular", n=str(number))
        gaps = np.cumsum(walk.choice([20_000, 290_000, 340_000], 30))
        data.gauge([OFFSET_MS + int(gap) for gap in gaps if gap < 2_700_000], name="sparse", n=str(number))
    data.gauge(data.grid(1300, 2700), name="life", phase="begins")
    data.gauge(data.grid(0, 1200), name="life", phase="ends")
    data.add(data.grid(0, 1460), [*range(97), STALE], name="life", phase="stale")
    lived = [float(value) for value in range(60)]
    data.add(data.grid(0, 2700), [*lived, STALE, STALE, *lived, STALE, *lived][:180], name="life", phase="returns")
    data.add(data.grid(1490, 1500), [5], name="life", phase="once")


def _counters(data: Dataset) -> None:
    """What rates extrapolate: counters that begin and end inside of a window, from zero, from little and from much."""
    for begin in (0, 2, 5000):
        data.counter(data.grid(1237), origin=begin, name="born_total", begin=str(begin))
        data.counter(data.grid(FIRST_S, 1411), origin=begin, name="gone_total", begin=str(begin))
    data.add([1_400_137, 1_431_137], [94, 99], name="short_total", samples="2")
    data.add([1_431_137], [4], name="short_total", samples="1")
    data.cycle([5, 5, 5], name="flat_total")
    data.cycle([9, 4, 2, 8], name="falling_total")
    data.cycle([-5, -3, -1], name="negative_total")
    data.cycle([1, NAN, 7, 9], name="nan_total")
    data.cycle([1, 3, INF, 9], name="inf_total")


def _histograms(data: Dataset) -> None:
    """Classic histograms that are not as they should be."""
    usual = ("1", "2", "5", "+Inf")
    for case, bounds, growths in (
        ("no_inf", ("1", "2", "5"), (1, 2, 3)), ("not_monotonic", usual, (3, 1, 4, 2)), ("only_inf", ("+Inf",), (2,)),
        ("empty", usual, (0, 0, 0, 0)), ("bad_le", ("1", "x", "+Inf"), (1, 2, 3)), ("two", ("10", "+Inf"), (1, 1)),
        ("twice", ("1", "1.0", "2", "+Inf"), (1, 2, 4, 5)),
        ("negative", ("-5", "-1", "0", "3", "+Inf"), (1, 2, 3, 5, 6)),
        ("all_above", usual, (0, 0, 0, 4)), ("below_zero", ("-5", "+Inf"), (5, 6)),
        ("exponents", ("1e-3", "1e+2", "+Inf"), (5, 6, 7)), ("from_zero", ("0", "1", "+Inf"), (0, 6, 7)),
    ):  # fmt: skip
        data.histogram(data.grid(), bounds, growths, name="broken_bucket", case=case)
    data.cycle([4, NAN], name="broken_bucket", case="nan", le="1")
    data.cycle([8], name="broken_bucket", case="nan", le="+Inf")
    data.cycle([8], name="broken_bucket", case="no_le")


def _texts(data: Dataset) -> None:
    """Labels to match, join and replace."""
    for number, (path, note) in enumerate([
        ("/a/b.html", "plain"), ("/a/c", "two words"), ("/", "x=1,y=2"), ("", "ünï€"), ("/a/b", "UPPER"),
        ("/日本", "line\nbreak"), ("/a.b", "$1 \\1"), ("/q?x=\"1\"", "a'b"),
    ]):  # fmt: skip
        data.cycle([number], name="page_views", path=path, note=note, n=str(number % 3))
    for x, y, value in (("1", "1", 10), ("1", "2", 20), ("2", "1", 30), ("2", "2", 40)):
        data.cycle([value], name="left_side", x=x, y=y)
        if y == "1":
            data.cycle([value / 4], name="right_side", x=x, z="q")
            data.cycle([value / 8], name="doubled", x=x, z="q")
        data.cycle([value / 8], name="doubled", x=x, z="r" + y)
    # One after the other, apart by more than a lookback.
    data.counter(data.grid(FIRST_S, 1100), name="relay_a", lap="1")
    data.counter(data.grid(1460, 2700), name="relay_b", lap="1")
    data.cycle([1, 2], name="sum", by="on", group_left="offset")  # names that are words of the language
    data.cycle([1], name="name:with:colons", _under="x")


def _on_the_grid(data: Dataset) -> None:
    """For what version 3 changed: samples on the times that are asked for, and a counter born inside of a window."""
    times = [1_500_321 - 15_000 * back for back in range(20, -1, -1)]
    for name, at in (("aligned", times), ("aligned_once", times[:1])):
        data.series.append(Series(labels_of({"__name__": name}), BEGIN_MS + np.array(at), np.arange(1.0, len(at) + 1)))
    # From its first value and slope it was zero 12 s before the first sample: between a half and the whole of 15 s.
    data.add([1_365_137 + 15_000 * i for i in range(9)], [12.0 + 15 * i for i in range(9)], name="late_total")


def dataset() -> list[Series]:
    """Every series, sorted by its labels."""
    data = Dataset()
    for part in (_services, _odd, _counters, _histograms, _texts, _on_the_grid):
        part(data)
    assert len({one.labels for one in data.series}) == len(data.series)
    return sorted(data.series, key=lambda one: one.labels)
