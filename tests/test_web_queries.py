"""Queries are bounded, are given up when nobody waits, and never hold the event loop; hostile ones are refused by name."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from web_source import FakeFleet, a_row

from storage.promql import Limits, QueryError, Result
from storage.store import Store
from storage.types import STALE_BITS
from tests.prometheus_pair import FORM, Client, ask, client_of
from tests.store_model import NOW_MS
from tests.test_storage_reading import METRIC, Writer, values_of
from web.prometheus_forms import parse_duration, parse_time, unescaped, whole_ms
from web.prometheus_json import result_parts, texts_of
from web.queries import Queries, QuerySettings, Ticket

SECOND_MS = 1000
HERE: Callable[[], bool] = lambda: False  # noqa: E731 - a client that has not left


class Held:
    """Work that goes on until it is let go, or given up."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.free = threading.Event()

    def __call__(self, ticket: Ticket) -> str:
        self.began.set()
        while not self.free.wait(0.005):
            ticket.check()
        return "done"

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.began.wait, 5)


class PanicError(BaseException):
    """As the parser's own, which is no Exception either."""


@asynccontextmanager
async def pool(**settings: Any) -> AsyncIterator[Queries]:
    queries = Queries(Store.in_memory(), QuerySettings(**settings))
    try:
        yield queries
    finally:
        await queries.close()


async def settled(queries: Queries, waiting: int, running: int = 1) -> None:
    while (queries.waiting, queries.running) != (waiting, running):
        await asyncio.sleep(0.005)


async def test_so_many_run_and_so_many_wait() -> None:
    async with pool(concurrency=2, queue=1) as queries:
        works = [Held() for _ in range(3)]
        runs = [asyncio.create_task(queries.run(work, None, HERE)) for work in works]
        await works[0].has_begun()
        await works[1].has_begun()
        await settled(queries, 1, 2)
        with pytest.raises(QueryError) as refused:
            await queries.run(Held(), None, HERE)
        assert refused.value.kind == "unavailable"
        assert refused.value.text.startswith("too many queries: 2 run and 1 wait, expected at most 2 and 1")
        for work in works:
            work.free.set()
        assert await asyncio.gather(*runs) == ["done"] * 3
        await settled(queries, 0, 0)
        assert queries.outcomes == {"success": 3, "unavailable": 1}


async def test_one_that_waits_too_long_is_told_so_while_another_runs() -> None:
    async with pool(concurrency=1) as queries:
        work = Held()
        run = asyncio.create_task(queries.run(work, None, HERE))
        await work.has_begun()
        with pytest.raises(QueryError, match="query timed out in query queue") as late:
            await queries.run(Held(), 0.02, HERE)
        assert late.value.kind == "timeout"
        work.free.set()
        assert await run == "done"
        await settled(queries, 0, 0)
        assert queries.outcomes == {"success": 1, "timeout": 1}


async def test_one_that_runs_too_long_is_given_up() -> None:
    async with pool(timeout_s=0.03) as queries:
        with pytest.raises(QueryError, match="query timed out in expression evaluation"):
            await queries.run(Held(), 100.0, HERE)  # what a client asks does not exceed the setting


async def test_a_client_that_leaves_takes_its_query_along() -> None:
    async with pool(concurrency=1, queue=1) as queries:
        left = threading.Event()
        work = Held()
        run = asyncio.create_task(queries.run(work, None, left.is_set))
        waits = asyncio.create_task(queries.run(Held(), None, left.is_set))
        await work.has_begun()
        await settled(queries, 1)
        left.set()
        ends = await asyncio.gather(run, waits, return_exceptions=True)
        assert [error.kind for error in ends if isinstance(error, QueryError)] == ["canceled"] * 2
        await settled(queries, 0, 0)
        assert queries.outcomes == {"canceled": 2}


async def test_places_of_those_who_left_are_given_to_others() -> None:
    async with pool(concurrency=1, queue=1) as queries:
        left, work = threading.Event(), Held()
        run = asyncio.create_task(queries.run(work, None, HERE))
        await work.has_begun()
        gone = asyncio.create_task(queries.run(Held(), None, left.is_set))
        await settled(queries, 1)
        left.set()
        after = Held()
        after.free.set()
        comes = asyncio.create_task(queries.run(after, None, HERE))
        with pytest.raises(QueryError, match="canceled in query queue"):
            await gone
        work.free.set()
        assert (await run, await comes) == ("done", "done")


async def test_a_handler_that_is_cancelled_cancels_its_query() -> None:
    async with pool(concurrency=1) as queries:
        work = Held()
        run = asyncio.create_task(queries.run(work, None, HERE))
        await work.has_begun()
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        await settled(queries, 0, 0)
        assert queries.outcomes == {"canceled": 1}


async def test_closing_ends_all_and_refuses_more() -> None:
    async with pool(concurrency=1) as queries:
        runs = [asyncio.create_task(queries.run(Held(), None, HERE)) for _ in range(3)]
        await settled(queries, 2)
        await queries.close()
        ends = await asyncio.gather(*runs, return_exceptions=True)
        assert [getattr(error, "kind", error) for error in ends] == ["canceled"] * 3
        with pytest.raises(QueryError, match="shutting down"):
            await queries.run(Held(), None, HERE)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (QueryError("execution", "no"), "execution", "no"),
        (MemoryError(), "execution", "not enough memory"),
        (ZeroDivisionError("secret"), "internal", "its log says why"),
        (PanicError("secret"), "internal", "its log says why"),
    ],
)
async def test_what_goes_wrong_in_the_thread_arrives(error: BaseException, kind: str, said: str) -> None:
    def work(_ticket: Ticket) -> None:
        raise error

    async with pool() as queries:
        with pytest.raises(QueryError) as told:
            await queries.run(work, None, HERE)
        assert told.value.kind == kind
        assert said in told.value.text
        assert "secret" not in told.value.text
        await settled(queries, 0, 0)
        assert queries.outcomes == {kind: 1}


# The store beside it


async def test_reads_lose_nothing_while_rings_become_segments(tmp_path: Path) -> None:
    """A thread reads again and again what the loop appends, flushes and merges: it sees a beginning of it, without holes."""
    writer = Writer(tmp_path)
    queries = Queries(writer.store, QuerySettings())
    stop = threading.Event()
    seen: list[int] = []

    def work(ticket: Ticket) -> int:
        while not stop.is_set():
            found = values_of(ticket.read([METRIC], NOW_MS, NOW_MS + 3_600_000))
            assert found == list(range(len(found)))
            seen.append(len(found))
        return len(seen)

    run = asyncio.create_task(queries.run(work, None, HERE))
    for second in range(600):
        writer.append(range(second, second + 1))
        if second % 20 == 19:
            writer.store.flush(NOW_MS + second * SECOND_MS)
        if second % 100 == 99:
            writer.store.compact(NOW_MS + second * SECOND_MS)
        await asyncio.sleep(0)
    stop.set()
    assert await run > 10
    assert seen == sorted(seen)
    await queries.close()
    writer.store.close()


# The loop


def wide_fleet(series: int, rows: int) -> FakeFleet:
    """Many series of one instance."""
    fleet = FakeFleet([a_row("a", "1")])
    rng = np.random.default_rng(1)
    samples = {("m", (("n", str(number)),)): rng.random(rows) for number in range(series)}
    fleet.append(fleet.fleet["1"], samples, fleet.clock_ms - 1000 * np.arange(rows - 1, -1, -1))
    return fleet


async def lag_while(work: asyncio.Task[Any]) -> float:
    """The longest time, seconds, that the loop was away from a task that always wants it."""
    longest, at = 0.0, time.perf_counter()
    while not work.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, at = max(longest, now - at), now
    return longest


async def test_the_loop_turns_while_a_long_query_runs() -> None:
    fleet = wide_fleet(1500, 1000)
    end_s = fleet.clock_ms / 1000
    form = {"query": "quantile_over_time(0.9, m[5m])", "start": str(end_s - 900), "end": str(end_s), "step": "4"}
    async with client_of(fleet) as client:
        answer = asyncio.create_task(client.post("/api/v1/query_range", data=form))
        began_s = time.perf_counter()
        longest_s = await lag_while(answer)
        took_s = time.perf_counter() - began_s
        assert (await answer).status == 200
    assert took_s > 0.3, "too quick to show anything"
    assert longest_s < 0.25, f"the loop was away for {longest_s:.3f} of {took_s:.3f} s"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("query", b"query=" + b"%41" * 340_000),
        ("series", b"match[]=" + b"%41" * 300_000),
        ("series", (b'&match[]={a="' + b"b" * 200_000 + b'"}') * 5),
        ("format_query", b'query={a="' + b"b" * 250_000 + b'"}'),
        ("query", b'query={__name__=~"' + b"(.*a|.*m)" * 3000 + b'"}'),
    ],
)
async def test_the_loop_turns_while_hostile_requests_are_understood(path: str, body: bytes) -> None:
    async with limited() as client:
        answer = asyncio.create_task(client.post(f"/api/v1/{path}", data=body, headers={"Content-Type": FORM}))
        longest_s = await lag_while(answer)
        assert (await answer).status < 500
    assert longest_s < 0.25, f"the loop was away for {longest_s:.3f} s"


# Limits and hostile input


@asynccontextmanager
async def limited(**limits: int) -> AsyncIterator[Client]:
    fleet = wide_fleet(100, 100)
    settings = QuerySettings(limits=replace(Limits(), **limits))
    async with client_of(fleet, Queries(fleet.store, settings)) as client:
        yield client


@pytest.mark.parametrize(
    ("limits", "path", "status", "said"),
    [
        ({"series": 50}, "query?query=m", 422, "selector found 100 series in query execution; expected at most 50"),
        ({"series": 50}, "series?match[]=m", 422, "found 100 series; expected at most 50"),
        ({"samples": 500}, "query?query=m[5m]", 422, "query processing would load too many samples into memory"),
        ({"samples": 500}, "query?query=m", 422, "query processing would load too many samples into memory"),
        ({"bytes": 4000}, "query?query=m[5m]", 422, "the answer would take some 320000 bytes in query execution"),
        ({"bytes": 500}, "query?query=m", 422, "query would take 900 bytes for 100 series at 1 steps"),
        ({}, "query_range?query=m&start=0&end=1000000&step=1", 400, "exceeded maximum resolution of 11,000 points"),
        ({"points_a_series": 9}, "query_range?query=m&start=0&end=10&step=1", 400, "maximum resolution of 9 points"),
        ({"depth": 9}, "query?query=" + "(" * 10 + "1" + ")" * 10, 400, "nested 10 deep; expected at most 9"),
    ],
)
async def test_a_query_that_is_too_large_is_refused(limits: dict[str, int], path: str, status: int, said: str) -> None:
    async with limited(**limits) as client:
        answer = await ask(client, "GET", "/api/v1/" + path)
        assert answer.status == status
        assert said in answer.content["error"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"query=" + b"a" * 300_000, 400, "expected at most 262144"),
        (b"query=" + b"1%2B" * 100_000 + b"1", 400, "nested"),
        (b"query=" + b"x" * (1 << 21), 400, "request body too large"),
        (b"a=&" * 2000 + b"query=1", 400, "more than 1000 of them"),
        (b"query=" + b"(" * 100_000, 400, "parse error"),
        (b"query=" + b"-" * 100_000 + b"1", 400, "nested"),
        (b'query={__name__=~"' + b"(a%2B)%2B" * 2000 + b'"}', 200, '"result":[]'),
        (b'query={__name__=~"' + b"(" * 2000 + b'"}', 400, "parse error"),
        (b'query={__name__=~"' + b"[a-z]" * 20_000 + b'"}', 400, "parse error"),
        (b'query=up{a="\xff"}', 200, '"result":[]'),
        (b"query=\xff\xfe", 400, "parse error"),
        (b"query=%00", 400, "parse error"),
        (b'query=label_replace(vector(1),"x","\xed\xa0\x80","","")', 200, "vector"),
        (b'query=%22\\xff%22', 200, "string"),
        (b"query=m&time=1e400", 400, "to a valid timestamp"),
        (b"query=m&time=" + b"9" * 5000, 400, "to a valid timestamp"),
        (b"query=m&time=9e300", 200, "vector"),
        (b"query=time()&time=-9e300", 200, "scalar"),
        (b"query=m offset 290y&time=-9e300", 200, "vector"),
    ],
)  # fmt: skip
async def test_hostile_forms_are_answered(body: bytes, status: int, said: str) -> None:
    async with limited() as client:
        began_s = time.perf_counter()
        answer = await client.post("/api/v1/query", data=body, headers={"Content-Type": FORM})
        text = (await answer.read()).decode()
        assert (answer.status, said in text) == (status, True), text[:500]
        assert orjson.loads(text)["status"] == ("success" if status == 200 else "error")
        assert time.perf_counter() - began_s < 2
        assert (await ask(client, "GET", "/api/v1/query?query=1")).status == 200


# What is parsed and written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1.5", 1500),
        ("-1.5", -1500),
        ("1435781451.781", 1435781451781),
        (".5", 500),
        ("1e3", 1_000_000),
        ("1.9996", 2000),
        ("2015-07-01T20:10:51.781Z", 1435781451781),
        ("2015-07-01T20:10:51.7819Z", 1435781451781),
        ("2015-07-01T22:10:51+02:00", 1435781451000),
        ("1e30", 1 << 53),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert abs(parse_time(text) - expected) < 1000 if abs(expected) > 1 << 52 else parse_time(text) == expected


@pytest.mark.parametrize(
    "text", ["", " 1", "1_0", "x", "inf", "0x10", "2015-07-01", "2015-07-01T25:00:00Z", "2015-07-01T20:10:51"]
)
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="to a valid timestamp"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5m", 300), ("1h30m", 5400), ("90", 90), ("1.5", 1.5), ("1ms", 0.001), ("-2", -2), ("1y", 31_536_000)],
)
def test_durations(text: str, expected: float) -> None:
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "m", "1m1h", "5 m", "1.5m", "1e30", "300y", "9999999999999999999999y"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="to a valid duration"):
        parse_duration(text)


def test_milliseconds_of_durations() -> None:
    assert [whole_ms(parse_duration(text)) for text in ("1.001", "1s1ms", "0.0019", "0.0001", "-5")] == [
        1001,
        1001,
        1,
        0,
        -5000,
    ]


def test_escaped_names() -> None:
    names = ["U__http_2e_status__code", "U___3a__1F600_", "http.status", "U__bad_2", "U__bad_zz_"]
    assert [unescaped(name) for name in names] == [
        "http.status_code",
        ":\U0001f600",
        "http.status",
        "U__bad_2",
        "U__bad_zz_",
    ]


def test_values_are_written_as_go_writes_them() -> None:
    values = [0.0, -0.0, 1.0, 1.5, 1e15, 1e16, -1.2345678901234567e17, 9.5e20, 1e21, 1e-6, 9e-7, 1e300, 5e-324]
    expected = (
        "0 -0 1 1.5 1000000000000000 10000000000000000 -123456789012345660 950000000000000000000 1e+21 0.000001 9e-07"
    )
    assert b" ".join(texts_of(np.array(values))).decode() == f"{expected} 1e+300 5e-324"
    stale = np.array([STALE_BITS]).view(np.float64)[0]
    assert texts_of(np.array([math.nan, math.inf, -math.inf, stale])) == [b"NaN", b"+Inf", b"-Inf", b"NaN"]
    rng = np.random.default_rng(5)
    random = rng.standard_normal(20_000) * 10.0 ** rng.integers(-40, 40, 20_000)
    assert [float(text) for text in texts_of(random)] == random.tolist()


def test_a_large_result_is_written_quickly() -> None:
    """A thousand series over a day of minutes."""
    series, steps = 1000, 1440
    values = np.random.default_rng(1).random(series * steps)
    times = np.tile(NOW_MS + 60_000 * np.arange(steps), series)
    labels = [{"__name__": "m", "n": str(number)} for number in range(series)]
    result = Result("matrix", labels, steps * np.arange(series + 1), times, values)
    began_s = time.process_time()
    body = b"".join(result_parts(result, NOW_MS, 60_000))
    took_s = time.process_time() - began_s
    read = orjson.loads(body + b"}")["result"]
    assert [float(text) for _, text in read[7]["values"]] == values[7 * steps : 8 * steps].tolist()
    assert [at for at, _ in read[7]["values"]] == (times[:steps] / 1000).tolist()
    assert took_s < 3, f"{took_s:.2f} s, expected some 0.6"
