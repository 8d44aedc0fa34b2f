"""The built page: read once from `web/static`, served from memory, precompressed, cached for good by hashed name."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from aiohttp import web

from web.answers import as_error

STATIC = Path(__file__).parent / "static"
FOREVER = "public, max-age=31536000, immutable"  # the name holds the content's hash: another content, another name


@dataclass(frozen=True, slots=True)
class Asset:
    body: bytes
    gzipped: bytes | None
    content_type: str
    etag: str

    def answer(self, request: web.Request, cache_control: str) -> web.Response:
        headers = {"Cache-Control": cache_control, "ETag": self.etag, "Vary": "Accept-Encoding"}
        if request.headers.get("If-None-Match") == self.etag:
            return web.Response(status=304, headers=headers)
        body = self.body
        if self.gzipped is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
            body = self.gzipped
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, content_type=self.content_type, charset="utf-8", headers=headers)


def read_assets(folder: Path) -> dict[str, Asset]:
    """Asset by file name; empty when the page has not been built."""
    if not folder.is_dir():
        return {}
    return {path.name: _read(path) for path in sorted(folder.iterdir()) if path.suffix != ".gz"}


def _read(path: Path) -> Asset:
    body = path.read_bytes()
    gzipped = path.with_name(path.name + ".gz")
    return Asset(
        body=body,
        gzipped=gzipped.read_bytes() if gzipped.is_file() else None,
        content_type=mimetypes.guess_type(path.name)[0] or "application/octet-stream",
        etag=f'"{sha256(body).hexdigest()[:16]}"',
    )


class Page:
    """Routes `/` and `/static/{name}`."""

    def __init__(self, folder: Path = STATIC) -> None:
        self._assets = read_assets(folder)

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/", self.index), web.get("/static/{name}", self.static)]

    async def index(self, request: web.Request) -> web.Response:
        page = self._assets.get("index.html")
        if page is None:
            return as_error(503, "page: got no built page, expected web/static/index.html; run `make install`")
        return page.answer(request, "no-cache")

    async def static(self, request: web.Request) -> web.Response:
        asset = self._assets.get(request.match_info["name"])
        if asset is None:
            raise web.HTTPNotFound
        return asset.answer(request, FOREVER)
