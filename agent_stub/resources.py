"""CPU, memory, disk, network and the like of this process, under OpenTelemetry's names."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable
from typing import Any

import psutil

from agent_stub.cgroup import Cgroup
from agent_stub.gpu import GpuSampler
from agent_stub.instruments import Counter, Gauge
from agent_stub.registry import Registry

NOT_TOLD = (
    psutil.Error,
    OSError,
    AttributeError,
    NotImplementedError,
)  # what psutil raises where a platform says nothing
LEAST_INTERVAL_S = 0.05  # utilisation over less than this is noise: the kernel counts in ticks of 10 ms


class Sampler:
    """Writes a sample of everything into the registry at each `sample`; some 300 us on Linux."""

    def __init__(
        self,
        registry: Registry,
        gpus: GpuSampler | None = None,
        cgroup: Cgroup | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._process = psutil.Process()
        self._cgroup = cgroup or Cgroup()
        self._gpus = gpus
        self._started_s = self._process.create_time()
        self._cpus = available_cpus(self._cgroup)
        self._last: tuple[float, float] | None = None  # clock, CPU seconds of this process
        self._last_container: tuple[float, float] | None = None
        self._last_system: tuple[float, float] | None = None  # busy, total CPU seconds
        self._handles: dict[tuple[Any, ...], Counter | Gauge] = {}

    def sample(self) -> None:
        """Everything that the platform tells; the rest is left out."""
        for part in (self._of_process, self._of_container, self._of_system, self._of_interpreter):
            with contextlib.suppress(*NOT_TOLD):
                part()
        if self._gpus is not None:
            self._gpus.sample(self._registry)

    def _of_process(self) -> None:
        now_s = self._clock()
        with self._process.oneshot():
            cpu = self._process.cpu_times()
            memory = self._process.memory_info()
            self._count("process.cpu.time", "s", cpu.user, "cpu.mode", "user")
            self._count("process.cpu.time", "s", cpu.system, "cpu.mode", "system")
            self._level("process.memory.usage", "By", memory.rss, up_down=True)
            self._level("process.memory.virtual", "By", memory.vms, up_down=True)
            self._level("process.thread.count", "{thread}", self._process.num_threads(), up_down=True)
            with contextlib.suppress(*NOT_TOLD):
                switches = self._process.num_ctx_switches()
                self._count(
                    "process.context_switches",
                    "{context_switch}",
                    switches.voluntary,
                    "process.context_switch.type",
                    "voluntary",
                )
                self._count(
                    "process.context_switches",
                    "{context_switch}",
                    switches.involuntary,
                    "process.context_switch.type",
                    "involuntary",
                )
        used_s = cpu.user + cpu.system
        if self._last is not None and now_s - self._last[0] >= LEAST_INTERVAL_S:
            self._level("process.cpu.utilization", "1", (used_s - self._last[1]) / (now_s - self._last[0]) / self._cpus)
        if self._last is None or now_s - self._last[0] >= LEAST_INTERVAL_S:
            self._last = now_s, used_s
        self._level("process.uptime", "s", max(0.0, time.time() - self._started_s))
        with contextlib.suppress(*NOT_TOLD):
            self._level(
                "process.unix.file_descriptor.count", "{file_descriptor}", self._process.num_fds(), up_down=True
            )
        with contextlib.suppress(*NOT_TOLD):
            self._of_disk()

    def _of_disk(self) -> None:
        disk = self._process.io_counters()
        for direction, size_bytes, operations in (
            ("read", disk.read_bytes, disk.read_count),
            ("write", disk.write_bytes, disk.write_count),
        ):
            self._count("process.disk.io", "By", size_bytes, "disk.io.direction", direction)
            self._count("process.disk.operations", "{operation}", operations, "disk.io.direction", direction)

    def _of_container(self) -> None:
        usage = self._cgroup.read()
        if not usage.is_limited:
            return
        if usage.memory_bytes is not None and usage.memory_limit_bytes is not None:
            self._level("container.memory.usage", "By", usage.memory_bytes, up_down=True)
            self._level("container.memory.limit", "By", usage.memory_limit_bytes, up_down=True)
            self._level("container.memory.utilization", "1", usage.memory_bytes / usage.memory_limit_bytes)
        if usage.cpu_time_s is not None and usage.cpu_limit is not None:
            now_s = self._clock()
            self._count("container.cpu.time", "s", usage.cpu_time_s)
            self._level("container.cpu.limit", "{cpu}", usage.cpu_limit, up_down=True)
            last, self._last_container = self._last_container, (now_s, usage.cpu_time_s)
            if last is not None and now_s - last[0] >= LEAST_INTERVAL_S:
                self._level(
                    "container.cpu.utilization", "1", (usage.cpu_time_s - last[1]) / (now_s - last[0]) / usage.cpu_limit
                )

    def _of_system(self) -> None:
        times = psutil.cpu_times()
        total_s = (
            sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        )  # these are in user, nice
        busy_s = total_s - times.idle - getattr(times, "iowait", 0.0)
        last, self._last_system = self._last_system, (busy_s, total_s)
        if last is not None and total_s - last[1] >= LEAST_INTERVAL_S:
            self._level("system.cpu.utilization", "1", min(1.0, max(0.0, (busy_s - last[0]) / (total_s - last[1]))))
        self._level("system.cpu.logical.count", "{cpu}", os.cpu_count() or 1, up_down=True)
        network = psutil.net_io_counters()
        if network is not None:
            self._count("system.network.io", "By", network.bytes_recv, "network.io.direction", "receive")
            self._count("system.network.io", "By", network.bytes_sent, "network.io.direction", "transmit")

    def _of_interpreter(self) -> None:
        for generation, stats in enumerate(gc.get_stats()):
            label = "cpython.gc.generation", str(generation)
            self._count("cpython.gc.collections", "{collection}", stats["collections"], *label)
            self._count("cpython.gc.collected_objects", "{object}", stats["collected"], *label)
            self._count("cpython.gc.uncollectable_objects", "{object}", stats["uncollectable"], *label)

    def _count(self, name: str, unit: str, total: float, *label: str) -> None:
        handle = self._handles.get((name, label))
        if handle is None:
            handle = self._handles[name, label] = self._registry.counter(
                name, unit, {label[0]: label[1]} if label else None
            )
        handle.total(total)

    def _level(self, name: str, unit: str, value: float, up_down: bool = False) -> None:
        handle = self._handles.get((name, ()))
        if handle is None:
            make = self._registry.up_down if up_down else self._registry.gauge
            handle = self._handles[name, ()] = make(name, unit)
        handle.total(value)


def available_cpus(cgroup: Cgroup) -> float:
    """CPUs that this process may use: the cgroup's quota, else its affinity, else all."""
    limit = cgroup.read().cpu_limit
    try:
        allowed = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        allowed = os.cpu_count() or 1
    return min(limit, allowed) if limit else float(allowed)
