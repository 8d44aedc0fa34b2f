"""The constants of FORMAT.md, and the errors of files that are not as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DATA_VERSION: Final = 1
VERSION_TEXT: Final = "collectord data {}\n"

WAL_MAGIC: Final = b"CDWL"
WAL_VERSION: Final = 1
WAL_HEADER_BYTES: Final = 4 + 4 + 8 + 8 + 4 + 4  # magic, version, number, created_ms, zero, crc32c
FRAME_MAGIC: Final = b"FRAM"
FRAME_HEADER_BYTES: Final = 4 + 4 + 4 + 4  # magic, length, crc32c, kind
FRAME_ALIGN: Final = 8
KIND_DECLARATIONS: Final = 1
KIND_SAMPLES: Final = 2
KIND_CHECKPOINT: Final = 3
MOST_FRAME_BYTES: Final = 1 << 30

SEGMENT_MAGIC: Final = b"CDSG"
SEGMENT_VERSION: Final = 2  # values in an order of their own; 1: in that of their series
SEGMENT_HEADER_BYTES: Final = 4 + 4  # magic, version
BLOCK_HEADER_BYTES: Final = 4 + 4 + 1 + 1 + 2 + 4  # length, crc32c, kind, exponent, zero, count
TRAILER_BYTES: Final = 8 + 4 + 4 + 4 + 4 + 4 + 4  # footer offset, length, crc32c; zero, crc32c, version, magic
BLOCK_VALUES: Final = 1
BLOCK_SCALED: Final = 2
BLOCK_TIMES: Final = 3
BLOCK_NUMBERS: Final = 4
BLOCK_TEXT: Final = 5
VALUES_IN_BLOCK: Final = 16_384

TIERS: Final = {"raw": 0, "1m": 60_000, "1h": 3_600_000}
"""Tier to width of a bucket, milliseconds."""

ROLLUP_LABEL: Final = "__rollup__"
AGGREGATES: Final = ("min", "max", "sum", "count", "increase")


class StorageError(Exception):
    """Something on disk, or the disk itself, is not as it must be; the text says where, what was got, and what to do."""


class CorruptError(StorageError):
    """Bytes that are not what was written. `size_bytes`: how many are lost."""

    def __init__(self, path: Path, offset_bytes: int, size_bytes: int, reason: str) -> None:
        super().__init__(path, offset_bytes, size_bytes, reason)
        self.path = path
        self.offset_bytes = offset_bytes
        self.size_bytes = size_bytes
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}, at byte {self.offset_bytes}, {self.size_bytes} bytes lost"


class TooNewError(StorageError):
    """Written by a later version of collectord than this one."""
