"""GPUs through NVIDIA's library, where its Python binding (`pynvml`) is installed and finds a driver.

The driver's calls can hang for seconds when a device is in trouble, so they run on a thread of their own; a sample
takes what that thread read last and asks for the next reading.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from agent_stub import native
from agent_stub.registry import Registry


class Gpus:
    """The devices of this machine. `library` has pynvml's interface."""

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._pid = os.getpid()
        library.nvmlInit()
        devices = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        self._devices = [(device, self._identify(device)) for device in devices]

    def __len__(self) -> int:
        return len(self._devices)

    def read(self) -> list[tuple[str, str, dict[str, str], float]]:
        """(metric, unit, labels, value) of everything that the devices tell now; what one does not support is left out."""
        found: list[tuple[str, str, dict[str, str], float]] = []
        for device, labels in self._devices:
            self._ask(
                lambda d: self._nvml.nvmlDeviceGetUtilizationRates(d).gpu / 100,
                device,
                "hw.gpu.utilization",
                "1",
                labels,
                found,
            )
            self._ask(
                lambda d: self._nvml.nvmlDeviceGetMemoryInfo(d).used, device, "hw.gpu.memory.usage", "By", labels, found
            )
            self._ask(
                lambda d: self._nvml.nvmlDeviceGetMemoryInfo(d).total,
                device,
                "hw.gpu.memory.limit",
                "By",
                labels,
                found,
            )
            self._ask(lambda d: self._nvml.nvmlDeviceGetPowerUsage(d) / 1000, device, "hw.power", "W", labels, found)
            self._ask(
                lambda d: self._nvml.nvmlDeviceGetTemperature(d, self._nvml.NVML_TEMPERATURE_GPU),
                device, "hw.temperature", "Cel", labels, found,
            )  # fmt: skip
            self._ask(self._own_memory, device, "process.gpu.memory.usage", "By", labels, found)
        return found

    def _identify(self, device: Any) -> dict[str, str]:
        return {
            "hw.id": _text(self._nvml.nvmlDeviceGetUUID(device)),
            "hw.name": _text(self._nvml.nvmlDeviceGetName(device)),
            "hw.type": "gpu",
        }

    def _own_memory(self, device: Any) -> float:
        processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(device)
        return float(sum(p.usedGpuMemory or 0 for p in processes if p.pid == self._pid))

    def _ask(
        self, question: Callable[[Any], float], device: Any, metric: str, unit: str, labels: dict[str, str],
        found: list[tuple[str, str, dict[str, str], float]],
    ) -> None:  # fmt: skip
        try:
            found.append((metric, unit, labels, float(question(device))))
        except self._nvml.NVMLError:
            return  # "not supported" is usual: consumer cards have no power meter, virtual ones hide memory


class GpuSampler:
    """Reads on a thread of its own; `sample` never waits."""

    def __init__(self, library: Any = None) -> None:
        self._library = library
        self._latest: list[tuple[str, str, dict[str, str], float]] = []
        self._asked = native.Wake()
        self._stopped = False
        self.available: bool | None = None  # None: not known yet
        try:
            native.spawn(self._run, "agent_stub-gpu")
        except RuntimeError:
            self.available = False

    def sample(self, registry: Registry) -> None:
        """Records the last reading, once, and asks for the next."""
        latest, self._latest = self._latest, []
        for metric, unit, labels, value in latest:
            registry.gauge(metric, unit, labels).set(value)
        self._asked.set()

    def stop(self) -> None:
        self._stopped = True
        self._asked.set()

    def _run(self) -> None:
        gpus = open_gpus(self._library)
        self.available = gpus is not None
        while gpus is not None and not self._stopped:
            self._latest = gpus.read()
            self._asked.wait(3600)


def open_gpus(library: Any = None) -> Gpus | None:
    """The GPUs, or None where there are none, no driver or no binding."""
    try:
        gpus = Gpus(library or importlib.import_module("pynvml"))
    except Exception:  # noqa: BLE001  no module, no driver, a broken one: each has an error of its own
        return None
    return gpus if len(gpus) else None


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
