"""The web application over HTTP, with aiohttp's own client."""

from __future__ import annotations

import asyncio
import math
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from web_source import FakeFleet, a_row, an_hour_of_work

from web.app import make_app
from web.live import QUEUE_EVENTS

TICK_S = 0.02
Client = TestClient[web.Request, web.Application]
Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    clients: list[Client] = []

    async def start(source: FakeFleet, static: Path = tmp_path) -> Client:
        client = TestClient(TestServer(make_app(source, static=static, live_interval_s=TICK_S)))
        await client.start_server()
        clients.append(client)
        return client

    yield start
    for client in clients:
        await client.close()


async def next_event(response: Any) -> tuple[str, Any]:
    """Name and content of the next server-sent event; comments and hints are passed over."""
    name = ""
    while True:
        line = (await asyncio.wait_for(response.content.readline(), 5)).decode()
        assert line, "the stream ended"
        if line.startswith("event: "):
            name = line[7:].strip()
        elif line.startswith("data: "):
            return name, orjson.loads(line[6:])


async def test_agents_are_a_list_with_the_fixed_fields(serve: Serve) -> None:
    client = await serve(FakeFleet([a_row("research", "1"), a_row("indexer", "2", "stuck")]))
    got = await (await client.get("/api/agents")).json()
    assert [(row["agent"], row["instance"], row["state"]) for row in got] == [
        ("research", "1", "live"),
        ("indexer", "2", "stuck"),
    ]
    fixed = (
        "agent instance state reason since_s last_seen_s rtt_ms version labels uptime_ratio series samples_total "
        "dropped_total"
    )
    assert set(fixed.split()) <= set(got[0])
    assert "spark" not in got[0]["figures"]


async def test_one_agent_has_its_details_and_charts(serve: Serve) -> None:
    fleet = FakeFleet([a_row("research", "1")])
    an_hour_of_work(fleet, fleet.fleet["1"])
    client = await serve(fleet)
    detail = await (await client.get("/api/agents/1")).json()
    assert detail["client"].startswith("agent_stub/")
    charts = await (await client.get("/api/agents/1/panels?step=5")).json()
    steps = (charts["to_ms"] - charts["from_ms"]) // charts["step_ms"] + 1
    assert {len(line["values"]) for panel in charts["panels"] for line in panel["lines"]} == {steps}
    assert steps == 61


async def test_the_newest_value_of_each_series_of_a_metric(serve: Serve) -> None:
    fleet = FakeFleet([a_row("research", "1")])
    fleet.append(
        fleet.fleet["1"], {("m", (("kind", "x"),)): [1.0, 2.0], ("m", (("kind", "y"),)): [3.0, math.nan]}, [1000, 2000]
    )
    client = await serve(fleet)
    answer = await (await client.get("/api/agents/1/latest?metric=m")).json()
    found = {sample["labels"]["kind"]: (sample["value"], sample["time_ms"]) for sample in answer["samples"]}
    assert found == {"x": (2.0, 2000), "y": ("nan", 2000)}


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/agents/nobody", 404, "instance: got 'nobody', expected one of the 1 known instances"),
        ("/api/agents/nobody/panels", 404, "instance: got 'nobody'"),
        ("/api/agents/%3Cscript%3E", 404, "instance: got '<script>'"),
        ("/api/agents/1/panels?step=no", 400, "step: got 'no', expected seconds"),
        ("/api/agents/nobody/latest?metric=m", 404, "instance: got 'nobody'"),
        ("/api/agents/1/latest", 400, "metric: got none, expected a metric's name"),
        ("/api/nothing", 404, "path: got '/api/nothing', expected one that /api/openapi.json lists"),
        ("/static/nothing.js", 404, "path: got '/static/nothing.js'"),
        ("/", 503, "page: got no built page, expected web/static/index.html; run `make install`"),
    ],
)
async def test_errors_say_what_was_got_and_expected(serve: Serve, path: str, status: int, said: str) -> None:
    client = await serve(FakeFleet([a_row("research", "1")]))
    response = await client.get(path)
    assert response.status == status
    assert response.content_type == "application/json"
    assert said in (await response.json())["error"]


async def test_a_wrong_method_is_told_the_right_one(serve: Serve) -> None:
    response = await (await serve(FakeFleet())).post("/api/agents")
    assert response.status == 405
    assert "got POST, expected GET" in (await response.json())["error"]


async def test_a_failing_source_is_an_error_without_innards(serve: Serve) -> None:
    fleet = FakeFleet()
    fleet.fleet = None  # type: ignore[assignment]
    response = await (await serve(fleet)).get("/api/agents")
    assert response.status == 500
    assert "its log says why" in (await response.json())["error"]


@pytest.mark.parametrize("path", ["/", "/api/agents", "/api/nothing", "/metrics", "/api/live"])
async def test_every_answer_carries_the_protecting_headers(serve: Serve, path: str) -> None:
    response = await (await serve(FakeFleet())).get(path)
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    response.close()


@pytest.mark.parametrize(
    ("bound", "host", "status"),
    [
        ("127.0.0.1:4318", "localhost:4318", 200),
        ("127.0.0.1:4318", "127.0.0.1:4318", 200),
        ("127.0.0.1:4318", "[::1]:4318", 200),
        ("[::1]:4318", "LOCALHOST", 200),
        ("127.0.0.1:4318", "evil.example", 421),
        ("localhost:4318", "localhost.evil.example:4318", 421),
        ("127.0.0.1:4318", "", 421),
        ("0.0.0.0:4318", "collectord.example", 200),
        ("192.168.1.9:4318", "collectord.example", 200),
    ],
)
async def test_a_loopback_listener_answers_only_to_its_own_names(
    serve: Serve, bound: str, host: str, status: int
) -> None:
    client = await serve(FakeFleet(http=bound))
    assert (await client.get("/api/agents", headers={"Host": host})).status == status


async def test_the_daemon_on_itself(serve: Serve) -> None:
    fleet = FakeFleet()
    client = await serve(fleet)
    assert "collectord_streams 3" in await (await client.get("/metrics")).text()
    assert (await client.get("/-/healthy")).status == 200
    assert (await client.get("/-/ready")).status == 200
    fleet.not_ready = "gRPC does not listen yet"
    response = await client.get("/-/ready")
    assert (response.status, (await response.json())["error"]) == (503, "gRPC does not listen yet")


async def test_the_openapi_document_lists_exactly_what_is_served(serve: Serve) -> None:
    client = await serve(FakeFleet())
    document = await (await client.get("/api/openapi.json")).json()
    served = {resource.canonical for resource in client.server.app.router.resources()}  # type: ignore[attr-defined]
    assert set(document["paths"]) == served - {"/", "/static/{name}"}
    for reference in re.findall(r"#/components/schemas/(\w+)", orjson.dumps(document).decode()):
        assert reference in document["components"]["schemas"]
    row = a_row("research", "1")
    described = document["components"]["schemas"]["Agent"]["properties"]
    assert set(described) == set(row)
    assert set(described["figures"]["properties"]) == set(row["figures"]) - {"spark", "latency_spark"}


async def test_assets_are_cached_for_good_and_come_compressed(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(b"<p>page</p>")
    (tmp_path / "page-1a2b.js").write_bytes(b"plain")
    (tmp_path / "page-1a2b.js.gz").write_bytes(b"zipped")
    client = await serve(FakeFleet(), static=tmp_path)
    plain = await client.get("/static/page-1a2b.js", headers={"Accept-Encoding": "identity"})
    assert await plain.read() == b"plain"
    assert "immutable" in plain.headers["Cache-Control"]
    assert plain.content_type == "text/javascript"
    known = await client.get("/static/page-1a2b.js", headers={"If-None-Match": plain.headers["ETag"]})
    assert known.status == 304
    index = await client.get("/")
    assert index.headers["Cache-Control"] == "no-cache"
    async with client.session.get(
        client.make_url("/static/page-1a2b.js"), headers={"Accept-Encoding": "gzip"}, auto_decompress=False
    ) as zipped:
        assert zipped.headers["Content-Encoding"] == "gzip"
        assert await zipped.read() == b"zipped"
    for path in ("/static/page-1a2b.js.gz", "/static/..%2Fapp.py"):
        assert (await client.get(path)).status == 404


async def test_live_tells_everything_then_only_what_changed(serve: Serve) -> None:
    fleet = FakeFleet([a_row("research", "1"), a_row("indexer", "2")])
    client = await serve(fleet)
    response = await client.get("/api/live")
    assert response.headers["Content-Type"] == "text/event-stream"
    name, told = await next_event(response)
    assert name == "all"
    assert [row["instance"] for row in told["rows"]] == ["1", "2"]
    assert told["totals"]["grpc"] == "127.0.0.1:4317"
    name, told = await next_event(response)
    assert (name, set(told)) == ("change", {"now_ms"})
    fleet.fleet["2"]["state"] = "stuck"
    fleet.fleet["2"]["since_s"] = 0.0
    del fleet.fleet["1"]
    while "rows" not in told:
        _, told = await next_event(response)
    assert set(told["rows"]) == {"2"}
    assert set(told["rows"]["2"]) == {"state", "since_ms"}
    assert told["gone"] == ["1"]
    assert set(told["totals"]) == {"series", "streams"}
    response.close()


async def test_a_second_viewer_is_told_the_present(serve: Serve) -> None:
    fleet = FakeFleet([a_row("research", "1")])
    client = await serve(fleet)
    first = await client.get("/api/live")
    await next_event(first)
    fleet.fleet["1"]["version"] = "2.0.0"
    while "rows" not in (await next_event(first))[1]:
        pass
    second = await client.get("/api/live")
    _, told = await next_event(second)
    assert told["rows"][0]["version"] == "2.0.0"
    first.close()
    second.close()


async def test_nothing_is_computed_when_nobody_listens(serve: Serve) -> None:
    fleet = FakeFleet([a_row("research", "1")])
    client = await serve(fleet)
    await asyncio.sleep(5 * TICK_S)
    assert fleet.looks == 0
    response = await client.get("/api/live")
    await next_event(response)
    await next_event(response)
    assert fleet.looks >= 2
    response.close()
    looks = -1
    while looks != fleet.looks:  # the daemon notices at its next write
        looks = fleet.looks
        await asyncio.sleep(10 * TICK_S)
    response = await client.get("/api/live")
    assert (await next_event(response))[0] == "all"
    response.close()


async def test_one_look_serves_all_viewers(serve: Serve) -> None:
    fleet = FakeFleet([a_row("research", "1")])
    client = await serve(fleet)
    viewers = [await client.get("/api/live") for _ in range(5)]
    for viewer in viewers:
        await next_event(viewer)
    before = fleet.looks
    for _ in range(6):
        for viewer in viewers:
            await next_event(viewer)
    assert fleet.looks - before <= 6 + 4  # some ticks may pass while the slowest is read
    for viewer in viewers:
        viewer.close()


async def test_a_viewer_that_does_not_read_is_cut_off(serve: Serve) -> None:
    fleet = FakeFleet([a_row("research", str(n)) for n in range(20)])
    client = await serve(fleet)
    deaf = socket.create_connection(("127.0.0.1", client.port or 0))
    deaf.sendall(b"GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    good = await client.get("/api/live")
    for turn in range(40 * QUEUE_EVENTS):
        for row in fleet.fleet.values():
            row["reason"] = f"{turn} " + "x" * 100_000  # 2 MB an event: the kernel's buffers are soon full
        await an_event(good)
        if is_reset(deaf):
            break
    else:
        pytest.fail("the viewer that reads nothing still has its connection")
    await an_event(good)
    good.close()
    deaf.close()


async def an_event(response: Any) -> None:
    """The next event's end, whatever its size."""
    tail = b""
    while not tail.endswith(b"\n\n"):
        chunk = await asyncio.wait_for(response.content.readany(), 5)
        assert chunk, "the stream ended"
        tail = (tail + chunk)[-2:]


def is_reset(connection: socket.socket) -> bool:
    """A closed peer answers whatever is sent with a reset, which the next sending meets."""
    try:
        connection.send(b"\r\n")
    except ConnectionError:
        return True
    return False
