"""Threads and locks of the operating system, also where gevent has put green ones in their place."""

from __future__ import annotations

import _thread
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


def is_gevent_patched() -> bool:
    """Whether gevent's monkey-patching has replaced the thread module."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def original(module: str, name: str) -> Any:
    """`module.name` as it was before gevent patched it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(sys.modules[module], name)
    return monkey.get_original(module, name)


def allocate_lock() -> _thread.LockType:
    lock: _thread.LockType = original("_thread", "allocate_lock")()
    return lock


def allocate_rlock() -> Any:
    """A reentrant lock of the operating system: a signal handler may run while its own thread holds it."""
    return original("_thread", "RLock")()


def sleep(seconds: float) -> None:
    """Sleeps this operating-system thread, whatever gevent did to `time.sleep`."""
    original("time", "sleep")(seconds)


def polite_sleep(seconds: float) -> None:
    """Sleeps as the agent's own code would: under gevent its other greenlets go on meanwhile."""
    time.sleep(seconds)


def spawn(target: Callable[[], None], name: str) -> None:
    """Starts a daemon thread of the operating system. Errors: RuntimeError when the interpreter is shutting down."""
    if is_gevent_patched():
        original("_thread", "start_new_thread")(target, ())
    else:
        threading.Thread(target=target, name=name, daemon=True).start()


class Wake:
    """A binary semaphore whose `set` never waits: safe in a signal handler and cheap on the recording path."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def set(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            return  # set already

    def wait(self, timeout_s: float) -> bool:
        """Waits until set, and clears it; False when the time passed first."""
        return self._lock.acquire(timeout=max(0.0, min(timeout_s, 3600.0)))
