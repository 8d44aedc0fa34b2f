"""The HTTP API of Prometheus, so that Grafana, promtool and whatever else speaks it ask this daemon.

Handlers read the request on the event loop; what reads samples, computes or writes much runs in a thread of `Queries`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, Final

import promql_parser
from aiohttp import web

from storage.matchers import Matcher
from storage.promql import Engine, QueryError, Result
from storage.promql.errors import BAD_DATA, CANCELED, EXECUTION, TIMEOUT, failed
from storage.promql.functions import FUNCTIONS
from storage.promql.parse import parse
from web import prometheus_status as status
from web.catalogue import label_names, label_sets, label_values
from web.federate import FEDERATE_TYPE, federated
from web.prometheus_forms import Form, bad, bad_parameter, form_of, label_name, whole_ms
from web.prometheus_json import (
    LEAST_GZIPPED_BYTES,
    dumps,
    failure,
    gzipped,
    result_parts,
    series_json,
    stats_json,
    success,
)
from web.queries import INTERNAL, UNAVAILABLE, Queries, Ticket
from web.source import Source

JSON_TYPE: Final = "application/json"
POINT_BYTES: Final = 32  # of a point as text: a time, a number of 17 digits, and what is around them
PIECE_BYTES: Final = 256 << 10  # written at a time
TEXT_TYPE: Final = "text/plain; charset=utf-8"
STATUS_OF: Final = {BAD_DATA: 400, EXECUTION: 422, TIMEOUT: 503, CANCELED: 503, UNAVAILABLE: 503, INTERNAL: 500}
_GZIP: Final = re.compile(r"\s*(?:gzip|\*)\s*(?:;\s*q=(?:1(?:\.0*)?|0?\.0*[1-9][0-9]*)\s*)?", re.IGNORECASE)
TRUNCATED: Final = "results truncated due to limit"

Handler = Callable[[Any, web.Request], Awaitable[web.Response]]


def _answering(handler: Handler) -> Handler:
    """What went wrong becomes an answer in Prometheus' form."""

    @wraps(handler)
    async def answer(self: PrometheusApi, request: web.Request) -> web.Response:
        try:
            return await handler(self, request)
        except QueryError as error:
            return _response(failure(error.kind, error.text), status=STATUS_OF.get(error.kind, 500))

    return answer


class PrometheusApi:
    """The handlers."""

    def __init__(self, source: Source, queries: Queries) -> None:
        self._source = source
        self._queries = queries

    def routes(self) -> list[web.RouteDef]:
        """Those that take a query take it as a form, too: it may be longer than an address."""
        both = {
            "query": self.query,
            "query_range": self.query_range,
            "query_exemplars": self.query_exemplars,
            "series": self.series,
            "labels": self.labels,
            "format_query": self.format_query,
        }
        fixed = {
            "rules": {"groups": []},
            "alerts": {"alerts": []},
            "alertmanagers": {"activeAlertmanagers": [], "droppedAlertmanagers": []},
            "targets": {"activeTargets": [], "droppedTargets": []},
            "targets/metadata": [],
        }
        asked = {
            "label/{name}/values": self.label_values,
            "metadata": self.metadata,
            "status/buildinfo": self.buildinfo,
            "status/config": self.config,
            "status/flags": self.flags,
            "status/runtimeinfo": self.runtimeinfo,
            "status/tsdb": self.tsdb,
        }
        return [
            *(web.get(f"/api/v1/{path}", handler) for path, handler in (both | asked).items()),
            *(web.post(f"/api/v1/{path}", handler) for path, handler in both.items()),
            *(web.get(f"/api/v1/{path}", _always(success(dumps(data)))) for path, data in fixed.items()),
            web.get("/federate", self.federate),
        ]

    @_answering
    async def query(self, request: web.Request) -> web.Response:
        """An instant query."""
        form = await form_of(request)
        limit, time_ms = form.limit(), form.time_ms("time", self._source.now_ms())
        timeout_s, lookback_ms = form.timeout_s(), form.lookback_ms()

        def asked(engine: Engine, ticket: Ticket) -> Result:
            return engine.instant(form.get("query"), time_ms, lookback_ms=lookback_ms, deadline=ticket.deadline)

        return await self._run(request, lambda ticket: _evaluated(ticket, form, limit, asked), timeout_s)

    @_answering
    async def query_range(self, request: web.Request) -> web.Response:
        """A range query."""
        form = await form_of(request)
        limit, start_ms, end_ms = form.limit(), form.time_ms("start"), form.time_ms("end")
        if end_ms < start_ms:
            raise bad_parameter("end", "end timestamp must not be before start time")
        step_ms = whole_ms(form.duration_s("step"))
        if step_ms <= 0:
            raise bad_parameter(
                "step", "zero or negative query resolution step widths are not accepted. Try a positive integer"
            )
        most = self._queries.settings.limits.points_a_series
        if (end_ms - start_ms) // step_ms > most:
            text = f"exceeded maximum resolution of {most:,} points per timeseries."
            raise bad(f"{text} Try decreasing the query resolution (?step=XX)")
        timeout_s, lookback_ms = form.timeout_s(), form.lookback_ms()

        def asked(engine: Engine, ticket: Ticket) -> Result:
            return engine.range(
                form.get("query"), start_ms, end_ms, step_ms, lookback_ms=lookback_ms, deadline=ticket.deadline
            )

        steps = start_ms, step_ms
        return await self._run(request, lambda ticket: _evaluated(ticket, form, limit, asked, steps), timeout_s)

    @_answering
    async def query_exemplars(self, request: web.Request) -> web.Response:
        """Exemplars are not kept yet: there are none."""
        form = await form_of(request)
        form.range_ms()

        def work(_ticket: Ticket) -> bytes:
            self._parse(form)
            return success(b"[]")

        return await self._run(request, work, form.timeout_s())

    @_answering
    async def format_query(self, request: web.Request) -> web.Response:
        """The expression, laid out for reading."""
        form = await form_of(request)

        def work(_ticket: Ticket) -> bytes:
            self._parse(form)
            try:
                return success(dumps(promql_parser.parse(form.get("query")).prettify()))
            except ValueError as error:  # what only this engine understands: durations that are computed
                raise bad_parameter("query", str(error)) from None

        return await self._run(request, work, form.timeout_s())

    def _parse(self, form: Form) -> None:
        """Raises QueryError for a query that means nothing. Not for the event loop."""
        try:
            parse(form.get("query"), FUNCTIONS, self._queries.settings.limits.depth)
        except QueryError as error:
            raise bad_parameter("query", error.text) from None

    # What there is

    @_answering
    async def series(self, request: web.Request) -> web.Response:
        """The label sets of series."""
        form = await form_of(request)
        if not form.all("match[]"):
            raise bad("no match[] parameter provided")
        limit, (start_ms, end_ms) = form.limit(), form.range_ms()
        most = self._queries.settings.limits.series

        def work(ticket: Ticket) -> bytes:
            sets = label_sets(_tables(ticket, form.selectors(), start_ms, end_ms), limit, most)
            return success(series_json(sets[: limit or None]), _truncation(len(sets), limit))

        return await self._run(request, work, form.timeout_s())

    @_answering
    async def labels(self, request: web.Request) -> web.Response:
        """The names of labels."""
        return await self._names(request, label_names)

    @_answering
    async def label_values(self, request: web.Request) -> web.Response:
        """The values of a label."""
        name = label_name(request)
        return await self._names(request, lambda tables: label_values(name, tables))

    async def _names(self, request: web.Request, names_of: Callable[[Sequence[Any]], list[str]]) -> web.Response:
        form = await form_of(request)
        limit, (start_ms, end_ms) = form.limit(), form.range_ms()

        def work(ticket: Ticket) -> bytes:
            names = names_of(_tables(ticket, form.selectors() or [()], start_ms, end_ms))
            return success(dumps(names[: limit or None]), _truncation(len(names), limit))

        return await self._run(request, work, form.timeout_s())

    @_answering
    async def metadata(self, request: web.Request) -> web.Response:
        """What is known of metrics: type, help, unit."""
        form = await form_of(request)
        limits = []
        for name in ("limit", "limit_per_metric"):
            text = form.get(name)
            if text and not (text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 19):
                raise bad(f"{name} must be a number")
            limits.append(int(text) if text else -1)
        found = status.metadata(self._source.store.head.index.meta, form.get("metric"), *limits)
        return _response(_packed(success(dumps(found)), request), request)

    # The daemon in Prometheus' terms

    @_answering
    async def buildinfo(self, _request: web.Request) -> web.Response:
        """The version of Prometheus that this API is like."""
        return _response(success(dumps(status.buildinfo(str(self._source.totals()["version"])))))

    @_answering
    async def config(self, _request: web.Request) -> web.Response:
        """There is none in YAML."""
        return _response(success(dumps(status.CONFIG)))

    @_answering
    async def flags(self, _request: web.Request) -> web.Response:
        """Settings that Prometheus has, too, under its names."""
        return _response(success(dumps(status.flags(self._queries.settings, self._source.store.settings))))

    @_answering
    async def runtimeinfo(self, _request: web.Request) -> web.Response:
        """Since when it runs, what it keeps."""
        store = self._source.store
        return _response(success(dumps(status.runtimeinfo(store, int(self._source.totals()["started_ms"])))))

    @_answering
    async def tsdb(self, request: web.Request) -> web.Response:
        """Which metrics and labels have the most series."""
        text = (await form_of(request)).get("limit") or "10"
        if not (text.isascii() and text.isdecimal() and 0 < int(text[:10]) <= status.MOST_LISTED):
            raise bad_parameter("limit", f"limit must be a positive number, at most {status.MOST_LISTED}")
        found = status.tsdb(self._source.store.head, int(text))
        return _response(_packed(success(dumps(found)), request), request)

    async def federate(self, request: web.Request) -> web.Response:
        """The newest sample of each selected series. Errors are text, as everything here."""
        try:
            form = await form_of(request)
            now_ms, lookback_ms = self._source.now_ms(), form.lookback_ms() or self._queries.settings.lookback_ms

            def work(ticket: Ticket) -> bytes:
                return federated(ticket, form.selectors(), now_ms, lookback_ms)

            return await self._run(request, work, form.timeout_s(), FEDERATE_TYPE)
        except QueryError as error:
            return _response(f"{error.text}\n".encode(), content_type=TEXT_TYPE, status=STATUS_OF.get(error.kind, 500))

    async def _run(
        self,
        request: web.Request,
        work: Callable[[Ticket], bytes],
        timeout_s: float | None,
        content_type: str = JSON_TYPE,
    ) -> web.Response:
        """What `work` says, in a thread."""
        transport = request.transport

        def gone() -> bool:
            return transport is None or transport.is_closing()

        body = await self._queries.run(lambda ticket: _packed(work(ticket), request), timeout_s, gone)
        return _response(body, request, content_type)


def _evaluated(
    ticket: Ticket,
    form: Form,
    limit: int,
    asked: Callable[[Engine, Ticket], Result],
    steps: tuple[int, int] = (0, 0),
) -> bytes:
    """In the query's thread. steps: the first and the width of a range query's."""
    clock = ticket.clock
    began_s = clock()
    try:
        result = asked(ticket.engine(), ticket)
    except QueryError as error:
        if error.kind == BAD_DATA:
            raise bad_parameter("query", error.text) from None
        raise
    ended_s = clock()
    warnings = list(result.warnings)
    if limit and result.kind in ("vector", "matrix") and len(result.labels) > limit:
        result = _first(result, limit)
        warnings.append(TRUNCATED)
    _refuse_huge(result, ticket.limits.bytes)
    parts = list(result_parts(result, *steps))
    if form.get("stats"):
        parts.append(stats_json(status.query_stats(result.stats, ticket.waited_s, ended_s - began_s)))
    ticket.check()
    return success([*parts, b"}"], warnings, result.infos)


def _refuse_huge(result: Result, most_bytes: int) -> None:
    size_bytes = POINT_BYTES * len(result.values)
    if size_bytes > most_bytes:
        text = f"the answer would take some {size_bytes} bytes in query execution; expected at most {most_bytes}"
        raise failed(f"{text}. Ask for fewer series or a larger step, or raise query.bytes")


def _first(result: Result, count: int) -> Result:
    edges = result.edges[: count + 1]
    samples = int(edges[-1])
    return replace(
        result,
        labels=result.labels[:count],
        edges=edges,
        times_ms=result.times_ms[:samples],
        values=result.values[:samples],
    )


def _tables(ticket: Ticket, selectors: Sequence[Sequence[Matcher]], start_ms: int, end_ms: int) -> list[Any]:
    return [table for matchers in selectors for table in ticket.series(matchers, start_ms, end_ms + 1)]


def _truncation(found: int, limit: int) -> list[str]:
    return [TRUNCATED] if limit and found > limit else []


def _always(body: bytes) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_request: web.Request) -> web.Response:
        return _response(body)

    return answer


def _packed(body: bytes, request: web.Request) -> bytes:
    """Compressed where that is accepted and worth it."""
    return gzipped(body) if _wants_gzip(request) and len(body) >= LEAST_GZIPPED_BYTES else body


def _wants_gzip(request: web.Request) -> bool:
    return any(map(_GZIP.fullmatch, request.headers.get("Accept-Encoding", "").split(",")))


def _response(
    body: bytes, request: web.Request | None = None, content_type: str = JSON_TYPE, *, status: int = 200
) -> web.Response:
    """request: of one that was asked for compression."""
    headers = {"Content-Type": content_type, "Cache-Control": "no-store"}
    if request is not None:
        headers["Vary"] = "Accept-Encoding"
        if body.startswith(b"\x1f\x8b"):  # neither JSON nor a metric's name begins so
            headers["Content-Encoding"] = "gzip"
    if len(body) <= PIECE_BYTES:
        return web.Response(body=body, status=status, headers=headers)
    return web.Response(body=_pieces(body), status=status, headers=headers | {"Content-Length": str(len(body))})


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """So that the loop turns while a large answer is written, and no second copy of it waits for a slow reader."""
    for at in range(0, len(body), PIECE_BYTES):
        yield body[at : at + PIECE_BYTES]
