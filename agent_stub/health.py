"""What a Pong says of the agent: loop lag, open tasks, age of the last progress, busy-until, activity."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from agent_stub.text import clean
from agent_stub.wire import stream_pb2 as pb

ACTIVITY_BYTES = 256


class LoopProbe:
    """Measures how late the agent's asyncio loop runs a callback, one probe at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loop: Any = None
        self._sent_s: float | None = None  # of the probe that has not run yet
        self._lag_s: float | None = None

    def remember_running_loop(self) -> None:
        """Called where the agent's own code runs: takes the loop that runs there, if one does."""
        events = sys.modules.get("asyncio.events")
        if events is None:
            return
        loop = events._get_running_loop()
        if loop is not None and loop is not self._loop:
            self._loop, self._sent_s, self._lag_s = loop, None, None

    def forget(self) -> None:
        self._loop = self._sent_s = self._lag_s = None

    def lag_s(self) -> float | None:
        """The last probe's lag, or the age of the one still waiting; None without a loop. Sends the next probe."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return None
        now_s = self._clock()
        if self._sent_s is not None:
            return now_s - self._sent_s
        self._sent_s = now_s
        try:
            loop.call_soon_threadsafe(self._ran, loop)
        except RuntimeError:  # closed in this very moment
            self._sent_s = None
        return self._lag_s

    def _ran(self, loop: Any) -> None:
        if self._sent_s is not None and loop is self._loop:
            self._lag_s = self._clock() - self._sent_s
            self._sent_s = None


class Health:
    """Written by the agent's threads, read by the stream's; each write is one atomic step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self.loop = LoopProbe(clock)
        self.busy_until_s = 0.0  # Unix time; 0: not busy
        self.progress_s = clock()
        self._activities: dict[object, str] = {}  # what is open, the newest last
        self._tasks: dict[object, None] = {}

    def progress(self) -> None:
        """Something moved: a task began or ended, a call returned, a step was reported."""
        self.progress_s = self._clock()

    def task_begins(self, task: object, activity: str) -> None:
        self._tasks[task] = None
        self.begins(task, activity)
        self.loop.remember_running_loop()

    def task_ends(self, task: object) -> None:
        self._tasks.pop(task, None)
        self.ends(task)

    def begins(self, what: object, activity: str) -> None:
        self._activities[what] = activity
        self.progress()

    def ends(self, what: object) -> None:
        self._activities.pop(what, None)
        self.progress()

    def forget(self) -> None:
        """For a forked child, which has none of the parent's tasks under way but may end them."""
        self._activities.clear()
        self._tasks.clear()
        self.loop.forget()
        self.busy_until_s = 0.0

    @property
    def open_tasks(self) -> int:
        return len(self._tasks)

    @property
    def activity(self) -> str:
        """The innermost thing going on, "" when there is none."""
        while True:
            try:
                return next(reversed(list(self._activities.values())), "")
            except RuntimeError:  # changed by another thread while it was copied
                continue

    def to_pong(self) -> pb.Pong:
        pong = pb.Pong(
            open_tasks=self.open_tasks,
            progress_age_s=max(0.0, self._clock() - self.progress_s),
            activity=clean(self.activity, ACTIVITY_BYTES),
        )
        lag_s = self.loop.lag_s()
        if lag_s is not None:
            pong.loop_lag_s = max(0.0, lag_s)
        if self.busy_until_s > self._wall():
            pong.busy_until_unix_ms = int(self.busy_until_s * 1000)
        return pong


class Busy:
    """The agent declared itself busy; as a context manager it takes that back at the end."""

    def __init__(self, health: Health, until_s: float) -> None:
        self._health = health
        self._until_s = until_s

    def __enter__(self) -> Busy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """No longer busy, unless something else was declared meanwhile."""
        if self._health.busy_until_s == self._until_s:
            self._health.busy_until_s = 0.0
        self._health.progress()
