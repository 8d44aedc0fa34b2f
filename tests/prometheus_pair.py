"""The application and the real Prometheus over the same samples, asked the same over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from web_source import FakeFleet

from bench.machine import cores_for_bench, running
from bench.peers import PROMETHEUS
from storage.settings import StoreSettings
from storage.store import Store
from storage.types import Labels, Meta, Shape, absent, labels_of
from tests.promql_peer import CUT_MS, END_MS, Prometheus, Series, dataset
from web.app import make_app
from web.queries import Queries

Client = TestClient[web.Request, web.Application]
Pairs = Sequence[tuple[str, str]]

AT_MS = END_MS - 60_000 + 321
FORM = "application/x-www-form-urlencoded"
OWNER_LABELS = ("instance", "job")
ANSWER_S = 30.0


@dataclass(frozen=True)
class Said:
    """One answer over HTTP."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> Any:
        return orjson.loads(self.body)

    @property
    def data(self) -> Any:
        """Of a success."""
        assert self.content["status"] == "success", self.body[:300]
        return self.content["data"]

    @property
    def fault(self) -> tuple[int, str]:
        """Of an error: status and kind."""
        assert self.content["status"] == "error", self.body[:300]
        return self.status, self.content["errorType"]

    @property
    def comparable(self) -> Any:
        """The content; vectors and matrices in the order of their labels, which of a vector is nobody's promise."""
        content = self.content
        data = content.get("data")
        if isinstance(data, dict) and data.get("resultType") in ("vector", "matrix"):
            data["result"].sort(key=lambda one: sorted(one["metric"].items()))
        return content


class Peer:
    """The real one."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, pairs: Pairs = ()) -> Said:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        with contextlib.closing(connection):
            form = urllib.parse.urlencode(pairs)
            if method == "POST":
                connection.request(method, path, form, {"Content-Type": FORM})
            else:
                connection.request(method, f"{path}?{form}" if form else path)
            answer = connection.getresponse()
            return Said(answer.status, answer.read(), dict(answer.getheaders()))


async def ask(client: Client, method: str, path: str, pairs: Pairs = (), **headers: str) -> Said:
    """The application."""
    form = urllib.parse.urlencode(pairs)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if method == "POST":
        answer = await client.post(path, data=form, headers={"Content-Type": FORM} | headers)
    else:
        answer = await client.get(f"{path}?{form}" if form else path, headers=headers)
    return Said(answer.status, await answer.read(), dict(answer.headers))


@contextlib.contextmanager
def prometheus_at(directory: Path) -> Iterator[Peer]:
    """The real one with the data set of `promql_peer`. Its process ends with the block."""
    assert PROMETHEUS.installed(), "Prometheus is not installed: apt-get install prometheus"
    with running(PROMETHEUS.start(directory, core=cores_for_bench()[0])) as server:
        server.wait_ready()
        with contextlib.closing(Prometheus(server)) as prometheus:
            prometheus.load(dataset())
        yield Peer(server.port)


@contextlib.contextmanager
def store_at(directory: Path) -> Iterator[Store]:
    """A store with the same samples: the older ones in segments, the rest in rings."""
    store = Store.open(directory, StoreSettings(least_free_bytes=0))
    try:
        fill(store, dataset())
        yield store
    finally:
        store.close()


def fill(store: Store, series: Sequence[Series]) -> None:
    """Puts samples in, in the order of their times, and flushes when the cut is reached."""
    by_owner: dict[Labels, list[Series]] = {}
    for one in series:
        owner = labels_of({key: value for key, value in one.labels if key in OWNER_LABELS})
        by_owner.setdefault(owner, []).append(one)
    rows = []
    for owner, members in by_owner.items():
        times = np.unique(np.concatenate([one.times for one in members]))
        values = absent((len(times), len(members)))
        for column, one in enumerate(members):
            values[np.searchsorted(times, one.times), column] = one.values
        shapes = [(_shape_of(one.labels), Meta("gauge", "", "", "")) for one in members]
        plan = store.head.plan(store.head.declare(owner, shapes, 1 << 20))
        rows += [(time_ms, owner, plan, row) for time_ms, row in zip(times.tolist(), values, strict=True)]
    rows.sort(key=lambda row: row[:2])
    for place, (time_ms, _, plan, values) in enumerate(rows):
        if time_ms >= CUT_MS and rows[place - 1][0] < CUT_MS:
            store.flush(CUT_MS)
        store.append(plan, time_ms, values)
    store.commit(END_MS)


def _shape_of(labels: Labels) -> Shape:
    own = {key: value for key, value in labels if key not in (*OWNER_LABELS, "__name__")}
    return Shape(dict(labels)["__name__"], labels_of(own))


def fleet_over(store: Store, now_ms: int = AT_MS) -> FakeFleet:
    """What the application asks, with this store behind it."""
    fleet = FakeFleet(now_ms=now_ms)
    fleet.store, fleet.head = store, store.head
    return fleet


@contextlib.asynccontextmanager
async def client_of(fleet: FakeFleet, queries: Queries | None = None) -> Any:
    """The application over HTTP."""
    client = TestClient(TestServer(make_app(fleet, queries=queries)))
    await client.start_server()
    try:
        yield client
    finally:
        await client.close()
