"""Who this process is: host, process, container and pod, under OpenTelemetry's resource attribute names."""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_stub import text
from agent_stub.settings import Settings
from agent_stub.version import CLIENT
from agent_stub.wire import stream_pb2 as pb

ATTRIBUTES = 128
CAPABILITIES = (
    pb.CAPABILITY_POLL, pb.CAPABILITY_CONFIG, pb.CAPABILITY_COMMANDS, pb.CAPABILITY_LOGS, pb.CAPABILITY_EVENTS,
    pb.CAPABILITY_STACKS,
)  # fmt: skip
CONTAINER_ID = re.compile(r"(?<![0-9a-f])([0-9a-f]{64})(?![0-9a-f])")
CONTAINER_HINTS = ("docker", "containerd", "containers", "libpod", "crio", "kubepods", "lxc")

POD_ENVIRONMENT = {  # the names that the downward API is usually mapped to; the first that is set counts
    "k8s.pod.name": ("K8S_POD_NAME", "POD_NAME", "MY_POD_NAME"),
    "k8s.pod.uid": ("K8S_POD_UID", "POD_UID", "MY_POD_UID"),
    "k8s.namespace.name": ("K8S_NAMESPACE_NAME", "POD_NAMESPACE", "MY_POD_NAMESPACE", "K8S_NAMESPACE"),
    "k8s.node.name": ("K8S_NODE_NAME", "NODE_NAME", "MY_NODE_NAME"),
    "k8s.container.name": ("K8S_CONTAINER_NAME", "CONTAINER_NAME"),
    "k8s.deployment.name": ("K8S_DEPLOYMENT_NAME",),
    "k8s.cluster.name": ("K8S_CLUSTER_NAME", "CLUSTER_NAME"),
}


def container_id(proc: Path = Path("/proc/self")) -> str:
    """The container's id: from the cgroup path (v1, and v2 on the host's namespace), else from the mounts (v2). "" outside."""
    for line in _lines(proc / "cgroup"):
        path = line.rsplit(":", 1)[-1]
        found = CONTAINER_ID.search(path)
        if found:
            return found.group(1)
    for line in _lines(proc / "mountinfo"):
        fields = line.split()
        if len(fields) < 5 or fields[4] not in {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}:
            continue
        found = CONTAINER_ID.search(fields[3])
        if found and any(hint in line for hint in CONTAINER_HINTS):
            return found.group(1)
    return ""


def kubernetes(environ: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """k8s.* from the environment; without a downward API a pod still knows its own name and namespace."""
    found = {}
    for name, variables in POD_ENVIRONMENT.items():
        value = next((environ[v] for v in variables if environ.get(v)), "")
        if value:
            found[name] = value
    if environ.get("KUBERNETES_SERVICE_HOST"):
        namespace = "".join(_lines(root / "var/run/secrets/kubernetes.io/serviceaccount/namespace")).strip()
        if namespace:
            found.setdefault("k8s.namespace.name", namespace)
        if environ.get("HOSTNAME"):
            found.setdefault("k8s.pod.name", environ["HOSTNAME"])
    elif not any(name in found for name in ("k8s.pod.name", "k8s.pod.uid")):
        return {}  # NODE_NAME and the like mean other things elsewhere
    return found


def resource_attributes(
    environ: Mapping[str, str], proc: Path = Path("/proc/self"), root: Path = Path("/")
) -> dict[str, Any]:
    """All that can be found; what cannot be read is left out."""
    found: dict[str, Any] = {
        "host.name": socket.gethostname(),
        "host.arch": platform.machine(),
        "os.type": sys.platform,
        "process.pid": os.getpid(),
        "process.executable.name": os.path.basename(sys.executable or "python"),
        "process.runtime.name": sys.implementation.name,
        "process.runtime.version": platform.python_version(),
        "telemetry.sdk.name": "agent_stub",
        "telemetry.sdk.language": "python",
    }
    container = container_id(proc)
    if container:
        found["container.id"] = container
        if (root / ".dockerenv").exists():
            found["container.runtime"] = "docker"
    found.update(kubernetes(environ, root))
    return found


def hello(settings: Settings, instance: str, start_time_unix_ms: int) -> pb.Hello:
    """How this process introduces itself; what the application says of itself goes before what was found."""
    attributes = {**resource_attributes(os.environ), **settings.attributes}
    return pb.Hello(
        agent=text.clean(settings.agent, text.NAME_BYTES) or "unnamed",
        instance=instance,
        version=text.clean(settings.version, text.NAME_BYTES),
        capabilities=CAPABILITIES,
        start_time_unix_ms=start_time_unix_ms,
        client=CLIENT,
        attributes=text.attributes(attributes, ATTRIBUTES, text.RESOURCE_VALUE_BYTES),
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
