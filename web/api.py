"""The daemon's own API: agents, one agent, its charts, the live stream; and the daemon on itself."""

from __future__ import annotations

from math import isfinite
from typing import Any

from aiohttp import web

from storage.matchers import Matcher
from web.answers import as_error, as_json
from web.changes import SPARKS
from web.live import Live
from web.openapi import document
from web.panels import evaluate, range_of
from web.source import Row, Source

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Api:
    """Handlers; each answers from memory at once."""

    def __init__(self, source: Source, live: Live) -> None:
        self._source = source
        self._live = live

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/agents", self.agents),
            web.get("/api/agents/{instance}", self.agent),
            web.get("/api/agents/{instance}/panels", self.panels),
            web.get("/api/agents/{instance}/latest", self.latest),
            web.get("/api/live", self._live.handle),
            web.get("/api/openapi.json", self.openapi),
            web.get("/metrics", self.metrics),
            web.get("/-/healthy", self.healthy),
            web.get("/-/ready", self.ready),
        ]

    async def agents(self, _request: web.Request) -> web.Response:
        return as_json([_without_sparks(row) for row in self._source.rows()])

    async def agent(self, request: web.Request) -> web.Response:
        detail = self._source.detail(request.match_info["instance"])
        return self._unknown(request) if detail is None else as_json(detail)

    async def panels(self, request: web.Request) -> web.Response:
        instance = request.match_info["instance"]
        if self._source.row(instance) is None:
            return self._unknown(request)
        try:
            over = range_of(request.query, self._source.now_ms())
        except ValueError as error:
            return as_error(400, str(error))
        found = evaluate(self._source.store, instance, over)
        return as_json({"from_ms": over.start_ms, "to_ms": over.end_ms, "step_ms": over.step_ms, "panels": found})

    async def latest(self, request: web.Request) -> web.Response:
        instance, metric = request.match_info["instance"], request.query.get("metric", "")
        if self._source.row(instance) is None:
            return self._unknown(request)
        if not metric:
            return as_error(400, "metric: got none, expected a metric's name such as process_memory_usage_bytes")
        now_ms = self._source.now_ms()
        matchers = [Matcher("__name__", "=", metric), Matcher("instance", "=", instance)]
        samples = [
            {"labels": labels, "value": value if isfinite(value) else str(value), "time_ms": time_ms}
            for labels, value, time_ms in self._source.store.newest(matchers, now_ms)
        ]
        return as_json({"time_ms": now_ms, "metric": metric, "samples": samples})

    async def openapi(self, _request: web.Request) -> web.Response:
        return as_json(document(str(self._source.totals()["version"])))

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._source.metrics_text(), headers={"Content-Type": METRICS_TYPE})

    async def healthy(self, _request: web.Request) -> web.Response:
        return as_json({"healthy": True})

    async def ready(self, _request: web.Request) -> web.Response:
        ready, why_not = self._source.ready()
        return as_json({"ready": True}) if ready else as_json({"ready": False, "error": why_not}, 503)

    def _unknown(self, request: web.Request) -> web.Response:
        got = request.match_info["instance"]
        known = len(self._source.rows())
        text = f"instance: got {got!r}, expected one of the {known} known instances; GET /api/agents lists them"
        return as_error(404, text)


def _without_sparks(row: Row) -> dict[str, Any]:
    figures = {name: value for name, value in row["figures"].items() if name not in SPARKS}
    return {**row, "figures": figures}
