"""What a store may use, and how long it keeps what it has."""

from __future__ import annotations

from dataclasses import dataclass

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """All of it has defaults that suit one machine. Sizes in bytes, times in milliseconds."""

    memory_bytes: int = 1 << 30  # of all rings
    slots: int = 3600  # most rows of a ring
    series_limit: int = 2_000_000
    wal_file_bytes: int = 64 << 20  # from this size on a WAL file is closed and made into segments
    wal_bytes: int = (
        256 << 20
    )  # of all WAL files; when they are larger, nothing more is taken until segments are written
    flush_ms: int = 600_000  # a WAL file with samples is closed when it is so old
    retention_ms: int = 30 * DAY_MS
    retention_1m_ms: int = 365 * DAY_MS
    retention_1h_ms: int = 3650 * DAY_MS
    retention_bytes: int = 0  # of all segments; 0: no bound
    least_free_bytes: int = 256 << 20  # below this much free space nothing is taken
    seal_ms: int = 3_600_000  # after the end of a partition: from then on it is merged into one and rolled up
    partition_ms: int = DAY_MS
    table_bytes: int = 128 << 20  # of segments' indexes that are kept in memory

    def retention_of(self, tier: str) -> int:
        """How long samples of a tier are kept, milliseconds."""
        return {"raw": self.retention_ms, "1m": self.retention_1m_ms, "1h": self.retention_1h_ms}[tier]
