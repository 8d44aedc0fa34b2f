"""The limits that a container puts on this process, from cgroup v1 and v2 files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

UNLIMITED_BYTES = 1 << 60  # v1 says "no limit" with a number near 2**63


@dataclass(frozen=True)
class Usage:
    """What the cgroup says now; None where it does not."""

    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    cpu_time_s: float | None = None
    cpu_limit: float | None = None  # CPUs

    @property
    def is_limited(self) -> bool:
        return self.memory_limit_bytes is not None or self.cpu_limit is not None


class Cgroup:
    """Finds this process's cgroup once; `read` then opens a handful of small files."""

    def __init__(self, proc: Path = Path("/proc/self"), root: Path = Path("/sys/fs/cgroup")) -> None:
        paths = _controller_paths(proc / "cgroup")
        self.version = 2 if (root / "cgroup.controllers").exists() else 1
        if self.version == 2:
            self._memory = self._cpu = self._cpuacct = _existing(root, paths.get("", "/"))
        else:
            self._memory = _existing(root / "memory", paths.get("memory", "/"))
            self._cpu = _existing(root / "cpu", paths.get("cpu", "/"))
            self._cpuacct = _existing(root / "cpuacct", paths.get("cpuacct", "/"))

    def read(self) -> Usage:
        return self._read_v2() if self.version == 2 else self._read_v1()

    def _read_v2(self) -> Usage:
        quota, _, period_us = _text(self._cpu / "cpu.max").partition(" ")
        stat = dict(line.split(" ", 1) for line in _text(self._cpu / "cpu.stat").splitlines() if " " in line)
        usage_us = _whole(stat.get("usage_usec", ""))
        return Usage(
            memory_bytes=_whole(_text(self._memory / "memory.current")),
            memory_limit_bytes=_limit(_whole(_text(self._memory / "memory.max"))),
            cpu_time_s=None if usage_us is None else usage_us / 1e6,
            cpu_limit=_ratio(_whole(quota), _whole(period_us)),
        )

    def _read_v1(self) -> Usage:
        usage_ns = _whole(_text(self._cpuacct / "cpuacct.usage"))
        return Usage(
            memory_bytes=_whole(_text(self._memory / "memory.usage_in_bytes")),
            memory_limit_bytes=_limit(_whole(_text(self._memory / "memory.limit_in_bytes"))),
            cpu_time_s=None if usage_ns is None else usage_ns / 1e9,
            cpu_limit=_ratio(
                _whole(_text(self._cpu / "cpu.cfs_quota_us")), _whole(_text(self._cpu / "cpu.cfs_period_us"))
            ),
        )


def _controller_paths(file: Path) -> dict[str, str]:
    """Controller -> path; v2's line has the empty controller."""
    paths = {}
    for line in _text(file).splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                paths[controller] = parts[2]
    return paths


def _existing(root: Path, path: str) -> Path:
    """The cgroup's folder; in a cgroup namespace the path is the host's and only the root exists."""
    folder = root / path.strip("/")
    return folder if folder.is_dir() else root


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""


def _whole(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _limit(value: int | None) -> int | None:
    return value if value is not None and 0 < value < UNLIMITED_BYTES else None


def _ratio(quota_us: int | None, period_us: int | None) -> float | None:
    if quota_us is None or period_us is None or quota_us <= 0 or period_us <= 0:
        return None
    return quota_us / period_us
