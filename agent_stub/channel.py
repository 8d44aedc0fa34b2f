"""The gRPC channel under a stream."""

from __future__ import annotations

import sys
from typing import Any

from agent_stub import native, native_grpc
from agent_stub.settings import Settings

METHOD = "/collectord.v1.Collector/Stream"

GATE_S = 0.1  # a fork waits this long, at most, for a thread that is about to leave gRPC

is_first = "grpc" not in sys.modules  # whoever loads gRPC first has its fork handlers between his own
grpc: Any = native_grpc.load()


def prepare_grpc() -> None:
    """Has gRPC register its fork handlers, which its first channel does: ours must come later, to run before them."""
    grpc.insecure_channel("127.0.0.1:1", ()).close()


class ForkGate:
    """Keeps a thread out of gRPC in the moment of a fork: a lock that it held there would never open in the child.

    gRPC does that for its own threads. Used by one thread, as a context; `shut` and `open` are called by the forking one.
    """

    def __init__(self) -> None:
        self._shut = self._inside = False

    def __enter__(self) -> None:
        self._inside = True
        while self._shut:
            self._inside = False
            native.sleep(GATE_S / 100)
            self._inside = True

    def __exit__(self, *exc_info: object) -> None:
        self._inside = False

    def shut(self) -> None:
        """Waits until nobody is inside, and lets nobody in."""
        self._shut = True
        for _ in range(100):
            if not self._inside:
                return
            native.sleep(GATE_S / 100)

    def open(self) -> None:
        self._shut = False


def open_channel(settings: Settings) -> Any:
    """A channel of its own for each stream: our backoff rules, and nothing is shared with the agent's own channels."""
    host = settings.endpoint.rsplit(":", 1)[0].strip("[]")
    options: list[tuple[str, int]] = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.initial_reconnect_backoff_ms", 1000),
    ]
    if host in {"localhost", "::1"} or host.startswith("127.") or host.startswith("unix"):
        options.append(("grpc.enable_http_proxy", 0))  # gRPC would ask the proxy for this machine's own address
    if not settings.tls:
        return grpc.insecure_channel(settings.endpoint, options)
    roots = None
    if settings.ca_file:
        with open(settings.ca_file, "rb") as file:
            roots = file.read()
    return grpc.secure_channel(settings.endpoint, grpc.ssl_channel_credentials(roots), options)
