"""What every answer of the web application has in common: JSON, errors that help, headers that protect."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""On every answer: the page loads nothing from elsewhere and no other site may frame or read it."""


def as_json(content: Any, status: int = 200) -> web.Response:
    """An uncached JSON answer; NaN becomes null, numpy arrays become lists."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return web.Response(
        body=body, status=status, content_type="application/json", headers={"Cache-Control": "no-store"}
    )


def as_error(status: int, text: str) -> web.Response:
    """`text` says what was got, what was expected, and what to do."""
    return as_json({"error": text}, status)


async def protect(_request: web.Request, response: web.StreamResponse) -> None:
    """Signal on_response_prepare: also the event stream and errors get the headers."""
    response.headers.update(HEADERS)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return as_error(404, f"path: got {request.path!r}, expected one that /api/openapi.json lists")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return as_error(405, f"method: got {request.method}, expected {allowed} for {request.path}")
    except web.HTTPException:
        raise
    except Exception:
        log.exception("request failed: %s %s", request.method, request.path)
        return as_error(500, f"{request.path}: the daemon failed to answer; its log says why, please report it")


def bound_host(address: str) -> str:
    """The host of "host:port" or "[v6]:port"."""
    return address.rpartition(":")[0].strip("[]").lower()


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an IP literal, cannot be anything but this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def named_host(host_header: str) -> str:
    """The name in a Host header, without its port."""
    if host_header.startswith("["):
        return host_header[1:].partition("]")[0].lower()
    return host_header.partition(":")[0].lower()


def host_guard(bound: Callable[[], str]) -> Any:
    """Against DNS rebinding: a listener on loopback answers only requests that name this machine.

    A foreign page could otherwise point its own name at 127.0.0.1 and read everything as its own origin.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        own = bound_host(bound())
        got = named_host(request.headers.get("Host", ""))
        if is_loopback(own) and not is_loopback(got) and got != own:
            expected = f"localhost, 127.0.0.1, ::1 or {own}"
            return as_error(421, f"Host header: got {got!r}, expected {expected}; open the page under one of these")
        return await handler(request)

    return guard
