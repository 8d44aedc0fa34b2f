"""The command line: it teaches, it names what is wrong, and its exit codes mean what --help says."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from collectord import cli
from collectord.config_file import load
from collectord.fleet_table import duration, print_agents

ON_FREE_PORTS = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
COMMAND = [sys.executable, "-m", "collectord"]


def environment(**more: str) -> dict[str, str]:
    """This process's, without settings of a collectord that its user may have."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COLLECTORD_")} | more


@contextmanager
def serving(*options: str, **environ: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A real daemon on free ports, and its log line once it serves: {"page": ..., "grpc": ...}."""
    command = [*COMMAND, "serve", *ON_FREE_PORTS, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(**environ)) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if '"serving"' in line:
                    yield process, json.loads(line)
                    break
            else:
                raise AssertionError(f"never served: {lines}")
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_teaches_by_example_and_names_the_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"], {})
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert f"  collectord{'' if command == 'serve' else ' ' + command}" in text
    assert "exit codes: 0" in text


def test_help_of_the_whole_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"], {})
    text = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert re.search(rf"^ +{command}\b", text, re.MULTILINE)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"], {})
    assert left.value.code == 0
    assert capsys.readouterr().out == f"collectord {cli.version()}\n"


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["agnets"], ["invalid choice: 'agnets'", "agents", "collectord --help"]),
        (["demo", "--agents", "0"], ["--agents", "got '0'", "from 1 to 500", "collectord demo --help"]),
        (["demo", "--agents", "many"], ["got 'many'"]),
        (["demo", "--duration", "-1"], ["got '-1'", "0 or more"]),
        (["demo", "--duration", "nan"], ["got 'nan'"]),
        (["serve", "--grcp", "x"], ["--grcp", "collectord --help"]),
    ],
)
def test_wrong_usage_ends_with_2_and_the_next_step(
    argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(argv, {})
    assert left.value.code == 2
    error = capsys.readouterr().err
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("argv", "environ", "parts"),
    [
        (["--grpc", "0.0.0.0:1"], {}, ["grpc.listen", "insecure = true"]),
        (["--http", "nowhere"], {}, ["http.listen", "'nowhere'", "HOST:PORT"]),
        (["serve", "--config", "absent.toml"], {}, ["absent.toml", "No such file"]),
        ([], {"COLLECTORD_CONFIG": "absent.toml"}, ["absent.toml"]),
        (["check-config"], {"COLLECTORD_LOG_LEVEL": "loud"}, ["log.level", "'loud'"]),
        (["demo"], {"COLLECTORD_HEALTH_PHY": "1"}, ["COLLECTORD_HEALTH_PHY", "did you mean"]),
        (["agents", "--http", "nowhere"], {}, ["--http", "'nowhere'", "HOST:PORT"]),
    ],
)
def test_wrong_configuration_ends_with_2_and_names_the_key(
    argv: list[str], environ: dict[str, str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv, environ) == 2
    error = capsys.readouterr().err
    assert error.startswith("collectord: error: ")
    for part in parts:
        assert part in error


def test_check_config_prints_a_file_to_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["check-config", "--data-dir", "there"]
    assert cli.main(argv, {"COLLECTORD_HEALTH_PHI": "5"}) == 0
    path = tmp_path / "collectord.toml"
    path.write_text(capsys.readouterr().out)
    config = load(str(path), {}, {})
    assert (config.data_dir, config.health.phi) == ("there", 5.0)


def test_agents_without_a_daemon_ends_with_1_and_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound and not listening: refused for sure
        port = sock.getsockname()[1]
        assert cli.main(["agents", "--http", f"127.0.0.1:{port}"], {}) == 1
    error = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in error
    assert "Start one with `collectord`" in error


def test_a_daemon_serves_answers_and_stops() -> None:
    with serving() as (process, line):
        address = line["page"].removeprefix("http://").rstrip("/")
        shown = subprocess.run(
            [*COMMAND, "agents", "--json", "--http", address], capture_output=True, text=True, env=environment()
        )
        assert (shown.returncode, json.loads(shown.stdout)) == (0, [])
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20.0) == 0


def test_a_daemon_whose_log_nobody_reads_still_stops() -> None:
    with serving() as (process, _):
        assert process.stderr is not None
        process.stderr.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20.0) == 0


def test_the_service_manager_hears_that_it_serves_and_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20.0)
        with serving(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="60000000") as (process, line):
            ready = manager.recv(1024).decode()
            assert ready.startswith("READY=1\nSTATUS=page ")
            assert line["page"] in ready
            assert manager.recv(1024) == b"WATCHDOG=1"
            process.send_signal(signal.SIGINT)
            assert manager.recv(1024) == b"STOPPING=1"
            assert process.wait(timeout=20.0) == 0


@pytest.mark.parametrize("option", ["--grpc", "--http"])
@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_port_in_use_ends_with_1_and_is_named(command: str, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        argv = [*COMMAND, command, *ON_FREE_PORTS, option, f"127.0.0.1:{port}"]
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=60.0, env=environment())
    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert f"choose another address with {option}" in ended.stderr
    assert "Traceback" not in ended.stderr


def entry(**changes: object) -> dict[str, object]:
    return {
        "agent": "a", "instance": "i", "state": "live", "reason": "", "since_s": 5.0, "last_seen_s": 0.1, "rtt_ms": 0.42,
        "version": "1", "series": 1234, "samples_total": 9, "dropped_total": 0,
    } | changes  # fmt: skip


def printed(*rows: dict[str, object]) -> str:
    out = io.StringIO()
    print_agents(rows, Console(file=out, width=140, force_terminal=True, color_system="truecolor"))
    return out.getvalue()


def test_what_needs_attention_is_listed_first() -> None:
    states = ["live", "stopped", "offline", "stuck", "stale"]
    text = printed(*(entry(agent=f"agent-{state}", state=state) for state in states))
    assert re.findall(r"agent-([a-z]+)", text) == ["stuck", "offline", "stale", "live", "stopped"]


def test_an_entrys_figures_are_shown_with_their_units() -> None:
    text = printed(entry(since_s=7200.0, rtt_ms=0.42, series=1234, dropped_total=7), entry(rtt_ms=None))
    for part in ("2.0 h", "0.4 ms", "1,234", "7"):
        assert part in text


def test_hostile_names_do_nothing_to_the_terminal() -> None:
    text = printed(entry(agent="\x1b[31mred\x07", reason="[bold]x[/bold] \u202e"))
    assert "\x1b[31mred" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold]x[/bold]" in text


def test_an_empty_fleet_is_told_what_to_do() -> None:
    assert "agent_stub" in printed()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (300, "5 min"), (9000, "2.5 h"), (9e5, "10 d")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
