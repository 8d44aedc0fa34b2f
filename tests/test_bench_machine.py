from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.commands import LoadProcess, obey
from bench.fleet import histogram_quantile
from bench.machine import (
    BenchError,
    Child,
    describe,
    directory_bytes,
    metric_sum,
    peak_bytes,
    running,
    wait_idle,
    wait_until,
)

METRICS = """# HELP got samples
# TYPE got counter
got{kind="a"} 3
got{kind="b"} 4.5
got_more 100
alone 7
"""


@pytest.mark.parametrize(
    ("name", "containing", "expected"),
    [("got", "", 7.5), ("got", 'kind="b"', 4.5), ("alone", "", 7.0), ("none", "", 0.0)],
)
def test_a_metric_is_summed_over_its_series_only(name: str, containing: str, expected: float) -> None:
    assert metric_sum(METRICS, name, containing=containing) == expected


def sleeper(tmp_path: Path, code: str = "import time; time.sleep(60)") -> Child:
    return Child([sys.executable, "-c", code], core=0, log=tmp_path / "child.log")


def test_a_child_ends_with_the_block_that_started_it_even_on_an_error(tmp_path: Path) -> None:
    child = sleeper(tmp_path)

    def fail() -> None:
        with running(child):
            assert child.process.poll() is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert child.process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(child.process.pid, 0)


def test_a_child_that_ends_too_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    child = sleeper(tmp_path, "import sys; sys.exit('port in use')")
    with running(child), pytest.raises(BenchError, match="port in use"):
        wait_until(lambda: False, child, timeout_s=20, what="readiness")


def test_a_childs_processor_time_is_counted(tmp_path: Path) -> None:
    child = sleeper(
        tmp_path, "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ntime.sleep(60)"
    )
    with running(child):
        wait_until(lambda: "done" in child.tail(), child, timeout_s=20, what="the end of the loop")
        assert 0.2 < child.usage().cpu_s < 5
        assert child.usage().rss_bytes > 1_000_000


def test_a_load_process_passes_its_errors_on(tmp_path: Path) -> None:
    arguments = ("--port", "1", "--agents", "1", "--series", "1")
    process = LoadProcess("bench.remote_write", *arguments, core=0, log=tmp_path / "load.log")
    with running(process):
        with pytest.raises(BenchError, match="ConnectionRefusedError"):
            process.do("declare")
        with pytest.raises(BenchError, match="expected one of declare, flood, rows, close"):
            process.do("dance")


def test_a_load_process_that_dies_is_reported(tmp_path: Path) -> None:
    process = LoadProcess("bench.remote_write", "--nonsense", core=0, log=tmp_path / "load.log")
    with running(process), pytest.raises(BenchError, match="required"):
        process.do("declare")


async def test_a_command_that_fails_answers_with_the_error() -> None:
    async def fail() -> dict[str, object]:
        raise BenchError("no")

    assert await obey({"fail": fail}, "fail", {}) == {"error": "fail: BenchError: no"}


def test_the_machine_is_described() -> None:
    assert {"cpu", "cores", "memory", "python"} <= set(describe())


def histogram(*counts: int) -> str:
    bounds = ("0.1", "0.2", "+Inf")
    return "\n".join(f'h_bucket{{le="{b}"}} {c}' for b, c in zip(bounds, counts, strict=True))


@pytest.mark.parametrize(
    ("counts", "q", "expected"),
    [((10, 10, 10), 0.5, 0.05), ((0, 10, 10), 0.5, 0.15), ((5, 10, 10), 0.75, 0.15), ((0, 0, 10), 0.5, 0.2)],
    ids=["first bucket", "second bucket", "both", "beyond the last bound"],
)
def test_a_quantile_is_read_from_a_histogram(counts: tuple[int, ...], q: float, expected: float) -> None:
    assert histogram_quantile(histogram(*counts), "h", q) == pytest.approx(expected)


def test_what_was_counted_before_is_left_out() -> None:
    before, after = histogram(0, 10, 10), histogram(5, 20, 20)
    assert histogram_quantile(after, "h", 0.5, before=before) == histogram_quantile(histogram(5, 10, 10), "h", 0.5)


@pytest.mark.parametrize(("text", "reason"), [(histogram(0, 0, 0), "empty"), ("", "no such metric")])
def test_a_histogram_without_observations_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(BenchError, match=reason):
        histogram_quantile(text, "h", 0.5)


BUSY = "import time\nwhile time.process_time() < {busy_s}: pass\ntime.sleep(60)"


def test_idle_is_waited_for(tmp_path: Path) -> None:
    with running(sleeper(tmp_path, BUSY.format(busy_s=1.2))) as child:
        wait_idle(child, timeout_s=30)
        assert child.usage().cpu_s >= 1.1


def test_a_child_that_does_not_come_to_rest_is_an_error(tmp_path: Path) -> None:
    with (
        running(sleeper(tmp_path, BUSY.format(busy_s=60))) as child,
        pytest.raises(BenchError, match=r"of a core after 0.1 s, expected it idle"),
    ):
        wait_idle(child, timeout_s=0.1)


def test_the_peak_of_memory_outlives_its_use(tmp_path: Path) -> None:
    code = "import time; x = bytearray(100 << 20); x[::4096] = bytes(len(x[::4096])); del x; print('freed', flush=True); time.sleep(60)"
    with running(sleeper(tmp_path, code)) as child:
        wait_until(lambda: "freed" in child.tail(), child, timeout_s=20, what="the end of the allocation")
        assert peak_bytes(child) > 100 << 20 > child.usage().rss_bytes


def test_a_killed_child_has_no_time_for_a_goodbye(tmp_path: Path) -> None:
    code = "import atexit, time; atexit.register(print, 'goodbye'); print('here', flush=True); time.sleep(60)"
    with running(sleeper(tmp_path, code)) as child:
        wait_until(lambda: "here" in child.tail(), child, timeout_s=20, what="its first word")
        child.kill()
        assert child.process.returncode == -9
        assert "goodbye" not in child.tail()


def test_a_directorys_bytes_are_those_of_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(bytes(5))
    (tmp_path / "two").write_bytes(bytes(7000))
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert directory_bytes(tmp_path) == 7005
