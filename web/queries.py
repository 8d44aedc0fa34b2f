"""Where queries run: a few threads, a bounded queue before them, and the way back to the loop for what memory holds.

The rings belong to the event loop's thread. A query's thread asks the loop for a copy of what they hold, and reads files and
computes by itself, so that nothing of a query is on the loop for long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from storage.columns import Columns
from storage.matchers import Matcher, settled
from storage.promql import Engine, Limits, QueryError
from storage.promql.errors import CANCELED, EXECUTION, TIMEOUT, TOO_MANY_SAMPLES, failed
from storage.reading import SeriesTable, TooManyError
from storage.store import Store

Result = TypeVar("Result")

SUCCESS: Final = "success"
UNAVAILABLE: Final = "unavailable"
INTERNAL: Final = "internal"
VALUES_BETWEEN_LOOKS = 256  # of a label, held against a regular expression
LOOK_S = 0.1  # how often a thread that waits for the loop looks whether to give up

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QuerySettings:
    """What all queries together may use."""

    concurrency: int = 2
    queue: int = 100  # a dashboard asks for all of its panels at once
    timeout_s: float = 120.0
    lookback_ms: int = 300_000
    limits: Limits = field(default_factory=Limits)


class Ticket:
    """One query, from its admission to its end. Its methods are called in its thread."""

    def __init__(self, queries: Queries, timeout_s: float, gone: Callable[[], bool]) -> None:
        self.started = False
        self.canceled = False
        self.outcome = CANCELED  # of one that never ran
        self.admitted_s = queries.clock()
        self.waited_s = 0.0
        self.clock = queries.clock
        self.limits = queries.settings.limits
        self._until_s = self.admitted_s + timeout_s
        self._expected = 0  # samples read of files so far, and about to be
        self._queries = queries
        self._gone = gone
        self._loop = asyncio.get_running_loop()

    @property
    def left_s(self) -> float:
        """Seconds until it times out."""
        return self._until_s - self._queries.clock()

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.canceled or self._gone()

    def deadline(self) -> str | None:
        """Whether to give up, as the engine asks it."""
        if self.gone:
            return CANCELED
        return TIMEOUT if self.left_s <= 0 else None

    def check(self) -> None:
        """Raises QueryError when it is to be given up."""
        asked = self.deadline()
        if asked is not None:
            said = "was canceled" if asked == CANCELED else "timed out"
            raise QueryError(asked, f"query {said} in {'expression evaluation' if self.started else 'query queue'}")

    def engine(self) -> Engine:
        """One that reads the store under this query's limits."""
        settings = self._queries.settings
        return Engine(self.read, lookback_ms=settings.lookback_ms, limits=settings.limits)

    def read(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> Columns:
        """`Store.read`, its two halves where they belong, and rollups before it. Raises QueryError."""
        store, limits = self._queries.store, self.limits
        quick = self._settled(matchers)
        try:
            captured = self._on_loop(lambda: store.capture(quick, start_ms, end_ms, limits.series, limits.samples))
        except TooManyError as error:
            if error.what == "samples":
                raise failed(TOO_MANY_SAMPLES) from None
            text = f"selector found {error.found} series in query execution; expected at most {error.most}"
            raise failed(text) from None
        found = store.complete(captured, matchers, start_ms, end_ms, self._before)
        return store.with_older(found, matchers, start_ms, end_ms, self._before)

    def series(self, matchers: Sequence[Matcher], start_ms: int, end_ms: int) -> list[SeriesTable]:
        """The series that match and may have samples with start_ms <= time < end_ms. Raises QueryError."""
        store, quick = self._queries.store, self._settled(matchers)
        captured = self._on_loop(lambda: store.capture_series(quick, start_ms, end_ms))
        return store.complete_series(captured, matchers, start_ms, end_ms, self._before)

    def _settled(self, matchers: Sequence[Matcher]) -> list[Matcher]:
        """Without regular expressions, which may take long: they are held against the values in memory here."""
        index = self._queries.store.head.index
        quick = []
        for matcher in matchers:
            if matcher.words is None:
                values = self._on_loop(lambda matcher=matcher: index.label_values(matcher.name))  # type: ignore[misc]
                quick.append(settled(matcher, self._checked(values)))
            else:
                quick.append(matcher)
        return quick

    def _checked(self, values: Sequence[str]) -> Iterator[str]:
        for place, value in enumerate(values):
            if place % VALUES_BETWEEN_LOOKS == 0:
                self.check()
            yield value

    def _before(self, samples: int) -> None:
        """Before so many more are read of a file."""
        self.check()
        self._expected += samples
        if self._expected > self.limits.samples:
            raise failed(TOO_MANY_SAMPLES)

    def _on_loop(self, call: Callable[[], Result]) -> Result:
        """What `call` returns in the loop's thread."""
        answer: Future[Result] = Future()

        def answered() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(call())
                except Exception as error:  # noqa: BLE001 - it belongs to who asked
                    answer.set_exception(error)

        self._loop.call_soon_threadsafe(answered)
        while True:
            try:
                return answer.result(LOOK_S)
            except TimeoutError:
                if not answer.done() and self.deadline() is not None and answer.cancel():
                    self.check()


class Queries:
    """Runs them. Made by the daemon, or by the application where nobody else did.

    outcomes: ended queries by `success` or the kind of their error. observe: told the seconds of each, waiting included.
    """

    def __init__(
        self,
        store: Store,
        settings: QuerySettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self.store = store
        self.settings = settings or QuerySettings()
        self.clock = clock
        self.outcomes: Counter[str] = Counter()
        self._observe = observe
        self._admitted: dict[Ticket, Future[object]] = {}
        self._pool = ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="query")
        self._closed = False
        self._empty = asyncio.Event()  # set whenever none is left

    @property
    def running(self) -> int:
        """Queries that have a thread."""
        return sum(ticket.started for ticket in self._admitted)

    @property
    def waiting(self) -> int:
        """Queries that wait for one."""
        return len(self._admitted) - self.running

    async def run(self, work: Callable[[Ticket], Result], timeout_s: float | None, gone: Callable[[], bool]) -> Result:
        """`work` in a thread. Raises QueryError; its own, and that of a query that was refused or given up.

        timeout_s: where it is less than the setting. gone: says, in any thread, whether the asking client has left.
        """
        self._make_room()
        limit_s = self.settings.timeout_s
        ticket = Ticket(self, limit_s if timeout_s is None else min(timeout_s, limit_s), gone)
        future = self._pool.submit(self._worked, ticket, work)
        self._admitted[ticket] = future  # type: ignore[assignment]  # a Future is invariant, and only its end matters here
        loop = asyncio.get_running_loop()

        def ended(_future: Future[Result]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody counts any more
                loop.call_soon_threadsafe(self._left, ticket)

        future.add_done_callback(ended)
        waited = asyncio.wrap_future(future)
        try:
            await asyncio.wait({waited}, timeout=max(ticket.left_s, 0.0))
            if not waited.done() and future.cancel():
                ticket.outcome = TIMEOUT
                raise QueryError(TIMEOUT, "query timed out in query queue")
            await asyncio.wait({waited})  # it runs, and ends at its next look at the clock
        except asyncio.CancelledError:
            ticket.canceled = True
            future.cancel()
            waited.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody is left to hear of it
            raise
        if waited.cancelled():
            raise QueryError(CANCELED, "query was canceled in query queue")
        return waited.result()

    def _make_room(self) -> None:
        """Raises QueryError when the queue is full of queries that somebody waits for."""
        if self._closed:
            raise QueryError(UNAVAILABLE, "the daemon is shutting down")
        most = self.settings.concurrency + self.settings.queue
        if len(self._admitted) < most:
            return
        for ticket, future in list(self._admitted.items()):
            if ticket.gone and future.cancel():
                del self._admitted[ticket]
                self._count(ticket)
        if len(self._admitted) >= most:
            self.outcomes[UNAVAILABLE] += 1
            raise QueryError(
                UNAVAILABLE,
                f"too many queries: {self.running} run and {self.waiting} wait, expected at most {self.settings.concurrency} "
                f"and {self.settings.queue}; ask again later, or raise query.concurrency or query.queue",
            )

    def _worked(self, ticket: Ticket, work: Callable[[Ticket], Result]) -> Result:
        """In the query's thread."""
        ticket.waited_s = self.clock() - ticket.admitted_s
        try:
            ticket.check()
            ticket.started = True
            result = work(ticket)
            ticket.outcome = SUCCESS
            return result
        except QueryError as error:
            ticket.outcome = error.kind
            raise
        except MemoryError:
            ticket.outcome = EXECUTION
            raise QueryError(EXECUTION, "not enough memory for this query") from None
        except BaseException:  # a panic of the parser is no Exception
            ticket.outcome = INTERNAL
            log.exception("a query failed")
            raise QueryError(INTERNAL, "the daemon failed to answer; its log says why, please report it") from None

    def _left(self, ticket: Ticket) -> None:
        if self._admitted.pop(ticket, None) is not None:
            self._count(ticket)
        if not self._admitted:
            self._empty.set()

    def _count(self, ticket: Ticket) -> None:
        self.outcomes[ticket.outcome] += 1
        self._observe(self.clock() - ticket.admitted_s)

    async def close(self) -> None:
        """Gives every query up, and returns when none runs: from then on the store may be closed."""
        self._closed = True
        self._empty.clear()
        for ticket, future in list(self._admitted.items()):
            ticket.canceled = True
            future.cancel()
        if self._admitted:  # a thread may still ask the loop
            await self._empty.wait()
        self._pool.shutdown(wait=False)
