"""The house keeps its shape: who may import whom, what lies where, and nothing that belongs to one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {
    ".ci", ".gitignore", "LICENSE", "Makefile", "README.md", "agent_stub", "bench", "collectord", "deploy", "proto",
    "pyproject.toml", "storage", "tests", "web",
}  # fmt: skip
LONGEST_FILE = 500
LONGEST_FUNCTION = 60


def tracked() -> list[Path]:
    """The files that belong to the project: in the index, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).exists()]


def sources(package: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        if "node_modules" not in path.parts and not path.name.endswith("_pb2.py"):
            yield path, ast.parse(path.read_text(), str(path))


def imported(tree: ast.Module) -> Iterator[str]:
    """The first part of every imported module, wherever in the file the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_the_top_level_holds_the_rooms_and_nothing_else() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert found - TOP_LEVEL == set()
    assert {"README.md", "LICENSE", "Makefile", "pyproject.toml"} <= found


def test_arrows_between_the_rooms_point_down() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 kept, 0 broken" in ended.stdout


@pytest.mark.parametrize(
    ("package", "strangers"),
    [
        ("storage", {"grpc", "aiohttp", "uvloop", "google", "agent_stub", "collectord", "web", "bench", "tests"}),
        ("agent_stub", {"numpy", "aiohttp", "uvloop", "storage", "collectord", "web", "bench", "tests"}),
        ("web", {"grpc", "uvloop", "collectord", "bench", "tests"}),
        ("collectord", {"bench", "tests"}),
        ("bench", {"tests"}),
    ],
)
def test_a_room_does_not_know_strangers(package: str, strangers: set[str]) -> None:
    seen = {(path.name, module) for path, tree in sources(package) for module in imported(tree)}
    assert seen, f"no source in {package}"
    assert {pair for pair in seen if pair[1] in strangers} == set()


def test_importing_the_stub_loads_nothing_heavy() -> None:
    code = "import sys, agent_stub; print(*sorted({'numpy', 'aiohttp', 'uvloop', 'storage'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []


def test_storage_reads_no_clock() -> None:
    """Time comes in as an argument."""
    clocks = {"time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "now", "utcnow", "today"}
    for path, tree in sources("storage"):
        assert "time" not in set(imported(tree)), path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in clocks:
                owner = node.func.value
                assert not (isinstance(owner, ast.Name) and owner.id in {"time", "datetime", "date"}), (
                    path,
                    node.lineno,
                )


def test_files_and_functions_stay_small() -> None:
    too_long = []
    for package in ("agent_stub", "storage", "web", "collectord", "bench"):
        for path, tree in sources(package):
            lines = len(path.read_text().splitlines())
            if lines > LONGEST_FILE:
                too_long.append(f"{path.relative_to(ROOT)}: {lines} lines, expected at most {LONGEST_FILE}")
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or 0) - node.lineno + 1
                    if length > LONGEST_FUNCTION:
                        too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert too_long == []


def foreign_text() -> re.Pattern[str]:
    """Hosts of package registries, and the folders that this checkout happens to lie in and beside."""
    registries = ["pypi" + ".org", "python" + "hosted.org", "npmjs" + ".org", "npmjs" + ".com", "deb" + ".debian.org"]
    return re.compile("|".join(re.escape(text) for text in [*registries, str(ROOT), str(ROOT.parent / "shared")]))


def test_no_file_names_a_registry_or_a_place_on_one_machine() -> None:
    wanted = foreign_text()
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{path.relative_to(ROOT)}: {hit}" for hit in sorted(set(wanted.findall(text)))]
    assert found == []


def test_no_test_is_skipped_by_a_mark() -> None:
    marks = re.compile(r"pytest\.(mark\.skip|skip\(|importorskip)")
    found = [p.name for p in (ROOT / "tests").glob("test_*.py") if p != Path(__file__) and marks.search(p.read_text())]
    assert found == []


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = tmp_path / "collectord.service"
    command = Path(sys.executable).with_name("collectord")
    text = (ROOT / "deploy/collectord.service").read_text()
    assert "/opt/collectord/bin/collectord" in text
    unit.write_text(text.replace("/opt/collectord/bin/collectord", str(command)))
    ended = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
