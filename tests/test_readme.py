"""Every command and every program in the README works.

An HTML comment before a block says how it is run: `<!-- test: WORDS -->`, where the words are

    cwd=root      in the repository's root; else in an empty folder that all blocks share
    with=daemon   while a daemon serves
    until=TEXT    the command runs on: it is seen to print TEXT, then interrupted, and must end in order
    exit=CODE     it must end with this code; else with 0
    dry           `make X` is run as `make -n X`: the target exists; what it does is run elsewhere
    agent=NAME    afterwards the daemon knows an agent of this name

The default ports are replaced by free ones throughout.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(
    r"^(?:<!-- test:(?P<words>.*?)-->\n)?```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
MOST_S = 90.0


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    words: dict[str, str] | None
    line: int

    @property
    def commands(self) -> list[str]:
        return [line.removeprefix("$ ") for line in self.body.splitlines() if line.startswith("$ ")]


def blocks() -> list[Block]:
    text = README.read_text()
    found = []
    for match in BLOCK.finditer(text):
        words = match["words"]
        pairs = None if words is None else dict(word.partition("=")[::2] for word in shlex.split(words))
        found.append(Block(match["language"], match["body"], pairs, text.count("\n", 0, match.start()) + 1))
    return found


@pytest.fixture(scope="module")
def ports() -> dict[str, str]:
    """The default ports, and free ones that take their place."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return {"4317": str(one.getsockname()[1]), "4318": str(other.getsockname()[1])}


OF_MAKE = ("MAKE", "MFLAGS", "ARGS")  # a make that runs the tests hands its own options to every make below it


@pytest.fixture(scope="module")
def environ(ports: dict[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("COLLECTORD_", *OF_MAKE))}
    return clean | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLLECTORD_GRPC": f"127.0.0.1:{ports['4317']}",
        "COLLECTORD_HTTP": f"127.0.0.1:{ports['4318']}",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@contextmanager
def running(command: str, until: str, cwd: Path, environ: dict[str, str]) -> Iterator[None]:
    """The command, from when it printed `until`; at the end it is interrupted, and must then end in order."""
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that an interrupt reaches all of it, as Ctrl-C does
    )
    deadline = threading.Timer(MOST_S, os.killpg, [process.pid, signal.SIGKILL])
    deadline.start()
    try:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if until in line:
                break
        else:
            raise AssertionError(f"{command!r} never printed {until!r}: {''.join(seen)}")
        yield
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        # make waits for what it runs, and then ends itself by the signal that it got
        assert process.wait() in ({0, -signal.SIGINT} if command.startswith("make ") else {0}), "".join(seen) + rest
    finally:
        deadline.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def run(command: str, cwd: Path, environ: dict[str, str], code: int) -> None:
    ended = subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=environ, capture_output=True, text=True, timeout=MOST_S, check=False
    )
    assert ended.returncode == code, f"{command!r} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}"


@pytest.mark.parametrize("block", blocks(), ids=lambda block: f"line-{block.line}")
def test_what_the_readme_shows_works(
    block: Block, ports: dict[str, str], environ: dict[str, str], folder: Path
) -> None:
    assert block.words is not None, f"line {block.line}: a block without a test comment"
    words = block.words
    if words.get("with") == "daemon":
        with running("exec collectord", "serving", folder, environ):
            run_block(block, words, ports, environ, folder)
    else:
        run_block(block, words, ports, environ, folder)


def run_block(
    block: Block, words: dict[str, str], ports: dict[str, str], environ: dict[str, str], folder: Path
) -> None:
    cwd = ROOT if words.get("cwd") == "root" else folder
    body = re.sub("|".join(ports), lambda match: ports[match[0]], block.body)
    if block.language == "python":
        script = folder / "agent.py"
        script.write_text(body)
        run(f"python {script}", cwd, environ, 0)
    else:
        commands = Block(block.language, body, None, 0).commands
        assert commands, f"line {block.line}: no command"
        for command in commands:
            if "dry" in words:
                command = re.sub(r"^make ", "make -n ", command)
                assert command.startswith("make -n ")
            if "until" in words:
                with running(command, words["until"], cwd, environ):
                    pass
            else:
                run(command, cwd, environ, int(words.get("exit", "0")))
    if "agent" in words:
        with urlopen(f"http://127.0.0.1:{ports['4318']}/api/agents") as answer:
            known = {row["agent"]: row for row in json.load(answer)}
        assert known[words["agent"]]["state"] == "stopped"
        assert "work done" in known[words["agent"]]["reason"]


def test_every_link_leads_somewhere() -> None:
    for page in (README, ROOT / "deploy/README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_target_of_make_is_explained() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    for target in targets[1].split():
        assert re.search(rf"^  make {target} +\S", shown, re.MULTILINE), target
