"""`collectord snapshot`: take, list, verify, restore and delete snapshots; works on files, with or without a daemon."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from collectord.config import DATA_DIR, ConfigError

if TYPE_CHECKING:
    from storage.snapshot import SnapshotInfo

SUMMARY = "Take, list, verify, restore and delete snapshots of a data directory."

EXAMPLES = """examples:
  collectord snapshot create --data-dir /var/lib/collectord
  collectord snapshot create before-upgrade --config /etc/collectord.toml
  collectord snapshot list --json
  collectord snapshot verify before-upgrade
  collectord snapshot restore before-upgrade --to /srv/copy
  collectord snapshot ACTION --help        each with its own examples

Run it as the daemon's user. Snapshots are hard links in the data directory: quick, and without a second copy of anything.
exit codes: 0 done, 1 failed or damaged, 2 wrong usage or configuration"""

_CREATE = """examples:
  collectord snapshot create               named by the time, in UTC
  collectord snapshot create before-upgrade --data-dir /var/lib/collectord

The daemon may run, and need not know: everything that it acknowledged before is in the snapshot.
exit codes: 0 done, 1 failed, 2 wrong usage or configuration"""

_LIST = """examples:
  collectord snapshot list
  collectord snapshot list --json | jq -r '.[].name'

exit codes: 0 printed, 1 no data directory, 2 wrong usage or configuration"""

_VERIFY = """examples:
  collectord snapshot verify before-upgrade
  collectord snapshot verify               the data directory itself; the daemon may run

Reads every block of every segment and every frame of the write-ahead log.
exit codes: 0 all is whole, 1 damaged (each place is named) or not readable, 2 wrong usage or configuration"""

_RESTORE = """examples:
  collectord snapshot restore before-upgrade --to /srv/copy
  collectord snapshot restore before-upgrade     in place; stop the daemon first

In place, what was there is moved into before-restore-<n> beside it: a data directory as it was, never deleted.
exit codes: 0 done, 1 failed (all is as it was), 2 wrong usage or configuration"""

_DELETE = """examples:
  collectord snapshot delete before-upgrade

Frees what neither the daemon nor another snapshot has.
exit codes: 0 done, 1 failed, 2 wrong usage or configuration"""


def add_actions(command: argparse.ArgumentParser) -> None:
    """What follows `collectord snapshot`. Options that all have may stand before or after the action."""
    folder = f"folder of what is kept on disk ({DATA_DIR})"
    command.add_argument("--data-dir", metavar="DIR", help=folder)
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, help: str, epilog: str) -> argparse.ArgumentParser:
        action = actions.add_parser(
            name, help=help, description=help, epilog=epilog, formatter_class=command.formatter_class
        )
        # No default of their own: it would undo what stands before the action.
        action.add_argument("--config", metavar="FILE", help="settings in TOML", default=argparse.SUPPRESS)
        action.add_argument("--data-dir", metavar="DIR", help=folder, default=argparse.SUPPRESS)
        return action

    create = add("create", "Keep what is on disk now under a name.", _CREATE)
    create.add_argument("name", metavar="NAME", nargs="?", help="letters, digits, dots, dashes (the time in UTC)")
    shown = add("list", "List the snapshots.", _LIST)
    shown.add_argument("--json", action="store_true", help="for programs")
    verify = add("verify", "Read all of a snapshot, or of the data directory, and name what is damaged.", _VERIFY)
    verify.add_argument("name", metavar="NAME", nargs="?", help="a snapshot's (the data directory itself)")
    restore = add("restore", "Make a snapshot's content a data directory again.", _RESTORE)
    restore.add_argument("name", metavar="NAME", help="a snapshot's")
    restore.add_argument("--to", metavar="DIR", type=Path, help="an empty or new folder (the data directory itself)")
    delete = add("delete", "Delete a snapshot.", _DELETE)
    delete.add_argument("name", metavar="NAME", help="a snapshot's")


def run(args: argparse.Namespace, data_dir: str) -> int:
    """Carries out one action; returns the exit code. Raises ConfigError and, where it failed, StorageError."""
    # Imported here: it brings numpy, which --help should not wait for.
    from storage.snapshot import BadNameError  # noqa: PLC0415

    if not data_dir:
        raise ConfigError(
            "data_dir: got nothing, expected the daemon's data directory; name it with --data-dir DIR, or with --config FILE"
        )
    actions = {"create": _create, "list": _list, "verify": _verify, "restore": _restore, "delete": _delete}
    try:
        return actions[args.action](args, Path(data_dir))
    except BadNameError as error:
        raise ConfigError(str(error)) from error


def _create(args: argparse.Namespace, data_dir: Path) -> int:
    from storage import snapshot  # noqa: PLC0415 - as above, and below
    from storage.files import Files  # noqa: PLC0415

    now_ms = time.time_ns() // 1_000_000
    with _bar("linking") as progress:
        made = snapshot.create(Files(), data_dir, args.name or snapshot.default_name(now_ms), now_ms, progress)
    print(f"snapshot {made.name}: {_counted(made.segments, made.wal_files)}, {size(made.size_bytes)}")
    return 0


def _list(args: argparse.Namespace, data_dir: Path) -> int:
    from storage import snapshot  # noqa: PLC0415
    from storage.files import Files  # noqa: PLC0415

    found = snapshot.snapshots(Files(), data_dir)
    if args.json:
        print(json.dumps([_row(info) for info in found], indent=2))
    else:
        print_snapshots(found, Console())
    return 0


def _row(info: SnapshotInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "created": _when(info.created_ms),
        "segments": info.segments,
        "wal_files": info.wal_files,
        "size_bytes": info.size_bytes,
        "path": str(info.path),
    }


def print_snapshots(found: list[SnapshotInfo], console: Console) -> None:
    """One line a snapshot, the oldest first."""
    if not found:
        console.print("No snapshots yet. Take one with `collectord snapshot create`.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", overflow="fold")
    table.add_column("created")
    for column in ("segments", "WAL files", "size"):
        table.add_column(column, justify="right")
    for info in sorted(found, key=lambda info: (info.created_ms or 0, info.name)):
        when = (_when(info.created_ms) or "").replace("T", " ").replace("Z", " UTC")
        table.add_row(info.name, when, f"{info.segments:,}", f"{info.wal_files:,}", size(info.size_bytes))
    console.print(table)


def _verify(args: argparse.Namespace, data_dir: Path) -> int:
    from storage import snapshot  # noqa: PLC0415
    from storage.files import Files  # noqa: PLC0415

    files = Files()
    root = data_dir if args.name is None else snapshot.path_of(files, data_dir, args.name)
    with _bar("reading") as progress:
        found = snapshot.verify(files, root, progress)
    for error in found.damaged:
        print(f"collectord: damaged: {error}", file=sys.stderr)
    if found.lost_samples:
        print(f"collectord: damaged: {found.lost_samples:,} samples of the write-ahead log are lost", file=sys.stderr)
    torn = (
        f"; {found.torn_bytes:,} bytes at the end of a WAL file are torn, which is no fault" if found.torn_bytes else ""
    )
    places = len(found.damaged)
    ending = f"{places} place{'s are' if places > 1 else ' is'} damaged" if places else "all is whole"
    counts = f"{_counted(found.segments, found.wal_files)}, {found.samples:,} samples, {size(found.size_bytes)}"
    print(f"{root}: {counts}: {ending}{torn}")
    return 1 if places else 0


def _restore(args: argparse.Namespace, data_dir: Path) -> int:
    from storage import snapshot  # noqa: PLC0415
    from storage.files import Files  # noqa: PLC0415

    with _bar("restoring") as progress:
        before = snapshot.restore(Files(), data_dir, args.name, args.to, progress)
    print(f"restored {args.name} into {args.to or data_dir}; start with `collectord --data-dir {args.to or data_dir}`")
    if before is not None:
        print(f"what was there before lies in {before}; delete it when nothing of it is missed")
    return 0


def _delete(args: argparse.Namespace, data_dir: Path) -> int:
    from storage import snapshot  # noqa: PLC0415
    from storage.files import Files  # noqa: PLC0415

    snapshot.delete(Files(), data_dir, args.name)
    print(f"deleted {args.name}")
    return 0


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, and nothing elsewhere."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, whole: bar.update(task, completed=done, total=whole)


def _counted(segments: int, wal_files: int) -> str:
    return f"{segments:,} segment{'s' * (segments != 1)}, {wal_files:,} WAL file{'s' * (wal_files != 1)}"


def _when(time_ms: int | None) -> str | None:
    if time_ms is None:
        return None
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(size_bytes: int) -> str:
    """For people: "512 B", "3.4 KiB", "12.0 GiB"."""
    scaled, units = float(size_bytes), ["KiB", "MiB", "GiB", "TiB"]
    if scaled < 1024:
        return f"{size_bytes} B"
    while scaled >= 1024 and units:
        scaled, unit = scaled / 1024, units.pop(0)
    return f"{scaled:.1f} {unit}"
