"""Both wheels as a user gets them: what they hold, what they need, and that nothing of theirs is in another's way."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(source: Path, out: Path) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(ROOT / "agent_stub", tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(ROOT, tmp_path_factory.mktemp("daemon"))


def top_level(wheel: zipfile.ZipFile) -> set[str]:
    return {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}


def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def required(wheel: zipfile.ZipFile) -> set[str]:
    """Names of what is always installed with it; extras aside."""
    lines = [line for line in metadata(wheel).get_all("Requires-Dist") or [] if "extra ==" not in line]
    return {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() for line in lines}


def test_the_agents_wheel_holds_the_stub_with_its_wire_code_and_nothing_else(agent: zipfile.ZipFile) -> None:
    assert top_level(agent) == {"agent_stub"}
    names = set(agent.namelist())
    assert {
        "agent_stub/__init__.py",
        "agent_stub/wire/stream_pb2.py",
        "agent_stub/py.typed",
        "agent_stub/LICENSE",
    } <= names
    modules = {f"agent_stub/{path.relative_to(ROOT / 'agent_stub')}" for path in (ROOT / "agent_stub").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_agents_wheel_needs_grpcio_protobuf_and_psutil_alone(agent: zipfile.ZipFile) -> None:
    assert required(agent) == {"grpcio", "protobuf", "psutil"}
    assert metadata(agent)["Requires-Python"] == ">=3.9"


def test_the_daemons_wheel_holds_its_three_rooms_and_the_built_page(daemon: zipfile.ZipFile) -> None:
    assert top_level(daemon) == {"collectord", "storage", "web"}
    names = daemon.namelist()
    assert "web/static/index.html" in names
    assert any(name.startswith("web/static/") and name.endswith(".js") for name in names)
    assert not [name for name in names if "node_modules" in name or name.startswith("web/page/")]
    assert "collectord-agent" in required(daemon)


def test_the_agents_wheel_works_beside_proto_plus_and_leaves_its_name_alone(
    agent: zipfile.ZipFile, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(agent.filename),
    ]
    subprocess.run(pip, check=True, timeout=60)
    script = """
        import agent_stub, proto, sys
        assert agent_stub.__file__.startswith(sys.argv[1]), agent_stub.__file__
        assert proto.Message.__module__ == "proto.message", "proto is not proto-plus"
        class Row(proto.Message):
            name = proto.Field(proto.STRING, number=1)
        assert Row(name="x").name == "x"
        mon = agent_stub.start("a", "127.0.0.1:1")
        mon.counter("n").add()
        mon.close()
    """

    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(site)],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
