"""Strings and numbers that `promql_parser` reads otherwise than Prometheus does, written so that both agree.

In a string, hexadecimal and octal escapes are bytes of UTF-8 (util/strutil/quote.go), to the parser they are characters. In a
number, single underscores stand between digits (promql/parser/lex.go), which the parser does not know.
"""

from __future__ import annotations

import re
from typing import Final

from storage.promql.errors import parse_error
from storage.promql.tokens import tokens

_BYTE_ESCAPE: Final = re.compile(r"\\(?:x[0-9a-fA-F]{2}|[0-7]{3})")
_ESCAPE: Final = re.compile(
    r"""\\(?: x([0-9a-fA-F]{2}) | ([0-7]{3}) | u([0-9a-fA-F]{4}) | U([0-9a-fA-F]{8}) | ([abfnrtv\\'"]) )""", re.VERBOSE
)
_ZEROS: Final = re.compile(r"0+[1-9][0-9]*[eE]")
_SIMPLE: Final = dict(zip("abfnrtv\\'\"", "\a\b\f\n\r\t\v\\'\"", strict=True))
_UNDERSCORES: Final = re.compile(
    r"0[xX](?:_?[0-9a-fA-F])+|[0-9](?:_?[0-9])*(?:\.(?:[0-9](?:_?[0-9])*)?)?(?:[eE][-+]?[0-9](?:_?[0-9])*)?"
)


def plain_text(text: str) -> str:
    """The expression in the parser's words. Raises QueryError for a regular expression that is no text."""
    parts: list[str] = []
    at, before = 0, ""
    for token in tokens(text):
        plain = token.text
        if token.kind == "string" and "\\" in plain and (plain[0] == "`" or _BYTE_ESCAPE.search(plain)):
            raw = raw_string(plain)
            if before in ("=~", "!~") and raw is not None and not _is_text(raw):
                raise parse_error(text, token.start, f"error parsing regexp: invalid UTF-8: {plain}")
            plain = plain if raw is None else _quoted(raw)
        elif token.kind == "number":
            plain = _plain_number(plain)
        if plain is not token.text:
            parts += [text[at : token.start], plain]
            at = token.start + len(token.text)
        before = token.text
    return "".join([*parts, text[at:]])


def _plain_number(text: str) -> str:
    """Without underscores, and without zeros before a number that is no octal one."""
    if "_" in text and _UNDERSCORES.fullmatch(text):
        text = text.replace("_", "")
    return text.lstrip("0") if _ZEROS.match(text) else text


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def raw_string(text: str) -> bytes | None:
    """The bytes that a string in quotes stands for; None where it has an escape that means nothing."""
    if text.startswith("`"):
        return text[1:-1].encode("utf-8", "surrogatepass")
    raw = bytearray()
    at = 1
    for found in _ESCAPE.finditer(text, 1, len(text) - 1):
        wrong_quote = found[5] in ("'", '"') and found[5] != text[0]
        if "\\" in text[at : found.start()] or wrong_quote or (found[2] and int(found[2], 8) > 0xFF):
            return None
        raw += text[at : found.start()].encode("utf-8", "surrogatepass")
        raw += _meaning(found)
        at = found.end()
    raw += text[at:-1].encode("utf-8", "surrogatepass")
    return None if "\\" in text[at:-1] else bytes(raw)


def _quoted(raw: bytes) -> str:
    """A string in quotes that the parser reads as these bytes; what is no UTF-8 becomes U+FFFD."""
    decoded = raw.decode("utf-8", "replace")
    shown = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\0": "\\x00"}
    return '"' + "".join(shown.get(c, c) for c in decoded) + '"'


def _meaning(found: re.Match[str]) -> bytes:
    byte, octal, short, long, simple = found.groups()
    if byte or octal:
        return bytes([int(byte, 16) if byte else int(octal, 8)])
    if simple:
        return _SIMPLE[simple].encode()
    code = int(short or long, 16)
    return chr(code).encode("utf-8", "surrogatepass") if code <= 0x10FFFF else found[0].encode()
