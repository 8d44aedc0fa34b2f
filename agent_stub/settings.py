"""What `start` takes and what the environment says, in one place; nothing here raises."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote

from agent_stub.problems import Problems

DEFAULT_ENDPOINT = "127.0.0.1:4317"

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Settings:
    agent: str
    endpoint: str  # HOST:PORT or unix:PATH, without scheme
    tls: bool
    ca_file: str  # PEM of the certificate authority; empty: the system's roots
    token: str
    version: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    disabled: bool = False
    max_series: int = 10_000
    pending_bytes: int = 8 << 20  # all un-acked messages
    spool_dir: str = ""  # holds a folder for each agent; empty: there is no spool
    spool_bytes: int = 64 << 20  # of one agent's folder; 0: there is no spool
    spool_age_s: float = 2.0  # un-acked messages as old as this go to disk, while there is no stream
    spool_always: bool = False  # every message goes to disk before it is sent
    outbox_bytes: int = 2 << 20  # events, and as much again for log records, not yet in a message
    backoff_max_s: float = 30.0
    backoff_first_s: float = 0.2
    slow_retry_s: float = 30.0  # after a refusal that will not go away by itself
    resources_s: float = 5.0  # between resource samples that nobody asked for
    poll_silence_s: float = 10.0  # without a Poll for this long the stub samples by itself
    handshake_s: float = 10.0
    close_s: float = 2.0


def from_environment(
    name: str | None, endpoint: str | None, token: str | None, version: str, attributes: Mapping[str, Any] | None,
    environ: Mapping[str, str], problems: Problems,
) -> Settings:  # fmt: skip
    """Arguments go before COLLECTORD_... variables, those before OpenTelemetry's, those before the defaults."""
    resource: dict[str, Any] = dict(parse_resource_attributes(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""), problems))
    resource.update(attributes or {})
    named, built = resource.pop("service.name", ""), resource.pop("service.version", "")
    disabled = _flag(environ, "COLLECTORD_DISABLED")
    spool_bytes = _number(environ, "COLLECTORD_SPOOL_BYTES", 64 << 20, int, 0, problems)
    target, tls = parse_endpoint(str(endpoint or environ.get("COLLECTORD_ENDPOINT") or DEFAULT_ENDPOINT))
    return Settings(
        agent=str(name or environ.get("OTEL_SERVICE_NAME") or named or script_name(sys.argv)),
        endpoint=target,
        tls=tls,
        ca_file=environ.get("COLLECTORD_CA", ""),
        token=str(token or environ.get("COLLECTORD_TOKEN", "")).strip(),
        version=str(version or built),
        attributes=resource,
        disabled=disabled,
        max_series=_number(environ, "COLLECTORD_MAX_SERIES", 10_000, int, 1, problems),
        backoff_max_s=_number(environ, "COLLECTORD_BACKOFF_MAX_S", 30.0, float, 0.01, problems),
        spool_dir=spool_folder(environ, problems) if spool_bytes and not disabled else "",
        spool_bytes=spool_bytes,
        spool_always=_flag(environ, "COLLECTORD_SPOOL_ALWAYS"),
    )


def spool_folder(environ: Mapping[str, str], problems: Problems) -> str:
    """COLLECTORD_SPOOL_DIR, else `collectord` in the user's folder for state; "" when it is not known where that is."""
    given, state = environ.get("COLLECTORD_SPOOL_DIR", ""), environ.get("XDG_STATE_HOME", "")
    if given:
        return os.path.abspath(given)
    home = environ.get("HOME", "")
    if os.path.isabs(state):  # the XDG specification has relative ones ignored
        return os.path.join(state, "collectord")
    if os.path.isabs(home):
        return os.path.join(home, ".local", "state", "collectord")
    problems.warn(
        "spool folder",
        "no COLLECTORD_SPOOL_DIR, XDG_STATE_HOME or HOME: what is not acknowledged is kept in memory only; "
        "name a folder, or set COLLECTORD_SPOOL_BYTES=0",
    )
    return ""


def parse_endpoint(endpoint: str) -> tuple[str, bool]:
    """(address for gRPC, whether to use TLS). `https://`, `grpcs://` mean TLS; `http://`, `grpc://` or nothing do not."""
    scheme, separator, rest = endpoint.strip().partition("://")
    if not separator:
        return endpoint.strip(), False
    return rest.rstrip("/"), scheme.lower() in {"https", "grpcs"}


def parse_resource_attributes(value: str, problems: Problems) -> dict[str, str]:
    """OTEL_RESOURCE_ATTRIBUTES: `key=value,key=value`, values percent-encoded. As OpenTelemetry asks, all of it is
    discarded when any of it is wrong."""
    attributes = {}
    for pair in value.split(","):
        key, separator, text = pair.partition("=")
        if not pair.strip():
            continue
        if not separator or not key.strip():
            problems.warn(
                "OTEL_RESOURCE_ATTRIBUTES",
                "OTEL_RESOURCE_ATTRIBUTES: got %.100r, expected key=value; all ignored",
                pair,
            )
            return {}
        attributes[unquote(key.strip())] = unquote(text.strip())
    return attributes


def script_name(argv: list[str]) -> str:
    """The script's name without its folder and ending; `python` where there is none."""
    script = argv[0] if argv else ""
    base = os.path.splitext(os.path.basename(script))[0]
    if base == "__main__":  # python -m package
        base = os.path.basename(os.path.dirname(script))
    return base if base not in {"", "-c", "-"} else "python"


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"}


def _number(
    environ: Mapping[str, str],
    name: str,
    default: Number,
    kind: Callable[[str], Number],
    least: Number,
    problems: Problems,
) -> Number:
    given = environ.get(name, "")
    if not given:
        return default
    try:
        value = kind(given)
    except ValueError:
        value = default
        problems.warn(name, "%s: got %.50r, expected a number of at least %s; %s is used", name, given, least, default)
    if not value >= least:
        problems.warn(name, "%s: got %.50r, expected a number of at least %s; %s is used", name, given, least, default)
        return default
    return value
