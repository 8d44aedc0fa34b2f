"""Segments are made in another process, which does not outlive the daemon and may go away at any moment."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from collectord import keeping, maker_process
from collectord.keeping import Keeping
from collectord.maker_process import MakerProcess
from storage.files import Files, LockedError
from storage.format import CorruptError
from storage.making import Flush, MakerLostError, Merge
from storage.matchers import Matcher
from storage.recovery import open_data_dir
from storage.settings import DAY_MS, StoreSettings
from storage.store import Store
from storage.types import Meta, Shape, labels_of

NOW_MS = 1_700_000_000_000
ROWS = 50
LONG_S = 20.0


@dataclass
class House:
    """A store whose segments are made elsewhere."""

    store: Store
    maker: MakerProcess

    def write(self, start_ms: int = NOW_MS) -> None:
        """Rows, in a closed WAL file."""
        store = self.store
        names = [(Shape(f"m{i}", ()), Meta("gauge", "", "", "")) for i in range(20)]
        plan = store.head.plan(store.head.declare(labels_of({"instance": "a"}), names, 100), recurring=True)
        for row in range(ROWS):
            store.append(plan, start_ms + 1000 * row, np.arange(20) + float(row))
        store.commit(NOW_MS)
        assert store.wal is not None
        store.wal.roll_wanted = True
        store.commit(NOW_MS)

    def step(self) -> bool:
        assert self.store.keeper is not None
        worked = self.store.keeper.step(NOW_MS)
        self.store.settle(NOW_MS)
        return worked

    def in_segments(self) -> int:
        assert self.store.segments is not None
        return sum(segment.info.samples for segment in self.store.segments.all("raw"))

    def flush(self) -> Flush:
        """The task that the keeper would give now."""
        assert self.store.wal is not None
        assert self.store.segments is not None
        numbers = self.store.segments.next_numbers(10)
        return Flush(tuple(self.store.wal.closed), numbers, NOW_MS, NOW_MS - DAY_MS, DAY_MS)

    def pid(self) -> int:
        pid = self.maker.pid
        assert pid is not None
        return pid

    def killed_at_work(self, work: Callable[[], object]) -> BaseException | None:
        """What `work` raises when the process is killed while it is under way."""
        raised: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:  # told to the test
                raised.append(error)

        os.kill(self.pid(), signal.SIGSTOP)
        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(0.05)
        assert thread.is_alive()
        os.kill(self.pid(), signal.SIGKILL)
        thread.join(LONG_S)
        return raised[0] if raised else None


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    store = Store.open(tmp_path / "data", StoreSettings())
    assert store.keeper is not None
    assert store.segments is not None
    maker = MakerProcess(store.segments.directory, store.lock)
    store.keeper.make = maker.make
    yield House(store, maker)
    maker.stop()
    store.close()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_flush_and_a_merge_are_done_elsewhere(house: House) -> None:
    for i in range(8):
        house.write(NOW_MS + 100_000 * i)
        assert house.step()
    assert house.pid() != os.getpid()
    assert house.in_segments() == 8 * ROWS * 20
    assert house.step()
    assert house.store.segments is not None
    assert len(house.store.segments.all("raw")) == 1
    found = house.store.read([Matcher("__name__", "=", "m3")], NOW_MS, NOW_MS + DAY_MS)
    assert found.values.tolist() == [3.0 + row for _ in range(8) for row in range(ROWS)]


def test_its_errors_are_raised_here(house: House, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        house.maker.make(Merge("raw", (tmp_path / "none.seg",), range(1, 2), 0))
    assert missing.value.errno == errno.ENOENT
    (tmp_path / "bad.seg").write_bytes(b"no segment at all" * 10)
    with pytest.raises(CorruptError) as corrupt:
        house.maker.make(Merge("raw", (tmp_path / "bad.seg",), range(1, 2), 0))
    assert corrupt.value.path == tmp_path / "bad.seg"
    assert "in the process that makes segments" in corrupt.value.__notes__[0]
    house.write()
    assert house.step()


def test_a_process_that_is_killed_at_work_is_replaced_and_its_work_done_again(house: House) -> None:
    house.write()
    assert house.step()
    house.write(NOW_MS + 100_000)
    error = house.killed_at_work(lambda: house.maker.make(house.flush()))
    assert isinstance(error, MakerLostError)
    assert "ended with status -9" in str(error)
    assert house.maker.pid is None
    assert house.step()
    assert house.in_segments() == 2 * ROWS * 20


def test_a_daemon_that_stops_ends_what_is_at_work(house: House) -> None:
    house.write()
    assert house.step()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            house.maker.make(house.flush())
        except BaseException as error:  # told to the test
            raised.append(error)

    os.kill(house.pid(), signal.SIGSTOP)
    house.write(NOW_MS + 100_000)
    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.05)
    house.maker.stop()
    thread.join(LONG_S)
    assert [type(error) for error in raised] == [MakerLostError]
    with pytest.raises(MakerLostError, match="about to end"):
        house.maker.make(house.flush())


def test_what_a_killed_process_has_left_is_removed(house: House) -> None:
    house.write()
    assert house.step()
    assert house.store.segments is not None
    assert house.store.keeper is not None
    house.write(NOW_MS + 100_000)
    directory = house.store.segments.directory
    number = house.store.segments.next_number()
    made_before = set(directory.iterdir())

    def fail() -> None:
        for left in (f"{number + 1:016d}.seg.tmp", f"{number + 2:016d}.seg"):
            (directory / left).write_bytes(b"half of a segment")
        assert not house.step()

    assert house.killed_at_work(fail) is None
    assert set(directory.iterdir()) == made_before
    assert house.store.keeper.counts["makers_lost"] == 1
    assert house.step()
    assert house.in_segments() == 2 * ROWS * 20


OWNER = """
import sys, time
from pathlib import Path
from collectord.maker_process import MakerProcess
from storage.recovery import open_data_dir
from storage.files import Files
data = open_data_dir(Files(), Path(sys.argv[1]))
maker = MakerProcess(Path(sys.argv[1]) / "segments", data.lock.fileno())
maker._running()
print(maker.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("asleep", [False, True])
def test_it_ends_with_the_daemon_however_that_ends(tmp_path: Path, asleep: bool) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "data")], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        score = Path(f"/proc/{pid}/oom_score_adj")
        until(lambda: score.read_text().strip() == str(maker_process.OOM_SCORE))  # from here on it is at work
        assert psutil.Process(pid).nice() == maker_process.NICENESS
        if asleep:
            os.kill(pid, signal.SIGSTOP)
    finally:
        owner.kill()
        owner.wait()
        if owner.stdout is not None:
            owner.stdout.close()
    until(lambda: not psutil.pid_exists(pid))
    open_data_dir(Files(), tmp_path / "data").close(clean=True)


def test_while_it_runs_no_other_daemon_begins(house: House, tmp_path: Path) -> None:
    house.write()
    assert house.step()
    assert house.store._data is not None
    house.store._data.lock.close()  # as the kernel does for a daemon that is killed
    with pytest.raises(LockedError):
        Files().lock(tmp_path / "data" / "LOCK")
    house.maker.end()
    Files().lock(tmp_path / "data" / "LOCK").close()


def test_what_a_killed_daemon_left_running_is_waited_for(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    data = open_data_dir(Files(), tmp_path / "data")
    (tmp_path / "data" / "LOCK").write_text(f"{gone.pid}\n")
    threading.Timer(0.3, data.lock.close).start()
    begin = time.monotonic()
    open_data_dir(Files(), tmp_path / "data").close(clean=True)
    assert time.monotonic() - begin >= 0.2


async def test_after_a_while_without_work_there_is_no_process(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "REST_S", 0.01)
    monkeypatch.setattr(keeping, "IDLE_S", 0.2)
    house.write()
    made = Keeping(house.store, lambda: NOW_MS)
    made.start()
    assert made.process is not None
    until(lambda: made.process and made.process.pid)
    until(lambda: made.process and made.process.pid is None)
    assert house.in_segments() == ROWS * 20
    await made.stop()


async def test_a_daemon_that_stops_does_not_wait_for_ever(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "REST_S", 0.01)
    monkeypatch.setattr(keeping, "STOP_S", 0.2)
    made = Keeping(house.store, lambda: NOW_MS)
    made.start()
    assert made.process is not None
    pid = made.process._running().pid
    os.kill(pid, signal.SIGSTOP)
    house.write()
    time.sleep(0.1)  # the task is in the pipe
    await made.stop()
    assert not psutil.pid_exists(pid)
    assert house.in_segments() == 0
