"""Numbers and texts as Go prints them, for labels and messages."""

from __future__ import annotations

import json
import math
from decimal import Decimal


def plain(value: float) -> str:
    """The shortest text that gives this number back, without an exponent: FormatFloat(value, 'f', -1, 64)."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def general(value: float, digits: int | None = None) -> str:
    """As %g prints it, or %.<digits>g: an exponent below -4 and from 6 on, or from `digits` on (strconv/ftoa.go)."""
    if not math.isfinite(value) or value == 0:
        return plain(value)
    shown = repr(value) if digits is None else f"{value:.{digits}g}"
    number = Decimal(shown)
    exponent = number.adjusted()
    if -4 <= exponent < (6 if digits is None else digits):
        return plain(float(shown))
    mantissa = plain(float(number.scaleb(-exponent)))
    return f"{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def quoted(text: str) -> str:
    """A text in double quotes, as %q prints it: bytes that are no UTF-8 as \\xNN."""
    shown = json.dumps(text, ensure_ascii=False)
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in shown)


def valid(text: str) -> str:
    """A text in which U+FFFD stands for whatever is no UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def is_label_name(name: str) -> bool:
    """Any text that is UTF-8 and not empty, since Prometheus 3."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
