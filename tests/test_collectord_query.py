"""`collectord query`, and the API of Prometheus on a daemon that really serves: agents are acknowledged while queries run."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from agent_stub.wire import stream_pb2 as wire
from collectord import cli, query_command
from collectord.query_chart import Line, chart, short, spark
from tests.daemon_process import REPOSITORY, DaemonProcess, comes_true
from tests.raw_agent import RawAgent, batch, declare, gauge, hello, now_ms

SERIES, ROWS = 400, 900  # of the agent that everything is asked about: 15 minutes at 1 s
HEAVY = {"query": "sum(quantile_over_time(0.9, raw_value[5m]))", "step": "1"}
ACKED_S = 3.0  # acknowledgements are about a second apart
BLANK_ROW = "⠀"


# The language of the command line


@pytest.mark.parametrize(
    ("expression", "said", "expected"),
    [
        ("up{", "1:4: parse error: unexpected end", "parse error: unexpected end\n  up{\n     ^"),
        ("a +\n  up{", "2:6: parse error: no", "parse error: no\n    up{\n       ^"),
        ('{a="ü日"} x', "1:12: parse error: no", 'parse error: no\n  {a="ü日"} x\n           ^'),
        ("\tup{", "1:2: parse error: no", "parse error: no\n   up{\n   ^"),
        ("up\x1b[2J{", "1:1: parse error: no", "parse error: no\n  up�[2J{\n  ^"),
        ("up", "found duplicate series", "found duplicate series"),
        ("up", "9:9: parse error: elsewhere", "9:9: parse error: elsewhere"),
    ],
)
def test_the_place_of_an_error_is_marked(expression: str, said: str, expected: str) -> None:
    assert query_command.marked(said, expression) == expected


def test_a_chart_goes_from_its_least_to_its_greatest_value() -> None:
    times = [float(t) for t in range(101)]
    rows = [row.plain for row in chart([Line("x", times, times)], 0, 100, 1.5, 50, 6)]
    assert len(rows) == 6
    assert rows[0].startswith("       100 ┤")
    assert rows[-1].startswith("         0 ┤")
    plots = [row[12:] for row in rows]
    assert plots[0].rstrip(BLANK_ROW) == plots[0]  # it ends at the upper right ...
    assert plots[-1].lstrip(BLANK_ROW) == plots[-1]  # ... and begins at the lower left
    assert all(row.strip(BLANK_ROW) for row in plots)


def test_a_chart_does_not_join_across_a_gap_and_survives_odd_values() -> None:
    line = Line("x", [0.0, 10.0, 90.0, 95.0, 100.0], [1.0, 1.0, 1.0, float("nan"), float("inf")])
    plots = [row.plain[12:] for row in chart([line], 0, 100, 15, 62, 4)]
    assert BLANK_ROW * 35 in max(plots, key=lambda row: len(row.strip(BLANK_ROW)))
    assert chart([Line("x", [0.0], [float("nan")])], 0, 1, 1, 80, 8)[0].plain == "no finite value in this range"


def test_sparks_and_short_numbers() -> None:
    assert spark([0, 1, 2, 3], 4) == "▁▃▆█"
    assert spark([5.0, float("nan"), 5.0], 8) == "▁ ▁"
    assert len(spark(list(range(1000)), 24)) == 24
    assert spark([float("nan")], 4) == ""
    assert [short(v) for v in (0, 1.23456, 12345.0, 5.5e7, 1e300, float("inf"))] == [
        "0", "1.235", "12.35k", "55M", "1e+300", "inf",
    ]  # fmt: skip


# A collector that says what it is told to


@pytest.fixture
def said() -> Iterator[dict[str, Any]]:
    """What it answers: status, body; and in `asked` what it was asked."""
    told: dict[str, Any] = {"status": 200, "body": b"", "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            told["asked"].append((self.path, dict(urllib.parse.parse_qsl(form))))
            self.send_response(told["status"])
            self.end_headers()
            self.wfile.write(told["body"])

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        told["url"] = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield told
        server.shutdown()


def answer(kind: str, result: Any, **more: Any) -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}, **more}).encode()


def query(said: dict[str, Any], *words: str) -> int:
    return cli.main(["query", "up", "--url", said["url"], *words], {"COLUMNS": "200"})


UP = [
    {"metric": {"__name__": "up", "job": "a"}, "value": [5, "1"]},
    {"metric": {"__name__": "up", "job": "b\x1b[2J"}, "value": [5, "NaN"]},
]
OVER = [{"metric": {"job": "a"}, "values": [[0, "1"], [60, "3"], [120, "2"]]}]


def test_a_table_has_columns_for_what_differs(said: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    said["body"] = answer("vector", UP, warnings=["PromQL warning: odd"])
    assert query(said) == 0
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines()] == [
        ["all", "__name__=up"], ["job", "value"], ["a", "1"], ["b�[2J", "NaN"]
    ]  # fmt: skip
    assert shown.err == "collectord: warning: odd\n"
    said["body"] = answer("matrix", OVER)
    assert query(said, "--range", "2m", "--step", "1m", "--time", "1970-01-01T00:02:00Z") == 0
    assert said["asked"][-1] == (
        "/api/v1/query_range",
        {"query": "up", "start": "0.000", "end": "120.000", "step": "60.000"},
    )
    assert capsys.readouterr().out.split() == [
        "job",
        "last",
        "least",
        "mean",
        "greatest",
        "a",
        "2",
        "1",
        "2",
        "3",
        "▁█▅",
    ]


@pytest.mark.parametrize(("kind", "result", "shown"), [("scalar", [5, "7"], "7"), ("string", [5, "x\x1b"], "x�")])
def test_single_values(
    said: dict[str, Any], capsys: pytest.CaptureFixture[str], kind: str, result: Any, shown: str
) -> None:
    said["body"] = answer(kind, result)
    assert query(said) == 0
    assert capsys.readouterr().out == shown + "\n"


def test_csv_has_a_row_for_each_sample(said: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    said["body"] = answer("matrix", OVER)
    assert query(said, "--range", "2m", "--format", "csv") == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows == [["job", "time", "value"], ["a", "0", "1"], ["a", "60", "3"], ["a", "120", "2"]]


def test_json_is_the_answer_as_it_came(said: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    said["body"] = answer("vector", UP)
    assert query(said, "--format", "json") == 0
    assert capsys.readouterr().out.encode() == said["body"] + b"\n"


def test_a_chart_has_a_legend(said: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    said["body"] = answer("matrix", OVER * 9)
    assert query(said, "--range", "2m", "--time", "120", "--format", "chart") == 0
    out = capsys.readouterr().out
    assert "1970-01-01 00:00:00Z" in out
    assert "1970-01-01 00:02:00Z" in out
    assert "and 1 more; topk(8, ...) chooses" in out
    said["body"] = answer("matrix", [])
    assert query(said, "--format", "chart") == 0
    assert "Nothing matches" in capsys.readouterr().out
    assert float(said["asked"][-1][1]["end"]) - float(said["asked"][-1][1]["start"]) == pytest.approx(3600)


@pytest.mark.parametrize(
    ("status", "body", "code", "shown"),
    [
        (400, {"errorType": "bad_data", "error": 'invalid parameter "query": 1:3: parse error: no'}, 2, "parse error: no\n  up\n    ^"),
        (422, {"errorType": "execution", "error": "too much"}, 1, "too much"),
        (503, {"errorType": "unavailable", "error": "too many queries"}, 1, "too many queries"),
        (404, "not found", 1, "answered 404 Not Found, expected 200; is it a collectord?"),
        (200, "<html>", 1, "gave no answer to a query; is it a collectord"),
        (200, {"data": []}, 1, "gave no answer to a query; is it a collectord"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_said(
    said: dict[str, Any], capsys: pytest.CaptureFixture[str], status: int, body: Any, code: int, shown: str
) -> None:
    said["status"], said["body"] = status, (body if isinstance(body, str) else json.dumps(body)).encode()
    assert query(said) == code
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--range", "x"], "got 'x', expected a duration such as 15s"),
        (["--step", "-1s"], "expected one argument"),
        (["--step", "0"], "got '0', expected a duration"),
        (["--time", "noon"], "got 'noon', expected Unix seconds"),
        (["--url", "nowhere"], "--url: got 'nowhere', expected HOST:PORT"),
        (["--format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_wrong_usage_is_named(words: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(["query", "up", *words], {})
    except SystemExit as left:
        code = int(left.code or 0)
    assert code == 2
    assert shown in capsys.readouterr().err


def test_without_a_daemon_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["query", "up", "--url", "127.0.0.1:1"], {}) == 1
    assert "no collectord answers at http://127.0.0.1:1/api/v1/query" in capsys.readouterr().err


# A daemon that serves


class Served:
    """A daemon with an agent that has sent its samples."""

    def __init__(self, daemon: DaemonProcess, agent: RawAgent, begin_ms: int) -> None:
        self.daemon, self.agent, self.begin_ms = daemon, agent, begin_ms

    def ask(self, path: str, form: dict[str, str]) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(self.daemon.page + path, urllib.parse.urlencode(form).encode(), 60) as got:
                return got.status, json.loads(got.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def heavy(self, **more: str) -> tuple[int, Any]:
        span = {"start": str(self.begin_ms / 1000), "end": str(self.begin_ms / 1000 + ROWS)}
        return self.ask("/api/v1/query_range", HEAVY | span | more)

    def acked(self) -> int:
        return sum(
            span.last - span.first + 1
            for message in self.agent.heard if message.HasField("ack")
            for span in message.ack.ranges
        )  # fmt: skip


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    daemon = await asyncio.to_thread(DaemonProcess, tmp_path, "[query]\nconcurrency = 1\nqueue = 1")
    try:
        async with grpc.aio.insecure_channel(daemon.grpc) as channel:
            agent = await RawAgent(channel).welcomed(hello("i1", agent="raw"))
            series = [gauge(1 + n, n=str(n)) for n in range(SERIES)]
            await agent.send(declare(*series, layouts=[wire.Layout(layout=1, refs=range(1, SERIES + 1))]))
            begin_ms = now_ms() - 1000 * ROWS
            rng = np.random.default_rng(1)
            for row in range(ROWS):
                await agent.send(batch(1 + row, values=rng.random(SERIES), time_ms=begin_ms + 1000 * row, layout=1))
            served = Served(daemon, agent, begin_ms)
            await agent.until(lambda: served.acked() == ROWS, "acks of all")
            yield served
    finally:
        await asyncio.to_thread(daemon.kill)


async def test_batches_are_acknowledged_while_a_long_query_runs(served: Served) -> None:
    await asyncio.sleep(1.1)
    asked = asyncio.create_task(asyncio.to_thread(served.heavy))
    began_s = time.monotonic()
    waits_s, sent = [], ROWS
    while not asked.done():
        sent += 1
        sent_s = time.monotonic()
        await served.agent.send(batch(sent, values=[0.5] * SERIES, layout=1))
        await served.agent.until(lambda sent=sent: served.acked() >= sent, f"ack of {sent}")  # type: ignore[misc]
        waits_s.append(time.monotonic() - sent_s)
    took_s = time.monotonic() - began_s
    status, body = await asked
    assert (status, body["status"], len(body["data"]["result"])) == (200, "success", 1)
    assert took_s > 1.0, "too quick to show anything"
    assert max(waits_s) < ACKED_S, f"waits for acks while a query ran for {took_s:.1f} s: {waits_s}"


async def test_a_client_that_leaves_takes_its_query_along(served: Served) -> None:
    daemon = served.daemon
    form = urllib.parse.urlencode(
        HEAVY | {"start": str(served.begin_ms / 1000), "end": str(served.begin_ms / 1000 + ROWS)}
    )
    host, port = daemon.page.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /api/v1/query_range HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    writer.write(f"{head}Content-Length: {len(form)}\r\n\r\n{form}".encode())
    await comes_true(lambda: daemon.counters()["collectord_queries_running"] == 1)
    writer.close()
    await comes_true(lambda: daemon.counters().get("collectord_queries_total{outcome=canceled}") == 1, 5)
    assert daemon.counters()["collectord_queries_running"] == 0


async def test_queries_are_bounded_timed_and_counted(served: Served) -> None:
    status, body = await asyncio.to_thread(served.heavy, timeout="0.3")
    assert (status, body["errorType"]) == (503, "timeout")
    answers = await asyncio.gather(*(asyncio.to_thread(served.heavy, timeout="1") for _ in range(6)))
    kinds = sorted(body.get("errorType", "success") for _, body in answers)
    assert kinds.count("unavailable") >= 4, kinds
    counters = await asyncio.to_thread(served.daemon.counters)
    assert counters["collectord_queries_total{outcome=unavailable}"] == kinds.count("unavailable")
    assert counters["collectord_query_seconds_count"] >= 2
    assert counters["collectord_queries_waiting"] == 0


async def test_a_stop_gives_running_queries_up(served: Served) -> None:
    asked = asyncio.create_task(asyncio.to_thread(served.heavy))
    await comes_true(lambda: served.daemon.counters()["collectord_queries_running"] == 1)
    began_s = time.monotonic()
    assert await asyncio.to_thread(served.daemon.stop) == 0
    assert time.monotonic() - began_s < 10
    await asyncio.gather(asked, return_exceptions=True)
    assert not any("Traceback" in line for line in served.daemon.log), served.daemon.log[-20:]


async def test_the_command_the_api_and_promtool_say_the_same(served: Served) -> None:
    command = [sys.executable, "-m", "collectord", "query", 'count(raw_value{job="raw"})', "--url", served.daemon.page]

    def printed(*words: str) -> str:
        ran = subprocess.run([*command, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=True)
        return ran.stdout

    assert (await asyncio.to_thread(printed)).split() == ["value", str(SERIES)]
    assert (await asyncio.to_thread(printed, "--format", "csv")).split(",")[-1] == f"{SERIES}\n"
    assert "┤" in await asyncio.to_thread(printed, "--range", "10m", "--format", "chart")
    promtool = ["promtool", "query", "instant", served.daemon.page, command[4]]
    ran = await asyncio.to_thread(subprocess.run, promtool, capture_output=True, text=True, timeout=30)
    assert ran.stdout.startswith(f"{{}} => {SERIES} @[")
    counted = await asyncio.to_thread(served.ask, "/api/v1/query", {"query": command[4]})
    assert counted[1]["data"]["result"][0]["value"][1] == str(SERIES)
    long = urllib.parse.quote(command[4] + " + 0" * 100 + " " * 20_000)
    assert json.loads(await asyncio.to_thread(served.daemon.get, f"/api/v1/query?query={long}"))["status"] == "success"
    federated = (await asyncio.to_thread(served.daemon.get, "/federate?match%5B%5D=raw_value")).decode()
    assert federated.count("\nraw_value{") == SERIES
