"""Every setting of the daemon: default, unit, check and comment side by side.

Read from TOML (`--config`), then `COLLECTORD_<SECTION>_<NAME>` from the environment, then options of the command line;
the later wins. A wrong key or value is named with what was got and what was expected.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple


class ConfigError(ValueError):
    """A setting that cannot be used; the text names the key, what was got, what was expected and what to do."""


class Address(NamedTuple):
    """Where a listener stands. `port` 0 lets the system choose one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A name other than localhost may point anywhere, so it is not."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def reachable(self) -> Address:
        """Where a client on this machine finds it: a wildcard is reached by loopback."""
        return Address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`HOST:PORT` as its two parts; IPv6 stands in brackets, and every interface is `0.0.0.0` or `[::]`.

    Raises ValueError when it is neither.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if (
        not host
        or not colon
        or not (port.isascii() and port.isdigit())
        or int(port) > 65535
        or (":" in host and not bracketed)
    ):
        raise ValueError(f"got {text!r}, expected HOST:PORT")
    return Address(host[1:-1] if bracketed else host, int(port))


def _is_address(value: str) -> bool:
    try:
        parse_address(value)
    except ValueError:
        return False
    return True


_DURATION_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhdwy])+")
MOST_DURATION_S = 100 * 365 * 86_400


def parse_duration(text: str) -> float:
    """Seconds of a duration as Prometheus writes it: 90s, 15m, 36h, 30d, 2w, 100y, 1d12h. Raises ValueError."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"got {text!r}, expected a duration such as 15m, 36h, 30d or 1y")
    return sum(float(part[:-1]) * _DURATION_S[part[-1]] for part in re.findall(r"[0-9.]+[a-z]", text))


def _is_retention(value: str) -> bool:
    try:
        return 0 < parse_duration(value) <= MOST_DURATION_S
    except ValueError:
        return False


def _setting(default: Any, *, help: str, check: Callable[[Any], bool] | None = None, expected: str = "") -> Any:
    return field(default=default, metadata={"help": help, "check": check, "expected": expected})


def _positive(value: float) -> bool:
    return value > 0


def _not_negative(value: float) -> bool:
    return value >= 0


@dataclass(frozen=True, slots=True)
class Section:
    """Checks its values on construction."""

    def __post_init__(self) -> None:
        for f in fields(self):
            check, value = f.metadata.get("check"), getattr(self, f.name)
            if check is not None and not check(value):
                name = f"{type(self).__name__.lower()}.{f.name}"
                raise ConfigError(f"{name}: got {value!r}, expected {f.metadata['expected']}")


@dataclass(frozen=True, slots=True)
class Grpc(Section):
    listen: str = _setting(
        "127.0.0.1:4317",
        help="address of the agents' stream, HOST:PORT",
        check=_is_address,
        expected="HOST:PORT, such as 127.0.0.1:4317 or [::1]:4317; port 0 takes a free one",
    )


@dataclass(frozen=True, slots=True)
class Http(Section):
    listen: str = _setting(
        "127.0.0.1:4318",
        help="address of the page and the APIs, HOST:PORT",
        check=_is_address,
        expected="HOST:PORT, such as 127.0.0.1:4317 or [::1]:4317; port 0 takes a free one",
    )


@dataclass(frozen=True, slots=True)
class Limits(Section):
    message_bytes: int = _setting(
        4 << 20,
        help="largest message, also after decompression",
        check=lambda v: v >= 65536,
        expected="at least 65536 bytes",
    )
    series_per_agent: int = _setting(
        20_000,
        help="series of one instance; more go to its overflow series",
        check=_positive,
        expected="a positive number",
    )
    series: int = _setting(2_000_000, help="series of all instances", check=_positive, expected="a positive number")
    agents: int = _setting(20_000, help="open streams", check=_positive, expected="a positive number")
    handshake_s: float = _setting(
        5.0, help="time for the first message of a stream", check=_positive, expected="seconds above 0"
    )
    slow_reader_s: float = _setting(
        15.0, help="an agent that reads nothing for so long is cut off", check=_positive, expected="seconds above 0"
    )
    future_s: float = _setting(
        600.0, help="how far ahead of this clock a sample may be", check=_positive, expected="seconds above 0"
    )


@dataclass(frozen=True, slots=True)
class Ingest(Section):
    tick_ms: float = _setting(
        5.0,
        help="between two commits: one write and one fdatasync for all agents",
        check=_positive,
        expected="milliseconds above 0",
    )
    flush_interval_ms: int = _setting(
        150,
        help="how often agents send what changed; raised in large fleets",
        check=lambda v: v >= 10,
        expected="at least 10 ms",
    )
    full_interval_ms: int = _setting(
        10_000, help="how often agents send every series", check=lambda v: v >= 100, expected="at least 100 ms"
    )


@dataclass(frozen=True, slots=True)
class Rings(Section):
    memory_bytes: int = _setting(
        1 << 30, help="budget of all rings", check=lambda v: v >= 1 << 20, expected="at least 1 MiB"
    )
    slots: int = _setting(
        3600,
        help="most rows a ring keeps (an hour at 1 s)",
        check=lambda v: 16 <= v <= 1_000_000,
        expected="16 to 1,000,000",
    )
    idle_s: float = _setting(
        3600.0, help="series without a sample for this long leave memory", check=_positive, expected="seconds above 0"
    )


_RETENTION = "a duration such as 36h, 30d or 1y, at most 100y"


@dataclass(frozen=True, slots=True)
class Storage(Section):
    retention: str = _setting("30d", help="samples are kept for this long", check=_is_retention, expected=_RETENTION)
    retention_1m: str = _setting(
        "1y", help="rollups of a minute are kept for this long", check=_is_retention, expected=_RETENTION
    )
    retention_1h: str = _setting(
        "10y", help="rollups of an hour are kept for this long", check=_is_retention, expected=_RETENTION
    )
    retention_bytes: int = _setting(
        0,
        help="of all segments: the oldest go when there is more; 0: no bound",
        check=_not_negative,
        expected="bytes, 0 or more",
    )
    least_free_bytes: int = _setting(
        256 << 20,
        help="with less free space than this, nothing is taken until there is more",
        check=_not_negative,
        expected="bytes, 0 or more",
    )
    flush_s: float = _setting(
        600.0, help="the WAL becomes a segment at least so often", check=_positive, expected="seconds above 0"
    )
    wal_file_bytes: int = _setting(
        64 << 20,
        help="the WAL becomes a segment when it is so large",
        check=lambda v: v >= 1 << 16,
        expected="at least 64 KiB",
    )
    wal_bytes: int = _setting(
        256 << 20,
        help="of all that is in no segment yet; with more, agents wait",
        check=lambda v: v >= 1 << 20,
        expected="at least 1 MiB",
    )


@dataclass(frozen=True, slots=True)
class Query(Section):
    concurrency: int = _setting(
        2,
        help="queries that run at a time; each takes a core while it computes",
        check=lambda v: 1 <= v <= 64,
        expected="1 to 64",
    )
    queue: int = _setting(
        100, help="queries that wait for their turn; more are refused", check=_not_negative, expected="0 or more"
    )
    timeout_s: float = _setting(
        120.0, help="a query ends after this, waiting included", check=_positive, expected="seconds above 0"
    )
    series: int = _setting(
        500_000, help="series that one selector may find", check=_positive, expected="a positive number"
    )
    samples: int = _setting(
        50_000_000, help="samples that a query may hold at a time", check=_positive, expected="a positive number"
    )
    bytes: int = _setting(
        1 << 30,
        help="of one matrix of a query (series by steps)",
        check=lambda v: v >= 1 << 20,
        expected="at least 1 MiB",
    )
    lookback_s: float = _setting(
        300.0,
        help="the age up to which a sample counts as a series' present value",
        check=_positive,
        expected="seconds above 0",
    )


@dataclass(frozen=True, slots=True)
class Health(Section):
    ping_interval_s: float = _setting(
        1.0, help="between two pings of one agent; raised in large fleets", check=_positive, expected="seconds above 0"
    )
    phi: float = _setting(
        8.0, help="suspicion at which an agent is stale (phi accrual)", check=_positive, expected="a number above 0"
    )
    min_deviation_s: float = _setting(
        0.5, help="least deviation of arrivals that phi assumes", check=_positive, expected="seconds above 0"
    )
    acceptable_pause_s: float = _setting(
        3.0, help="silence that phi forgives", check=_not_negative, expected="seconds, 0 or more"
    )
    offline_after_s: float = _setting(
        30.0, help="silence after which a stale agent is offline", check=_positive, expected="seconds above 0"
    )
    stuck_after_s: float = _setting(
        60.0, help="open task without progress for this long: stuck", check=_positive, expected="seconds above 0"
    )
    loop_blocked_s: float = _setting(
        5.0, help="event loop blocked for this long: stuck", check=_positive, expected="seconds above 0"
    )
    flapping_changes: int = _setting(
        6,
        help="connection losses within flapping_window_s that make an agent flapping",
        check=_positive,
        expected="a positive number",
    )
    flapping_window_s: float = _setting(300.0, help="see flapping_changes", check=_positive, expected="seconds above 0")
    forget_after_s: float = _setting(
        86_400.0, help="instances that left are forgotten after this", check=_positive, expected="seconds above 0"
    )


@dataclass(frozen=True, slots=True)
class Resources(Section):
    strategy: str = _setting(
        "both",
        help="pull: the daemon polls; push: agents send by themselves; both",
        check=lambda v: v in {"pull", "push", "both"},
        expected="pull, push or both",
    )
    poll_interval_s: float = _setting(
        5.0, help="between two resource samples of one agent", check=_positive, expected="seconds above 0"
    )


@dataclass(frozen=True, slots=True)
class Shutdown(Section):
    drain_s: float = _setting(
        2.0, help="time that agents get to say goodbye", check=_not_negative, expected="seconds, 0 or more"
    )
    reconnect_within_s: float = _setting(
        10.0, help="agents come back within this time, at random", check=_not_negative, expected="seconds, 0 or more"
    )


@dataclass(frozen=True, slots=True)
class Log(Section):
    level: str = _setting(
        "info",
        help="debug, info, warning, error",
        check=lambda v: v in {"debug", "info", "warning", "error"},
        expected="debug, info, warning or error",
    )
    format: str = _setting(
        "auto",
        help="console, json; auto: console on a terminal",
        check=lambda v: v in {"auto", "console", "json"},
        expected="auto, console or json",
    )


DATA_DIR = "collectord-data"  # of the command line, when nothing else is said


@dataclass(frozen=True, slots=True)
class Config:
    """All sections. `data_dir` and `insecure` stand at the top of the file, outside any section."""

    data_dir: str = ""
    insecure: bool = False
    grpc: Grpc = Grpc()
    http: Http = Http()
    limits: Limits = Limits()
    ingest: Ingest = Ingest()
    rings: Rings = Rings()
    storage: Storage = Storage()
    query: Query = Query()
    health: Health = Health()
    resources: Resources = Resources()
    shutdown: Shutdown = Shutdown()
    log: Log = Log()
