"""Where the interpreter's own events meet the monitor: exit, fork, SIGTERM, uncaught exceptions.

Every hook goes on to what was there before it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from agent_stub.channel import is_first, prepare_grpc
from agent_stub.monitor import Monitor
from agent_stub.wire import stream_pb2 as pb


class Hooks:
    """Installed once a process; serves the monitors that are added to it."""

    def __init__(self) -> None:
        self._monitors: weakref.WeakSet[Monitor] = weakref.WeakSet()
        self._installed = False

    def add(self, monitor: Monitor) -> None:
        self._monitors.add(monitor)
        if not self._installed:
            self._installed = True
            atexit.register(self._exit)
            if hasattr(os, "register_at_fork"):
                if is_first:  # what is registered before gRPC's handlers runs after them
                    os.register_at_fork(before=lambda: self._each(Monitor.at_fork))
                prepare_grpc()
                os.register_at_fork(
                    before=lambda: self._each(Monitor.before_fork),
                    after_in_parent=lambda: self._each(Monitor.after_fork_in_parent),
                    after_in_child=self._after_fork_in_child,
                )
            self._chain_exceptions()
        self._take_sigterm()

    def _each(self, action: Callable[[Monitor], None]) -> None:
        for monitor in list(self._monitors):
            action(monitor)

    def _exit(self) -> None:
        self._each(Monitor.exit)

    def _after_fork_in_child(self) -> None:
        self._each(Monitor.after_fork_in_child)
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None:
            # A child of multiprocessing ends with os._exit, without atexit, and clears its finalizers as it begins.
            util.register_after_fork(self, lambda hooks: util.Finalize(None, hooks._exit, exitpriority=10))

    def _chain_exceptions(self) -> None:
        previous, previous_in_thread = sys.excepthook, threading.excepthook

        def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            if issubclass(kind, KeyboardInterrupt):
                self._each(lambda monitor: monitor.leave(pb.GOODBYE_KIND_SIGNAL, "KeyboardInterrupt"))
            else:
                self._each(lambda monitor: monitor.last_words(error))
            previous(kind, error, trace)

        def hook_in_thread(args: Any) -> None:
            if args.exc_value is not None:
                self._each(lambda monitor: monitor.exception(args.exc_value))
            previous_in_thread(args)

        sys.excepthook = hook
        threading.excepthook = hook_in_thread

    def _take_sigterm(self) -> None:
        """Only where the application has no handler of its own, and only on the main thread (signal's own rule)."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._each(lambda monitor: monitor.leave(pb.GOODBYE_KIND_SIGNAL, "SIGTERM"))
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
