"""`python -m bench NAME... [--peers] [--json FILE]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table
from rich_argparse import RichHelpFormatter

from bench import catalogue, machine, report
from bench.harness import Row, Session, progress_bar
from bench.machine import BenchError

FILE_WIDTH = 130  # columns where there is no terminal to ask
BUSY_CORES = 0.1  # in use by others before a bench begins: worth a note
VERSIONS_SHOWN = ("collectord", "numpy", "grpcio", "protobuf")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        prog="python -m bench",
        description="Named benchmarks; each prints median and spread and draws bench/out/NAME.png.",
        formatter_class=RichHelpFormatter,
    )
    out.add_argument("names", nargs="*", metavar="NAME", help="which benches to run, or `all`; see --list")
    out.add_argument("--list", action="store_true", help="say what there is, and end")
    out.add_argument("--peers", action="store_true", help="measure the peers beside, round by round")
    out.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    out.add_argument("--quick", action="store_true", help="small and short: that it runs, not what it says")
    out.add_argument("--agents", type=int, metavar="N", help="connected agents in `fleet` (5,000) and `page` (1,000)")
    return out


def list_benches(console: Console) -> None:
    """The names and a sentence each."""
    table = Table(show_header=False, box=None)
    for bench in catalogue.BENCHES:
        table.add_row(f"[bold cyan]{bench.name}[/]", bench.what)
    console.print(table)


def run_one(name: str, args: argparse.Namespace, console: Console) -> list[Row]:
    """One bench from start to picture."""
    bench = catalogue.by_name(name)
    with progress_bar() as progress:
        session = Session(
            name,
            peers=args.peers,
            quick=args.quick,
            agents=args.agents,
            progress=progress if console.is_terminal else None,
        )
        busy = machine.busy_cores()
        if busy > BUSY_CORES:
            session.note(f"this machine was not idle: {busy:.1f} of its cores were in use when the bench began")
        bench.run(session)
    rows = session.rows()
    about = machine.describe() | {package: version(package) for package in VERSIONS_SHOWN} | session.peer_versions
    if args.quick:
        session.note("--quick: too short for figures; run without it before quoting any")
    report.show(console, rows, about, session.notes)
    console.print(f"  picture {report.picture(rows, about, report.OUT)}", highlight=False)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when a bench failed, 2 for a wrong command line."""
    args = parser().parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    if args.list:
        list_benches(console)
        return 0
    if not args.names:
        parser().error(f"NAME: got none, expected `all` or some of {', '.join(b.name for b in catalogue.BENCHES)}")
    names = [b.name for b in catalogue.BENCHES] if args.names == ["all"] else list(dict.fromkeys(args.names))
    machine.raise_file_limit()
    rows: list[Row] = []
    try:
        for name in names:
            catalogue.by_name(name)
        for name in names:
            rows += run_one(name, args, console)
    except BenchError as error:
        Console(stderr=True).print(f"[red]bench failed[/] {error}", highlight=False)
        return 1
    finally:
        # What was measured before a failure is kept.
        if args.json is not None and rows:
            args.json.write_bytes(orjson.dumps([row.as_json() for row in rows], option=orjson.OPT_INDENT_2) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
