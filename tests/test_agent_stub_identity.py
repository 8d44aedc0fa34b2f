"""Who the process is and what it uses: settings, identity, cgroups, resources, GPUs, from files and fakes."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent_stub import identity
from agent_stub.cgroup import Cgroup, Usage
from agent_stub.gpu import Gpus, GpuSampler, open_gpus
from agent_stub.problems import Problems
from agent_stub.registry import Registry
from agent_stub.resources import Sampler
from agent_stub.settings import from_environment, parse_endpoint, parse_resource_attributes, script_name

ID = "0123456789abcdef" * 4


def settings(environ: dict[str, str], **arguments: Any) -> Any:
    given = {"name": None, "endpoint": None, "token": None, "version": "", "attributes": None, **arguments}
    return from_environment(**given, environ=environ, problems=Problems())


# -- settings ---------------------------------------------------------------------------------------------------------

ENDPOINTS = [
    ("127.0.0.1:4317", "127.0.0.1:4317", False),
    ("http://h:1/", "h:1", False),
    ("https://h:1", "h:1", True),
    ("GRPCS://h:1", "h:1", True),
    ("unix:/run/c.sock", "unix:/run/c.sock", False),
    (" h:1 ", "h:1", False),
]


@pytest.mark.parametrize(("given", "target", "tls"), ENDPOINTS)
def test_the_scheme_of_an_endpoint_says_whether_it_is_tls(given: str, target: str, tls: bool) -> None:
    assert parse_endpoint(given) == (target, tls)


RESOURCE_ATTRIBUTES = [
    ("", {}),
    ("a=b", {"a": "b"}),
    (" a = b , c=d ,", {"a": "b", "c": "d"}),
    ("a=x%2Cy%20z%3D1", {"a": "x,y z=1"}),
    ("a=b=c", {"a": "b=c"}),
    ("a=", {"a": ""}),
    ("a", {}),
    ("a=b,broken", {}),
    ("=b", {}),
    ("a=%zz", {"a": "%zz"}),
]


@pytest.mark.parametrize(("value", "attributes"), RESOURCE_ATTRIBUTES)
def test_resource_attributes_are_parsed_as_opentelemetry_says(value: str, attributes: dict[str, str]) -> None:
    assert parse_resource_attributes(value, Problems()) == attributes


NAMES = [
    ({"name": "arg"}, {"OTEL_SERVICE_NAME": "env"}, "arg"),
    ({}, {"OTEL_SERVICE_NAME": "env", "OTEL_RESOURCE_ATTRIBUTES": "service.name=res"}, "env"),
    ({}, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=res"}, "res"),
]


@pytest.mark.parametrize(("arguments", "environ", "agent"), NAMES)
def test_the_name_is_the_arguments_then_the_environments(arguments: dict, environ: dict, agent: str) -> None:
    assert settings(environ, **arguments).agent == agent


@pytest.mark.parametrize(
    ("argv", "name"),
    [(["/a/b/work.py"], "work"), (["-c"], "python"), ([""], "python"), ([], "python"), (["/x/pkg/__main__.py"], "pkg")],
)
def test_the_scripts_name_stands_in(argv: list[str], name: str) -> None:
    assert script_name(argv) == name


def test_arguments_go_before_the_environment_and_that_before_the_defaults() -> None:
    environ = {"COLLECTORD_ENDPOINT": "e:1", "COLLECTORD_TOKEN": " t ", "OTEL_RESOURCE_ATTRIBUTES": "a=env,b=env"}
    from_env = settings(environ, attributes={"a": "arg"})
    assert (from_env.endpoint, from_env.token, dict(from_env.attributes)) == ("e:1", "t", {"a": "arg", "b": "env"})
    assert settings(environ, endpoint="x:2", token="y").endpoint == "x:2"
    assert settings({}).endpoint == "127.0.0.1:4317"


@pytest.mark.parametrize(("given", "used"), [("50", 50), ("", 10_000), ("many", 10_000), ("0", 10_000), ("-5", 10_000)])
def test_a_number_that_cannot_be_used_gives_the_default(given: str, used: int) -> None:
    assert settings({"COLLECTORD_MAX_SERIES": given}).max_series == used


@pytest.mark.parametrize(("given", "disabled"), [("1", True), ("true", True), ("", False), ("0", False), ("no", False)])
def test_the_stub_can_be_disabled(given: str, disabled: bool) -> None:
    assert settings({"COLLECTORD_DISABLED": given}).disabled is disabled


# -- identity ---------------------------------------------------------------------------------------------------------

CGROUPS = [
    ("v1 docker", f"12:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n", "", ID),
    ("v1 kubernetes", f"11:cpu:/kubepods/burstable/pod1234/{ID}\n", "", ID),
    ("v2 systemd", f"0::/system.slice/docker-{ID}.scope\n", "", ID),
    ("v2 containerd", f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope\n", "", ID),
    (
        "v2 in a namespace",
        "0::/\n",
        f"600 590 254:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 d rw\n",
        ID,
    ),
    (
        "podman",
        "0::/\n",
        f"1 2 0:3 /containers/storage/overlay-containers/{ID}/userdata/hosts /etc/hosts rw - ext4 d rw\n",
        ID,
    ),
    ("outside", "0::/user.slice/user-1000.slice/session-3.scope\n", "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n", ""),
    ("another mount with 64 digits", "0::/\n", f"1 2 0:3 /data/{ID} /data rw - ext4 d rw\n", ""),
    ("no files", "", "", ""),
    ("garbage", ":::\n\n\xff\n12", "a b\n", ""),
]


@pytest.mark.parametrize(("cgroup", "mountinfo", "found"), [c[1:] for c in CGROUPS], ids=[c[0] for c in CGROUPS])
def test_the_container_id_is_found(tmp_path: Path, cgroup: str, mountinfo: str, found: str) -> None:
    if cgroup:
        (tmp_path / "cgroup").write_text(cgroup)
    if mountinfo:
        (tmp_path / "mountinfo").write_text(mountinfo)
    assert identity.container_id(tmp_path) == found


def test_a_pod_knows_itself_from_the_downward_api(tmp_path: Path) -> None:
    environ = {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "POD_NAME": "p",
        "POD_NAMESPACE": "ns",
        "NODE_NAME": "n",
        "POD_UID": "u",
    }
    found = {"k8s.pod.name": "p", "k8s.namespace.name": "ns", "k8s.node.name": "n", "k8s.pod.uid": "u"}
    assert identity.kubernetes(environ, tmp_path) == found


def test_a_pod_without_a_downward_api_knows_its_name_and_namespace(tmp_path: Path) -> None:
    account = tmp_path / "var/run/secrets/kubernetes.io/serviceaccount"
    account.mkdir(parents=True)
    (account / "namespace").write_text("team-a")
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "agent-7f"}
    assert identity.kubernetes(environ, tmp_path) == {"k8s.namespace.name": "team-a", "k8s.pod.name": "agent-7f"}


def test_variables_of_the_same_name_outside_kubernetes_mean_nothing(tmp_path: Path) -> None:
    assert identity.kubernetes({"NODE_NAME": "jenkins-3", "CLUSTER_NAME": "c"}, tmp_path) == {}


def test_docker_is_told_by_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(f"0::/docker/{ID}\n")
    (tmp_path / ".dockerenv").touch()
    found = identity.resource_attributes({}, tmp_path, tmp_path)
    assert (found["container.id"], found["container.runtime"]) == (ID, "docker")
    assert found["process.runtime.version"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")


# -- cgroups ----------------------------------------------------------------------------------------------------------


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


V2 = {
    "cgroup.controllers": "cpu memory",
    "memory.current": "1048576\n",
    "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
}
V1 = {"memory/memory.usage_in_bytes": "1048576\n", "cpuacct/cpuacct.usage": "2500000000\n"}
LIMITS = [
    ("v2, limited", {**V2, "memory.max": "4194304", "cpu.max": "150000 100000"}, Usage(1 << 20, 4 << 20, 2.5, 1.5)),
    ("v2, unlimited", {**V2, "memory.max": "max", "cpu.max": "max 100000"}, Usage(1 << 20, None, 2.5, None)),
    ("v2, without controllers", {"cgroup.controllers": ""}, Usage()),
    (
        "v1, limited",
        {
            **V1,
            "memory/memory.limit_in_bytes": "4194304",
            "cpu/cpu.cfs_quota_us": "50000",
            "cpu/cpu.cfs_period_us": "100000",
        },
        Usage(1 << 20, 4 << 20, 2.5, 0.5),
    ),
    (
        "v1, unlimited",
        {
            **V1,
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
        },
        Usage(1 << 20, None, 2.5, None),
    ),
    ("nothing at all", {}, Usage()),
    ("garbage", {**V2, "memory.max": "lots", "cpu.max": "a b c", "cpu.stat": "usage_usec x\n\nz"}, Usage(1 << 20)),
]


@pytest.mark.parametrize(("files", "usage"), [c[1:] for c in LIMITS], ids=[c[0] for c in LIMITS])
def test_the_limits_of_a_container_are_read(tmp_path: Path, files: dict[str, str], usage: Usage) -> None:
    write(tmp_path / "fs", files)
    assert Cgroup(tmp_path / "proc", tmp_path / "fs").read() == usage


def test_a_processs_own_cgroup_is_used_where_it_is_visible(tmp_path: Path) -> None:
    write(tmp_path / "fs", {**V2, "memory.max": "max", "box/memory.current": "5", "box/memory.max": "10"})
    write(tmp_path / "proc", {"cgroup": "0::/box\n"})
    usage = Cgroup(tmp_path / "proc", tmp_path / "fs").read()
    assert (usage.memory_bytes, usage.memory_limit_bytes) == (5, 10)


# -- resources --------------------------------------------------------------------------------------------------------


def new_registry() -> Registry:
    return Registry(1000, Problems(), lambda: None)


def latest(registry: Registry) -> dict[str, float]:
    return {",".join([h.definition.name, *(v for _, v in h.definition.labels)]): h.value for h in registry.handles}


def test_a_sample_has_every_resource_of_the_table(tmp_path: Path) -> None:
    registry, now = new_registry(), [0.0]
    sampler = Sampler(registry, cgroup=Cgroup(tmp_path, tmp_path), clock=lambda: now[0])
    sampler.sample()
    sum(i * i for i in range(2_000_000))
    now[0] = 1.0
    sampler.sample()
    found = latest(registry)
    assert found["process.memory.usage"] > 1 << 20
    assert found["process.cpu.time,user"] > 0
    assert found["process.cpu.utilization"] > 0
    assert found["process.thread.count"] >= 1
    assert found["process.uptime"] > 0
    names = {name.split(",")[0] for name in found}
    assert names >= {
        "process.memory.virtual",
        "system.network.io",
        "cpython.gc.collections",
        "system.cpu.logical.count",
    }
    if sys.platform == "linux":
        assert names >= {
            "process.disk.io",
            "process.disk.operations",
            "process.unix.file_descriptor.count",
            "process.context_switches",
        }


def test_in_a_container_usage_is_relative_to_its_limit(tmp_path: Path) -> None:
    write(tmp_path / "fs", {**V2, "memory.max": "4194304", "cpu.max": "50000 100000"})
    registry, now = new_registry(), [10.0]
    sampler = Sampler(registry, cgroup=Cgroup(tmp_path, tmp_path / "fs"), clock=lambda: now[0])
    sampler.sample()
    write(tmp_path / "fs", {"cpu.stat": "usage_usec 3000000\n"})
    now[0] = 12.0
    sampler.sample()
    found = latest(registry)
    assert found["container.memory.utilization"] == 0.25
    assert found["container.cpu.utilization"] == 0.5  # half a CPU second in two, of half a CPU


def test_a_part_that_the_platform_does_not_tell_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*args: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr("psutil.Process.num_fds", denied, raising=False)
    monkeypatch.setattr("psutil.Process.io_counters", denied, raising=False)
    monkeypatch.setattr("psutil.net_io_counters", denied)
    registry = new_registry()
    Sampler(registry, cgroup=Cgroup(tmp_path, tmp_path)).sample()
    found = latest(registry)
    assert "process.memory.usage" in found
    assert "cpython.gc.collections,0" in found
    assert "process.disk.io,read" not in found


# -- GPUs -------------------------------------------------------------------------------------------------------------


class NVMLError(Exception):
    pass


class FakeNvml:
    """pynvml's interface over one healthy device and one that tells little."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, devices: int = 2) -> None:
        self.devices = devices
        self.readings = 0

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return self.devices

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, device: int) -> str | bytes:
        return f"GPU-{device}" if device else b"GPU-0"

    def nvmlDeviceGetName(self, device: int) -> str:
        return "Model X"

    def nvmlDeviceGetUtilizationRates(self, device: int) -> Any:
        self.readings += 1
        return SimpleNamespace(gpu=50, memory=10)

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Any:
        return SimpleNamespace(used=1 << 30, total=1 << 34)

    def nvmlDeviceGetPowerUsage(self, device: int) -> int:
        if device:
            raise NVMLError("Not Supported")
        return 250_000

    def nvmlDeviceGetTemperature(self, device: int, sensor: int) -> int:
        return 65

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> list[Any]:
        import os

        return [SimpleNamespace(pid=os.getpid(), usedGpuMemory=123), SimpleNamespace(pid=1, usedGpuMemory=None)]


def test_gpus_are_read_under_opentelemetrys_names_and_what_one_hides_is_left_out() -> None:
    readings = Gpus(FakeNvml()).read()
    first = {metric: value for metric, _, labels, value in readings if labels["hw.id"] == "GPU-0"}
    assert first == {
        "hw.gpu.utilization": 0.5,
        "hw.gpu.memory.usage": float(1 << 30),
        "hw.gpu.memory.limit": float(1 << 34),
        "hw.power": 250.0,
        "hw.temperature": 65.0,
        "process.gpu.memory.usage": 123.0,
    }
    second = {metric for metric, _, labels, _ in readings if labels["hw.id"] == "GPU-1"}
    assert second == first.keys() - {"hw.power"}


class BrokenNvml(FakeNvml):
    def nvmlInit(self) -> None:
        raise NVMLError("driver not loaded")


@pytest.mark.parametrize(
    "library", [BrokenNvml(), FakeNvml(devices=0), SimpleNamespace()], ids=["no driver", "no device", "no pynvml"]
)
def test_without_gpus_there_are_none_and_nothing_raises(library: Any) -> None:
    assert open_gpus(library) is None


def test_a_driver_that_hangs_does_not_hold_up_a_sample() -> None:
    gate, entered = threading.Event(), threading.Event()

    class Hanging(FakeNvml):
        def nvmlDeviceGetUtilizationRates(self, device: int) -> Any:
            entered.set()
            gate.wait(20)
            return super().nvmlDeviceGetUtilizationRates(device)

    registry = new_registry()
    sampler = GpuSampler(Hanging(devices=1))
    assert entered.wait(10)
    sampler.sample(registry)  # would not come back if it asked the driver itself
    assert latest(registry) == {}
    gate.set()
    while not latest(registry):
        sampler.sample(registry)
    assert latest(registry)["hw.gpu.utilization,GPU-0,Model X,gpu"] == 0.5
    sampler.stop()


@pytest.mark.gpu
def test_a_real_gpu_tells_its_memory_and_name() -> None:
    gpus = open_gpus()
    assert gpus is not None
    readings = {metric: (labels, value) for metric, _, labels, value in gpus.read()}
    labels, limit_bytes = readings["hw.gpu.memory.limit"]
    assert limit_bytes > 1 << 30
    assert labels["hw.id"].startswith("GPU-")
