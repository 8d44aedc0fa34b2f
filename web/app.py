"""The web application: the page, the daemon's own API, the live stream, and the API of Prometheus."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from aiohttp import web

from web.answers import errors_as_json, host_guard, protect
from web.api import Api
from web.assets import STATIC, Page
from web.live import Live
from web.prometheus import PrometheusApi
from web.queries import Queries
from web.source import Source

MOST_BODY_BYTES = 1 << 20  # a query of the greatest length, as a form


def make_app(
    source: Source, *, static: Path = STATIC, live_interval_s: float = 1.0, queries: Queries | None = None
) -> web.Application:
    """Everything over one source. `source.totals()["http"]` is the address that the listener is bound to.

    queries: where queries run; its own, with default settings, where none is given.
    """
    queries = queries or Queries(source.store)
    live = Live(source, live_interval_s)
    bound = cache(lambda: str(source.totals()["http"]))  # known once a request has come, and fixed from then on
    app = web.Application(
        middlewares=[errors_as_json, host_guard(bound)],
        client_max_size=MOST_BODY_BYTES,
    )
    app.on_response_prepare.append(protect)
    app.on_shutdown.append(live.close)

    async def close_queries(_app: web.Application) -> None:
        await queries.close()

    app.on_shutdown.append(close_queries)
    app.add_routes(Api(source, live).routes())
    app.add_routes(PrometheusApi(source, queries).routes())
    app.add_routes(Page(static).routes())
    return app
