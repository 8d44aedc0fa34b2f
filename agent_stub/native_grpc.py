"""gRPC on the operating system's threads.

Ordinarily that is the `grpc` module itself. Under gevent's monkey-patching gRPC's Python half would run its threads and
locks as greenlets and freeze, so there a second copy of that half is loaded, private to the stub, on an unpatched copy
of `threading`; its C half, which knows nothing of either, is shared. The agent's own `grpc` is left as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from agent_stub import native


def load() -> Any:
    """The grpc module to use. Errors: ImportError when gRPC is not installed."""
    if "grpc" not in sys.modules:
        # Read once, as gRPC is loaded. Set later it would only make gRPC's C half complain at every fork.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "true")
    grpc = importlib.import_module("grpc")
    return _private_copy() if native.is_gevent_patched() else grpc


def _private_copy() -> Any:
    """`grpc` once more, with native threads. Called once a process, before the stub's own threads run."""
    threading = _native_threading()
    shared = {name: module for name, module in sys.modules.items() if name == "grpc" or name.startswith("grpc.")}
    kept = {name: module for name, module in shared.items() if name.startswith("grpc._cython")}
    green = sys.modules["threading"]
    for name in shared.keys() - kept.keys():
        del sys.modules[name]
    sys.modules["threading"] = threading
    try:
        copy: Any = importlib.import_module("grpc")
        channel: Any = importlib.import_module("grpc._channel")
    finally:
        for name in [n for n in sys.modules if n == "grpc" or n.startswith("grpc.")]:
            del sys.modules[name]
        sys.modules.update(shared)
        sys.modules["threading"] = green
    channel.cygrpc = _NativeCygrpc(channel.cygrpc, threading)
    # grpc's own functions import their half anew at each call, and would find the agent's.
    copy.insecure_channel = lambda target, options: channel.Channel(target, options, None, None)
    copy.secure_channel = lambda target, credentials, options: channel.Channel(
        target, options, credentials._credentials, None
    )
    return copy


def _native_threading() -> Any:
    """A copy of the threading module on top of the unpatched `_thread`."""
    patched = sys.modules["_thread"]
    plain = types.ModuleType("_thread")
    plain.__dict__.update({name: native.original("_thread", name) for name in vars(patched)})
    spec = importlib.util.find_spec("threading")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_thread"] = plain
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules["_thread"] = patched
    return module


class _NativeCygrpc:
    """gRPC's C half, but for the class that starts its threads and for counting them at a fork, which needs that class."""

    def __init__(self, cygrpc: Any, threading: Any) -> None:
        self._cygrpc = cygrpc
        self._threading = threading

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cygrpc, name)

    def enter_user_request_generator(self) -> None:
        return

    def return_from_user_request_generator(self) -> None:
        return

    def block_if_fork_in_progress(self, state_to_reset: object = None) -> None:
        return

    def fork_register_channel(self, channel: object) -> None:
        return  # a child would close it while gRPC's threads, uncounted, may be using it

    def fork_unregister_channel(self, channel: object) -> None:
        return

    def ForkManagedThread(self, target: Callable[..., None], args: tuple[Any, ...] = ()) -> Any:  # noqa: N802  gRPC's name
        thread = self._threading.Thread(target=target, args=args, daemon=True)
        thread.setDaemon = lambda daemonic: None
        return thread
