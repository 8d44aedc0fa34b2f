"""`/api/live`: the fleet as server-sent events. First everything, then each second what changed, computed once for all.

Every event carries the daemon's clock (`now_ms`), so that a viewer notices silence; an event without anything else is
the heartbeat. A viewer that does not read is cut off: it comes back by itself and gets everything anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import orjson
from aiohttp import web

from web.changes import Changes
from web.source import Source

log = logging.getLogger(__name__)

QUEUE_EVENTS = 16  # at one a second: a viewer that read nothing for this many seconds is cut off
RETRY_MS = 1000  # when the browser should come back after a lost connection
ROWS_AT_ONCE = 100  # rows looked at between two turns of the event loop: 2 ms, the first time 9 ms
LOAD = 0.1  # the most of a core that viewers may cost; a larger fleet is told less often


def event(name: str, content: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n\n"


class Viewer:
    """One subscriber's bounded queue. `closed` is set when it was too slow, or when the daemon stops."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_EVENTS)
        self.closed = asyncio.Event()

    def offer(self, data: bytes) -> None:
        try:
            self.events.put_nowait(data)
        except asyncio.QueueFull:
            self.closed.set()


class Live:
    """Tells all viewers; works only while there is one."""

    def __init__(self, source: Source, interval_s: float = 1.0) -> None:
        self._source = source
        self._interval_s = interval_s
        self._changes = Changes()
        self._totals: dict[str, Any] = {}
        self._viewers: set[Viewer] = set()
        self._task: asyncio.Task[None] | None = None
        self._busy = asyncio.Lock()
        self._snapshot = b""
        self._cost_s = 0.0  # of the last look, without other coroutines' turns

    async def handle(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        viewer = Viewer()
        await self._join(viewer)
        try:
            await self._serve(viewer, request, response)
        except ConnectionError:
            pass  # the viewer left: the usual end of this stream
        finally:
            self._leave(viewer)
        return response

    async def close(self, _app: web.Application | None = None) -> None:
        """Ends all viewers' streams; they come back when the daemon does."""
        for viewer in self._viewers:
            viewer.closed.set()
        await self._stop()

    async def _join(self, viewer: Viewer) -> None:
        async with self._busy:  # between two tellings, so that nothing is missed and nothing said twice
            if not self._viewers:
                await self._stop()
                self._changes.forget()
                self._totals = {}
                await self._look()
            if not self._snapshot:
                self._snapshot = self._everything()
            viewer.offer(self._snapshot)
            self._viewers.add(viewer)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def _leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers:
            self._snapshot = b""
            self._changes.forget()

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _serve(self, viewer: Viewer, request: web.Request, response: web.StreamResponse) -> None:
        await response.write(b": collectord live\nretry: %d\n\n" % RETRY_MS)
        writer = asyncio.create_task(self._write(viewer, response))
        closed = asyncio.create_task(viewer.closed.wait())
        try:
            await asyncio.wait({writer, closed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writer.cancel()
            closed.cancel()
            await asyncio.gather(writer, closed, return_exceptions=True)
        if viewer.events.full() and request.transport is not None:
            log.warning("live: cut off %s, which read nothing for %d events", request.remote, QUEUE_EVENTS)
            request.transport.abort()  # its unread bytes leave memory with the connection

    async def _write(self, viewer: Viewer, response: web.StreamResponse) -> None:
        while True:
            await response.write(await viewer.events.get())

    async def _run(self) -> None:
        while self._viewers:
            await asyncio.sleep(max(self._interval_s, self._cost_s / LOAD))
            if not self._viewers:
                break
            async with self._busy:
                data = event("change", await self._look())
                self._snapshot = b""
                for viewer in self._viewers:
                    viewer.offer(data)
        self._task = None

    async def _look(self) -> dict[str, Any]:
        """What changed since the last look. REQUIRES: `_busy` is held."""
        now_ms = self._source.now_ms()
        rows = self._source.rows()
        out: dict[str, Any] = {"now_ms": now_ms}
        changed: dict[str, Any] = {}
        self._cost_s = 0.0
        for start in range(0, len(rows), ROWS_AT_ONCE):
            began = time.perf_counter()
            changed.update(self._changes.differences(rows[start : start + ROWS_AT_ONCE], now_ms))
            self._cost_s += time.perf_counter() - began
            await asyncio.sleep(0)
        if changed:
            out["rows"] = changed
        if gone := self._changes.gone({row["instance"] for row in rows}):
            out["gone"] = gone
        totals = dict(self._source.totals())
        if moved := {name: value for name, value in totals.items() if self._totals.get(name) != value}:
            out["totals"] = moved
        self._totals = totals
        return out

    def _everything(self) -> bytes:
        rows = list(self._changes.told.values())
        return event("all", {"now_ms": self._source.now_ms(), "rows": rows, "totals": self._totals})
