"""`collectord snapshot`: every action says what it did, every error what to do, and the exit codes mean what --help says."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from collectord import cli
from collectord.config import DATA_DIR
from collectord.snapshot_command import print_snapshots, size
from storage.files import Files
from storage.recovery import open_data_dir
from storage.snapshot import create, snapshots
from tests.data_directory import counting, flip, segment_path, wal_path, write_segment, write_wal

ALL = {("m0", 10): 1.0, ("m0", 20): 2.0, ("m1", 30): 3.0}
ACTIONS = ["create", "list", "restore", "verify", "delete"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two samples in a segment, one in a WAL file; no daemon."""
    root = tmp_path / "data"
    open_data_dir(Files(), root).close(clean=True)
    write_segment(root, 2, {("m0", 10): 1.0, ("m0", 20): 2.0}, wal=1)
    write_wal(root, 3, {("m1", 30): 3.0})
    return root


@pytest.fixture
def run(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`collectord snapshot ...` on that directory: exit code, output, errors."""
    monkeypatch.chdir(data.parent)

    def call(*argv: str, **environ: str) -> tuple[int, str, str]:
        code = cli.main(["snapshot", *argv], environ or {"COLLECTORD_DATA_DIR": str(data)})
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_teaches_by_example(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["snapshot", action, "--help"], {})
    assert left.value.code == 0
    text = capsys.readouterr().out
    for part in (f"  collectord snapshot {action}", "--data-dir", "--config", "exit codes: 0"):
        assert part in text


def test_help_of_the_command_lists_every_action(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["snapshot", "--help"], {})
    text = capsys.readouterr().out
    for action in ACTIONS:
        assert re.search(rf"^ +{action}\b", text, re.MULTILINE)


def test_taken_listed_verified_restored_deleted(run: Run, data: Path, tmp_path: Path) -> None:
    code, out, err = run("create", "first")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"snapshot first: 1 segment, 1 WAL file, [\d.]+ (B|KiB)\n", out)

    assert "first" in run("list")[1]
    code, out, _ = run("verify", "first")
    assert (code, out.count("all is whole"), out.count("3 samples")) == (0, 1, 1)

    code, out, err = run("restore", "first", "--to", str(tmp_path / "copy"))
    assert (code, err) == (0, "")
    assert f"`collectord --data-dir {tmp_path / 'copy'}`" in out
    assert "before" not in out
    assert counting(tmp_path / "copy") == ALL

    write_wal(data, 9, {("m2", 1): 1.0})
    code, out, _ = run("restore", "first")
    assert code == 0
    assert str(data / "before-restore-1") in out
    assert counting(data) == ALL

    assert run("delete", "first") == (0, "deleted first\n", "")
    assert run("list") == (0, "No snapshots yet. Take one with `collectord snapshot create`.\n", "")


def test_without_a_name_it_is_named_by_the_time(run: Run, data: Path) -> None:
    before = time.gmtime(time.time() - 1)
    code, out, _ = run("create")
    assert code == 0
    (info,) = snapshots(Files(), data)
    assert out.startswith(f"snapshot {info.name}:")
    assert time.strptime(info.name, "%Y-%m-%dT%H-%M-%SZ") >= before


@pytest.mark.parametrize("where", ["before", "after", "environment", "file", "default"])
def test_the_data_directory_is_named_in_any_way(run: Run, data: Path, tmp_path: Path, where: str) -> None:
    config = tmp_path / "collectord.toml"
    config.write_text(f'data_dir = "{data}"\n')
    argv = {
        "before": ["--data-dir", str(data), "create", "a"],
        "after": ["create", "a", "--data-dir", str(data)],
        "environment": ["create", "a"],
        "file": ["create", "a", "--config", str(config)],
        "default": ["create", "a"],
    }[where]
    if where == "default":
        data = data.rename(tmp_path / DATA_DIR)
    environ = {"COLLECTORD_DATA_DIR": str(data)} if where == "environment" else {"COLLECTORD_LOG_LEVEL": "info"}
    assert run(*argv, **environ)[0] == 0
    assert counting(data / "snapshots" / "a") == ALL


def test_the_list_is_for_programs_too(run: Run, data: Path) -> None:
    assert run("list", "--json") == (0, "[]\n", "")
    create(Files(), data, "b", 1_706_696_100_000)
    create(Files(), data, "a", 1_706_696_200_000)
    code, out, _ = run("list", "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows[1] == {
        "name": "b",
        "created": "2024-01-31T10:15:00Z",
        "segments": 1,
        "wal_files": 1,
        "size_bytes": rows[1]["size_bytes"],
        "path": str(data / "snapshots" / "b"),
    }
    assert rows[1]["size_bytes"] == segment_path(data, 2).stat().st_size + wal_path(data, 3).stat().st_size


def test_the_oldest_is_listed_first(data: Path) -> None:
    create(Files(), data, "b", 1_706_696_100_000)
    create(Files(), data, "a", 1_706_696_200_000)
    out = io.StringIO()
    print_snapshots(snapshots(Files(), data), Console(file=out, width=100))
    text = out.getvalue()
    assert text.index("2024-01-31 10:15:00 UTC") < text.index("2024-01-31 10:16:40 UTC")
    assert [line.split()[0] for line in text.splitlines()] == ["name", "b", "a"]


def test_damage_is_named_and_ends_with_1(run: Run, data: Path) -> None:
    run("create", "first")
    assert run("verify")[0] == 0
    flip(segment_path(data, 2), 30)
    code, out, err = run("verify")
    assert code == 1
    assert "1 place is damaged" in out
    for part in ("collectord: damaged: ", str(segment_path(data, 2)), "at byte", "bytes lost"):
        assert part in err
    assert run("verify", "first")[0] == 0  # `flip` wrote a new file


def test_a_torn_tail_is_told_and_no_fault(run: Run, data: Path) -> None:
    with wal_path(data, 3).open("ab") as file:
        file.write(b"half")
    code, out, err = run("verify")
    assert (code, err) == (0, "")
    assert "4 bytes at the end of a WAL file are torn, which is no fault" in out


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["restore", "absent"], ["no such snapshot", "none yet"]),
        (["delete", "absent"], ["no such snapshot"]),
        (["verify", "absent"], ["no such snapshot"]),
        (["create", "--data-dir", "/nowhere/at/all"], ["/nowhere/at/all", "--data-dir"]),
        (["list", "--data-dir", "/nowhere/at/all"], ["/nowhere/at/all", "--data-dir"]),
        (["verify", "--data-dir", "/"], ["holds", "no VERSION"]),
    ],
)
def test_what_failed_ends_with_1_and_the_next_step(run: Run, argv: list[str], parts: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (1, "")
    assert err.startswith("collectord: error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["create", "../up"], ["'../up'", "letters"]),
        (["delete", ".hidden"], ["'.hidden'"]),
        (["create", "a", "--config", "absent.toml"], ["absent.toml"]),
    ],
)
def test_wrong_names_end_with_2(run: Run, argv: list[str], parts: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    for part in parts:
        assert part in err


def test_no_data_directory_at_all_ends_with_2_and_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    for action in (["create"], ["list"], ["verify"], ["restore", "a"], ["delete", "a"]):
        assert cli.main(["snapshot", *action], {"COLLECTORD_DATA_DIR": ""}) == 2
        error = capsys.readouterr().err
        assert "data_dir: got nothing" in error
        assert "--data-dir DIR" in error


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "ACTION"),
        (["take"], "invalid choice: 'take'"),
        (["restore"], "NAME"),
        (["delete"], "NAME"),
        (["create", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_wrong_usage_ends_with_2(argv: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["snapshot", *argv], {})
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert part in error
    assert "--help" in error


def test_under_a_running_daemon_it_names_its_process(run: Run, data: Path) -> None:
    run("create", "first")
    opened = open_data_dir(Files(), data)
    try:
        code, _, err = run("restore", "first")
        assert code == 1
        assert f"process {os.getpid()}" in err
        assert "--to DIR" in err
        assert run("create", "second")[0] == 0
        assert run("verify")[0] == 0
    finally:
        opened.close(clean=False)


def test_on_a_terminal_there_is_a_bar_and_elsewhere_none(run: Run, data: Path) -> None:
    command = [sys.executable, "-m", "collectord", "snapshot", "verify", "--data-dir", str(data)]
    piped = subprocess.run(command, capture_output=True, text=True)
    assert (piped.returncode, piped.stderr) == (0, "")
    ours, theirs = pty.openpty()
    try:
        shown = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=theirs, text=True, env={**os.environ, "TERM": "xterm"}
        )
        os.close(theirs)
        drawn = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
    assert (shown.returncode, shown.stdout) == (0, piped.stdout)
    assert "reading" in drawn
    assert "100%" in drawn


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 20, "3.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 53, "8192.0 TiB"),
    ],
)
def test_sizes_read_well(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text
