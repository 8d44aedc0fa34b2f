"""The web application: the page, the daemon's own API, and the live stream."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from aiohttp import web

from web.answers import errors_as_json, host_guard, protect
from web.api import Api
from web.assets import STATIC, Page
from web.live import Live
from web.source import Source


def make_app(source: Source, *, static: Path = STATIC, live_interval_s: float = 1.0) -> web.Application:
    """Everything over one source. `source.totals()["http"]` is the address that the listener is bound to."""
    live = Live(source, live_interval_s)
    bound = cache(lambda: str(source.totals()["http"]))  # known once a request has come, and fixed from then on
    app = web.Application(
        middlewares=[errors_as_json, host_guard(bound)],
        client_max_size=1 << 16,
    )
    app.on_response_prepare.append(protect)
    app.on_shutdown.append(live.close)
    app.add_routes(Api(source, live).routes())
    app.add_routes(Page(static).routes())
    return app
