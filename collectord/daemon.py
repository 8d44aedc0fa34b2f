"""The composition root: makes every part, starts them, and stops them in two stages."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog
from aiohttp import web as http
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from agent_stub.wire import stream_pb2 as wire
from collectord.committer import Committer
from collectord.config import Config, parse_address
from collectord.distribution import Distribution
from collectord.figures import FleetFigures
from collectord.fleet import Fleet
from collectord.heartbeat import Heartbeat
from collectord.http2 import Server
from collectord.ingest import Ingest
from collectord.keeping import Keeping, open_store
from collectord.selfmetrics import SelfMetrics
from collectord.service import StreamService
from collectord.view import View
from storage.format import StorageError
from storage.promql import Limits
from web.app import make_app
from web.queries import Queries, QuerySettings

SWEEP_S = 1.0
EVICT_EVERY_SWEEPS = 30
HTTP_GRACE_S = 1.0
MOST_LINE_BYTES = 64 << 10  # of a request over HTTP: queries stand in addresses
SPARE_CONNECTIONS = 1000  # beside the agents' and their backlogs': probes, command lines, agents that come back
# A steady stream of batches makes no cyclic garbage, and looking for it costs 60 ms a second with 5,000 agents, a full
# collection 500 ms. Only streams that end leave cycles (their tasks and contexts): collected when enough of them ended.
GC_THRESHOLDS = (50_000, 20, 1_000_000)
GC_EVERY_STREAMS = 1000
_SERVICE = wire.DESCRIPTOR.services_by_name["Collector"].full_name

log = structlog.get_logger("daemon")


class StartError(RuntimeError):
    """The daemon cannot start; the text says what is in the way and what to do."""


class Daemon:
    """All parts of one collector, wired. Nothing runs before `run`."""

    def __init__(self, config: Config, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.config = config
        self.now_ns = now_ns
        self.version = importlib.metadata.version("collectord")
        self.started_ms = now_ns() // 1_000_000
        self.grpc_address = config.grpc.listen
        self.http_address = config.http.listen
        self.store = open_store(config)
        self.head = self.store.head
        self.fleet = Fleet(config, self.store)
        self.committer = Committer(self.store, config.ingest.tick_ms / 1e3, self.now_ms, time.monotonic)
        self.ingest = Ingest(
            self.store,
            self.committer,
            int(1000 * config.limits.future_s),
            self.store.settings.retention_ms,
            self.now_ms,
        )
        self.keeping = Keeping(self.store, self.now_ms)
        self.service = StreamService(config, self.fleet, self.ingest, self.committer, uuid.uuid4().hex, now_ns)
        self.heartbeat = Heartbeat(config, self.service, now_ns)
        self.service.on_welcome = self.heartbeat.join
        self.server = self._make_server()
        self.figures = FleetFigures(self.head)
        self.query_seconds = Distribution()
        self.queries = Queries(self.store, _query_settings(config), observe=self.query_seconds.observe)
        self.metrics = SelfMetrics(self)
        self.view = View(self)

    def now_ms(self) -> int:
        """The wall clock, Unix ms."""
        return self.now_ns() // 1_000_000

    async def run(self, stop: asyncio.Event, on_ready: Callable[[str, str], None]) -> None:
        """Serve until `stop`; then drain the agents, then end. `on_ready` gets both addresses, ports resolved."""
        health = self._add_services()
        app = make_app(self.view, queries=self.queries)
        runner = http.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=HTTP_GRACE_S,
            max_line_size=MOST_LINE_BYTES,
            max_field_size=MOST_LINE_BYTES,
        )
        await runner.setup()
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._listen(runner)
            self.keeping.start()
            tasks = [self._start(self.heartbeat.run(), "heartbeat"), self._start(self._sweep(), "sweep")]
            gc.freeze()  # what was made so far stays: collections need not look at it again
            gc.set_threshold(*GC_THRESHOLDS)
            on_ready(self.grpc_address, self.http_address)
            await stop.wait()
            await health.enter_graceful_shutdown()
            await self.service.drain(self.config.shutdown.drain_s, self.config.shutdown.reconnect_within_s)
        finally:
            for task in tasks:
                task.cancel()
            await self.server.stop()
            await runner.cleanup()
            await self.committer.close()
            await self.keeping.stop()
            self.store.close(clean=not self.committer.error)

    def _make_server(self) -> Server:
        limits = self.config.limits
        # Messages of twice the limit: up to there a stream that breaks it is told so by name; beyond, its call ends unread.
        return Server(
            most_message_bytes=2 * limits.message_bytes, most_connections=2 * limits.agents + SPARE_CONNECTIONS
        )

    def _add_services(self) -> grpc_health.aio.HealthServicer:
        server = self.server
        server.add_generic_rpc_handlers((self.service,))
        health = grpc_health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        names = (_SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), server)
        return health

    async def _listen(self, runner: http.AppRunner) -> None:
        address = parse_address(self.config.grpc.listen)
        try:
            port = await self.server.listen(address.host, address.port)
        except OSError as error:
            raise StartError(_cannot_listen("grpc.listen", self.config.grpc.listen, "--grpc")) from error
        self.grpc_address = f"{_host(self.config.grpc.listen)}:{port}"
        address = parse_address(self.config.http.listen)
        site = http.TCPSite(runner, address.host, address.port)
        try:
            await site.start()
        except OSError as error:
            raise StartError(_cannot_listen("http.listen", self.config.http.listen, "--http")) from error
        self.http_address = f"{_host(self.config.http.listen)}:{runner.addresses[0][1]}"

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(_report_end)
        return task

    async def _sweep(self) -> None:
        """Once a second: health, figures, eviction."""
        sweeps = collected_at = 0
        while True:
            now_s, now_ms = time.monotonic(), self.now_ns() // 1_000_000
            for _ in self.fleet.sweep_parts(now_s, now_ms, self.service.ping_interval_s()):
                await asyncio.sleep(0)
            self.committer.look()
            self.committer.tick()  # the daemon's own series; agents' messages have their own pace
            self.service.refuse(self.committer.refusal)
            self.figures.tick(now_ms)
            self.view.tick(now_s)
            sweeps += 1
            if self.service.ended - collected_at > max(GC_EVERY_STREAMS, len(self.service.streams)):
                collected_at = self.service.ended
                gc.collect()
            if sweeps % EVICT_EVERY_SWEEPS == 0:
                self.head.evict_idle(now_ms, int(1000 * self.config.rings.idle_s))
                self.fleet.forget_receipts(now_ms)
            await asyncio.sleep(SWEEP_S)


async def run(config: Config, *, stop: asyncio.Event, on_ready: Callable[[str, str], None]) -> None:
    """Run a daemon until `stop` is set. Raises StartError when it cannot listen or use its data directory."""
    try:
        made = Daemon(config)
    except (StorageError, OSError) as error:
        raise StartError(f"data_dir {config.data_dir}: {error}") from error
    await made.run(stop, on_ready)


def _query_settings(config: Config) -> QuerySettings:
    query = config.query
    return QuerySettings(
        concurrency=query.concurrency,
        queue=query.queue,
        timeout_s=query.timeout_s,
        lookback_ms=max(int(1000 * query.lookback_s), 1),
        limits=Limits(series=query.series, samples=query.samples, seconds=query.timeout_s, bytes=query.bytes),
    )


def _report_end(task: asyncio.Task[None]) -> None:
    with suppress(asyncio.CancelledError):
        error = task.exception()
        if error is not None:
            log.error("a part of the daemon stopped", part=task.get_name(), exc_info=error)


def _host(listen: str) -> str:
    return listen.rpartition(":")[0]


def _cannot_listen(key: str, address: str, option: str) -> str:
    port = address.rpartition(":")[2]
    return (
        f"{key}: cannot listen on {address}; is another program (or another collectord) using port {port}? "
        f"Stop it, or choose another address with {option} HOST:PORT"
    )
