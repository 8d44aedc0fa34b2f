"""xxHash64, for limit_ratio alone, which chooses series by it (Y. Collet, xxHash fast digest algorithm, version 0.1.1)."""

from __future__ import annotations

from typing import Final

_P1: Final = 0x9E3779B185EBCA87
_P2: Final = 0xC2B2AE3D27D4EB4F
_P3: Final = 0x165667B19E3779F9
_P4: Final = 0x85EBCA77C2B2AE63
_P5: Final = 0x27D4EB2F165667C5
_MASK: Final = (1 << 64) - 1


def _turned(number: int, by: int) -> int:
    return ((number << by) | (number >> (64 - by))) & _MASK


def _round(lane: int, word: int) -> int:
    return _turned((lane + word * _P2) & _MASK, 31) * _P1 & _MASK


def xxh64(data: bytes) -> int:
    """The hash with seed 0, 64 bits without a sign."""
    at, size = 0, len(data)
    if size >= 32:
        lanes = [(_P1 + _P2) & _MASK, _P2, 0, -_P1 & _MASK]
        while size - at >= 32:
            for i in range(4):
                lanes[i] = _round(lanes[i], int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little"))
            at += 32
        total = sum(_turned(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & _MASK
        for lane in lanes:
            total = ((total ^ _round(0, lane)) * _P1 + _P4) & _MASK
    else:
        total = _P5
    total = (total + size) & _MASK
    while size - at >= 8:
        total ^= _round(0, int.from_bytes(data[at : at + 8], "little"))
        total = (_turned(total, 27) * _P1 + _P4) & _MASK
        at += 8
    if size - at >= 4:
        total ^= int.from_bytes(data[at : at + 4], "little") * _P1 & _MASK
        total = (_turned(total, 23) * _P2 + _P3) & _MASK
        at += 4
    for byte in data[at:]:
        total = _turned(total ^ (byte * _P5 & _MASK), 11) * _P1 & _MASK
    total = (total ^ (total >> 33)) * _P2 & _MASK
    total = (total ^ (total >> 29)) * _P3 & _MASK
    return total ^ (total >> 32)
