"""The HTTP API of Prometheus beside the real one (Debian's 2.42): the same requests over the same samples have the same answers."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest
from yarl import URL

from bench.machine import cores_for_bench, running
from bench.peers import PROMETHEUS
from storage.store import Store
from storage.types import labels_of
from tests.prometheus_pair import (
    AT_MS,
    FORM,
    Client,
    Pairs,
    Peer,
    ask,
    client_of,
    fill,
    fleet_over,
    prometheus_at,
    store_at,
)
from tests.promql_peer import STALE, Prometheus, Series

AT = f"{AT_MS / 1000:.3f}"
FROM = f"{AT_MS / 1000 - 600:.3f}"
NOW: Pairs = [("time", AT)]
RANGE: Pairs = [("start", FROM), ("end", AT), ("step", "60")]
API = "/api/v1/"


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with prometheus_at(tmp_path_factory.mktemp("prometheus")) as there:
        yield there


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store_at(tmp_path_factory.mktemp("pair") / "data") as opened:
        yield opened


@pytest.fixture
async def client(store: Store) -> AsyncIterator[Client]:
    async with client_of(fleet_over(store)) as made:
        yield made


def query(text: str, *more: tuple[str, str], at: str = AT) -> tuple[str, Pairs]:
    return "query", [("query", text), ("time", at), *more]


def over(text: str, *more: tuple[str, str], step: str = "60") -> tuple[str, Pairs]:
    return "query_range", [("query", text), ("start", FROM), ("end", AT), ("step", step), *more]


SAME: list[tuple[str, Pairs]] = [
    query("up"),
    query("up", at="2023-11-14T22:57:20.321Z"),
    query("up", at="2023-11-14T23:57:20.321+01:00"),
    query("nothing"),
    query("up[1m]"),
    query("odd"),
    query("1.5"),
    query("1e-7", at="5"),
    query("1e22"),
    query("Inf"),
    query("-Inf"),
    query("NaN"),
    query("vector(1e-7)", at="5.5"),
    query("vector(1e-6)"),
    query("vector(123456789e-14)"),
    query("vector(1e16)"),
    query("vector(-123456789012345678)"),
    query("vector(999999999999999868928)"),
    query("vector(1e21)"),
    query("vector(-0)"),
    query("vector(0/0)", at="1.01"),
    query("vector(1/0)", at="0"),
    query("vector(-1/0)", at="-1.5"),
    query("time()", at="5.050"),
    query('"text ü"', at="5.25"),
    query(r'"\"<&>\n"'),
    query("page_views"),
    query("up", ("timeout", "5s")),
    query("up", ("timeout", "x")),
    query(""),
    ("query", []),
    query("up{"),
    query("up", at="abc"),
    query("max(rate(http_requests_total[5m])) by (job)"),
    query("up", ("time", "1"), ("query", "nothing")),  # the first counts
    over("up"),
    over("up", step="1m"),
    over("up", step="0.25"),
    over("page_views", step="1m30s"),
    over("odd", step="15"),
    over("1e-7 * time()", step="1h"),
    over("life", step="20"),  # series that begin and end within the range
    over("up", step="0"),
    over("up", step="-5"),
    over("up", step=""),
    over("up", step="x"),
    over("up", step="1e30"),
    ("query_range", [("query", "up"), ("start", AT), ("end", FROM), ("step", "5")]),
    ("query_range", [("query", "up"), ("end", AT), ("step", "5")]),
    ("query_range", [("query", "up"), ("start", "x"), ("end", AT), ("step", "5")]),
    ("query_range", [("query", "up"), ("start", "0"), ("end", "1000000"), ("step", "1")]),
    over("label_replace(up, 'job', 'same', '', '') + on (job) up"),
    ("series", []),
    ("series", [("match[]", "up")]),
    ("series", [("match[]", "up"), ("match[]", 'left_side{x="1"}'), ("match[]", "up")]),
    ("series", [("match[]", '{job=~".+"}'), ("start", FROM), ("end", AT)]),
    ("series", [("match[]", "up"), ("start", "-292273086-05-16T16:47:06Z"), ("end", "292277025-08-18T07:12:54.999999999Z")]),
    ("series", [("match[]", "up"), ("start", "1"), ("end", "2")]),
    ("series", [("match[]", "up{")]),
    ("series", [("match[]", '{job=~".*"}')]),
    ("series", [("match[]", "up"), ("start", "x")]),
    ("series", [("match[]", "nothing")]),
    ("labels", []),
    ("labels", [("match[]", "up"), ("match[]", "page_views")]),
    ("labels", [("start", "1"), ("end", "2")]),
    ("labels", [("start", "x")]),
    ("label/job/values", []),
    ("label/__name__/values", []),
    ("label/__name__/values", [("match[]", '{job="api"}')]),
    ("label/note/values", []),
    ("label/job/values", [("match[]", "up"), ("start", "1"), ("end", "2")]),
    ("label/nope/values", []),
    ("label/%ff/values", []),
    ("metadata", [("limit", "x")]),
    ("metadata", [("metric", "not_known")]),
    ("query_exemplars", [("query", "up"), ("start", FROM), ("end", AT)]),
    ("query_exemplars", [("query", "up"), ("start", AT), ("end", FROM)]),
    ("rules", []),
    ("alerts", []),
    ("alertmanagers", []),
    ("targets", []),
    ("targets/metadata", []),
    ("format_query", [("query", "sum by(x)(rate(up[5m]))/2")]),
    ("format_query", [("query", "up{")]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "pairs"), SAME, ids=[f"{i}-{path}" for i, (path, _) in enumerate(SAME)])
async def test_the_answer_is_the_one_of_prometheus(client: Client, peer: Peer, path: str, pairs: Pairs) -> None:
    theirs = await asyncio.to_thread(peer.ask, "GET", API + path, pairs)
    ours = await ask(client, "GET", API + path, pairs)
    assert (ours.status, ours.comparable) == (theirs.status, theirs.comparable)


@pytest.mark.parametrize("path", ["query", "query_range", "series", "labels", "query_exemplars", "format_query"])
async def test_a_form_says_the_same_as_an_address(client: Client, peer: Peer, path: str) -> None:
    pairs = [("query", "up"), ("match[]", "up"), *NOW, *RANGE]
    got = await ask(client, "GET", API + path, pairs)
    posted = await ask(client, "POST", API + path, pairs)
    theirs = await asyncio.to_thread(peer.ask, "POST", API + path, pairs)
    assert got.body == posted.body
    assert posted.comparable == theirs.comparable


async def test_of_a_form_and_an_address_the_form_comes_first(client: Client) -> None:
    answer = await ask(client, "POST", f"{API}query?query=1&time=5", [("query", "2")])
    assert answer.data["result"] == [5, "2"]


DIFFERENT_WORDS: list[tuple[str, Pairs, str]] = [
    (*over("up{"), 'invalid parameter "query": 1:4: parse error: unexpected end of input inside braces'),
    (*over("up[1m]"), 'invalid parameter "query": invalid expression type "range vector" for range query'),
    (*over('"x"'), 'invalid parameter "query": invalid expression type "string" for range query'),
    (*query("sum by (job) (up) + on (nope) up"), "found duplicate series for the match group {} on the right hand-side"),
    ("series", [("match[]", "up[5m]")], "expected a series selector such as up"),
    ("series", [("match[]", "rate(up[5m])")], "expected a series selector such as up"),
    ("series", [("match[]", "up offset 5m")], "expected a series selector such as up"),
    ("labels", [("match[]", "{")], 'invalid parameter "match[]"'),
    ("query_exemplars", [("query", "up{"), ("start", FROM), ("end", AT)], 'invalid parameter "query": 1:4: parse error'),
]  # fmt: skip


@pytest.mark.parametrize(("path", "pairs", "said"), DIFFERENT_WORDS)
async def test_the_error_is_of_the_kind_that_it_is_there(
    client: Client, peer: Peer, path: str, pairs: Pairs, said: str
) -> None:
    theirs = await asyncio.to_thread(peer.ask, "GET", API + path, pairs)
    ours = await ask(client, "GET", API + path, pairs)
    assert ours.fault == theirs.fault
    assert said in ours.content["error"]


# What version 2.42 does not have, or has in other words


@pytest.mark.parametrize(
    ("path", "pairs", "fault", "said"),
    [
        (*query("up", ("lookback_delta", "x")), (400, "bad_data"), 'lookback delta duration: cannot parse "x"'),
        (*query("up", ("limit", "x")), (400, "bad_data"), 'strconv.Atoi: parsing "x": invalid syntax'),
        (*query("up", ("limit", "-1")), (400, "bad_data"), "limit must be non-negative"),
        (*query("up", at="NaN"), (400, "bad_data"), 'cannot parse "NaN" to a valid timestamp'),
        (*query("up", at="2023-13-14T22:57:20Z"), (400, "bad_data"), "to a valid timestamp"),
        (*query("up", at="١"), (400, "bad_data"), "to a valid timestamp"),
        (*query("up", ("timeout", "0")), (503, "timeout"), "query timed out"),
        (*query("up", ("timeout", "-1s")), (400, "bad_data"), 'cannot parse "-1s" to a valid duration'),
        (*query("up", ("timeout", "1e18")), (400, "bad_data"), "It overflows int64"),
        (*query("up", ("timeout", "9" * 400 + "y")), (400, "bad_data"), "to a valid duration"),
        ("series", [("match[]", "up"), ("start", AT), ("end", FROM)], (400, "bad_data"), "end timestamp must not be before"),
        ("series", [("match[]", "up")] * 101, (400, "bad_data"), "got 101 selectors, expected at most 100"),
        ("label/U__a_ff/values?limit=x", [], (400, "bad_data"), "invalid syntax"),
        ("status/tsdb?limit=0", [], (400, "bad_data"), "limit must be a positive number"),
        ("metadata?limit_per_metric=x", [], (400, "bad_data"), "limit_per_metric must be a number"),
        ("format_query", [("query", "")], (400, "bad_data"), "no expression found"),
        ("label//values", [], None, "expected one that /api/openapi.json lists"),
    ],
)  # fmt: skip
async def test_errors_say_what_is_wrong(
    client: Client, path: str, pairs: Pairs, fault: tuple[int, str] | None, said: str
) -> None:
    answer = await ask(client, "GET", API + path, pairs)
    assert answer.status == 404 if fault is None else answer.fault == fault
    assert said in answer.content["error"]


async def test_a_broken_escape_is_named(client: Client) -> None:
    url = URL(f"http://127.0.0.1:{client.port}{API}query?query=%zz", encoded=True)
    async with client.session.get(url) as answer:
        assert answer.status == 400
        assert 'invalid URL escape "%zz"' in (await answer.json())["error"]
    answer = await client.post(API + "query", data=b"query=%2", headers={"Content-Type": FORM})
    assert 'invalid URL escape "%2"' in (await answer.json())["error"]


async def test_a_limit_cuts_and_says_so(client: Client) -> None:
    whole = (await ask(client, "GET", API + "query", [("query", "sort(up)"), *NOW])).data["result"]
    for path, pairs in (query("sort(up)"), over("up")):
        cut = await ask(client, "GET", API + path, [*pairs, ("limit", "2")])
        assert len(cut.data["result"]) == 2
        assert cut.content["warnings"] == ["results truncated due to limit"]
    enough = await ask(client, "GET", API + "query", [("query", "sort(up)"), *NOW, ("limit", str(len(whole)))])
    assert enough.data["result"] == whole
    assert "warnings" not in enough.content
    for path in ("series?match[]=up", "labels?match[]=up", "label/instance/values?match[]=up"):
        all_of_it = (await ask(client, "GET", API + path)).data
        cut = await ask(client, "GET", f"{API}{path}&limit=1")
        assert cut.data == all_of_it[:1]
        assert cut.content["warnings"] == ["results truncated due to limit"]


async def test_a_lookback_of_its_own(client: Client) -> None:
    answers = [
        len((await ask(client, "GET", API + "query", query("up", ("lookback_delta", delta))[1])).data["result"])
        for delta in ("1ms", "12", "5m")
    ]
    assert answers[0] == 0 < answers[1] < answers[2] == 6


async def test_statistics_and_annotations(client: Client) -> None:
    answer = await ask(client, "GET", API + "query", query("quantile(2, up)", ("stats", "all"))[1])
    assert answer.data["stats"]["samples"]["totalQueryableSamples"] >= 6
    assert answer.data["stats"]["timings"]["execTotalTime"] > 0
    assert answer.content["warnings"] == ["PromQL warning: quantile value should be between 0 and 1, got 2 (1:10)"]
    answer = await ask(client, "GET", API + "query", query("rate(up[5m])")[1])
    assert "metric might not be a counter" in answer.content["infos"][0]


async def test_names_may_come_escaped(client: Client) -> None:
    plain = await ask(client, "GET", API + "label/job/values")
    for escaped in ("U__job", "U___6a_ob", "U__j_6F_b"):
        assert (await ask(client, "GET", f"{API}label/{escaped}/values")).body == plain.body
    for other in ("U__j_6g_b", "U__job_", "U__j_1234567_ob", "U___d800_", "U__j_6f"):
        assert (await ask(client, "GET", f"{API}label/{other}/values")).data == []


async def test_large_answers_come_compressed_where_that_is_accepted(client: Client) -> None:
    async with client.session.get(
        client.make_url(API + "query_range"), params=list(over("up")[1]), headers={"Accept-Encoding": "br, gzip;q=0.5"},
        auto_decompress=False,
    ) as packed:  # fmt: skip
        assert packed.headers["Content-Encoding"] == "gzip"
        body = gzip.decompress(await packed.read())
    for accepted in ("identity", "gzip;q=0", "gzip;q=0.0", "br"):
        plain = await ask(client, "GET", API + "query_range", over("up")[1], Accept_Encoding=accepted)
        assert "Content-Encoding" not in plain.headers
        assert plain.headers["Vary"] == "Accept-Encoding"
        assert plain.body == body


async def test_what_grafana_asks_of_a_data_source(client: Client, peer: Peer) -> None:
    for path in ("status/buildinfo", "status/runtimeinfo", "status/config", "status/tsdb"):
        ours = (await ask(client, "GET", API + path)).data
        theirs = (await asyncio.to_thread(peer.ask, "GET", API + path)).data
        assert set(ours) == set(theirs), path
    assert (await ask(client, "GET", API + "status/buildinfo")).data["version"].startswith("3.")
    theirs = (await asyncio.to_thread(peer.ask, "GET", API + "status/flags")).data
    ours = (await ask(client, "GET", API + "status/flags")).data
    assert set(ours) <= set(theirs)
    assert {name: ours[name] for name in ("query.lookback-delta", "query.max-samples", "query.timeout")} == {
        name: theirs[name] for name in ("query.lookback-delta", "query.max-samples", "query.timeout")
    }


async def test_the_explorer_counts_as_prometheus_does(client: Client, peer: Peer) -> None:
    ours = (await ask(client, "GET", API + "status/tsdb")).data
    theirs = (await asyncio.to_thread(peer.ask, "GET", API + "status/tsdb")).data
    for data in (ours, theirs):
        del data["headStats"]["chunkCount"]
    assert ours["headStats"] == theirs["headStats"]
    for kind in set(ours) - {"headStats"}:
        assert [one["value"] for one in ours[kind]] == [one["value"] for one in theirs[kind]], kind


async def test_metadata_has_the_metrics_as_they_were_declared(client: Client) -> None:
    everything = (await ask(client, "GET", API + "metadata")).data
    assert everything["up"] == [{"type": "gauge", "help": "", "unit": ""}]
    assert (await ask(client, "GET", API + "metadata?metric=up")).data == {"up": everything["up"]}
    assert len((await ask(client, "GET", API + "metadata?limit=3&limit_per_metric=1")).data) == 3


# Federation


def federated_series(now_ms: int) -> list[Series]:
    """Of the last minute: what is hard to write down, and what must not be told."""
    odd = [0.0, -0.0, 1e6, 123456.5, 1234567.0, 1e-4, 1e-5, 1e21, 1e300, 5e-324, np.nan, np.inf, -np.inf, 0.1]
    told = {f"v{i:02}": value for i, value in enumerate(odd)}
    series = [({"__name__": "odd", "n": name}, [1.0, value], 1000) for name, value in told.items()]
    series += [
        ({"__name__": "text", "path": 'a\\b"c\nd', "job": "x", "instance": "i"}, [1.0], 2000),
        ({"__name__": "with:colon", "job": "ü"}, [1.0], 3000),
        ({"__name__": "ended", "job": "x"}, [1.0, STALE], 4000),
        ({"__name__": "old", "job": "x"}, [1.0], 400_000),
    ]
    return [
        Series(labels_of(labels), now_ms - age_ms + 100 * np.arange(len(values)), np.array(values))
        for labels, values, age_ms in series
    ]


async def test_federation_gives_the_text_that_prometheus_gives(tmp_path: Path) -> None:
    now_ms = int(time.time() * 1000)
    series = federated_series(now_ms)
    store = Store.in_memory()
    fill(store, series)
    selectors = [("match[]", '{__name__=~".+"}'), ("match[]", "odd"), ("match[]", "nothing")]
    with running(PROMETHEUS.start(tmp_path, core=cores_for_bench()[0])) as server:
        server.wait_ready()
        prometheus = Prometheus(server)
        prometheus.load(series)
        prometheus.close()
        there = Peer(server.port)
        async with client_of(fleet_over(store, now_ms)) as client:
            for pairs in (selectors, selectors[1:], [], [("match[]", "nothing")]):
                theirs = await asyncio.to_thread(there.ask, "GET", "/federate", pairs)
                ours = await ask(client, "GET", "/federate", pairs)
                assert ours.body.decode().splitlines() == theirs.body.decode().splitlines()
                assert ours.headers["Content-Type"] == theirs.headers["Content-Type"]
            assert ours.status == 200
            wrong = await ask(client, "GET", "/federate", [("match[]", "up{")])
            assert (wrong.status, wrong.headers["Content-Type"]) == (400, "text/plain; charset=utf-8")
            assert b"1:4: parse error" in wrong.body


# promtool


@pytest.mark.parametrize(
    "words",
    [
        ["instant", "{url}", "sum by (job) (up)", f"--time={AT}"],
        ["instant", "{url}", "up", f"--time={AT}", "--format=json"],
        ["range", "{url}", "sum by (job) (up)", f"--start={FROM}", f"--end={AT}", "--step=60s"],
        ["series", "{url}", "--match=up", f"--start={FROM}", f"--end={AT}"],
        ["labels", "{url}", "job", f"--start={FROM}", f"--end={AT}"],
    ],
    ids=lambda words: words[0],
)
async def test_promtool_reads_the_same_from_both(client: Client, peer: Peer, words: list[str]) -> None:
    async def printed(port: int | None) -> tuple[int, list[str]]:
        query, *rest = [word.format(url=f"http://127.0.0.1:{port}") for word in words]
        options = [word for word in rest if word.startswith("--")]
        command = ["promtool", "query", query, *options, *(word for word in rest if word not in options)]
        ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
        assert not ran.stderr, ran.stderr
        if "--format=json" in words:
            return ran.returncode, sorted(map(str, orjson.loads(ran.stdout)))
        return ran.returncode, sorted(ran.stdout.splitlines())

    ours = await printed(client.port)
    assert ours == await printed(peer.port)
    assert ours[0] == 0
    assert ours[1]
