"""The command line: what each command takes, and what it says when something is wrong.

Exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NoReturn

import structlog
from rich.console import Console
from rich_argparse import RawDescriptionRichHelpFormatter

from collectord import config_file, query_command, snapshot_command
from collectord.config import DATA_DIR, Config, ConfigError, parse_address
from collectord.fleet_table import ApiError, fetch_agents, print_agents

COMMANDS = ("serve", "demo", "check-config", "agents", "query", "snapshot")
EXIT_FAILED, EXIT_USAGE = 1, 2
CONFIG_ENV = "COLLECTORD_CONFIG"
MOST_DEMO_AGENTS = 500

_DESCRIPTION = """The monitor for AI agents: one daemon, live page included.

Agents link `agent_stub` and stream to the gRPC address; people open the HTTP address."""

_EXAMPLES = """examples:
  collectord                               serve on 127.0.0.1:4317 (agents) and 127.0.0.1:4318 (page)
  collectord demo                          a fleet of real agents to look at
  collectord --config collectord.toml      the same with settings from a file
  collectord COMMAND --help                each command with its own examples

exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration"""

_SERVE = """examples:
  collectord serve --http 127.0.0.1:8080
  collectord serve --config /etc/collectord.toml
  COLLECTORD_HEALTH_OFFLINE_AFTER_S=60 collectord serve

SIGTERM or Ctrl-C drains the agents and stops; a second one leaves at once.
exit codes: 0 stopped, 1 could not start (a port in use ...), 2 wrong usage or configuration"""

_DEMO = """examples:
  collectord demo                          8 agents, until Ctrl-C
  collectord demo --agents 50 --duration 120
  collectord demo --grpc 127.0.0.1:0 --http 127.0.0.1:0      on free ports

The agents are real processes that parse, hash, search and compress; only their model is a stand-in.
exit codes: 0 ended, 1 could not start, 2 wrong usage or configuration"""

_CHECK = """examples:
  collectord check-config                  all settings, each with its value, its origin and its meaning
  collectord check-config --config collectord.toml
  collectord check-config > collectord.toml          a file to start from

exit codes: 0 usable, 2 not (the text says which key, and what to do)"""

_AGENTS = """examples:
  collectord agents
  collectord agents --http 127.0.0.1:8080 --json | jq '.[] | select(.state != "live")'

exit codes: 0 printed, 1 no daemon answers, 2 wrong usage or configuration"""


def version() -> str:
    return importlib.metadata.version("collectord")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}; see `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(
        prog="collectord", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=RawDescriptionRichHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"collectord {version()}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, help: str, epilog: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=help, description=help, epilog=epilog, formatter_class=RawDescriptionRichHelpFormatter
        )
        command.add_argument("--config", metavar="FILE", help=f"settings in TOML (or {CONFIG_ENV})")
        return command

    serve = add("serve", "Run the daemon; this is what `collectord` alone does.", _SERVE)
    demo = add("demo", "Run the daemon with a fleet of real agents to look at.", _DEMO)
    check = add("check-config", "Print the effective configuration, and where each value comes from.", _CHECK)
    for command in (serve, demo, check):
        command.add_argument("--data-dir", metavar="DIR", help=f"folder of what is kept on disk ({DATA_DIR})")
        command.add_argument("--grpc", metavar="HOST:PORT", help="address of the agents' stream (127.0.0.1:4317)")
        command.add_argument("--http", metavar="HOST:PORT", help="address of page and APIs (127.0.0.1:4318)")
    demo.add_argument("--agents", metavar="N", type=_agents, default=8, help="agent processes, 1 to 500 (8)")
    demo.add_argument("--duration", metavar="SECONDS", type=_seconds, default=0.0, help="0: until interrupted (0)")
    agents = add("agents", "List the agents that a running daemon knows.", _AGENTS)
    agents.add_argument("--http", dest="daemon", metavar="HOST:PORT", help="the daemon's HTTP address (127.0.0.1:4318)")
    agents.add_argument("--json", action="store_true", help="as the API gave it, for programs")
    query_command.add_options(add("query", query_command.SUMMARY, query_command.EXAMPLES))
    snapshot_command.add_actions(add("snapshot", snapshot_command.SUMMARY, snapshot_command.EXAMPLES))
    return top


def _agents(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_DEMO_AGENTS:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 to {MOST_DEMO_AGENTS}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected seconds, 0 or more")
    return seconds


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Runs one command; returns the exit code. Options without a command belong to `serve`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    environ = os.environ if environ is None else environ
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        argv.insert(0, "serve")
    args = parser().parse_args(argv)
    try:
        loaded = config_file.load_with_origins(
            args.config or environ.get(CONFIG_ENV) or None, environ, _overrides(args), {"data_dir": DATA_DIR}
        )
        return _run(loaded, args)
    except ConfigError as error:
        return _fail(error, EXIT_USAGE)
    except ApiError as error:
        return _fail(error, EXIT_USAGE if getattr(error, "is_usage", False) else EXIT_FAILED)
    except BrokenPipeError:  # `collectord agents | head`: what was asked for was printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


def _run(loaded: config_file.Loaded, args: argparse.Namespace) -> int:
    match args.command:
        case "check-config":
            print(config_file.to_toml(loaded), end="")
        case "agents":
            _list_agents(args.daemon or loaded.config.http.listen, args.json)
        case "query":
            query_command.run(args, _url(args.url, loaded.config), Console())
        case "snapshot":
            return _run_snapshot(loaded.config, args)
        case _:
            if args.command == "demo" and loaded.origins["data_dir"] == config_file.DEFAULT:
                with tempfile.TemporaryDirectory(prefix="collectord-demo-") as folder:
                    return _run_daemon(dataclasses.replace(loaded.config, data_dir=folder), args)
            return _run_daemon(loaded.config, args)
    return 0


def _overrides(args: argparse.Namespace) -> dict[str, object]:
    options = {"data_dir": "data_dir", "grpc": "grpc.listen", "http": "http.listen"}
    return {key: getattr(args, name) for name, key in options.items() if getattr(args, name, None) is not None}


def _fail(error: Exception, code: int) -> int:
    print(f"collectord: error: {error}", file=sys.stderr)
    return code


def _list_agents(address: str, as_json: bool) -> None:
    try:
        body, rows = fetch_agents(str(parse_address(address).reachable))
    except ValueError as error:
        raise ConfigError(f"--http: {error}, such as 127.0.0.1:4318; correct it") from error
    if as_json:
        print(body)
    else:
        print_agents(rows, Console())


def _url(given: str | None, config: Config) -> str:
    """Where the daemon is asked."""
    if given is not None and given.startswith(("http://", "https://")):
        return given
    try:
        return f"http://{parse_address(given or config.http.listen).reachable}"
    except ValueError as error:
        raise ConfigError(f"--url: {error}, such as http://127.0.0.1:4318; correct it") from error


def _run_snapshot(config: Config, args: argparse.Namespace) -> int:
    from storage.format import StorageError  # noqa: PLC0415 - as below

    try:
        return snapshot_command.run(args, config.data_dir)
    except StorageError as error:
        return _fail(error, EXIT_FAILED)


def _run_daemon(config: Config, args: argparse.Namespace) -> int:
    # It starts programs and never goes on in a forked copy of itself, which is what gRPC's fork handlers are for: with
    # many threads about they could not run anyway, and would say so at every start of a process.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    # Imported here: they bring grpc, numpy and aiohttp, which neither --help nor `agents` should wait for.
    from collectord import daemon, supervisor  # noqa: PLC0415
    from collectord.demo.show import show  # noqa: PLC0415

    supervisor.set_up_logs(config.log)
    supervisor.raise_file_limit()
    try:
        if args.command == "demo":
            supervisor.run(show(config, args.agents, args.duration, lambda text: print(text, flush=True)))
        else:
            supervisor.run(_serve(config))
    except daemon.StartError as error:
        return _fail(error, EXIT_FAILED)
    return 0


async def _serve(config: Config) -> None:
    from collectord import daemon, supervisor  # noqa: PLC0415 - as above

    stop = asyncio.Event()
    async with supervisor.supervised(stop, supervisor.Notifier.from_environ(os.environ, os.getpid())) as ready:

        def on_ready(grpc: str, http: str) -> None:
            page = f"http://{parse_address(http).reachable}/"
            structlog.get_logger().info("serving", page=page, grpc=grpc, http=http, version=version())
            ready(f"page {page}, agents {grpc}")

        await daemon.run(config, stop=stop, on_ready=on_ready)
