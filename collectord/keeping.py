"""The store in the daemon: opened with its settings; and its background: a thread that decides, a process that makes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from collectord.config import Config, parse_duration
from collectord.maker_process import MakerProcess
from storage.format import CorruptError
from storage.settings import StoreSettings
from storage.store import Store

REST_S = 0.5  # when there was nothing to do
LOST_REST_S = 5.0  # when the process that makes segments ended in the middle of one
IDLE_S = 60.0  # without work that process is ended; to start another costs a quarter of a second
STOP_S = 10.0  # for the piece of work under way, when the daemon ends

log = structlog.get_logger("store")


def settings_of(config: Config) -> StoreSettings:
    """The store's settings out of the daemon's."""
    storage = config.storage
    return StoreSettings(
        memory_bytes=config.rings.memory_bytes,
        slots=config.rings.slots,
        series_limit=config.limits.series,
        wal_file_bytes=min(
            storage.wal_file_bytes, storage.wal_bytes // 4
        ),  # full before a file is would be full for long
        wal_bytes=storage.wal_bytes,
        flush_ms=int(1000 * storage.flush_s),
        retention_ms=int(1000 * parse_duration(storage.retention)),
        retention_1m_ms=int(1000 * parse_duration(storage.retention_1m)),
        retention_1h_ms=int(1000 * parse_duration(storage.retention_1h)),
        retention_bytes=storage.retention_bytes,
        least_free_bytes=storage.least_free_bytes,
    )


def open_store(config: Config) -> Store:
    """The store of a daemon, recovered; what was found is logged. Raises StorageError, OSError."""
    settings = settings_of(config)
    if not config.data_dir:
        log.warning("no data_dir: nothing is kept on disk, and a restart begins anew")
        return Store.in_memory(settings)
    store = Store.open(Path(config.data_dir), settings, on_trouble=report)
    found = store.recovered
    for error in found.damage:
        report("start", error)
    if found.unclean:
        log.warning("the last shutdown was not clean", torn_bytes=found.torn_bytes, lost_samples=found.lost_samples)
    if not found.fresh:
        log.info("recovered", wal_files=found.wal_files, wal_samples=found.wal_samples)
    return store


def report(what: str, error: Exception) -> None:
    """Trouble on the disk, by name."""
    if isinstance(error, CorruptError):
        log.error(
            "damaged file",
            found_by=what,
            file=str(error.path),
            offset=error.offset_bytes,
            bytes_lost=error.size_bytes,
            reason=error.reason,
        )
    else:
        log.error("storage", where=what, error=str(error))


class Keeping:
    """Runs `Keeper.step` for as long as the daemon runs."""

    def __init__(self, store: Store, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.process: MakerProcess | None = None

    def start(self) -> None:
        """Begin, where there is a disk."""
        keeper, segments = self._store.keeper, self._store.segments
        if keeper is not None and segments is not None:
            self.process = MakerProcess(segments.directory, self._store.lock)
            keeper.make = self.process.make
            self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        keeper, process = self._store.keeper, self.process
        assert keeper is not None
        assert process is not None
        rest_s, worked_s = REST_S, time.monotonic()
        while not self._over.wait(rest_s):
            lost = keeper.counts["makers_lost"]
            try:
                worked = keeper.step(self._now_ms())
            except Exception as error:  # the daemon goes on; what is to be done stays to be done
                worked = False
                keeper.counts["keeper_failures"] += 1
                log.error("the background failed by a fault of its own", exc_info=error)
            rest_s = 0 if worked else REST_S if keeper.counts["makers_lost"] == lost else LOST_REST_S
            if worked:
                worked_s = time.monotonic()
            elif time.monotonic() - worked_s > IDLE_S:
                process.end()

    async def stop(self) -> None:
        """Wait for the piece of work under way, but not for long: it is done again after the next start."""
        self._over.set()
        if self._thread is not None and self.process is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self._thread.join, STOP_S)
            await loop.run_in_executor(None, self.process.stop)
            await loop.run_in_executor(None, self._thread.join)
