"""Text and attributes made fit for the wire: UTF-8, bounded, never an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_stub.wire import stream_pb2 as pb

NAME_BYTES = 256
LABEL_VALUE_BYTES = 1024
FIELD_VALUE_BYTES = 16 * 1024
RESOURCE_VALUE_BYTES = 4096
LABELS = 32
FIELDS = 64
INT64 = 1 << 63


def clean(value: object, limit_bytes: int) -> str:
    """`value` as text of at most `limit_bytes` bytes of UTF-8. What is no text is converted, lone surrogates become `?`."""
    if type(value) is not str:
        value = as_text(value)
    text: str = value
    if len(text) <= limit_bytes and text.isascii():
        return text
    encoded = text[:limit_bytes].encode("utf-8", "replace")
    return encoded[:limit_bytes].decode("utf-8", "ignore")


def as_text(value: object) -> str:
    """`str(value)`, also when the object's own `__str__` fails."""
    try:
        text = str(value)
        return text if type(text) is str else str.__str__(text)
    except Exception:  # noqa: BLE001  an agent's __str__ may raise anything
        return f"<{type(value).__name__} without text>"


def attribute(key: object, value: object, limit_bytes: int = FIELD_VALUE_BYTES) -> pb.Attribute:
    """One attribute of the wire; its type follows the value's."""
    name = clean(key, NAME_BYTES)
    kind = type(value)
    if kind is bool:
        return pb.Attribute(key=name, flag=bool(value))
    if isinstance(value, int) and -INT64 <= value < INT64:
        return pb.Attribute(key=name, whole=int(value))
    if isinstance(value, float):
        return pb.Attribute(key=name, real=float(value))
    return pb.Attribute(key=name, text=clean("" if value is None else value, limit_bytes))


def attributes(
    fields: Mapping[Any, Any], limit: int = FIELDS, limit_bytes: int = FIELD_VALUE_BYTES
) -> list[pb.Attribute]:
    """At most `limit` attributes; further ones are left out."""
    return [attribute(key, fields[key], limit_bytes) for key in list(fields)[:limit]]


def label_pairs(labels: Mapping[Any, Any]) -> tuple[tuple[tuple[str, str], ...], bool]:
    """Sorted (name, value) pairs within the wire's limits, and whether anything had to be changed for that.

    Values that are no text are converted without complaint (numbers and booleans are common); empty names are left out.
    """
    pairs: dict[str, str] = {}
    altered = len(labels) > LABELS
    for key in list(labels)[:LABELS]:
        raw = labels[key]
        given = raw if type(raw) is str else ("" if raw is None else as_text(raw))
        name, value = clean(key, NAME_BYTES), clean(given, LABEL_VALUE_BYTES)
        altered = altered or name != key or value != given or not name
        if name:
            pairs[name] = value
    return tuple(sorted(pairs.items())), altered
